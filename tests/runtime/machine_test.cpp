#include "runtime/machine.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace coppice::runtime {
namespace {

using collectives::Rational;

// A box of two NUMA nodes: two GPUs with two NVLinks between them and three each to NVSwitches, and two network cards.
MachineFacts box() {
  MachineFacts facts;
  facts.name = "box";
  facts.numa_nodes = 2;
  for (int i = 0; i < 2; ++i) {
    Gpu gpu;
    gpu.name = "NVIDIA Test";
    gpu.pci = i == 0 ? "0000:17:00" : "0000:65:00";
    gpu.pcie_generation = 4;
    gpu.pcie_lanes = 16;
    gpu.links = {{i == 0 ? "0000:65:00" : "0000:17:00", 2, 25}, {"0000:c0:00", 2, 25}, {"0000:c1:00", 1, 25}};
    facts.gpus.push_back(gpu);
    facts.devices.push_back({"gpu " + gpu.pci, gpu.pci, false, i, 4.0});
  }
  facts.devices.push_back({"eth0", "0000:01:00", true, 0, 15.75});
  facts.devices.push_back({"eth1", "", true, 1, 0});
  return facts;
}

Rational between(const collectives::Topology& topology, const std::string& a, const std::string& b) {
  Rational sum;
  for (const auto& link : topology.links) {
    const auto& from = topology.nodes[static_cast<std::size_t>(link.from)].id;
    const auto& to = topology.nodes[static_cast<std::size_t>(link.to)].id;
    if ((from == a && to == b) || (from == b && to == a)) sum += link.capacity;
  }
  return sum;
}

TEST(Machine, GpusAreJoinedByNvlinksAndBuses) {
  std::vector<std::string> unseen;
  const auto topology = topology_of(box(), unseen);
  ASSERT_TRUE(collectives::validate(topology));
  EXPECT_EQ(topology.unit, "GB/s");
  EXPECT_EQ(between(topology, "gpu0", "gpu1"), 50);  // seen from both ends, counted once
  EXPECT_EQ(between(topology, "gpu0", "nvswitch"), 75);
  EXPECT_EQ(between(topology, "gpu1", "nvswitch"), 75);
  EXPECT_EQ(between(topology, "gpu0", "numa0"), Rational(63, 2));  // 16 lanes of generation 4, not the idle bus of 4
  EXPECT_EQ(between(topology, "gpu1", "numa1"), Rational(63, 2));
  EXPECT_EQ(between(topology, "eth0", "numa0"), Rational(79, 5));
  for (const auto& node : topology.nodes) EXPECT_EQ(node.is_switch, node.id.starts_with("eth") || node.id == "nvswitch") << node.id;
}

TEST(Machine, WhatIsNotSeenIsSaid) {
  std::vector<std::string> unseen;
  (void)topology_of(box(), unseen);
  const auto says = [&](const char* word) {
    return std::ranges::any_of(unseen, [&](const std::string& line) { return line.find(word) != std::string::npos; });
  };
  EXPECT_TRUE(says("eth1"));
  EXPECT_TRUE(says("2 NUMA nodes"));
  auto facts = box();
  facts.gpus.clear();
  (void)topology_of(facts, unseen);
  EXPECT_TRUE(says("0000:17:00"));
}

TEST(Machine, ThisOneIsRead) {
  const auto facts = this_machine();
  ASSERT_TRUE(facts) << facts.error().what;
  EXPECT_GE(facts->threads, 1);
  EXPECT_GE(facts->numa_nodes, 1);
  EXPECT_GT(facts->memory_bytes, 0);
  auto unseen = facts->unseen;
  EXPECT_TRUE(collectives::validate(topology_of(*facts, unseen)));
}

}  // namespace
}  // namespace coppice::runtime
