// Rounds over the data: schedules, losses, augmentation, determinism.
#include "gpu/trainer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "gpu/augment.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/shapes_data.hpp"

namespace coppice::gpu {
namespace {

// ---- schedules -----------------------------------------------------------------------------------------------------

TEST(Schedule, ConstantStaysAndStepsFallByTens) {
  const Schedule constant{Schedule::Kind::constant, 0.3F};
  EXPECT_FLOAT_EQ(constant.rate(0, 10), 0.3F);
  EXPECT_FLOAT_EQ(constant.rate(9, 10), 0.3F);
  const Schedule steps{.kind = Schedule::Kind::step, .peak = 0.1F, .milestones = {0.5F, 0.75F}};
  EXPECT_FLOAT_EQ(steps.rate(49, 100), 0.1F);
  EXPECT_FLOAT_EQ(steps.rate(50, 100), 0.01F);
  EXPECT_FLOAT_EQ(steps.rate(75, 100), 0.001F);
}

TEST(Schedule, CosineFallsAlongHalfAWave) {
  const Schedule cosine{Schedule::Kind::cosine, 0.2F};
  EXPECT_FLOAT_EQ(cosine.rate(0, 1000), 0.2F);
  EXPECT_NEAR(cosine.rate(250, 1000), 0.2 * (1 + std::sqrt(0.5)) / 2, 1e-6);
  EXPECT_FLOAT_EQ(cosine.rate(500, 1000), 0.1F);
  EXPECT_LT(cosine.rate(999, 1000), 1e-5F);
}

TEST(Schedule, OneCycleRisesToItsPeakAndFallsToATenThousandthOfIt) {
  const Schedule cycle{.kind = Schedule::Kind::one_cycle, .peak = 0.1F, .rising = 0.2F};
  EXPECT_FLOAT_EQ(cycle.rate(0, 1000), 0.004F);
  EXPECT_FLOAT_EQ(cycle.rate(200, 1000), 0.1F);
  EXPECT_NEAR(cycle.rate(999, 1000), 1e-5, 2e-6);
  for (int i = 1; i < 1000; ++i) {
    const float before = cycle.rate(i - 1, 1000), now = cycle.rate(i, 1000);
    EXPECT_TRUE(i <= 200 ? now >= before : now <= before) << i;
  }
  const Schedule falling{.kind = Schedule::Kind::one_cycle, .peak = 1, .rising = 0};
  EXPECT_FLOAT_EQ(falling.rate(0, 10), 1);
  const Schedule rising{.kind = Schedule::Kind::one_cycle, .peak = 1, .rising = 1};
  EXPECT_TRUE(std::isfinite(rising.rate(9, 10)));
}

// ---- losses --------------------------------------------------------------------------------------------------------

using Loss = std::function<double(std::span<const float>, std::span<float>)>;

// The gradients that a loss adds are its differences; what was there stays.
void expect_gradients(const Loss& loss, std::vector<float> scores) {
  std::vector<float> gradients(scores.size(), 0.25F), ignored(scores.size());
  loss(scores, gradients);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float before = scores[i];
    scores[i] = before + 0x1p-8F;
    const double up = loss(scores, ignored);
    scores[i] = before - 0x1p-8F;
    const double down = loss(scores, ignored);
    scores[i] = before;
    EXPECT_NEAR(gradients[i] - 0.25, (up - down) * 0x1p7, 2e-5) << i;
  }
}

const std::vector<std::uint16_t> kLabels{2, 0, 1};

TEST(Losses, GradientsAreDifferences) {
  const auto scores = NetSampler(1).floats(12, -3, 3), teacher = NetSampler(2).floats(12, -3, 3);
  expect_gradients([](auto s, auto g) { return cross_entropy(s, kLabels, 4, g); }, scores);
  expect_gradients([](auto s, auto g) { return cross_entropy(s, kLabels, 4, g, 0.3F); }, scores);
  expect_gradients([](auto s, auto g) { return binary_cross_entropy(s, kLabels, 4, g); }, scores);
  expect_gradients([](auto s, auto g) { return binary_cross_entropy(s, kLabels, 4, g, 0.5F, 3); }, scores);
  expect_gradients([&](auto s, auto g) { return distillation(s, teacher, 4, 1, g); }, scores);
  expect_gradients([&](auto s, auto g) { return distillation(s, teacher, 4, 4, g, 0.7F); }, scores);
}

TEST(Losses, KnownValues) {
  std::vector<float> gradients(4);
  const std::vector<float> even(4, 1.5F);
  const std::vector<std::uint16_t> label{3};
  EXPECT_NEAR(cross_entropy(even, label, 4, gradients), std::log(4), 1e-12);
  EXPECT_FLOAT_EQ(gradients[3], -0.75F);
  EXPECT_FLOAT_EQ(gradients[0], 0.25F);
  EXPECT_NEAR(binary_cross_entropy(std::vector<float>(4, 0.0F), label, 4, gradients), 4 * std::log(2), 1e-12);
  EXPECT_NEAR(distillation(even, even, 4, 3, gradients), 0, 1e-12);
}

TEST(Losses, LargeScoresOverflowNothing) {
  std::vector<float> gradients(2, 0.0F);
  const std::vector<float> far{1e4F, -1e4F};
  const std::vector<std::uint16_t> label{1};
  EXPECT_NEAR(cross_entropy(far, label, 2, gradients), 2e4, 1);
  EXPECT_NEAR(binary_cross_entropy(far, label, 2, gradients), 2e4, 1);
  EXPECT_TRUE(std::isfinite(distillation(far, std::vector<float>{-1e4F, 1e4F}, 2, 1, gradients)));
  for (const float g : gradients) EXPECT_TRUE(std::isfinite(g));
}

// ---- what a step sees ----------------------------------------------------------------------------------------------

TEST(Augmentation, EveryEpochIsAnotherOrderOfAllItems) {
  const auto first = shuffled(100, 7, 0), second = shuffled(100, 7, 1);
  EXPECT_NE(first, second);
  EXPECT_EQ(first, shuffled(100, 7, 0));
  EXPECT_NE(first, shuffled(100, 8, 0));
  EXPECT_TRUE(std::is_permutation(first.begin(), first.end(), second.begin()));
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), 100U);
}

