// What a net in training keeps and promises beside its gradients: running statistics, steps, state, batches.
#include "gpu/training.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "tests/gpu/builder.hpp"
#include "tests/gpu/training_reference.hpp"

namespace coppice::gpu {
namespace {

std::unique_ptr<TrainableNet> trainable(const Network& net, int batch, int threads = 1) {
  auto device = make_cpu_device({threads});
  EXPECT_TRUE(device) << device.error().what;
  auto made = (*device)->compile_training(net, {.batch = batch});
  EXPECT_TRUE(made) << made.error().what;
  return made ? std::move(*made) : nullptr;
}

Network small_net(std::uint64_t seed) {
  Builder b({3, 6, 6}, seed);
  int at = b.relu(b.norm(b.conv3x3(0, 12)));
  at = b.relu(b.add(b.norm(b.conv3x3(at, 12)), at));
  b.dense(b.flatten(b.push(MaxPool{{2, 2, 2, 2, 0, 0, 0, 0}}, {at})), 5);
  return b.net;
}

struct Learner {
  std::unique_ptr<TrainableNet> net;
  std::vector<float> input, weights, scores;

  Learner(const Network& from, int batch, std::uint64_t seed, int threads = 1) : net(trainable(from, batch, threads)) {
    input = random_input(from, batch, seed);
    weights = NetSampler(seed + 1).floats(net->output_elements());
    scores.resize(weights.size());
  }
  void forward(Mode mode = Mode::train) { ASSERT_TRUE(net->forward(input, scores, mode)); }
  void backward() { ASSERT_TRUE(net->backward(weights)); }
  std::vector<float> gradients() const {
    std::vector<float> out(static_cast<std::size_t>(net->parameter_elements()));
    EXPECT_TRUE(net->read_gradients(out));
    return out;
  }
};

TEST(Training, RefusesThreeSpatialAxes) {
  Builder b({2, 3, 3, 3}, 1);
  b.dense(b.flatten(b.push(MaxPool{}, {0})), 2);
  const auto made = (*make_cpu_device({1}))->compile_training(b.net, {.batch = 1});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::unsupported_operator);
  EXPECT_EQ(made.error().what, "node node0 (MaxPool): three spatial axes, which training does not take");
}

TEST(Training, RefusesEmptyValues) {
  Builder b({2, 3}, 1);
  b.push(Slice{0, 1, 1}, {0});
  const auto made = (*make_cpu_device({1}))->compile_training(b.net, {.batch = 1});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::unsupported_operator);
  EXPECT_EQ(made.error().what, "node node0 (Slice): an empty value of 0x3, which training does not take");
}

TEST(Training, RunningStatisticsFollowTheBatchesByATenthUnbiased) {
  Builder b({2, 3, 3}, 5);
  b.norm(0);
  Learner learner(b.net, 4, 6);
  learner.forward();
  learner.forward();
  const auto s = reference::statistics_of(reference::to_batch(learner.input, 4), 2);
  const auto after = learner.net->network(false);
  ASSERT_TRUE(after);
  const auto &before = std::get<BatchNorm>(b.net.nodes[0].op), &norm = std::get<BatchNorm>(after->nodes[0].op);
  for (std::size_t c = 0; c < 2; ++c) {
    EXPECT_NEAR(norm.mean[c], 0.81 * before.mean[c] + 0.19 * s.mean[c], 1e-5);
    EXPECT_NEAR(norm.variance[c], 0.81 * before.variance[c] + 0.19 * s.variance[c] * 36 / 35, 1e-5);
  }
  learner.forward(Mode::evaluate);
  EXPECT_EQ(std::get<BatchNorm>(learner.net->network(false)->nodes[0].op).mean, norm.mean);
}

TEST(Training, TheTrainedNetRunsAsItEvaluates) {
  Learner learner(small_net(1), 3, 2);
  for (int i = 0; i < 3; ++i) {
    learner.forward();
    learner.backward();
    ASSERT_TRUE(learner.net->update({.rate = 0.01F}));
  }
  learner.forward(Mode::evaluate);
  const auto net = learner.net->network(false);
  ASSERT_TRUE(net);
  EXPECT_LT(reference::error(learner.scores, reference::forward(*net, learner.input)), 2e-5);
}

