#include "gpu/lower.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "tests/gpu/random_net.hpp"
#include "tests/gpu/reference.hpp"

using namespace coppice::gpu;

namespace {

// The lowered steps, carried out by definition.
std::vector<float> forward(const Lowered& net, std::span<const float> input) {
  std::vector<reference::Values> buffers;
  for (const auto count : net.buffers) buffers.emplace_back(static_cast<std::size_t>(count), std::nan(""));
  buffers[0].assign(input.begin(), input.end());
  for (const auto& step : net.steps) {
    const auto at = [&](int buffer) -> reference::Values& { return buffers[static_cast<std::size_t>(buffer)]; };
    const std::vector<const reference::Values*> in{&at(step.source), &at(std::max(step.addend, 0))};
    auto out = std::visit(reference::Forward{in, step.from, step.to}, step.op);
    if (step.addend >= 0 && !std::holds_alternative<Add>(step.op))
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += at(step.addend)[i];
    if (step.relu)
      for (double& value : out) value = std::max(value, 0.0);
    at(step.target) = out;
  }
  const auto& last = buffers[static_cast<std::size_t>(net.output)];
  return {last.begin(), last.end()};
}

TEST(Lower, ComputesTheSame) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    const auto net = random_net(seed, static_cast<int>(seed % 12) + 1);
    const auto lowered = lower(net);
    RC_ASSERT(lowered.has_value());
    const auto input = NetSampler(seed).floats(elements(net.input));
    RC_ASSERT(reference::error(forward(*lowered, input), reference::forward(net, input)) < 1e-5);
  }));
}

TEST(Lower, MakesOneStepOfEachLayerOfAVgg) {
  const auto lowered = lower(vgg({1, 28, 28}, {16, 16, 32, 32, 64, 64}, 10, 1));
  ASSERT_TRUE(lowered);
  EXPECT_EQ(lowered->steps.size(), 6U + 3U + 1U);
}

TEST(Lower, TakesAResidualAndItsReluIntoTheConvolution) {
  const Convolution conv{{3, 3, 1, 1, 1, 1, 1, 1}, 2, 1, std::vector<float>(36, 0.1F), {}};
  const Network net{"residual", {2, 4, 4}, {{"a", conv, {0}}, {"r", Relu{}, {1}}, {"b", conv, {2}}, {"add", Add{}, {0, 3}}, {"out", Relu{}, {4}}}};
  const auto lowered = lower(net);
  ASSERT_TRUE(lowered);
  ASSERT_EQ(lowered->steps.size(), 2U);
  EXPECT_EQ(lowered->steps[1].addend, 0);
  EXPECT_TRUE(lowered->steps[1].relu);
}

TEST(Lower, RefusesWhatIsNeitherImageNorVector) {
  EXPECT_EQ(lower({"x", {2, 3}, {{"relu", Relu{}, {0}}}}).error().code, ErrorCode::shape_mismatch);
}

}  // namespace
