#include "runtime/device_topology.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "collectives/planner.hpp"

namespace coppice::runtime {
namespace {

std::string address(int gpu) { return "0000:1" + std::to_string(gpu) + ":00"; }

// Four GPUs on two NUMA nodes; NVLinks between these pairs.
MachineFacts box(const std::vector<std::pair<int, int>>& nvlinks) {
  MachineFacts facts;
  facts.name = "box";
  facts.numa_nodes = 2;
  for (int i = 0; i < 4; ++i) {
    Gpu gpu;
    gpu.pci = address(i);
    gpu.pcie_generation = 4;
    gpu.pcie_lanes = 16;
    facts.devices.push_back({"gpu " + gpu.pci, gpu.pci, false, i / 2, 0});
    facts.gpus.push_back(gpu);
  }
  for (const auto& [a, b] : nvlinks) {
    facts.gpus[static_cast<std::size_t>(a)].links.push_back({address(b), 2, 25});
    facts.gpus[static_cast<std::size_t>(b)].links.push_back({address(a), 2, 25});
  }
  return facts;
}

collectives::Rational rate(const DeviceTopology& links) {
  return collectives::make_plan(links.topology, {.operation = collectives::Operation::broadcast, .root = links.nodes.front(),
                                                 .participants = links.nodes})
      .value()
      .rate;
}

TEST(DeviceTopology, NvlinksAreAloneWhereTheyJoinAllDevices) {
  const auto facts = box({{0, 1}, {1, 2}, {2, 3}});
  const auto links = topology_between(facts, {address(1), address(0), address(2)});
  EXPECT_TRUE(links.assumed.empty());
  EXPECT_EQ(links.topology.nodes[static_cast<std::size_t>(links.nodes[0])].id, "gpu1");  // by address, not by number
  for (const auto& link : links.topology.links) EXPECT_EQ(link.kind, "nvlink");
  EXPECT_EQ(rate(links), 50);
}

TEST(DeviceTopology, OtherwiseBusesPassOnWhatTheyDoNotCompute) {
  const auto facts = box({{0, 2}, {1, 3}});
  const auto links = topology_between(facts, {address(0), address(1)});  // gpu2 is none of theirs
  EXPECT_TRUE(links.assumed.empty());
  EXPECT_EQ(rate(links), collectives::Rational(63, 2));
}

TEST(DeviceTopology, WhatNobodyKnowsIsOneSwitchAndIsSaid) {
  const auto apart = topology_between(box({}), {address(0), address(3)});  // nothing is known between NUMA nodes
  EXPECT_NE(apart.assumed.find("one switch"), std::string::npos);
  EXPECT_EQ(rate(apart), 1);
  const auto unknown = topology_between({}, {"0000:99:00", "0000:9a:00"});
  EXPECT_NE(unknown.assumed.find("0000:9"), std::string::npos);
  EXPECT_EQ(rate(unknown), 1);
  EXPECT_EQ(topology_between(box({}), {address(2)}).nodes.size(), 1U);  // alone, nothing has to join it
}

}  // namespace
}  // namespace coppice::runtime