TEST(Augmentation, WithoutAnyItemsAreNormalisedAsTheyAre) {
  const auto data = shapes_data(4, 1);
  const std::vector<std::int64_t> indices{2, 0};
  std::vector<float> out(2 * 64), expected(64);
  augmented(data, indices, {0.3F, 0.5F}, {}, 1, 0, 0, out);
  item(data, 2, {0.3F, 0.5F}, expected);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), out.begin()));
}

// One bright pixel shows where an image went.
TEST(Augmentation, ShiftsByEveryDistanceAndMirrorsHalf) {
  Dataset data{{1, 7, 7}, std::vector<std::uint8_t>(49, 0), {0}};
  data.pixels[3 * 7 + 2] = 255;
  const std::vector<std::int64_t> indices{0};
  std::map<std::pair<int, int>, int> places;
  std::vector<float> out(49);
  for (int step = 0; step < 2000; ++step) {
    augmented(data, indices, {}, {1, true}, 5, step, 0, out);
    const auto at = static_cast<int>(std::max_element(out.begin(), out.end()) - out.begin());
    ++places[{at / 7 - 3, at % 7}];
  }
  std::map<int, int> columns;
  for (const auto& [place, count] : places) {
    EXPECT_LE(std::abs(place.first), 1);
    columns[place.second] += count;
  }
  ASSERT_EQ(columns.size(), 5U);  // 1 2 3 as it is, 3 4 5 mirrored
  EXPECT_NEAR(columns[1] + columns[2], 667, 100);
  EXPECT_NEAR(columns[3], 667, 100);
  EXPECT_EQ(places.size(), 15U);
}

