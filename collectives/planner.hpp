// collectives/planner.hpp: plans of every operation: the proven optimum, and what others would do instead.
//
// exact: broadcast and reduce by Edmonds' packing; scatter and gather by paths; allgather and reduce_scatter by
// packings from every root; allreduce directly: on symmetric direct links by undirected packing up to the partition
// bound, elsewhere by a linear program solved in fractions. Where nothing proves the rate (switched allreduce beyond
// kSwitchedHostsMax hosts), the plan is the best found, its bound is proven all the same, and optimal() is false.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "collectives/plan.hpp"

namespace coppice::collectives {

enum class Planner : std::uint8_t {
  exact,
  mwu,        // Blink: fractional packing by multiplicative weights, then whole trees chosen among those found
  rs_ag,      // ForestColl: an optimal reduce_scatter, then an optimal allgather
  rings,      // NCCL: as many rings through all hosts, sharing no link, as are found
  best_ring,  // the one ring that is widest
  // Blink's plan for several servers, whether or not a flat one is known: in each, between them, in each (servers.hpp).
  three_phase,
};

std::string_view name(Planner planner);
std::optional<Planner> planner_of(std::string_view word);

// A switched allreduce of up to so many hosts is solved exactly.
inline constexpr int kSwitchedHostsMax = 64;

struct PlanRequest {
  Operation operation = Operation::broadcast;
  std::optional<int> root = {};  // of operations that have one; nothing: the first host that takes part
  Planner planner = Planner::exact;
  // Only these hosts take part, and only they and switches pass data on. Nothing: every host.
  std::optional<std::vector<int>> participants = {};
  // Trees carry whole multiples of 1/grain of the topology's unit; 0: any fraction.
  int grain = 0;
  double epsilon = 0.1;  // mwu: it may fall short of the optimum by about this part before whole trees are chosen
};

// The bound and its certificate are exact for every planner, so plans of one request compare by their rates.
// Errors: those of validate, unknown_node, bad_root, disconnected, not_planned.
// Cost: direct links: 8 hosts a few milliseconds, 128 up to some seconds; see apps/docs/planner.md.
Expected<Plan> make_plan(const Topology& topology, const PlanRequest& request);

}  // namespace coppice::collectives
