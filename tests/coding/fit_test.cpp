#include <gtest/gtest.h>

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <limits>
#include <map>

#include "coding/decoder.hpp"
#include "coding/softmax_regression.hpp"
#include "tests/coding/synthetic.hpp"

using namespace synthetic;

namespace {

// The mean accuracy over all sets of so many workers, by their number.
std::map<int, double> accuracy_by_arrivals(const Decoder& decoder, const Generator& generator, const FitData& data) {
  std::map<int, double> sums, counts;
  for (ArrivalSet set = 1; set <= everyone(generator); ++set) {
    sums[std::popcount(set)] += accuracy(decoder, generator, data, set);
    counts[std::popcount(set)] += 1;
  }
  for (auto& [arrived, sum] : sums) sum /= counts[arrived];
  return sums;
}

TEST(FitLogistic, SeparatesWhatIsSeparable) {
  const Generator generator = paired_generator(3, 1);
  const FitData data = noisy_data(generator, 600, 0.05F, 0.05F, 1),
                held_out = noisy_data(generator, 600, 0.05F, 0.05F, 2);
  const auto decoder = fit_logistic(generator, data, {});
  ASSERT_TRUE(decoder) << decoder.error().what;
  EXPECT_EQ(decoder->weights.size(), 15U);
  EXPECT_EQ(accuracy(*decoder, generator, data, 0b1111), 1.0);
  EXPECT_EQ(accuracy(*decoder, generator, held_out, 0b1111), 1.0);
  EXPECT_EQ(accuracy(*decoder, generator, held_out, 0b1000), 1.0);
  EXPECT_EQ(accuracy(*decoder, generator, held_out, 0b0111), 1.0);
}

TEST(FitLogistic, BeatsChanceForEveryArrivalSet) {
  const Generator generator = paired_generator(3, 2);
  const auto decoder = fit_logistic(generator, noisy_data(generator, 1500, 0.2F, 0.3F, 3), {});
  ASSERT_TRUE(decoder) << decoder.error().what;
  const FitData held_out = noisy_data(generator, 600, 0.2F, 0.3F, 4);
  for (ArrivalSet set = 1; set <= everyone(generator); ++set)
    EXPECT_GT(accuracy(*decoder, generator, held_out, set), 1.0 / 6 + 0.1) << "set " << set;
}

TEST(Fit, MoreArrivalsAreNotWorse) {
  const Generator generator = paired_generator(3, 2);
  const FitData data = noisy_data(generator, 2000, 0.2F, 0.4F, 5),
                held_out = noisy_data(generator, 1000, 0.2F, 0.4F, 6);
  const auto logistic = fit_logistic(generator, data, {});
  const auto posterior = fit_posterior(generator, data);
  ASSERT_TRUE(logistic && posterior);
  for (const Decoder& decoder : {Decoder(*logistic), Decoder(*posterior)}) {
    const std::map<int, double> accuracies = accuracy_by_arrivals(decoder, generator, held_out);
    for (int arrived = 2; arrived <= 5; ++arrived)
      EXPECT_GE(accuracies.at(arrived), accuracies.at(arrived - 1) - 0.005) << name(decoder) << ", " << arrived;
    EXPECT_GT(accuracies.at(5), accuracies.at(1) + 0.2) << name(decoder);
  }
}

TEST(FitLogistic, IsIndifferentToTheScaleAndOffsetOfAWorker) {
  const Generator generator = paired_generator(2, 1);
  FitData plain = noisy_data(generator, 800, 0.2F, 0.2F, 7);
  FitData shifted = plain;
  for (std::size_t i = 0; i < shifted.responses.size(); ++i)
    if (i % 8 < 2) shifted.responses[i] = 5e4F * shifted.responses[i] + 1e6F;
  const auto a = fit_logistic(generator, plain, {}), b = fit_logistic(generator, shifted, {});
  ASSERT_TRUE(a && b);
  for (ArrivalSet set = 1; set <= 7; ++set)
    EXPECT_NEAR(accuracy(*a, generator, plain, set), accuracy(*b, generator, shifted, set), 0.005) << "set " << set;
}

TEST(FitLogistic, ADeadFloatWeighsNothing) {
  const Generator generator = paired_generator(2, 0);
  FitData data = noisy_data(generator, 400, 0.1F, 0.1F, 8);
  for (std::size_t s = 0; s < data.labels.size(); ++s) data.responses[s * 4 + 1] = 1234.5F;
  const auto decoder = fit_logistic(generator, data, {});
  ASSERT_TRUE(decoder) << decoder.error().what;
  for (const auto& [set, weights] : decoder->weights)
    for (float weight : weights) ASSERT_TRUE(std::isfinite(weight)) << "set " << set;
  for (std::size_t c = 0; c < 4; ++c) EXPECT_EQ(decoder->weights.at(0b11)[c * 5 + 1], 0.0F);
  EXPECT_GT(accuracy(*decoder, generator, data, 0b11), 0.9);
}

TEST(FitLogistic, TheSameDataGiveTheSameBits) {
  const Generator generator = paired_generator(2, 1);
  const FitData data = noisy_data(generator, 300, 0.2F, 0.3F, 9);
  EXPECT_EQ(fit_logistic(generator, data, {}).value(), fit_logistic(generator, data, {}).value());
}

TEST(FitLogistic, LeavesOutSetsOfTooFewAndReportsEveryOther) {
  const Generator generator = paired_generator(2, 2);
  LogisticFit options;
  options.arrived_min = 3;
  std::vector<int> seen;
  const auto decoder =
      fit_logistic(generator, noisy_data(generator, 100, 0.2F, 0.3F, 10), options, [&](int done, int total) {
        EXPECT_EQ(total, 5);
        seen.push_back(done);
      });
  ASSERT_TRUE(decoder) << decoder.error().what;
  EXPECT_EQ(seen, (std::vector<int>{1, 2, 3, 4, 5}));
  EXPECT_EQ(decoder->weights.size(), 5U);
  for (const auto& [set, weights] : decoder->weights) EXPECT_GE(std::popcount(set), 3);
}

TEST(FitLogistic, RefusesMoreSetsThanItCouldFinish) {
  Generator generator{1, std::vector<WorkerRows>(32, {1, {1.0F}})};
  const FitData data{std::vector<float>(64, 1.0F), {0, 0}};
  const auto decoder = fit_logistic(generator, data, {});
  ASSERT_FALSE(decoder);
  EXPECT_EQ(decoder.error().code, DecodeErrorCode::not_fitted);
  LogisticFit options;
  options.arrived_min = 32;
  EXPECT_EQ(fit_logistic(generator, data, options).value().weights.size(), 1U);
}

TEST(FitPosterior, IsLinearDiscriminantAnalysisByHand) {
  // One float; class 0 answers 0 and 2, class 1 answers 4 and 6: means 1 and 5, pooled variance 4 / (4 - 2) = 2.
  const Generator generator{2, {{1, {1.0F, 0.0F}}}};
  const auto decoder = fit_posterior(generator, {{0, 2, 4, 6}, {0, 0, 1, 1}}, 0.0);
  ASSERT_TRUE(decoder) << decoder.error().what;
  EXPECT_EQ(decoder->means, (std::vector<double>{1, 5}));
  EXPECT_EQ(decoder->covariance, (std::vector<double>{2}));
  EXPECT_DOUBLE_EQ(decoder->log_prior[0], std::log(0.5));
  // y = 4: log odds (5 - 1) / 2 * 4 - (25 - 1) / 4 = 2.
  const auto decoded = decode(*decoder, generator, {{{4.0F}}});
  ASSERT_TRUE(decoded) << decoded.error().what;
  EXPECT_EQ(decoded->label, 1);
  EXPECT_NEAR(decoded->margin, 2, 1e-6F);
}

TEST(FitPosterior, SmoothsPriorsAndGivesAnAbsentClassTheGrandMean) {
  const Generator generator{3, {{1, {1.0F, 0.0F, 0.0F}}}};
  const auto decoder = fit_posterior(generator, {{0, 2, 7}, {0, 0, 1}});
  ASSERT_TRUE(decoder) << decoder.error().what;
  EXPECT_EQ(decoder->means, (std::vector<double>{1, 7, 3}));
  EXPECT_DOUBLE_EQ(decoder->log_prior[0], std::log(3.0 / 6));
  EXPECT_DOUBLE_EQ(decoder->log_prior[1], std::log(2.0 / 6));
  EXPECT_DOUBLE_EQ(decoder->log_prior[2], std::log(1.0 / 6));
}

TEST(FitPosterior, ShrinkageMakesASingularCovarianceUsable) {
  const Generator generator = paired_generator(2, 1);  // the companion repeats what the others say
  const FitData data = noisy_data(generator, 200, 0.2F, 0.0F, 11);
  const auto singular = fit_posterior(generator, data, 0.0);
  EXPECT_TRUE(singular || singular.error().code == DecodeErrorCode::not_fitted);  // rounding decides
  const auto decoder = fit_posterior(generator, data);
  ASSERT_TRUE(decoder) << decoder.error().what;
  EXPECT_GT(accuracy(*decoder, generator, data, 0b111), 0.9);
  const FitData constant{std::vector<float>(16, 0.0F), {0, 1}};
  EXPECT_TRUE(fit_posterior(generator, constant));
  EXPECT_FALSE(fit_posterior(generator, constant, 0.0));
  EXPECT_FALSE(fit_posterior(generator, data, -1.0));
  EXPECT_FALSE(fit_posterior(generator, data, 1.5));
}

TEST(Fit, NamesWhatIsWrongWithTheData) {
  const Generator generator = paired_generator(2, 1);
  const FitData good = noisy_data(generator, 10, 0.2F, 0.2F, 12);
  const auto fault = [&](const FitData& data) {
    const auto posterior = fit_posterior(generator, data);
    const auto logistic = fit_logistic(generator, data, {});
    EXPECT_FALSE(posterior || logistic);
    if (posterior || logistic) return DecodeError{};
    EXPECT_EQ(posterior.error().code, logistic.error().code);
    return logistic.error();
  };
  FitData bad = good;
  bad.responses[3 * 8 + 5] = std::numeric_limits<float>::quiet_NaN();  // sample 3, worker 2
  EXPECT_EQ(fault(bad).code, DecodeErrorCode::not_finite);
  EXPECT_EQ(fault(bad).worker, 2);
  EXPECT_NE(fault(bad).what.find("sample 3"), std::string::npos);
  bad = good;
  bad.labels[4] = 4;
  EXPECT_EQ(fault(bad).code, DecodeErrorCode::shape_mismatch);
  EXPECT_NE(fault(bad).what.find("sample 4"), std::string::npos);
  bad = good;
  bad.responses.pop_back();
  EXPECT_EQ(fault(bad).code, DecodeErrorCode::shape_mismatch);
  EXPECT_EQ(fault({}).code, DecodeErrorCode::nothing_arrived);
}

TEST(FitSoftmax, NothingNearbyIsLower) {
  // Strongly correlated features, where plain gradient descent would crawl.
  Random random(13);
  const Eigen::Index samples = 400, features = 6, classes = 4;
  Eigen::MatrixXd x(samples, features);
  std::vector<int> labels;
  for (Eigen::Index s = 0; s < samples; ++s) {
    const double common = static_cast<double>(normal(random));
    for (Eigen::Index j = 0; j + 1 < features; ++j) x(s, j) = common + 0.01 * static_cast<double>(normal(random));
    x(s, features - 1) = 1.0;
    labels.push_back(x(s, 0) - x(s, 1) > 0 ? draw(random, 0, 1) : draw(random, 1, 3));
  }
  const double l2 = 1e-4;
  const auto loss = [&](const Eigen::MatrixXd& w) {
    const Eigen::MatrixXd logits = x * w;
    double sum = 0;
    for (Eigen::Index s = 0; s < samples; ++s)
      sum += std::log(logits.row(s).array().exp().sum()) - logits(s, labels[static_cast<std::size_t>(s)]);
    return sum / static_cast<double>(samples) + 0.5 * l2 * w.topRows(features - 1).squaredNorm();
  };
  const Eigen::MatrixXd gram = x.transpose() * x / static_cast<double>(samples);
  const Eigen::MatrixXd w = fit_softmax({x, gram, labels, l2, 200}, Eigen::MatrixXd::Zero(features, classes));
  const double reached = loss(w);
  EXPECT_LT(reached, loss(Eigen::MatrixXd::Zero(features, classes)) - 0.1);
  for (int trial = 0; trial < 500; ++trial) {
    Eigen::MatrixXd other = w;
    const double size = std::pow(10.0, -draw(random, 0, 4));
    for (Eigen::Index i = 0; i < other.size(); ++i) other(i) += size * static_cast<double>(normal(random));
    ASSERT_GT(loss(other), reached - 1e-6);
  }
  // The minimum is one: another start arrives there too.
  const Eigen::MatrixXd far =
      fit_softmax({x, gram, labels, l2, 200}, Eigen::MatrixXd::Constant(features, classes, 3.0) +
                                                  3.0 * Eigen::MatrixXd::Identity(features, classes));
  EXPECT_NEAR(loss(far), reached, 1e-6);
}

}  // namespace
