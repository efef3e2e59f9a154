#include "coding/decoder.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/coding/allocations.hpp"
#include "tests/coding/synthetic.hpp"

using namespace synthetic;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

LogisticDecoder random_logistic(Random& random, const Generator& generator, ArrivalSet set) {
  LogisticDecoder decoder;
  std::vector<float>& weights = decoder.weights[set];
  weights.resize(size_of(generator.classes * (generator.floats_of(set) + 1)));
  for (float& weight : weights) weight = normal(random);
  return decoder;
}

// Identity covariance, means that are the codewords of the classes.
PosteriorDecoder plain_posterior(const Generator& generator) {
  const std::size_t total = size_of(generator.total_floats());
  PosteriorDecoder decoder;
  for (int c = 0; c < generator.classes; ++c) {
    std::vector<float> scores(size_of(generator.classes));
    scores[size_of(c)] = 1.0F;
    for (const WorkerRows& worker : generator.workers)
      for (float y : encode(worker, scores)) decoder.means.push_back(static_cast<double>(y));
    decoder.log_prior.push_back(-std::log(generator.classes));
  }
  decoder.covariance.assign(total * total, 0.0);
  for (std::size_t i = 0; i < total; ++i) decoder.covariance[i * total + i] = 1.0;
  return decoder;
}

std::vector<Decoder> all_decoders(Random& random, const Generator& generator, ArrivalSet set) {
  return {SumDecoder{}, RidgeDecoder{}, plain_posterior(generator), random_logistic(random, generator, set)};
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST(Ridge, RecoversScoresFromEverySetOfEnoughWorkersOfAHarmonicCode) {
  Random random(1);
  for (const CodeShape shape : {CodeShape{4, 3}, CodeShape{6, 4}, CodeShape{7, 5}, CodeShape{12, 10}}) {
    const Generator generator = harmonic_generator(shape);
    for (ArrivalSet set = 1; set <= everyone(generator); ++set) {
      if (std::popcount(set) < shape.needed) continue;
      const std::vector<float> scores = random_scores(random, shape.needed);
      const auto decoded = decode(RidgeDecoder{1e-10}, generator, encoded(generator, scores, set));
      ASSERT_TRUE(decoded) << decoded.error().what;
      ASSERT_LT(largest_difference(decoded->scores, scores), 1e-4F) << shape.workers << " workers, set " << set;
    }
  }
}

TEST(Ridge, RecoversAnyTwoLostWorkersWhenACompanionIsLeft) {
  Random random(2);
  const Generator generator = paired_generator(5, 2);
  for (ArrivalSet set = 1; set <= everyone(generator); ++set) {
    if (std::popcount(set) < 5 || (set >> 5) == 0) continue;
    const std::vector<float> scores = random_scores(random, 10);
    const auto decoded = decode(RidgeDecoder{1e-10}, generator, encoded(generator, scores, set));
    ASSERT_TRUE(decoded) << decoded.error().what;
    ASSERT_LT(largest_difference(decoded->scores, scores), 1e-4F) << "set " << set;
  }
}

TEST(Ridge, GivesTheMinimumOfItsObjective) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    const Generator generator = random_generator(random);
    const ArrivalSet set = static_cast<ArrivalSet>(draw(random, 1, static_cast<int>(everyone(generator))));
    const Arrivals arrivals = encoded(generator, random_scores(random, generator.classes), set);
    const double prior = 0.1;
    const auto loss = [&](const std::vector<float>& z) {
      double sum = 0;
      for (std::size_t i = 0; i < arrivals.responses.size(); ++i)
        for (std::size_t j = 0; j < arrivals.responses[i].size(); ++j) {
          double error = static_cast<double>(arrivals.responses[i][j]);
          for (std::size_t c = 0; c < z.size(); ++c)
            error -= static_cast<double>(generator.workers[i].rows[j * z.size() + c]) * static_cast<double>(z[c]);
          sum += error * error;
        }
      for (float value : z) sum += prior * static_cast<double>(value) * static_cast<double>(value);
      return sum;
    };
    const auto decoded = decode(RidgeDecoder{prior}, generator, arrivals);
    RC_ASSERT(decoded.has_value());
    for (int trial = 0; trial < 10; ++trial) {
      std::vector<float> other = decoded->scores;
      for (float& value : other) value += 0.01F * normal(random);
      RC_ASSERT(loss(other) >= loss(decoded->scores) - 1e-6);
    }
  }));
}

