// Gradients against numerical ones, statistics against PyTorch's rules, a step against its formula.
#include "gpu/training.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "gpu/trainer.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"
#include "tests/gpu/shapes_data.hpp"

namespace coppice::gpu {
namespace {

constexpr int kBatch = 4;

// A net's loss is the dot product of its outputs with fixed numbers; weights are moved a little either way.
void expect_gradients(const Network& net, Mode mode, double tolerance = 2e-2) {
  auto device = make_cpu_device({1}).value();
  const auto compiled = device->compile_training(net, {kBatch});
  ASSERT_TRUE(compiled) << compiled.error().what;
  auto& runs = **compiled;
  const auto input = random_input(net, kBatch, 5);
  NetSampler sample(6);
  const auto direction = sample.floats(runs.output_elements());
  std::vector<float> scores(direction.size());
  const auto start = runs.state().value();
  const auto loss = [&](const TrainingState& state) {
    EXPECT_TRUE(runs.restore(state));
    EXPECT_TRUE(runs.forward(input, scores, mode));
    double sum = 0;
    for (std::size_t i = 0; i < scores.size(); ++i) sum += static_cast<double>(scores[i]) * direction[i];
    return sum;
  };
  loss(start);
  const auto learned = runs.backward(direction);
  ASSERT_TRUE(learned) << learned.error().what;
  std::vector<float> slopes(static_cast<std::size_t>(runs.parameter_elements()));
  ASSERT_TRUE(runs.read_gradients(slopes));
  double scale = 0;
  for (const float slope : slopes) scale = std::max(scale, std::abs(static_cast<double>(slope)));
  ASSERT_GT(scale, 0);
  const auto stride = std::max<std::size_t>(1, slopes.size() / 60);
  for (std::size_t i = 0; i < slopes.size(); i += stride) {
    if (slopes[i] == 0) continue;  // running statistics
    const float step = 2e-3F;
    auto up = start, down = start;
    up.weights[i] += step;
    down.weights[i] -= step;
    const double numeric = (loss(up) - loss(down)) / (2.0 * static_cast<double>(step));
    EXPECT_NEAR(slopes[i], numeric, tolerance * scale) << "parameter " << i;
  }
}

TEST(Gradients, ConvolutionsOfEveryKind) {
  Builder b({3, 7, 6}, 1);
  int v = b.conv(0, {3, 2, 2, 1, 1, 0, 1, 1}, 6, 3);
  v = b.conv(v, {3, 3, 1, 1, 1, 1, 1, 1}, 6, 6, false);
  Window dilated{2, 2, 1, 1, 1, 1, 1, 1};
  dilated.dilation_h = 2;
  v = b.conv(v, dilated, 5);
  b.dense(b.flatten(v), 3);
  expect_gradients(b.net, Mode::train);
}
TEST(Gradients, NormsOfTheBatchAndRunning) {
  Builder b({2, 6, 6}, 2);
  int v = b.push(AveragePool{{2, 2, 2, 2, 0, 0, 0, 0}, false}, {b.norm(b.conv3x3(0, 8))});
  v = b.norm(b.flatten(v));
  b.dense(v, 3);
  expect_gradients(b.net, Mode::train);
  expect_gradients(b.net, Mode::evaluate);
}
TEST(Gradients, ReluFusedAndNot) {
  Builder b({2, 6, 6}, 3);
  const int normed = b.relu(b.norm(b.conv3x3(0, 8)));
  const int bare = b.relu(b.conv3x3(normed, 8));
  b.dense(b.flatten(b.push(Clip{-0.5F, 0.9F}, {b.add(normed, bare)})), 3);
  expect_gradients(b.net, Mode::train, 5e-2);
  expect_gradients(b.net, Mode::evaluate, 5e-2);
}
TEST(Gradients, ResidualStreamReadTwice) {
  Builder b({2, 6, 6}, 4);
  int v = b.conv3x3(0, 6);
  for (int i = 0; i < 2; ++i) v = b.relu(b.add(b.conv3x3(b.relu(b.norm(b.conv3x3(v, 4))), 6), v));
  b.dense(b.flatten(b.push(GlobalAveragePool{}, {v})), 3);
  expect_gradients(b.net, Mode::train, 5e-2);
}
TEST(Gradients, Pools) {
  Builder b({2, 7, 7}, 5);
  const int v = b.conv3x3(0, 6);
  const int most = b.push(MaxPool{{3, 3, 2, 2, 1, 1, 1, 1}}, {v});
  const int mean = b.push(AveragePool{{3, 3, 2, 2, 1, 1, 1, 1}, true}, {v});
  b.dense(b.flatten(b.add(most, mean)), 3);
  expect_gradients(b.net, Mode::train, 5e-2);
}
TEST(Gradients, MovesOfData) {
  Builder b({2, 4, 5}, 6);
  const int wide = b.conv3x3(0, 8), other = b.conv3x3(0, 4);
  const int joined = b.push(Concat{0}, {wide, other, wide});
  const int mixed = b.push(ChannelShuffle{4}, {joined});
  const int part = b.push(Slice{0, 3, 15}, {mixed});
  const int turned = b.push(Transpose{{1, 0, 2}}, {part});
  const int flat = b.push(Reshape{{240}}, {turned});
  b.dense(b.push(Identity{}, {flat}), 3);
  expect_gradients(b.net, Mode::train);
}

TEST(Training, EvaluatesAsTheFinishedNetDoes) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto net = NetSampler(seed).net(8);
    auto device = make_cpu_device({1}).value();
    const auto compiled = device->compile_training(net, {3});
    ASSERT_TRUE(compiled) << compiled.error().what;
    const auto input = random_input(net, 3, seed);
    std::vector<float> scores(static_cast<std::size_t>((*compiled)->output_elements()));
    ASSERT_TRUE((*compiled)->forward(input, scores, Mode::evaluate));
    EXPECT_LT(reference::error(scores, reference::forward(net, input)), 1e-4) << "seed " << seed;
  }
}