// The formula of the header, written out once more on plain numbers.
void expect_step(const SgdStep& step) {
  Builder b({4}, 7);
  b.dense(0, 3);
  Learner learner(b.net, 2, 8);
  std::vector<double> w, v;
  const auto begin = learner.net->state();
  ASSERT_TRUE(begin);
  w.assign(begin->weights.begin(), begin->weights.end());
  v.assign(w.size(), 0.0);
  for (int i = 0; i < 4; ++i) {
    learner.forward();
    learner.backward();
    const auto g = learner.gradients();
    ASSERT_TRUE(learner.net->update(step));
    for (std::size_t k = 0; k < w.size(); ++k) {
      const double decay = k < 12 ? step.weight_decay : 0;  // the three biases come last and are not decayed
      const double gradient = g[k] + decay * w[k];
      v[k] = step.momentum * v[k] + gradient;
      w[k] -= step.rate * (step.nesterov ? gradient + step.momentum * v[k] : v[k]);
    }
    const auto state = learner.net->state();
    for (std::size_t k = 0; k < w.size(); ++k) ASSERT_NEAR(state->weights[k], w[k], 1e-5) << i << " " << k;
  }
  for (const float left : learner.gradients()) EXPECT_EQ(left, 0.0F);
}

TEST(Training, StepsOfNesterov) { expect_step({.rate = 0.05F, .momentum = 0.9F, .weight_decay = 0.1F}); }
TEST(Training, StepsOfPlainMomentum) {
  expect_step({.rate = 0.05F, .momentum = 0.8F, .weight_decay = 0.1F, .nesterov = false});
}
TEST(Training, StepsWithoutMomentum) { expect_step({.rate = 0.05F, .momentum = 0, .weight_decay = 0}); }

TEST(Training, TheAverageOfTheWeightsLagsBehind) {
  Learner learner(small_net(3), 2, 4);
  std::vector<double> average;
  for (int i = 0; i < 5; ++i) {
    learner.forward();
    learner.backward();
    ASSERT_TRUE(learner.net->update({.rate = 0.01F, .average_decay = 0.75F}));
    const auto state = learner.net->state();
    if (i == 0) average.assign(state->weights.begin(), state->weights.end());
    for (std::size_t k = 0; k < average.size(); ++k)
      average[k] = i == 0 ? average[k] : 0.75 * average[k] + 0.25 * state->weights[k];
    ASSERT_EQ(state->average.size(), average.size());
    for (std::size_t k = 0; k < average.size(); ++k) ASSERT_NEAR(state->average[k], average[k], 1e-5);
  }
  const auto averaged = learner.net->network(true), plain = learner.net->network(false);
  ASSERT_TRUE(averaged && plain);
  EXPECT_NEAR(std::get<Convolution>(averaged->nodes[0].op).weight[0], average[0], 1e-5);
  EXPECT_NE(std::get<Convolution>(averaged->nodes[0].op).weight, std::get<Convolution>(plain->nodes[0].op).weight);
}

TEST(Training, GradientsOfTwoBackwardsAddUp) {
  Learner learner(small_net(9), 2, 10);
  learner.forward();
  learner.backward();
  const auto once = learner.gradients();
  learner.backward();
  const auto twice = learner.gradients();
  for (std::size_t k = 0; k < once.size(); ++k) EXPECT_NEAR(twice[k], 2 * once[k], 1e-4 * (1 + std::abs(once[k])));
}

// Two nodes with half a batch each, their gradients added, take the step of one with the whole batch.
TEST(Training, GradientsWrittenCountLikeOnesOwn) {
  Builder b({3, 5, 5}, 11);
  b.dense(b.flatten(b.relu(b.conv3x3(0, 8))), 4);
  Learner whole(b.net, 4, 12), left(b.net, 2, 12), right(b.net, 2, 12);
  for (auto [half, from] : {std::pair(&left, 0), std::pair(&right, 1)}) {
    const auto take = [&, part = from](const std::vector<float>& all) {
      const auto size = static_cast<std::ptrdiff_t>(all.size()) / 2;
      return std::vector<float>(all.begin() + part * size, all.begin() + (part + 1) * size);
    };
    half->input = take(whole.input);
    half->weights = take(whole.weights);
    half->forward();
    half->backward();
  }
  whole.forward();
  whole.backward();
  auto sum = left.gradients();
  const auto other = right.gradients();
  for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += other[k];
  EXPECT_LT(reference::error(sum, whole.gradients()), 1e-5);
  ASSERT_TRUE(left.net->write_gradients(sum));
  ASSERT_TRUE(left.net->update({}));
  ASSERT_TRUE(whole.net->update({}));
  EXPECT_LT(reference::error(left.net->state()->weights, whole.net->state()->weights), 1e-5);
}

