// collectives/group_planner.hpp: what a group of ranks does for a call, on its links as they are found to be. Pure.
//
// Ranks are numbered once and for all; who takes part in a call are its members.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "collectives/hybrid.hpp"
#include "collectives/planner.hpp"
#include "collectives/program.hpp"
#include "collectives/topology.hpp"

namespace coppice::collectives {

// What must be the same at all ranks for a call to be the same.
struct CallKind {
  Operation operation = Operation::allreduce;
  Element element = Element::float32;
  Reduction reduction = Reduction::sum;
  int root = -1;           // rank; -1 where the operation has none
  std::int64_t bytes = 0;  // of the whole buffer
  auto operator<=>(const CallKind&) const = default;
};

class GroupPlanner {
 public:
  // participants: the node of each rank.
  // hybrid: two kinds of links are planned apart, instead of all together; what is left of a call that broke off is not.
  GroupPlanner(Topology topology, std::vector<int> participants, Planner planner = Planner::exact,
               std::optional<HybridRequest> hybrid = {})
      : topology_(std::move(topology)), participants_(std::move(participants)), planner_(planner), hybrid_(std::move(hybrid)) {}

  const Topology& topology() const { return topology_; }
  int ranks() const { return static_cast<int>(participants_.size()); }

  // members: the ranks that take part; none: all. Errors: as make_plan's.
  Expected<Plan> plan(Operation operation, int root, const std::vector<int>& members = {}) const;
  // chunks: as ProgramOptions has it. Errors: as make_program's too.
  Expected<Program> program(const CallKind& kind, std::int64_t chunks, const std::vector<int>& members = {}) const;
  // A broadcast that goes on from a rank that has all of it.
  Expected<Program> passing_on(const CallKind& kind, int from, const std::vector<int>& members) const;
  // What is left of a program, among its members; by the exact planner where this one has no plan for it: some plan a few
  // operations only, and nothing may be lost for that. Errors: as collectives::resume's.
  Expected<Program> resume(const CallKind& kind, const Program& program, const std::vector<RankProgress>& progress) const;

  // Whether this planner itself has a plan for what may be left of such a call. Where it has none, a link that is only slow
  // is better gone on with.
  bool can_resume(const CallKind& kind, const std::vector<int>& members) const;
  // From now on a rank's edge to another carries so much, never more than before; 0: nothing. Where switches are between
  // the two, the last link is taken to be at fault, in proportion: what else comes over it is still there.
  void degrade(const RankEdge& edge, std::int64_t bytes_per_s);

 private:
  PlanRequest request(Operation operation, int root, const std::vector<int>& members) const;

  Topology topology_;
  std::vector<int> participants_;
  Planner planner_;
  std::optional<HybridRequest> hybrid_;
};

}  // namespace coppice::collectives
