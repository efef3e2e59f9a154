#include "collectives/simulate.hpp"

#include <gtest/gtest.h>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/schedule.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

Plan planned(const Topology& topology, Operation operation, Planner planner = Planner::exact) {
  PlanRequest request;
  request.operation = operation;
  request.planner = planner;
  return make_plan(topology, request).value();
}

TEST(Simulate, IsTheAlphaBetaModel) {
  const Topology line = testing::direct(3, {{0, 1, 2}, {1, 2, 1}});
  const LinkModel model{.latency_s = 0.5, .unit_bytes_per_s = 10};
  EXPECT_DOUBLE_EQ(simulate(line, {{{0, 1}, 20, {}}}, model), 1.5);
  EXPECT_DOUBLE_EQ(simulate(line, {{{0, 1}, 20, {}}, {{1, 2}, 20, {0}}}, model), 1.5 + 2.5);
  EXPECT_DOUBLE_EQ(simulate(line, {{{0, 1}, 20, {}}, {{0, 1}, 20, {}}}, model), 2.5);  // one after the other
  EXPECT_DOUBLE_EQ(simulate(line, {{{0, 1}, 20, {}}, {{1, 0}, 20, {}}}, model), 1.5);  // each way of its own
  EXPECT_DOUBLE_EQ(simulate(line, {}, model), 0);
}

// No plan is done sooner than its bound allows, and a large buffer takes little more than its rate says.
TEST(Simulate, KeepsToTheBound) {
  constexpr std::int64_t kBytes = 256 << 20;
  const LinkModel model{.latency_s = 2e-6, .unit_bytes_per_s = 1e9};
  for (const char* name : {"dgx-1p", "dgx-1v", "dgx-2", "torus-3x3", "two-racks"}) {
    const Topology topology = builtin_topology(name).value();
    for (const Operation operation : kOperations) {
      const Plan plan = planned(topology, operation);
      const double seconds = simulate(topology, transfers_of(plan, kBytes, model), model);
      const double least = static_cast<double>(kBytes) / (plan.bound.get_d() * model.unit_bytes_per_s);
      EXPECT_GE(seconds, least * 0.999) << name << " " << collectives::name(operation);
      EXPECT_LE(seconds, least * 1.8) << name << " " << collectives::name(operation);
    }
    const double least = static_cast<double>(kBytes) / (planned(topology, Operation::allreduce).bound.get_d() * 1e9);
    for (const Classic classic : {Classic::ring, Classic::recursive_doubling, Classic::rabenseifner}) {
      EXPECT_GE(simulate(topology, classic_allreduce(classic, topology, kBytes), model), least * 0.999) << name;
    }
  }
}

TEST(Simulate, KnowsTheClassicsOnAStar) {
  // 8 hosts at 1 byte a second: a ring takes 2 × 7/8, Rabenseifner as long in fewer steps, doubling 3 whole buffers.
  const Topology star = testing::star(8, 1, "B/s");
  const LinkModel model{.latency_s = 0.125, .unit_bytes_per_s = 1};
  EXPECT_DOUBLE_EQ(simulate(star, classic_allreduce(Classic::ring, star, 64), model), 2 * 7 * (8 + 0.125));
  EXPECT_DOUBLE_EQ(simulate(star, classic_allreduce(Classic::rabenseifner, star, 64), model),
                   2 * (32 + 16 + 8 + 3 * 0.125));
  EXPECT_DOUBLE_EQ(simulate(star, classic_allreduce(Classic::recursive_doubling, star, 64), model), 3 * (64 + 0.125));
}

TEST(Schedule, DividesTheBufferWithoutALoss) {
  for (const char* name : {"dgx-1v", "dgx-2", "dgx-a100x2", "torus-3x3"}) {
    const Topology topology = builtin_topology(name).value();
    for (const Operation operation : kOperations) {
      for (const std::int64_t bytes :
           {std::int64_t{0}, std::int64_t{1}, std::int64_t{1'000'003}, std::int64_t{1} << 40}) {
        const Plan plan = planned(topology, operation);
        const Schedule times = schedule(plan, {.bytes = bytes, .latency_s = 1e-5, .unit_bytes_per_s = 1e9});
        ASSERT_EQ(times.trees.size(), plan.trees.size());
        const auto count = static_cast<std::int64_t>(plan.participants.size());
        std::int64_t sum = 0;
        for (const TreeSchedule& tree : times.trees) {
          EXPECT_GE(tree.bytes, 0);
          EXPECT_TRUE(tree.bytes == 0 || tree.chunking.count * tree.chunking.chunk_bytes >= tree.bytes);
          sum += tree.bytes;
        }
        const bool keeps_own = operation == Operation::scatter || operation == Operation::gather;
        const std::int64_t own = bytes / count + (bytes % count > 0 ? 1 : 0);  // the first host is the root
        EXPECT_EQ(sum, keeps_own ? bytes - own : bytes) << name << " " << collectives::name(operation);
      }
    }
  }
}

TEST(Hybrid, EqualisesBothTimes) {
  const HybridSplit split = hybrid_split(1e9, 100e9, 10e9, 1e-3);
  EXPECT_NEAR(split.first_bytes / 100e9, split.second_bytes / 10e9 + 1e-3, 1e-12);
  EXPECT_NEAR(split.first_bytes + split.second_bytes, 1e9, 1e-3);
  EXPECT_LT(split.seconds, 1e9 / 100e9);
  // Not worth it: the buffer would be through before the switching is.
  EXPECT_EQ(hybrid_split(1e6, 100e9, 10e9, 1e-3).second_bytes, 0);
  EXPECT_EQ(hybrid_split(1e6, 100e9, 0, 1e-3).seconds, 1e6 / 100e9);
}

}  // namespace
}  // namespace coppice::collectives
