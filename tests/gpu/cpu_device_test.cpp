#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <thread>

#include "gpu/device.hpp"
#include "tests/gpu/random_net.hpp"
#include "tests/gpu/reference.hpp"

using namespace coppice::gpu;

namespace {

// Runs twice, since a second run finds the arena as the first one left it. Empty on any error.
std::vector<float> run(const Network& net, std::span<const float> input, int batch, int threads = 1) {
  auto device = make_cpu_device({threads});
  if (!device) return {};
  auto compiled = (*device)->compile(net, {batch});
  if (!compiled) {
    ADD_FAILURE() << compiled.error().what;
    return {};
  }
  std::vector<float> out(static_cast<std::size_t>((*compiled)->output_elements()), -7.0F);
  for (int i = 0; i < 2; ++i)
    if (auto ok = (*compiled)->run(input, out); !ok) return {};
  return out;
}

double error(const Network& net, std::uint64_t seed, int batch, int threads = 1) {
  const auto input = NetSampler(seed).floats(elements(net.input) * batch);
  return reference::error(run(net, input, batch, threads), reference::forward(net, input));
}

TEST(CpuDevice, AgreesWithTheDefinitionOnEveryKindOfNet) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    const auto net = random_net(seed, static_cast<int>(seed % 8) + 1, Palette::all);
    RC_ASSERT(error(net, seed, static_cast<int>(seed % 3) + 1) < 1e-4);
  }));
}

TEST(CpuDevice, AgreesOnTheNetsThatAreServed) {
  for (const auto& widths :
       std::vector<std::vector<int>>{{16, 16, 32, 32, 64, 64}, {8, 8, 16, 16, 32, 32}, {9, 9, 19, 19, 38, 38}})
    for (const int threads : {1, 2}) EXPECT_LT(error(vgg({1, 28, 28}, widths, 10, 5), 5, 1, threads), 1e-4);
}

TEST(CpuDevice, AgreesOnABatch) { EXPECT_LT(error(vgg({3, 32, 32}, {8, 8}, 10, 5), 6, 7), 1e-4); }

TEST(CpuDevice, GivesEachItemOfABatchItsOwnAnswer) {
  const auto net = vgg({1, 28, 28}, {8, 8}, 10, 5);
  const auto input = NetSampler(2).floats(3 * 784);
  const auto whole = run(net, input, 3);
  ASSERT_EQ(whole.size(), 30U);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto alone = run(net, std::span(input).subspan(i * 784, 784), 1);
    EXPECT_LT(reference::error(alone, std::span(whole).subspan(i * 10, 10)), 1e-5);
  }
}

TEST(CpuDevice, PassesAnInputOn) {
  const Network same{"same", {2, 3, 3}, {{"identity", Identity{}, {0}}}};
  const Network flat{"flat", {2, 3, 3}, {{"flatten", Flatten{}, {0}}}};
  EXPECT_EQ(error(same, 1, 2), 0);
  EXPECT_EQ(error(flat, 1, 2), 0);
}

TEST(CpuDevice, NormalisesVectors) {
  NetSampler sample(4);
  const Network net{
      "norm",
      {5},
      {{"norm", BatchNorm{sample.floats(5), sample.floats(5), sample.floats(5), sample.floats(5, 1, 2), 1e-5F}, {0}},
       {"relu", Relu{}, {1}}}};
  EXPECT_LT(error(net, 1, 3), 1e-5);
}

TEST(CpuDevice, LeavesTheInputAlone) {
  const Network net{"relu", {1, 4, 4}, {{"a", Relu{}, {0}}, {"b", Relu{}, {1}}}};
  const auto input = NetSampler(8).floats(16);
  const auto before = input;
  run(net, input, 1);
  EXPECT_EQ(input, before);
}

TEST(CpuDevice, RunsOnAnotherThreadThanItWasCompiledOn) {
  const auto net = vgg({1, 28, 28}, {16, 16}, 10, 5);
  const auto input = NetSampler(2).floats(784);
  auto device = make_cpu_device({2});
  ASSERT_TRUE(device);
  auto compiled = (*device)->compile(net, {1});
  ASSERT_TRUE(compiled);
  std::vector<float> out(10);
  std::thread([&] { EXPECT_TRUE((*compiled)->run(input, out)); }).join();
  EXPECT_LT(reference::error(out, reference::forward(net, input)), 1e-4);
}

TEST(CpuDevice, RefusesWrongSizes) {
  auto device = make_device("cpu", {1});
  ASSERT_TRUE(device);
  EXPECT_EQ((*device)->name(), "cpu");
  const auto net = vgg({1, 28, 28}, {4, 4}, 10, 5);
  auto compiled = (*device)->compile(net, {1});
  ASSERT_TRUE(compiled);
  std::vector<float> input(784), output(10);
  EXPECT_EQ((*compiled)->run(std::span(input).first(783), output).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ((*compiled)->run(input, std::span(output).first(9)).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ((*device)->compile(net, {0}).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ((*device)->compile({"empty", {1, 2, 2}, {}}, {1}).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ((*device)->compile({"lost", {1, 2, 2}, {{"relu", Relu{}, {}}}}, {1}).error().code,
            ErrorCode::shape_mismatch);
  EXPECT_EQ(make_cpu_device({0}).error().code, ErrorCode::device_unavailable);
}

}  // namespace