TEST(Sum, RecoversAnySingleLostWorkerOfAReplicatedCode) {
  Random random(3);
  const std::vector<int> first{0, 1}, second{2, 3}, third{4, 5};
  Generator generator{6, {}};
  for (const auto& group : {first, second, third, first, second, third})
    generator.workers.push_back(select_rows(group, 6));
  for (std::size_t lost = 0; lost < 6; ++lost) {
    const std::vector<float> scores = random_scores(random, 6);
    const auto decoded =
        decode(SumDecoder{}, generator, encoded(generator, scores, everyone(generator) ^ (1U << lost)));
    ASSERT_TRUE(decoded) << decoded.error().what;
    EXPECT_EQ(decoded->scores, scores) << "lost " << lost;
  }
}

TEST(Sum, AveragesWhatTheRowsSayAndUndoesTheirScale) {
  const Generator generator{2, {{1, {2.0F, 0.0F}}, {2, {-1.0F, 0.0F, 1.0F, 1.0F}}, {1, {0.0F, 0.5F}}}};
  const auto decoded = decode(SumDecoder{}, generator, {{{6.0F}, {-5.0F, 100.0F}, {1.0F}}});
  ASSERT_TRUE(decoded) << decoded.error().what;
  EXPECT_EQ(decoded->scores, (std::vector<float>{4.0F, 2.0F}));
  EXPECT_EQ(decoded->label, 0);
  EXPECT_EQ(decoded->margin, 2.0F);
}

TEST(Sum, AClassThatNobodyNamesIsNeverTheLabel) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    const Generator generator = paired_generator(5, 0);
    const ArrivalSet set = static_cast<ArrivalSet>(draw(random, 1, 30));
    std::vector<float> scores = random_scores(random, 10);
    const float scale = std::pow(10.0F, static_cast<float>(draw(random, -30, 36)));
    for (float& score : scores) score *= scale;
    const auto decoded = decode(SumDecoder{}, generator, encoded(generator, scores, set));
    RC_ASSERT(decoded.has_value());
    RC_ASSERT((set >> decoded->label / 2 & 1U) != 0U);
    for (int c = 0; c < 10; ++c)
      for (int other = 0; other < 10; ++other)
        if ((set >> c / 2 & 1U) == 0 && (set >> other / 2 & 1U) != 0)
          RC_ASSERT(decoded->scores[size_of(c)] < decoded->scores[size_of(other)]);
    RC_ASSERT(std::isfinite(decoded->margin));
  }));
}

TEST(Sum, HasNoEstimateWhereNoRowNamesAClassAlone) {
  const auto decoded = decode(SumDecoder{}, {2, {{1, {1.0F, 1.0F}}}}, {{{1.0F}}});
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, DecodeErrorCode::not_fitted);
}

TEST(Posterior, IsLinearDiscriminantAnalysisByHand) {
  // mu_0 = (1, 0), mu_1 = (0, 1), N = [[2, 1], [1, 2]], N^-1 = [[2, -1], [-1, 2]] / 3.
  const Generator generator{2, {{1, {1.0F, 0.0F}}, {1, {0.0F, 1.0F}}}};
  const PosteriorDecoder decoder{{1, 0, 0, 1}, {2, 1, 1, 2}, {std::log(0.5), std::log(0.5)}};
  const auto log_sigmoid = [](double odds) { return static_cast<float>(-std::log1p(std::exp(-odds))); };

  // Both, y = (2, 0): scores 4/3 - 1/3 = 1 and -2/3 - 1/3 = -1.
  const auto both = decode(decoder, generator, {{{2.0F}, {0.0F}}});
  ASSERT_TRUE(both) << both.error().what;
  EXPECT_NEAR(both->scores[0], log_sigmoid(2), 1e-6F);
  EXPECT_NEAR(both->scores[1], log_sigmoid(-2), 1e-6F);
  EXPECT_NEAR(both->margin, 2, 1e-6F);

  // Worker 0 alone, N_A = 2: scores 2/2 - 1/4 = 3/4 and 0.
  const auto alone = decode(decoder, generator, {{{2.0F}, {}}});
  ASSERT_TRUE(alone) << alone.error().what;
  EXPECT_EQ(alone->label, 0);
  EXPECT_NEAR(alone->scores[0], log_sigmoid(0.75), 1e-6F);
}

