#include "collectives/hybrid.hpp"

#include <gtest/gtest.h>

#include <set>

#include "collectives/program.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

// Three hosts, two kinds of links between each pair: 200 and 50 Mbit/s.
Topology two_kinds() {
  Topology topology = testing::direct(3, {{0, 1, 200}, {1, 2, 200}, {0, 2, 200}, {0, 1, 50}, {1, 2, 50}, {0, 2, 50}});
  topology.unit = "Mbit/s";
  for (std::size_t at = 0; at < topology.links.size(); ++at) {
    Link& link = topology.links[at];
    link.kind = at < 3 ? "fast" : "slow";
    link.from_address = link.kind + testing::numbered(".", link.from);
    link.to_address = link.kind + testing::numbered(".", link.to);
  }
  return topology;
}

std::int64_t bytes_over(const Program& program, const std::string& kind) {
  std::int64_t bytes = 0;
  for (const TreeProgram& tree : program.trees) {
    const auto& edge = tree.down.empty() ? tree.up.front() : tree.down.front();
    if (!edge.from_address.starts_with(kind)) continue;
    for (const Stretch& stretch : tree.share) bytes += stretch.bytes;
    for (const auto* edges : {&tree.up, &tree.down})
      for (const RankEdge& each : *edges) EXPECT_TRUE(each.from_address.starts_with(kind) && each.to_address.starts_with(kind));
  }
  return bytes;
}

TEST(Hybrid, EachKindCarriesWhatTheSplitSaysAndNothingElse) {
  const Topology topology = two_kinds();
  constexpr std::int64_t kBytes = 24'000'000;
  for (const Operation operation : {Operation::broadcast, Operation::allreduce, Operation::allgather}) {
    const auto plan = plan_hybrid(topology, {.operation = operation}, {.first = "fast", .second = "slow"}, kBytes).value();
    EXPECT_NEAR(plan.split.second_bytes, kBytes / 5.0, 1) << "no switching: by rates";
    const auto program = make_program(plan, {.element = Element::float32, .bytes = kBytes, .chunks = 16}).value();
    ASSERT_TRUE(check(program));
    EXPECT_EQ(bytes_over(program, "fast") + bytes_over(program, "slow"), kBytes);
    EXPECT_NEAR(static_cast<double>(bytes_over(program, "slow")), kBytes / 5.0, 100);
  }
}

TEST(Hybrid, SwitchingIsPaidForAndWaitedForWhereItIsEmulated) {
  const Topology topology = two_kinds();
  constexpr std::int64_t kBytes = 24'000'000;
  const HybridRequest request{.first = "fast", .second = "slow", .switching_s = 0.2, .second_share = {}, .emulate = true};
  const auto plan = plan_hybrid(topology, {.operation = Operation::broadcast}, request, kBytes).value();
  const double fast = plan.first.rate.get_d() * 125e3, slow = plan.second.rate.get_d() * 125e3;
  EXPECT_NEAR(plan.split.first_bytes / fast, plan.split.second_bytes / slow + 0.2, 1e-6);
  const auto program = make_program(plan, {.bytes = kBytes}).value();
  std::set<std::int64_t> waits;
  for (const TreeProgram& tree : program.trees) waits.insert(tree.wait_us);
  EXPECT_EQ(waits, (std::set<std::int64_t>{0, 200'000}));
  // A buffer that is over before the switch is made takes the first kind alone.
  const auto small = plan_hybrid(topology, {.operation = Operation::broadcast}, request, 4'000).value();
  EXPECT_EQ(bytes_over(make_program(small, {.bytes = 4'000}).value(), "slow"), 0);
}

TEST(Hybrid, SharesCanBeGivenAndFaultsNameTheKind) {
  const Topology topology = two_kinds();
  const PlanRequest broadcast{.operation = Operation::broadcast};
  const auto half = plan_hybrid(topology, broadcast, {.first = "fast", .second = "slow", .switching_s = 0, .second_share = 0.5}, 8e6).value();
  EXPECT_EQ(bytes_over(make_program(half, {.element = Element::float32, .bytes = 8'000'000}).value(), "slow"), 4'000'000);
  const auto none = plan_hybrid(topology, broadcast, {.first = "fast", .second = "golden"}, 8e6);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().what.find("golden"), std::string::npos);
  EXPECT_FALSE(plan_hybrid(topology, broadcast, {.first = "fast", .second = "fast"}, 8e6));
  EXPECT_FALSE(plan_hybrid(topology, broadcast, {.first = "fast", .second = "slow", .switching_s = 0, .second_share = 2}, 8e6));
  EXPECT_TRUE(hybrid_of("fast", "slow:1.5"));
  for (const char* text : {"slow", ":1", "slow:", "slow:-1", "slow:1x"}) EXPECT_FALSE(hybrid_of("fast", text)) << text;
}

}  // namespace
}  // namespace coppice::collectives
