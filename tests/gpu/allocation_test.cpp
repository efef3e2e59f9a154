// Running a net takes nothing from the heap: not in our code, not in oneDNN's, not in the standard library's.
#include <gtest/gtest.h>

#include <memory>

#include "gpu/device.hpp"
#include "gpu/families.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/heap_hook.hpp"

namespace coppice::gpu {
namespace {

std::int64_t allocations_of_a_run(const Network& net, int batch) {
  auto device = make_cpu_device({1});
  auto compiled = (*device)->compile(net, {batch});
  if (!compiled) {
    ADD_FAILURE() << net.name << ": " << compiled.error().what;
    return -1;
  }
  const auto input = random_input(net, batch, 1);
  std::vector<float> output(static_cast<std::size_t>((*compiled)->output_elements()));
  for (int i = 0; i < 2; ++i)
    if (!(*compiled)->run(input, output)) ADD_FAILURE() << net.name;
  const auto before = heap_allocations();
  for (int i = 0; i < 3; ++i)
    if (!(*compiled)->run(input, output)) ADD_FAILURE() << net.name;
  return heap_allocations() - before;
}

class Allocation : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!heap_is_counted()) GTEST_SKIP() << "a sanitizer has a heap of its own";
  }
};

TEST_F(Allocation, IsCounted) {
  const auto before = heap_allocations();
  const auto piece = std::make_unique<std::vector<int>>(100);
  EXPECT_GE(piece->size() > 0 ? heap_allocations() - before : 0, 2);
}

TEST_F(Allocation, NeverWhileAVggRuns) {
  for (const int batch : {1, 4}) EXPECT_EQ(allocations_of_a_run(vgg({1, 28, 28}, {8, 8, 16, 16}, 10, 1), batch), 0);
}

TEST_F(Allocation, NeverWhileANetOfAnyFamilyRuns) {
  for (const auto name : family_names()) {
    const auto net = family(name, {3, 32, 32}, 10, 1, 0.25);
    ASSERT_TRUE(net) << net.error().what;
    EXPECT_EQ(allocations_of_a_run(*net, 1), 0) << name;
  }
}

// Every way that a convolution or a pool of volumes takes: wide and narrow, in groups, with a residual sum, dilated.
TEST_F(Allocation, NeverWhileNetsOfVolumesRun) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Builder b({1, 1, 1, 1}, seed);
    b.net.input = {b.draw(1, 40), b.draw(3, 6), b.draw(3, 9), b.draw(3, 9)};
    const Window same{3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1};
    const auto wide = b.toss() ? 16 * b.draw(1, 3) : b.draw(1, 40);
    int v = b.relu(b.conv(0, b.toss() ? same : b.window(false), wide));
    v = b.relu(b.add(b.norm(b.conv(v, same, wide, b.toss() ? wide : 1)), v));
    v = b.conv(v, {3, 3, 2, 1, 2, 2, 2, 2, 2, 2, 3, 1, 2, 2, 2}, b.draw(1, 20), 1, b.toss());
    v = b.push(MaxPool{{1, 2, 1, 1, 0, 0, 0, 1, 1, 1, 2, 2, 1, 0}}, {v});
    v = b.push(AveragePool{{1, 2, 1, 2, 0, 1, 0, 0}, b.toss()}, {v});
    b.dense(b.flatten(b.norm(v)), 3);
    EXPECT_EQ(allocations_of_a_run(b.net, static_cast<int>(seed % 3) + 1), 0) << "seed " << seed;
  }
}

TEST_F(Allocation, NeverWhileRandomNetsRun) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const auto net = random_net(seed, static_cast<int>(seed % 8) + 1, Palette::all);
    EXPECT_EQ(allocations_of_a_run(net, static_cast<int>(seed % 3) + 1), 0) << "seed " << seed;
  }
}

}  // namespace
}  // namespace coppice::gpu