TEST(Posterior, RefusesACovarianceThatIsNone) {
  const auto decoded = decode(PosteriorDecoder{{0}, {-1}, {0}}, {1, {{1, {1.0F}}}}, {{{1.0F}}});
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, DecodeErrorCode::not_fitted);
}

TEST(Logistic, IsTheLogSoftmaxOfItsFormula) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    const Generator generator = random_generator(random);
    const ArrivalSet set = static_cast<ArrivalSet>(draw(random, 1, static_cast<int>(everyone(generator))));
    const LogisticDecoder decoder = random_logistic(random, generator, set);
    const Arrivals arrivals = encoded(generator, random_scores(random, generator.classes), set);
    const auto decoded = decode(decoder, generator, arrivals);
    RC_ASSERT(decoded.has_value());

    std::vector<float> y;
    for (const auto& response : arrivals.responses) y.insert(y.end(), response.begin(), response.end());
    y.push_back(1.0F);
    std::vector<double> logits(size_of(generator.classes));
    double sum = 0;
    for (std::size_t c = 0; c < logits.size(); ++c) {
      for (std::size_t j = 0; j < y.size(); ++j)
        logits[c] += static_cast<double>(decoder.weights.at(set)[c * y.size() + j]) * static_cast<double>(y[j]);
      sum += std::exp(logits[c]);
    }
    for (std::size_t c = 0; c < logits.size(); ++c)
      RC_ASSERT(std::abs(static_cast<double>(decoded->scores[c]) - (logits[c] - std::log(sum))) < 1e-4);
  }));
}

TEST(Logistic, StaysFiniteForHugeResponses) {
  const Generator generator{2, {{1, {1.0F, 0.0F}}}};
  const LogisticDecoder decoder{{{1, {1e30F, 0.0F, -1e30F, 0.0F}}}};
  const auto decoded = decode(decoder, generator, {{{std::numeric_limits<float>::max()}}});
  ASSERT_TRUE(decoded) << decoded.error().what;
  EXPECT_EQ(decoded->label, 0);
  EXPECT_EQ(decoded->scores[0], 0.0F);
  EXPECT_TRUE(std::isfinite(decoded->scores[1]));
  EXPECT_TRUE(std::isfinite(decoded->margin));
}

TEST(Decode, EqualScoresGiveTheLowestIndex) {
  const Generator generator{3, {select_rows(std::vector<int>{0, 1, 2}, 3)}};
  const auto label = [&](std::vector<float> y) { return decode(SumDecoder{}, generator, {{std::move(y)}}).value(); };
  EXPECT_EQ(label({1, 1, 1}).label, 0);
  EXPECT_EQ(label({0, 1, 1}).label, 1);
  EXPECT_EQ(label({0, 1, 1}).margin, 0.0F);
  EXPECT_EQ(label({3, 1, 2}).margin, 1.0F);
  EXPECT_EQ(label({1, 2, 3}).margin, 1.0F);
  const auto uniform = decode(LogisticDecoder{{{1, std::vector<float>(12)}}}, generator, {{{5, 6, 7}}});
  EXPECT_EQ(uniform.value().label, 0);
}

TEST(Decode, TheOnlyClassHasNoRunnerUp) {
  const auto decoded = decode(SumDecoder{}, {1, {{1, {1.0F}}}}, {{{-2.0F}}});
  ASSERT_TRUE(decoded) << decoded.error().what;
  EXPECT_EQ(decoded->label, 0);
  EXPECT_EQ(decoded->margin, 0.0F);
}