TEST(Augmentation, WhatComesInFromOutsideIsTheMean) {
  const Dataset data{{1, 2, 2}, std::vector<std::uint8_t>(4, 255), {0}};
  std::vector<float> out(4);
  bool seen = false;
  for (int step = 0; step < 50; ++step) {
    augmented(data, std::vector<std::int64_t>{0}, {0.5F, 0.5F}, {2, false}, 1, step, 0, out);
    for (const float value : out) {
      EXPECT_TRUE(value == 1.0F || value == 0.0F);
      seen |= value == 0.0F;
    }
  }
  EXPECT_TRUE(seen);
}

// ---- training ------------------------------------------------------------------------------------------------------

Expected<Trained> trained(const TrainerOptions& options, const Dataset& data, const std::vector<Network>& nets) {
  auto device = make_cpu_device({options.threads});
  EXPECT_TRUE(device);
  std::vector<std::int64_t> items(static_cast<std::size_t>(data.count()));
  std::iota(items.begin(), items.end(), 0);
  return train(**device, nets, data, items, sum_of_cross_entropies(nets.size()), options);
}

TEST(Trainer, LearnsWhereABrightSquareIs) {
  const auto data = shapes_data(600, 3);
  const auto result = trained(shapes_options(), data, {shapes_net(1)});
  ASSERT_TRUE(result) << result.error().what;
  EXPECT_GT(shapes_accuracy(result->nets[0], shapes_data(300, 4)), 0.95);
  EXPECT_LT(result->loss, 0.3);
}

TEST(Trainer, OneSeedGivesTheSameBitsOnOneThread) {
  const auto data = shapes_data(100, 3);
  auto options = shapes_options();
  options.epochs = 2;
  const auto a = trained(options, data, {shapes_net(1)}), b = trained(options, data, {shapes_net(1)});
  options.seed = 12;
  const auto c = trained(options, data, {shapes_net(1)});
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(weights_of(a->nets[0]), weights_of(b->nets[0]));
  EXPECT_NE(weights_of(a->nets[0]), weights_of(c->nets[0]));
}

TEST(Trainer, SeveralNetsSharedOutOverThreadsEachTrainAsAlone) {
  const auto data = shapes_data(100, 3);
  auto options = shapes_options();
  options.epochs = 2;
  const auto alone = trained(options, data, {shapes_net(2)});
  options.threads = 2;
  const auto three = trained(options, data, {shapes_net(1), shapes_net(2), shapes_net(3)});
  ASSERT_TRUE(alone && three);
  ASSERT_EQ(three->nets.size(), 3U);
  EXPECT_EQ(weights_of(three->nets[1]), weights_of(alone->nets[0]));
}

TEST(Trainer, TellsOfEpochsAndProgressAndStopsWhenAsked) {
  const auto data = shapes_data(100, 3);
  auto options = shapes_options();
  options.epochs = 3;
  std::vector<int> epochs;
  TrainingProgress latest;
  options.after_epoch = [&](const EpochReport& report) -> Expected<void> {
    EXPECT_EQ(report.nets.size(), 1U);
    epochs.push_back(report.epoch);
    return {};
  };
  options.progress = [&](const TrainingProgress& progress) { latest = progress; };
  ASSERT_TRUE(trained(options, data, {shapes_net(1)}));
  EXPECT_EQ(epochs, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(latest.step, latest.steps);
  EXPECT_EQ(latest.steps, 3 * (100 / options.batch));
  EXPECT_GT(latest.images_per_second, 0);
  options.stop = [] { return true; };
  const auto stopped = trained(options, data, {shapes_net(1)});
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::stopped);
}

TEST(Trainer, FewerItemsThanABatchRepeat) {
  const auto data = shapes_data(5, 3);
  auto options = shapes_options();
  options.epochs = 1;
  EXPECT_TRUE(trained(options, data, {shapes_net(1)}));
}

TEST(Trainer, RefusesDataThatDoesNotFit) {
  const auto data = shapes_data(20, 3);
  const auto refused = trained(shapes_options(), data, {vgg({1, 28, 28}, {8}, 4, 1)});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().what, "train: vgg takes 1x28x28, the data's items are 1x8x8");
  EXPECT_FALSE(trained(shapes_options(), data, {}));
}

}  // namespace
}  // namespace coppice::gpu
