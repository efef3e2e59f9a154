// collectives/situation.hpp: what is to be planned, checked and in the form that planners compute on. Private.
#pragma once

#include <optional>
#include <vector>

#include "collectives/network.hpp"
#include "collectives/planner.hpp"

namespace coppice::collectives {

struct Situation {
  const Topology& topology;
  Operation operation;
  int root = -1;           // of operations that have one
  std::vector<int> hosts;  // that take part; ascending
  // Arcs run as data runs away from the root: for reduce, gather and reduce_scatter against the topology's own.
  Network network;

  int nodes() const { return network.nodes(); }
  bool turned() const;  // the network runs against the topology
  bool lone() const { return hosts.size() == 1; }
};

// Errors: unknown_node (who takes part is no host), bad_root.
Expected<std::vector<int>> participants_of(const Topology& topology, std::optional<int> root,
                                           const std::optional<std::vector<int>>& participants);

// Errors: those of make_plan but not_planned.
Expected<Situation> situation_of(const Topology& topology, const PlanRequest& request);

bool is_rooted(Operation operation);

Network reversed(const Network& network);

// The same arcs with capacities that are whole multiples of 1/grain, none larger than before.
Network in_grains(const Network& network, int grain);

// A plan of no trees yet for the situation.
Plan empty_plan(const Situation& situation);

// The one tree that carries most, as plan_broadcast finds it; bound in the network's units.
Tree widest_tree(const Network& network, int root, const std::vector<int>& participants, const mpz_class& bound);

}  // namespace coppice::collectives
