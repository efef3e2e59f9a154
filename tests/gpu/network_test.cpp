#include "gpu/network.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <limits>

#include "tests/gpu/random_net.hpp"
#include "tests/gpu/reference.hpp"

using namespace coppice::gpu;

namespace {

const std::vector<int> kHalf{16, 16, 32, 32, 64, 64};

std::string refusal(const Network& net) {
  const auto shapes = infer_shapes(net);
  EXPECT_FALSE(shapes);
  if (shapes) return "";
  EXPECT_EQ(shapes.error().code, ErrorCode::shape_mismatch);
  return shapes.error().what;
}

TEST(Network, CountsTheMultiplyAddsOfTheHalfVgg) {
  const auto net = vgg({1, 28, 28}, kHalf, 10, 1);
  const std::int64_t expected =
      784 * 9 * (1 * 16 + 16 * 16) + 196 * 9 * (16 * 32 + 32 * 32) + 49 * 9 * (32 * 64 + 64 * 64) + 10 * 64 * 9;
  EXPECT_EQ(multiply_adds(net), expected);
  EXPECT_NEAR(static_cast<double>(expected), 7.34e6, 1e4);
  EXPECT_EQ(multiply_adds(simplified(net)), expected);
}

TEST(Network, CountsParametersAsTrainersDo) {
  // Weights without biases, two numbers a channel for each norm, the dense layer.
  EXPECT_EQ(parameters(vgg({1, 28, 28}, {4, 4}, 10, 1)), 9 * (4 + 16) + 2 * 8 + 10 * 4 * 196 + 10);
}

TEST(Network, DrawsEqualWeightsFromEqualSeeds) {
  const auto weight = [](std::uint64_t seed) {
    return std::get<Convolution>(vgg({1, 28, 28}, kHalf, 10, seed).nodes[0].op).weight;
  };
  EXPECT_EQ(weight(7), weight(7));
  EXPECT_NE(weight(7), weight(8));
}

TEST(Network, InfersShapesThroughPoolsToScores) {
  const auto shapes = infer_shapes(vgg({3, 32, 32}, kHalf, 10, 1));
  ASSERT_TRUE(shapes);
  EXPECT_EQ(shapes->front(), (Dims{3, 32, 32}));
  EXPECT_EQ((*shapes)[shapes->size() - 2], (Dims{64 * 4 * 4}));
  EXPECT_EQ(shapes->back(), (Dims{10}));
  EXPECT_EQ(to_string(shapes->front()), "3x32x32");
}

TEST(Network, NamesTheNodeThatDoesNotFit) {
  auto net = vgg({1, 28, 28}, kHalf, 10, 1);
  std::get<Convolution>(net.nodes[3].op).weight.pop_back();
  EXPECT_NE(refusal(net).find("conv1"), std::string::npos);
  net = vgg({1, 28, 28}, kHalf, 10, 1);
  net.nodes[2].inputs = {40};
  EXPECT_NE(refusal(net).find("relu0"), std::string::npos);
  net.nodes[2].inputs = {-1};
  refusal(net);
  net.nodes[2].inputs = {};
  refusal(net);
}

TEST(Network, RefusesSizesThatOverflow) {
  constexpr auto huge = std::numeric_limits<std::int64_t>::max();
  refusal({"x", {huge, huge}, {{"relu", Relu{}, {0}}}});
  refusal({"x", {huge, 0, 3}, {{"relu", Relu{}, {0}}}});
  refusal({"x", {-1, -4}, {{"relu", Relu{}, {0}}}});
  refusal({"x", {}, {{"relu", Relu{}, {0}}}});
  refusal({"x", {1, 2, 2}, {}});
  refusal({"x", {1, 2, 2}, {{"conv", Convolution{{huge, huge, 1, 1, 0, 0, 0, 0}, huge, 1, {1}, {}}, {0}}}});
  refusal({"x", {1, 2, 2}, {{"conv", Convolution{{1, 1, 1, 1, huge, 1, huge, 1}, 1, 1, {1}, {}}, {0}}}});
  refusal({"x", {1, 2, 2}, {{"conv", Convolution{{1, 1, 0, 1, 0, 0, 0, 0}, 1, 1, {1}, {}}, {0}}}});
  refusal(
      {"x", {1, 60'000, 1}, {{"conv", Convolution{{1, 1, 1, 1, 60'000, 60'000, 60'000, 60'000}, 1, 1, {1}, {}}, {0}}}});
  refusal({"x", {2}, {{"dense", Dense{huge, {1}, {}}, {0}}}});
  refusal({"x", {1, 4, 4}, {{"pool", MaxPool{{2, 2, 2, 2, 2, 0, 0, 0}}, {0}}}});
}

TEST(Simplified, ComputesTheSame) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    const auto net = random_net(seed, static_cast<int>(seed % 9) + 1);
    const auto small = simplified(net);
    RC_ASSERT(infer_shapes(small).has_value());
    RC_ASSERT(small.nodes.size() <= net.nodes.size());
    const auto input = NetSampler(seed).floats(elements(net.input) * 2);
    RC_ASSERT(reference::error(reference::forward(small, input), reference::forward(net, input)) < 1e-5);
  }));
}

TEST(Simplified, FoldsEveryNormOfAVggAndLeavesTheRest) {
  const auto net = vgg({1, 28, 28}, kHalf, 10, 1);
  const auto small = simplified(net);
  EXPECT_EQ(small.nodes.size(), net.nodes.size() - kHalf.size());
  for (const auto& node : small.nodes) EXPECT_FALSE(std::holds_alternative<BatchNorm>(node.op));
}

TEST(Simplified, KeepsANormWhoseConvolutionOthersReadThroughAnIdentity) {
  NetSampler sample(3);
  const Convolution conv{{1, 1, 1, 1, 0, 0, 0, 0}, 2, 1, sample.floats(2), {}};
  const BatchNorm norm{sample.floats(2), sample.floats(2), sample.floats(2), sample.floats(2, 0.5F, 2), 1e-5F};
  const Network net{
      "x", {1, 3, 3}, {{"conv", conv, {0}}, {"same", Identity{}, {1}}, {"norm", norm, {2}}, {"add", Add{}, {1, 3}}}};
  const auto input = sample.floats(9);
  EXPECT_LT(reference::error(reference::forward(simplified(net), input), reference::forward(net, input)), 1e-6);
}

TEST(Simplified, KeepsANetThatOnlyPassesItsInputOn) {
  const Network net{"x", {2}, {{"a", Identity{}, {0}}, {"b", Identity{}, {1}}}};
  EXPECT_EQ(simplified(net).nodes.size(), 1U);
  EXPECT_TRUE(infer_shapes(simplified(net)));
}

}  // namespace
