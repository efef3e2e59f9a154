#include "coding/block.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/coding/synthetic.hpp"

using namespace synthetic;

namespace {

// `blocks` blocks of `groups` workers of one class each and a companion.
std::vector<BlockCode> blocks_of(int blocks, int groups, const Decoder& decoder) {
  std::vector<std::vector<int>> own;
  for (int g = 0; g < groups; ++g) own.push_back({g});
  std::vector<BlockCode> all;
  for (int b = 0; b < blocks; ++b) {
    BlockCode block{{}, with_none(grouped_generator(own, groups, 1).value()), decoder};
    for (int g = 0; g < groups; ++g) block.classes.push_back(b * groups + g);
    all.push_back(std::move(block));
  }
  return all;
}

std::vector<float> part(const std::vector<float>& scores, const BlockCode& block) {
  std::vector<float> own;
  for (int c : block.classes) own.push_back(scores[size_of(c)]);
  own.push_back(0);
  return own;
}

TEST(Block, CombinedBlocksSayWhatOneSoftmaxOverAllClassesSays) {
  Random random(7);
  for (int round = 0; round < 50; ++round) {
    const int count = draw(random, 1, 9), groups = draw(random, 1, 11);
    const auto blocks = blocks_of(count, groups, RidgeDecoder{1e-9});
    const auto scores = random_scores(random, count * groups);
    std::vector<BlockBest> bests;
    for (const auto& block : blocks) {
      // Any one worker may be missing.
      const auto missing = ArrivalSet{1} << draw(random, 0, groups);
      const auto best = decode(block, encoded(block.generator, part(scores, block), everyone(block.generator) & ~missing));
      ASSERT_TRUE(best) << best.error().what;
      bests.push_back(*best);
    }
    const auto all = combine(bests);
    std::vector<int> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return scores[size_of(a)] > scores[size_of(b)]; });
    double sum = 0;
    for (float score : scores) sum += std::exp(static_cast<double>(score));
    EXPECT_EQ(all.label, order[0]);
    EXPECT_NEAR(all.probability, std::exp(static_cast<double>(scores[size_of(order[0])])) / sum, 1e-4);
    EXPECT_NEAR(all.margin, order.size() > 1 ? scores[size_of(order[0])] - scores[size_of(order[1])] : 0, 1e-4);
  }
}

TEST(Block, FittedBlocksAreRightAboutTheWholeProblem) {
  constexpr int kBlocks = 3, kGroups = 4, kSamples = 3'000;
  auto blocks = blocks_of(kBlocks, kGroups, RidgeDecoder{});
  Random random(3);
  std::vector<FitData> fits(kBlocks);
  const auto sample = [&](int label) {
    std::vector<float> scores(kBlocks * kGroups);
    for (float& score : scores) score = 0.3F * normal(random);
    scores[size_of(label)] += 1;
    return scores;
  };
  for (int s = 0; s < kSamples; ++s) {
    const int label = draw(random, 0, kBlocks * kGroups - 1);
    const auto scores = sample(label);
    for (int b = 0; b < kBlocks; ++b) {
      const auto own = part(scores, blocks[size_of(b)]);
      for (const auto& worker : blocks[size_of(b)].generator.workers)
        for (float y : encode(worker, own)) fits[size_of(b)].responses.push_back(y);
      fits[size_of(b)].labels.push_back(label / kGroups == b ? label % kGroups : kGroups);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    auto fitted = fit_logistic(blocks[size_of(b)].generator, fits[size_of(b)], {.l2 = 1e-4, .arrived_min = kGroups});
    ASSERT_TRUE(fitted) << fitted.error().what;
    blocks[size_of(b)].decoder = *fitted;
  }
  int right = 0, flat = 0;
  for (int s = 0; s < 1'000; ++s) {
    const int label = draw(random, 0, kBlocks * kGroups - 1);
    const auto scores = sample(label);
    std::vector<BlockBest> bests;
    for (const auto& block : blocks)
      bests.push_back(decode(block, encoded(block.generator, part(scores, block), everyone(block.generator))).value());
    right += combine(bests).label == label;
    flat += std::max_element(scores.begin(), scores.end()) - scores.begin() == label;
  }
  EXPECT_GT(right, flat - 20) << "of 1,000; one arg max over all scores has " << flat;
  EXPECT_GT(flat, 700);
}

TEST(Block, ABlockWithoutAnEstimateSaysWhy) {
  const auto block = blocks_of(1, 2, RidgeDecoder{}).front();
  Arrivals nothing;
  nothing.responses.resize(3);
  const auto best = decode(block, nothing);
  ASSERT_FALSE(best);
  EXPECT_EQ(best.error().code, DecodeErrorCode::nothing_arrived);
}

TEST(Block, OneClassAloneIsCertain) {
  const auto block = blocks_of(1, 1, RidgeDecoder{1e-9}).front();
  const auto best = decode(block, encoded(block.generator, {-3, 0}, 1));
  ASSERT_TRUE(best);
  const auto all = combine(std::vector<BlockBest>{*best});
  EXPECT_EQ(all.label, 0);
  EXPECT_EQ(all.margin, 0);
  EXPECT_FLOAT_EQ(all.probability, 1);
}

}  // namespace
