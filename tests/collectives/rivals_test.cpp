#include <gtest/gtest.h>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/verify.hpp"

namespace coppice::collectives {
namespace {

constexpr Planner kRivals[] = {Planner::mwu, Planner::rs_ag, Planner::rings, Planner::best_ring};

Expected<Plan> planned(const Topology& topology, Operation operation, Planner planner) {
  PlanRequest request;
  request.operation = operation;
  request.planner = planner;
  auto plan = make_plan(topology, request);
  if (plan) {
    const auto held = verify(*plan, topology);
    EXPECT_TRUE(held) << topology.name << " " << name(operation) << " " << name(planner) << ": " << held.error().what;
  }
  return plan;
}

Rational rate(const Topology& topology, Operation operation, Planner planner) {
  const auto plan = planned(topology, operation, planner);
  EXPECT_TRUE(plan) << plan.error().what;
  return plan ? plan->rate : Rational(0);
}

TEST(Rings, AreAsManyAsNcclFinds) {
  EXPECT_EQ(rate(dgx_1p(), Operation::broadcast, Planner::rings), 4);
  EXPECT_EQ(rate(dgx_1v(), Operation::broadcast, Planner::rings), 6);
  EXPECT_EQ(rate(dgx_1v(), Operation::allreduce, Planner::rings), Rational(24, 7));
  EXPECT_EQ(rate(without_others(dgx_1p(), {0, 1, 2, 3, 4, 5, 6}), Operation::broadcast, Planner::rings), 2);
  EXPECT_EQ(rate(without_others(dgx_1v(), {0, 1, 2, 3, 4, 5}), Operation::broadcast, Planner::rings), 2);
  const auto none = planned(without_others(dgx_1v(), {0, 1, 2, 3, 4}), Operation::broadcast, Planner::rings);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::not_planned);
  // No NVLink ring: 5 of 14 and 21 of 46 classes (facts).
  int without = 0;
  for (const auto& hosts : allocation_classes(dgx_1v(), 3, 8)) {
    without += planned(without_others(dgx_1v(), hosts), Operation::allreduce, Planner::rings) ? 0 : 1;
  }
  EXPECT_EQ(without, 21);
  EXPECT_EQ(rate(builtin_topology("dgx-2").value(), Operation::allreduce, Planner::rings), 80);
  EXPECT_EQ(rate(dgx_1v(), Operation::allreduce, Planner::best_ring), Rational(16, 7));
}

TEST(Mwu, ComesNearTheOptimumInWholeTrees) {
  const auto plan = planned(dgx_1v(), Operation::broadcast, Planner::mwu);
  ASSERT_TRUE(plan);
  EXPECT_GE(plan->rate.get_d(), 0.95 * 6);
  EXPECT_GT(plan->trees.size(), 4U);  // what the exact packing takes
  for (const auto& hosts : allocation_classes(dgx_1v(), 3, 8)) {
    const Topology allocation = without_others(dgx_1v(), hosts);
    for (const Operation operation : {Operation::broadcast, Operation::reduce, Operation::allreduce}) {
      const auto each = planned(allocation, operation, Planner::mwu);
      ASSERT_TRUE(each);
      EXPECT_GE(each->rate.get_d(), 0.85 * each->bound.get_d());
    }
  }
}

TEST(Rivals, NeverExceedTheBound) {
  for (const char* topology :
       {"dgx-1p", "dgx-1v", "dgx-2", "dgx-a100x2", "two-racks", "torus-3x3", "random-9", "ring-5"}) {
    for (const Operation operation :
         {Operation::broadcast, Operation::reduce, Operation::allreduce, Operation::allgather,
          Operation::reduce_scatter, Operation::gather, Operation::scatter}) {
      for (const Planner planner : kRivals) {
        const auto plan = planned(builtin_topology(topology).value(), operation, planner);
        if (plan) {
          EXPECT_LE(plan->rate, plan->bound);
        } else {
          EXPECT_EQ(plan.error().code, ErrorCode::not_planned);
        }
      }
    }
  }
}

TEST(Planners, AreNamed) {
  for (const Planner planner : kRivals) EXPECT_EQ(planner_of(name(planner)), planner);
  EXPECT_EQ(planner_of("best"), std::nullopt);
}

}  // namespace
}  // namespace coppice::collectives
