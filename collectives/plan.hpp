// collectives/plan.hpp: which trees carry an operation over a topology, how fast, and a proof of how fast it could be.
//
// So far: broadcast, by the one tree that carries most. A reduce is the same tree of the reversed topology.
// The bound is exact for every topology; one tree reaches it where links are switched and often does not where hosts
// have several links (DGX-1V: 2 of 6), for which a packing of several trees is needed.
// Sources: Edmonds 1973 (bound); Blink, MLSys 2020 (trees instead of rings).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "collectives/error.hpp"
#include "collectives/topology.hpp"
#include "collectives/tree.hpp"

namespace coppice::collectives {

enum class Operation : std::uint8_t { broadcast, reduce, allreduce, allgather, reduce_scatter, gather, scatter };

std::string_view name(Operation operation);
std::optional<Operation> operation_of(std::string_view word);

// A set of nodes without the root; broadcast: the bound is the capacity that enters it.
struct Cut {
  std::vector<int> nodes;  // ascending indices into Topology::nodes
  bool operator==(const Cut&) const = default;
};

// What lets anyone derive the bound again. Other operations add their kinds.
using Certificate = std::variant<Cut>;

struct Plan {
  std::string topology;  // its name
  Operation operation = Operation::broadcast;
  std::string unit;  // of every rate
  // Bytes of the whole buffer per unit of time, as capacities count them; the trees' rates add up to it.
  Rational rate;
  Rational bound;  // no schedule exceeds it
  Certificate certificate;
  std::vector<Tree> trees;
  // The hosts that hold the data in the end, the root among them; ascending. The bound and its certificate are of the
  // topology without the other hosts.
  std::vector<int> participants;

  bool optimal() const { return rate == bound; }
  bool operator==(const Plan&) const = default;
};

struct PlanOptions {
  // Only these hosts need the data, and only they and switches pass it on. Nothing: every host. Must name the root.
  std::optional<std::vector<int>> participants;
  // The buffer. With latency_s, and a unit that unit_bytes_per_s knows, the tree that is predicted to be done first is
  // chosen: flatter for small buffers. 0, or no latency: the one of the highest rate, flattest among equals.
  double bytes = 0;
  double latency_s = 0;  // of one chunk on one hop
};

// Data goes from the root to every participant over one tree that spans them. A lone root: no edges, rate and bound 0.
// Errors: those of validate, unknown_node (a participant is no host), bad_root, disconnected.
// Cost: at most one maximum flow a host, and some hundreds of greedy searches: well below a millisecond for 8 hosts,
// seconds for 4,000 behind switches; meshes of thousands of hosts with hundreds of direct links each take minutes.
Expected<Plan> plan_broadcast(const Topology& topology, int root, const PlanOptions& options = {});

// In the words of `coppice plan --json`. seconds: how long planning took, as its caller measured. A plan that leaves
// out hosts names its "participants". REQUIRES: the plan is of this topology.
nlohmann::json to_json(const Plan& plan, const Topology& topology, double seconds);

}  // namespace coppice::collectives
