// A program of its own, beside whose libraries lies nvml_fake.cpp's.
#include <gtest/gtest.h>

#include "runtime/machine.hpp"

namespace coppice::runtime {
namespace {

TEST(Nvml, GpusAndTheirLinksAreRead) {
  const auto gpus = nvidia_gpus();
  ASSERT_TRUE(gpus) << gpus.error().what;
  ASSERT_EQ(gpus->size(), 2U);
  const auto& gpu = gpus->at(1);
  EXPECT_EQ(gpu.name, "Made-up GPU 1");
  EXPECT_EQ(gpu.pci, "0000:18:00");
  EXPECT_EQ(gpu.memory_bytes, std::int64_t{80} << 30);
  EXPECT_EQ(gpu.pcie_generation, 5);
  EXPECT_EQ(gpu.pcie_lanes, 16);
  ASSERT_EQ(gpu.links.size(), 2U);
  EXPECT_EQ(gpu.links[0].to, "0000:17:00");
  EXPECT_EQ(gpu.links[0].count, 3);
  EXPECT_EQ(gpu.links[0].gigabytes_per_s, 25);
  EXPECT_EQ(gpu.links[1].to, "0000:c0:00");
  EXPECT_EQ(gpu.links[1].count, 2);
}

TEST(Nvml, TheyArePartOfThisMachine) {
  auto facts = this_machine();
  ASSERT_TRUE(facts);
  const auto topology = topology_of(*facts, facts->unseen);
  const auto a = collectives::find_node(topology, "gpu0"), b = collectives::find_node(topology, "gpu1");
  ASSERT_TRUE(a && b);
  const auto link = collectives::link_between(topology, *a, *b);
  ASSERT_TRUE(link);
  EXPECT_EQ(topology.links[static_cast<std::size_t>(*link)].capacity, 75);
}

}  // namespace
}  // namespace coppice::runtime
