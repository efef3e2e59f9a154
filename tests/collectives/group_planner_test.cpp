#include "collectives/group_planner.hpp"

#include <gtest/gtest.h>

#include "collectives/builtin.hpp"

namespace coppice::collectives {
namespace {

GroupPlanner planner_of(const char* name) {
  auto topology = builtin_topology(name).value();
  topology.unit = "MB/s";
  const auto nodes = hosts(topology);
  return {topology, nodes};
}

TEST(GroupPlanner, PlansAndPrograms) {
  const auto planner = planner_of("complete-4");
  const auto program = planner.program({Operation::reduce, Element::int32, Reduction::max, 2, 4'000}, 0).value();
  EXPECT_TRUE(check(program));
  EXPECT_EQ(program.root, 2);
  for (const auto& tree : program.trees) EXPECT_EQ(tree.keeper, 2);
}

TEST(GroupPlanner, ALinkCarriesNeverMoreThanBefore) {
  auto planner = planner_of("complete-4");
  const auto before = planner.plan(Operation::broadcast, 0)->rate;
  planner.degrade({0, 1}, 1'000'000'000'000);
  planner.degrade({0, 1}, -5);
  planner.degrade({-1, 1}, 0);
  planner.degrade({0, 4'000}, 0);
  EXPECT_EQ(planner.plan(Operation::broadcast, 0)->rate, before);
  planner.degrade({0, 1}, 0);
  EXPECT_LT(planner.plan(Operation::broadcast, 0)->rate, before);
  planner.degrade({0, 1}, 1'000'000);
  EXPECT_LT(planner.plan(Operation::broadcast, 0)->rate, before) << "it is gone";
}

TEST(GroupPlanner, BehindSwitchesTheLastLinkIsAtFault) {
  auto planner = planner_of("star-5");
  const auto before = planner.plan(Operation::broadcast, 0)->rate;
  planner.degrade({0, 1}, 1);
  EXPECT_LT(planner.plan(Operation::broadcast, 0)->rate, before);
}

}  // namespace
}  // namespace coppice::collectives
