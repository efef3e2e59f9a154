#include "collectives/group_planner.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "collectives/builtin.hpp"
#include "collectives/situation.hpp"

namespace coppice::collectives {
namespace {

GroupPlanner planner_of(const char* name, Planner planner = Planner::exact) {
  auto topology = builtin_topology(name).value();
  topology.unit = "MB/s";
  const auto nodes = hosts(topology);
  return {topology, nodes, planner};
}

TEST(GroupPlanner, PlansAndPrograms) {
  const auto planner = planner_of("complete-4");
  const auto program = planner.program({Operation::reduce, Element::int32, Reduction::max, 2, 4'000}, 0).value();
  EXPECT_TRUE(check(program));
  EXPECT_EQ(program.root, 2);
  for (const auto& tree : program.trees) EXPECT_EQ(tree.keeper, 2);
}

// A cluster file may name hosts in another order than the topology does.
TEST(GroupPlanner, RanksAreNumberedAsTheyAreGiven) {
  auto topology = builtin_topology("ring-5").value();
  auto nodes = hosts(topology);
  std::ranges::reverse(nodes);
  const GroupPlanner planner(topology, nodes);
  for (const auto operation : {Operation::broadcast, Operation::scatter}) {
    const auto program = planner.program({operation, Element::int32, Reduction::sum, 1, 4'000}, 0).value();
    for (const auto& tree : program.trees) EXPECT_EQ(tree.root, 1);
  }
}

TEST(GroupPlanner, AmongSurvivorsOthersAreInNoTreeAndTheirPartsAreNotCarried) {
  const auto planner = planner_of("complete-4");
  for (const auto operation : kOperations) {
    const int root = is_rooted(operation) ? 2 : -1;
    const auto program = planner.program({operation, Element::int32, Reduction::sum, root, 1'600}, 0, {0, 2, 3}).value();
    ASSERT_TRUE(check(program));
    EXPECT_EQ(program.ranks, 4);
    EXPECT_EQ(members_of(program), (std::vector<int>{0, 2, 3}));
    std::int64_t carried = 0;
    for (const auto& tree : program.trees) {
      EXPECT_FALSE(takes_part(tree, 1));
      for (const auto& stretch : tree.share) {
        carried += stretch.bytes;
        EXPECT_TRUE(!has_parts(operation) || stretch.offset + stretch.bytes <= 400 || stretch.offset >= 800);
      }
    }
    // The root of scatter and gather has its own part already.
    const std::int64_t parts = operation == Operation::scatter || operation == Operation::gather ? 2 : 3;
    EXPECT_EQ(carried, has_parts(operation) ? parts * 400 : 1'600);
  }
}

TEST(GroupPlanner, ABroadcastGoesOnFromWhoeverHasIt) {
  const auto planner = planner_of("complete-4");
  const auto program = planner.passing_on({Operation::broadcast, Element::int32, Reduction::sum, 0, 1'600}, 3, {1, 2, 3}).value();
  ASSERT_TRUE(check(program));
  EXPECT_EQ(program.root, 0);
  for (const auto& tree : program.trees) {
    EXPECT_EQ(tree.root, 3);
    EXPECT_TRUE(tree.known_at_root);
  }
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

// rs_ag has no plan of a broadcast, which what is known already has to be passed on by.
TEST(GroupPlanner, WhatAPlannerHasNoPlanForIsResumedByTheExactOne) {
  auto planner = planner_of("complete-4", Planner::rs_ag);
  const CallKind kind{Operation::allreduce, Element::int64, Reduction::sum, -1, 64'000};
  EXPECT_FALSE(planner.can_resume(kind, {}));
  EXPECT_TRUE(planner_of("complete-4").can_resume(kind, {}));
  const auto program = planner.program(kind, 10).value();
  std::vector<RankProgress> progress(4, {false, std::vector<std::int64_t>(program.trees.size(), 2)});
  progress[1].known.assign(program.trees.size(), 5);
  planner.degrade({0, 1}, 0);
  const auto rest = planner.resume(kind, program, progress);
  ASSERT_TRUE(rest) << rest.error().what;
  EXPECT_TRUE(check(*rest));
  EXPECT_TRUE(std::ranges::any_of(rest->trees, [](const auto& tree) { return tree.known_at_root && tree.root == 1; }));
}

TEST(GroupPlanner, BehindSwitchesTheLastLinkIsAtFault) {
  auto planner = planner_of("star-5");
  const auto before = planner.plan(Operation::broadcast, 0)->rate;
  planner.degrade({0, 1}, 1);
  EXPECT_LT(planner.plan(Operation::broadcast, 0)->rate, before);
}

}  // namespace
}  // namespace coppice::collectives