TEST(Decode, NamesTheWorkerAtFaultWhateverTheDecoder) {
  Random random(4);
  const Generator generator = paired_generator(3, 1);
  const std::vector<float> scores = random_scores(random, 6);
  const auto fault = [&](const Decoder& decoder, const Arrivals& arrivals) {
    const auto decoded = decode(decoder, generator, arrivals);
    EXPECT_FALSE(decoded);
    return decoded ? DecodeError{} : decoded.error();
  };
  for (const Decoder& decoder : all_decoders(random, generator, everyone(generator))) {
    SCOPED_TRACE(name(decoder));
    const Arrivals whole = encoded(generator, scores, everyone(generator));
    EXPECT_TRUE(decode(decoder, generator, whole));
    for (float bad : {kNaN, kInfinity, -kInfinity}) {
      Arrivals arrivals = whole;
      arrivals.responses[2][1] = bad;
      EXPECT_EQ(fault(decoder, arrivals).code, DecodeErrorCode::not_finite);
      EXPECT_EQ(fault(decoder, arrivals).worker, 2);
      EXPECT_NE(fault(decoder, arrivals).what.find("worker 2"), std::string::npos);
    }
    Arrivals arrivals = whole;
    arrivals.responses[1].push_back(0.0F);
    EXPECT_EQ(fault(decoder, arrivals).code, DecodeErrorCode::shape_mismatch);
    EXPECT_EQ(fault(decoder, arrivals).worker, 1);
    arrivals = whole;
    arrivals.responses.pop_back();
    EXPECT_EQ(fault(decoder, arrivals).code, DecodeErrorCode::shape_mismatch);
    EXPECT_EQ(fault(decoder, {std::vector<std::vector<float>>(4)}).code, DecodeErrorCode::nothing_arrived);
    EXPECT_EQ(fault(decoder, {}).code, DecodeErrorCode::shape_mismatch);
  }
}

TEST(Decode, SaysWhichArrivalSetIsNotFitted) {
  Random random(5);
  const Generator generator = paired_generator(3, 0);
  const LogisticDecoder decoder = random_logistic(random, generator, 0b111);
  const auto decoded = decode(decoder, generator, encoded(generator, random_scores(random, 6), 0b101));
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, DecodeErrorCode::not_fitted);
  EXPECT_NE(decoded.error().what.find("{0, 2}"), std::string::npos) << decoded.error().what;
}

TEST(Decode, RefusesStatisticsOfAnotherGenerator) {
  Random random(6);
  const Generator small = paired_generator(2, 0), large = paired_generator(2, 1);
  const Arrivals arrivals = encoded(large, random_scores(random, 4), 0b111);
  LogisticDecoder logistic;
  logistic.weights[0b111] = random_logistic(random, small, 0b011).weights[0b011];
  for (const Decoder& decoder : {Decoder(logistic), Decoder(plain_posterior(small))}) {
    const auto decoded = decode(decoder, large, arrivals);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code, DecodeErrorCode::shape_mismatch);
  }
}

TEST(Decode, RefusesAGeneratorWhoseRowsAreNotWhatTheyClaim) {
  const auto decoded = decode(SumDecoder{}, {2, {{1, {1.0F}}}}, {{{1.0F}}});
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, DecodeErrorCode::shape_mismatch);
  EXPECT_EQ(decoded.error().worker, 0);
}

TEST(Decode, SumAndLogisticAllocateOnlyTheirResult) {
  Random random(7);
  const Generator generator = paired_generator(5, 2);
  const ArrivalSet set = 0b1101101;
  const Arrivals arrivals = encoded(generator, random_scores(random, 10), set);
  for (const Decoder& decoder : {Decoder(SumDecoder{}), Decoder(random_logistic(random, generator, set))}) {
    allocations::reset();
    const auto decoded = decode(decoder, generator, arrivals);
    const std::size_t count = allocations::count();
    EXPECT_TRUE(decoded);
    EXPECT_EQ(count, 1U) << name(decoder);
  }
}

TEST(Arrivals, SetHasTheBitsOfThoseWhoAnswered) {
  EXPECT_EQ((Arrivals{{{1.0F}, {}, {2.0F, 3.0F}}}.set()), 0b101U);
  EXPECT_EQ(Arrivals{}.set(), 0U);
  Arrivals all;
  all.responses.assign(size_of(kWorkersMax), {1.0F});
  EXPECT_EQ(all.set(), 0xFFFFFFFFU);
}

}  // namespace