TEST(Training, RunningStatisticsMoveByATenthTowardsTheUnbiasedBatch) {
  Builder b({1, 1, 2}, 7);
  b.norm(0);
  b.dense(b.flatten(1), 1);
  auto net = b.net;
  auto device = make_cpu_device({1}).value();
  auto runs = device->compile_training(net, {2}).value();
  const std::vector<float> input{1, 2, 3, 6};  // mean 3, biased variance 3.5, unbiased 14 / 3
  std::vector<float> scores(2);
  ASSERT_TRUE(runs->forward(input, scores, Mode::train));
  const auto& before = std::get<BatchNorm>(net.nodes[0].op);
  const auto after = std::get<BatchNorm>(runs->network(false).value().nodes[0].op);
  EXPECT_NEAR(after.mean[0], 0.9F * before.mean[0] + 0.3F, 1e-6);
  EXPECT_NEAR(after.variance[0], 0.9F * before.variance[0] + 0.1F * 14 / 3, 1e-5);
  ASSERT_TRUE(runs->forward(input, scores, Mode::evaluate));
  EXPECT_EQ(std::get<BatchNorm>(runs->network(false).value().nodes[0].op).mean, after.mean);
}

TEST(Training, AStepOfNesterovWithDecayAndAverage) {
  Builder b({1, 1, 1}, 8);
  b.dense(b.flatten(0), 1);
  auto device = make_cpu_device({1}).value();
  auto runs = device->compile_training(b.net, {1}).value();
  const auto start = runs->state().value().weights;
  const std::vector<float> input{2}, one{1};
  std::vector<float> scores(1);
  SgdStep sgd{0.1F, 0.9F, 0.01F, true, 0.75F};
  float w = start[0], bias = start[1], v = 0, u = 0, average = 0;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(runs->forward(input, scores, Mode::train));
    ASSERT_TRUE(runs->backward(one));
    ASSERT_TRUE(runs->update(sgd));
    const float g = 2 + 0.01F * w;
    v = 0.9F * v + g;
    w -= 0.1F * (g + 0.9F * v);
    u = 0.9F * u + 1;
    bias -= 0.1F * (1 + 0.9F * u);
    average = i == 0 ? w : 0.75F * average + 0.25F * w;
  }
  const auto state = runs->state().value();
  EXPECT_NEAR(state.weights[0], w, 1e-5);
  EXPECT_NEAR(state.weights[1], bias, 1e-5);
  EXPECT_NEAR(state.average[0], average, 1e-5);
}

TEST(Training, TheSameSeedGivesTheSameBits) {
  const auto data = bars({1, 12, 12}, 4, 128, 1);
  std::vector<std::int64_t> items(128);
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = static_cast<std::int64_t>(i);
  const auto run = [&](std::uint64_t seed, int threads) {
    TrainerOptions how;
    how.epochs = 2;
    how.batch = 16;
    how.seed = seed;
    how.threads = threads;
    how.augmentation = {1, true};
    const LossFunction loss = [](const TrainingBatch& batch, std::span<const float> scores, std::span<float> gradients) {
      return Expected<double>(cross_entropy(scores, batch.labels, 8, gradients));
    };
    auto device = make_cpu_device({1}).value();
    return train(*device, {vgg({1, 12, 12}, {8, 8}, 4, 1), vgg({1, 12, 12}, {8}, 4, 2)}, data, items, loss, how).value();
  };
  const auto weights = [](const Trained& t) { return std::get<Convolution>(t.nets[1].nodes[0].op).weight; };
  EXPECT_EQ(weights(run(1, 1)), weights(run(1, 1)));
  EXPECT_EQ(weights(run(1, 1)), weights(run(1, 2)));  // nets on threads of their own do not meet
  EXPECT_NE(weights(run(1, 1)), weights(run(2, 1)));
}

}  // namespace
}  // namespace coppice::gpu