TEST(Training, ARestoredNetGoesOnToTheSameBits) {
  const auto net = small_net(13);
  const SgdStep step{.rate = 0.02F, .average_decay = 0.9F};
  Learner straight(net, 3, 14), first(net, 3, 14), second(net, 3, 14);
  const auto go = [&](Learner& learner, int steps) {
    for (int i = 0; i < steps; ++i) {
      learner.forward();
      learner.backward();
      ASSERT_TRUE(learner.net->update(step));
    }
  };
  go(straight, 6);
  go(first, 3);
  ASSERT_TRUE(second.net->restore(*first.net->state()));
  go(second, 3);
  const auto a = straight.net->state(), b = second.net->state();
  EXPECT_EQ(a->weights, b->weights);
  EXPECT_EQ(a->velocity, b->velocity);
  EXPECT_EQ(a->average, b->average);
}

TEST(Training, GradientsOfInnerValuesAreThoseOfTheDefinition) {
  Builder b({2, 4, 4}, 15);
  const int conv = b.conv3x3(0, 8), norm = b.norm(conv), relu = b.relu(norm);
  b.dense(b.flatten(relu), 3);
  Learner learner(b.net, 3, 16);
  learner.forward();
  learner.backward();
  std::vector<float> values(3 * 8 * 16), before(values.size()), after(values.size());
  ASSERT_TRUE(learner.net->read_value(relu, values));
  ASSERT_TRUE(learner.net->read_value_gradient(norm, before));
  ASSERT_TRUE(learner.net->read_value_gradient(relu, after));
  const auto& dense = std::get<Dense>(b.net.nodes.back().op);
  for (std::size_t item = 0; item < 3; ++item)
    for (std::size_t i = 0; i < 128; ++i) {
      double expected = 0;
      for (std::size_t o = 0; o < 3; ++o) expected += learner.weights[item * 3 + o] * dense.weight[o * 128 + i];
      const auto at = item * 128 + i;
      EXPECT_NEAR(after[at], expected, 1e-5);
      EXPECT_EQ(before[at], values[at] > 0 ? after[at] : 0.0F);
    }
}

TEST(Training, TwoThreadsComeToTheSameGradientsButForRounding) {
  Learner one(small_net(17), 8, 18), two(small_net(17), 8, 18, 2);
  for (auto* learner : {&one, &two}) {
    learner->forward();
    learner->backward();
  }
  EXPECT_LT(reference::error(two.gradients(), one.gradients()), 1e-4);
}

TEST(Training, NetsOfOneDeviceTrainBesideOneAnother) {
  const auto net = small_net(19);
  Learner alone(net, 4, 20), left(net, 4, 20), right(net, 4, 20);
  const auto go = [](Learner& learner) {
    for (int i = 0; i < 10; ++i) {
      learner.forward();
      learner.backward();
      ASSERT_TRUE(learner.net->update({.rate = 0.01F}));
    }
  };
  go(alone);
  {
    const std::jthread other([&] { go(right); });
    go(left);
  }
  EXPECT_EQ(left.net->state()->weights, alone.net->state()->weights);
  EXPECT_EQ(right.net->state()->weights, alone.net->state()->weights);
}

TEST(Training, RefusesWhatDoesNotFitAndSaysWhatWould) {
  Learner learner(small_net(21), 2, 22);
  std::vector<float> wrong(3);
  const auto forward = learner.net->forward(wrong, learner.scores, Mode::train);
  ASSERT_FALSE(forward);
  EXPECT_EQ(forward.error().what, "forward: 3 numbers in and 10 out, the net takes 216 and gives 10");
  EXPECT_FALSE(learner.net->backward(wrong));
  EXPECT_FALSE(learner.net->read_value(99, wrong));
  EXPECT_FALSE(learner.net->read_value(1, wrong));
  EXPECT_FALSE(learner.net->read_gradients(wrong));
  EXPECT_FALSE(learner.net->restore({wrong, wrong, {}}));
  EXPECT_FALSE(make_cpu_device({1}).value()->compile_training(small_net(21), {.batch = 0}));
  std::vector<float> input(216);
  EXPECT_FALSE(learner.net->read_value_gradient(0, input));
}

}  // namespace
}  // namespace coppice::gpu
