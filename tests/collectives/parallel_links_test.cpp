#include "collectives/parallel_links.hpp"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "collectives/planner.hpp"
#include "collectives/program.hpp"
#include "collectives/verify.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

// Two links a pair, of the capacity given and half of it, each with addresses of its own ("0a1" of link 0 at node 1).
Topology doubled(Topology topology) {
  const std::size_t singles = topology.links.size();
  for (std::size_t at = 0; at < singles; ++at) {
    topology.links.push_back(topology.links[at]);
    topology.links.back().capacity /= 2;
  }
  for (std::size_t at = 0; at < topology.links.size(); ++at) {
    Link& link = topology.links[at];
    link.from_address = testing::numbered("", static_cast<long>(at)) + testing::numbered("a", link.from);
    link.to_address = testing::numbered("", static_cast<long>(at)) + testing::numbered("a", link.to);
  }
  topology.unit = "Mbit/s";
  return topology;
}

Topology square() { return doubled(testing::direct(4, {{0, 1, 4}, {1, 2, 2}, {2, 3, 2}, {3, 0, 1}, {0, 2, 1}, {1, 3, 1}})); }

// Bytes of a program by the address that they leave from and the one that they arrive at.
std::map<std::pair<std::string, std::string>, std::int64_t> by_link(const Program& program) {
  std::map<std::pair<std::string, std::string>, std::int64_t> bytes;
  for (const TreeProgram& tree : program.trees) {
    std::int64_t share = 0;
    for (const Stretch& stretch : tree.share) share += stretch.bytes;
    for (const auto* edges : {&tree.up, &tree.down})
      for (const RankEdge& edge : *edges) bytes[{edge.from_address, edge.to_address}] += share;
  }
  return bytes;
}

TEST(ParallelLinks, EveryOperationKeepsItsRateAndNoLinkCarriesMoreThanItsOwnCapacity) {
  const Topology topology = square();
  for (const Operation operation : kOperations) {
    const auto plan = make_plan(topology, {.operation = operation});
    ASSERT_TRUE(plan) << plan.error().what;
    const auto held = verify(*plan, topology);
    EXPECT_TRUE(held) << name(operation) << ": " << held.error().what;
    EXPECT_TRUE(plan->optimal()) << name(operation);
    for (const Tree& tree : plan->trees)
      for (const TreeEdge& edge : tree.edges) EXPECT_EQ(edge.links.size(), 1U) << name(operation);
  }
}

TEST(ParallelLinks, FramesOfAProgramUseBothLinksInProportion) {
  const Topology topology = square();
  constexpr std::int64_t kBytes = 80'000'000;
  const auto plan = make_plan(topology, {.operation = Operation::broadcast}).value();
  const auto program = make_program(plan, topology, {.bytes = kBytes, .chunks = 64}).value();
  ASSERT_TRUE(check(program));
  const auto bytes = by_link(program);
  double most = 0;  // bytes over capacity: the time of the fullest link
  for (std::size_t at = 0; at < topology.links.size(); ++at) {
    const Link& link = topology.links[at];
    for (const int node : {link.from, link.to}) {
      const auto found = bytes.find(addresses_from(link, node));
      if (found != bytes.end()) most = std::max(most, static_cast<double>(found->second) / link.capacity.get_d());
    }
  }
  EXPECT_NEAR(most, kBytes / plan.rate.get_d(), 0.001 * most) << "some link carries more than its part";
  // The pairs from the root are full: what leaves it takes both links of each.
  EXPECT_TRUE(bytes.contains({"0a0", "0a1"}) && bytes.contains({"6a0", "6a1"}));
}

TEST(ParallelLinks, AreLeftAloneWithoutAddressesAndThePlanReadsBack) {
  Topology plain = square();
  for (Link& link : plain.links) link.from_address = link.to_address = std::nullopt;
  const auto without = make_plan(plain, {.operation = Operation::allreduce}).value();
  for (const Tree& tree : without.trees)
    for (const TreeEdge& edge : tree.edges) EXPECT_TRUE(edge.links.empty());
  const Topology topology = square();
  const auto plan = make_plan(topology, {.operation = Operation::allreduce}).value();
  const auto read = parse_plan(to_json(plan, topology, 0), topology);
  ASSERT_TRUE(read) << read.error().what;
  EXPECT_EQ(on_links(*read, topology).trees.size(), plan.trees.size());
  for (std::size_t at = 0; at < plan.trees.size(); ++at) EXPECT_EQ(read->trees[at].edges.front().links, plan.trees[at].edges.front().links);
  auto document = to_json(plan, topology, 0);
  document["trees"][0]["edges"][0]["links"] = {99};
  EXPECT_FALSE(parse_plan(document, topology));
  document["trees"][0]["edges"][0]["links"] = {3};  // of another pair
  auto wrong = parse_plan(document, topology);
  EXPECT_FALSE(wrong && verify(*wrong, topology));
}

TEST(ParallelLinks, OneThatFailsLeavesTheOther) {
  const Topology topology = square();
  const Topology now = with_link_capacity(topology, 0, 1, "0a0", "0a1", 0);
  Rational there, back;
  for (const int at : links_between(now, 0, 1)) there += now.links[static_cast<std::size_t>(at)].capacity;
  for (const int at : links_between(now, 1, 0)) back += now.links[static_cast<std::size_t>(at)].capacity;
  EXPECT_EQ(there, 2);
  EXPECT_EQ(back, 6);
  const auto plan = make_plan(now, {.operation = Operation::allreduce});
  ASSERT_TRUE(plan) << plan.error().what;
  const auto held = verify(*plan, now);
  EXPECT_TRUE(held) << held.error().what;
  EXPECT_EQ(with_link_capacity(topology, 0, 1, "", "", 3).links.size(), topology.links.size() + 2) << "no such link: the pair";
}

}  // namespace
}  // namespace coppice::collectives
