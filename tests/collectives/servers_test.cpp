#include "collectives/servers.hpp"

#include <gtest/gtest.h>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/verify.hpp"

namespace coppice::collectives {
namespace {

PlanRequest request_of(Operation operation) {
  PlanRequest request;
  request.operation = operation;
  return request;
}

// 128 boxes of 8: the plan of phases reaches the bound, which nothing flat of that size is made for.
TEST(Servers, ReachTheBoundOfAThousandGpus) {
  const Topology topology = builtin_topology("h100x128").value();
  for (const Operation operation : {Operation::allreduce, Operation::broadcast}) {
    const auto plan = make_plan(topology, request_of(operation));
    ASSERT_TRUE(plan) << plan.error().what;
    const auto held = verify(*plan, topology);
    EXPECT_TRUE(held) << held.error().what;
    EXPECT_TRUE(plan->optimal()) << to_string(plan->rate) << " of " << to_string(plan->bound);
  }
}

// Never worse than flat where both are known, never above the bound anywhere.
TEST(Servers, AreNoBetterThanTheBound) {
  for (const char* name : {"dgx-a100x2", "dgx-a100x3", "h100x2", "mi250x2", "two-racks"}) {
    const Topology topology = builtin_topology(name).value();
    for (const Operation operation : {Operation::allreduce, Operation::broadcast, Operation::allgather}) {
      const auto flat = make_plan(topology, request_of(operation));
      ASSERT_TRUE(flat);
      const auto situation = situation_of(topology, request_of(operation));
      ASSERT_TRUE(has_servers(*situation));
      Plan phases = *flat;
      phases.trees = three_phase_trees(*situation);
      phases.rate = 0;
      for (const Tree& tree : phases.trees) phases.rate += tree.rate;
      if (phases.trees.empty()) continue;
      const auto held = verify(phases, topology);
      EXPECT_TRUE(held) << name << " " << collectives::name(operation) << ": " << held.error().what;
      EXPECT_LE(phases.rate, flat->rate) << name;
      EXPECT_GE(phases.rate.get_d(), 0.4 * flat->rate.get_d()) << name << " " << collectives::name(operation);
    }
  }
}

TEST(Servers, OfDifferentSizesAreStillPlanned) {
  // Nine boxes, one of which lost three GPUs, and a slow card: beyond what is solved flat.
  Topology topology = builtin_topology("dgx-a100x9").value();
  std::vector<int> left = hosts(topology);
  left.erase(left.begin() + 1, left.begin() + 4);
  topology = without_others(topology, left);
  topology.links.back().capacity = 20;
  const auto plan = make_plan(topology, request_of(Operation::allreduce));
  ASSERT_TRUE(plan) << plan.error().what;
  EXPECT_TRUE(verify(*plan, topology));
  EXPECT_LE(plan->rate, plan->bound);
}

}  // namespace
}  // namespace coppice::collectives
