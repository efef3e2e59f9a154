#include "runtime/scheduler.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace coppice::runtime {
namespace {

Cluster cluster_of(int workers) {
  Cluster cluster;
  cluster.name = "test";
  for (int i = 0; i <= workers; ++i) {
    Host host;
    host.name = i == 0 ? "gateway" : "w" + std::to_string(i - 1);
    host.address = "127.0.0.1";
    host.port = static_cast<std::uint16_t>(7000 + 2 * i);
    host.gateway = i == 0;
    cluster.hosts.push_back(host);
  }
  return cluster;
}

void expect_tree(const std::vector<actors::RelayNode>& relays, std::set<std::string> members) {
  ASSERT_EQ(relays.size(), members.size() + 1);
  EXPECT_EQ(relays[0].name, "gateway");
  EXPECT_EQ(relays[0].parent, -1);
  for (std::size_t i = 1; i < relays.size(); ++i) {
    EXPECT_EQ(members.erase(relays[i].name), 1U) << relays[i].name;
    EXPECT_GE(relays[i].parent, 0);
    EXPECT_LT(relays[i].parent, static_cast<std::int32_t>(i)) << "parents come before children";
  }
  EXPECT_TRUE(members.empty());
}

TEST(Scheduler, SpansTheMembersAndOnlyThem) {
  const auto relays = plan_relays(cluster_of(7), {"w1", "w4", "w6"}, 1 << 20);
  ASSERT_TRUE(relays) << relays.error().what;
  expect_tree(*relays, {"w1", "w4", "w6"});
}

TEST(Scheduler, BehindOneSwitchLargeWeightsGoDownAChain) {
  // The gateway's one link would carry a fan-out's bytes seven times.
  const auto relays = plan_relays(cluster_of(7), {"w0", "w1", "w2", "w3", "w4", "w5", "w6"}, 64 << 20);
  ASSERT_TRUE(relays);
  for (std::size_t i = 1; i < relays->size(); ++i) EXPECT_EQ((*relays)[i].parent, static_cast<std::int32_t>(i) - 1);
}

TEST(Scheduler, FollowsTheTopologyFile) {
  const auto file = std::filesystem::temp_directory_path() / ("coppice-topology-" + std::to_string(::getpid()) + ".json");
  auto cluster = cluster_of(2);
  cluster.topology = file;
  std::ofstream(file) << R"({"name":"line","unit":"Mbit/s","nodes":[{"id":"gateway"},{"id":"w0"},{"id":"w1"}],
    "links":[{"from":"gateway","to":"w1","capacity":"10"},{"from":"w1","to":"w0","capacity":"10"}]})";
  const auto relays = plan_relays(cluster, {"w0", "w1"}, 1'000'000);
  ASSERT_TRUE(relays) << relays.error().what;
  EXPECT_EQ((*relays)[1].name, "w1");
  EXPECT_EQ((*relays)[2].name, "w0");
  EXPECT_EQ((*relays)[2].parent, 1);

  std::ofstream(file) << R"({"name":"gap","unit":"Mbit/s","nodes":[{"id":"gateway"},{"id":"w0"}],
    "links":[{"from":"gateway","to":"w0","capacity":"10"}]})";
  const auto missing = plan_relays(cluster, {"w0", "w1"}, 1'000'000);
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().what.find("w1"), std::string::npos) << missing.error().what;
  std::filesystem::remove(file);
}

TEST(Scheduler, PlacesHeadsWhereItemsTravelLeast) {
  auto cluster = cluster_of(6);
  cluster.code.blocks = 2;
  cluster.code.shape = {3, 2};
  auto heads = place_heads(cluster);
  ASSERT_TRUE(heads) << heads.error().what;
  using Order = std::vector<int>;
  EXPECT_EQ(*heads, (std::vector<Order>{{0, 1, 2, -1}, {3, 4, 5, -1}})) << "behind one switch all are alike";

  const auto file = std::filesystem::temp_directory_path() / ("coppice-heads-" + std::to_string(::getpid()) + ".json");
  cluster.topology = file;
  // w1 is between the gateway and its block; of the other block, w5 has the wide link.
  std::ofstream(file) << R"({"name":"t","unit":"Mbit/s","nodes":[{"id":"gateway"},{"id":"w0"},{"id":"w1"},{"id":"w2"},
    {"id":"w3"},{"id":"w4"},{"id":"w5"},{"id":"s","switch":true}],
    "links":[{"from":"gateway","to":"w1","capacity":"10"},{"from":"w1","to":"w0","capacity":"10"},
             {"from":"w1","to":"w2","capacity":"10"},{"from":"gateway","to":"s","capacity":"100"},
             {"from":"s","to":"w3","capacity":"10"},{"from":"s","to":"w4","capacity":"20"},
             {"from":"s","to":"w5","capacity":"100"}]})";
  heads = place_heads(cluster);
  ASSERT_TRUE(heads) << heads.error().what;
  EXPECT_EQ(*heads, (std::vector<Order>{{1, 0, 2, -1}, {5, 4, 3, -1}}));
  std::filesystem::remove(file);

  cluster.code.gateway_heads = true;
  heads = place_heads(cluster);
  ASSERT_TRUE(heads);
  EXPECT_EQ(*heads, (std::vector<Order>{{-1}, {-1}}));
}

TEST(Scheduler, SpreadsHeadsThatAreAlikeOverTheMachines) {
  auto cluster = cluster_of(12);
  cluster.code.blocks = 4;
  cluster.code.shape = {3, 2};
  for (std::size_t i = 1; i < cluster.hosts.size(); ++i)  // worker p of each block on machine p
    cluster.hosts[i].address = "10.0.0." + std::to_string(1 + (i - 1) % 3);
  const auto heads = place_heads(cluster);
  ASSERT_TRUE(heads) << heads.error().what;
  using Order = std::vector<int>;
  EXPECT_EQ(*heads, (std::vector<Order>{{0, 1, 2, -1}, {4, 5, 3, -1}, {8, 6, 7, -1}, {9, 10, 11, -1}}));
}

}  // namespace
}  // namespace coppice::runtime
