#include "coding/generator.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/coding/synthetic.hpp"

using namespace synthetic;

namespace {

using Frame = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Frame frame_of(CodeShape shape) {
  const std::vector<double> values = harmonic_frame(shape);
  return Eigen::Map<const Frame>(values.data(), shape.workers, shape.needed);
}

double worst_condition(CodeShape shape) {
  const Frame frame = frame_of(shape);
  double worst = 0;
  for (unsigned set = 0; set < 1U << shape.workers; ++set) {
    if (std::popcount(set) != shape.needed) continue;
    std::vector<int> rows;
    for (int i = 0; i < shape.workers; ++i)
      if ((set >> i & 1U) != 0) rows.push_back(i);
    const Eigen::MatrixXd kept = frame(rows, Eigen::all);
    const Eigen::VectorXd squares =
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(kept.transpose() * kept, Eigen::EigenvaluesOnly).eigenvalues();
    worst = std::max(worst, std::sqrt(squares.maxCoeff() / squares.minCoeff()));
  }
  return worst;
}

TEST(Scheme, EveryWordNamesItsSchemeAndBack) {
  for (Scheme scheme : {Scheme::none, Scheme::replicate, Scheme::sparse, Scheme::harmonic, Scheme::parity, Scheme::wide,
                        Scheme::control})
    EXPECT_EQ(scheme_of(name(scheme)), scheme);
}

TEST(Scheme, AnUnknownWordIsAnsweredWithTheKnownOnes) {
  const auto scheme = scheme_of("raptor");
  ASSERT_FALSE(scheme);
  EXPECT_EQ(scheme.error(),
            "unknown scheme 'raptor': the known ones are none, replicate, sparse, harmonic, parity, wide, control");
  EXPECT_FALSE(scheme_of(""));
  EXPECT_FALSE(scheme_of("Parity"));
}

TEST(GroupedGenerator, WorkersAnswerWithTheirGroupAndCompanionsWithEverything) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    const int classes = draw(random, 1, 12), companions = draw(random, 0, 3);
    std::vector<int> order(size_of(classes));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::vector<int>> groups(1);
    for (int c : order) {
      if (!groups.back().empty() && draw(random, 0, 2) == 0) groups.emplace_back();
      groups.back().push_back(c);
    }
    const auto generator = grouped_generator(groups, classes, companions);
    RC_ASSERT(generator.has_value());
    RC_ASSERT(generator->workers.size() == groups.size() + size_of(companions));
    RC_ASSERT(generator->total_floats() == classes * (1 + companions));
    RC_ASSERT(generator->floats_of(everyone(*generator)) == generator->total_floats());
    const std::vector<float> scores = random_scores(random, classes);
    for (std::size_t i = 0; i < generator->workers.size(); ++i) {
      std::vector<float> expected;
      if (i < groups.size())
        for (int c : groups[i]) expected.push_back(scores[size_of(c)]);
      else
        expected = scores;
      RC_ASSERT(encode(generator->workers[i], scores) == expected);
    }
  }));
}

TEST(GroupedGenerator, RefusesGroupsThatAreNoPartitionAndSaysWhy) {
  EXPECT_EQ(grouped_generator({{0, 1}, {3}}, 4, 0).error(), "no group names class 2");
  EXPECT_EQ(grouped_generator({{0, 1}, {1, 2}}, 3, 0).error(), "group 1 names class 1 again");
  EXPECT_EQ(grouped_generator({{0, 1}, {}}, 2, 0).error(), "group 1 is empty");
  EXPECT_EQ(grouped_generator({{0, 2}}, 2, 0).error(), "group 0 names class 2 of 2");
  EXPECT_EQ(grouped_generator({{0, -1}}, 2, 0).error(), "group 0 names class -1 of 2");
  EXPECT_FALSE(grouped_generator({}, 1, 0));
  EXPECT_FALSE(grouped_generator({{0}}, 0, 0));
  EXPECT_FALSE(grouped_generator({{0}}, kClassesMax + 1, 0));
  EXPECT_FALSE(grouped_generator({{0}}, 1, -1));
  EXPECT_FALSE(grouped_generator({{0}}, 1, kWorkersMax));
  EXPECT_FALSE(grouped_generator({{0}}, 1, std::numeric_limits<int>::max()));
  EXPECT_TRUE(grouped_generator({{0}}, 1, kWorkersMax - 1));
}

TEST(Generator, CountsTheFloatsOfASet) {
  const Generator generator = paired_generator(2, 1);  // 2 + 2 + 4 floats
  EXPECT_EQ(generator.floats_of(0b000), 0);
  EXPECT_EQ(generator.floats_of(0b010), 2);
  EXPECT_EQ(generator.floats_of(0b101), 6);
  EXPECT_EQ(generator.floats_of(0xFFFFFFFF), 8);
}

TEST(HarmonicFrame, ColumnsAreOrthonormalAndRowsAlikeAtEveryShape) {
  for (int n = 1; n <= kWorkersMax; ++n)
    for (int k = 1; k <= n; ++k) {
      const Frame frame = frame_of({n, k});
      EXPECT_LT((frame.transpose() * frame - Eigen::MatrixXd::Identity(k, k)).norm(), 1e-12) << n << ", " << k;
      EXPECT_LT((frame.rowwise().squaredNorm().array() - static_cast<double>(k) / n).abs().maxCoeff(), 1e-12)
          << n << ", " << k;
    }
}

TEST(HarmonicFrame, WorstConditionIsThatOfTheTable) {
  EXPECT_NEAR(worst_condition({4, 3}), 2.0, 0.05);
  EXPECT_NEAR(worst_condition({6, 4}), 4.7, 0.05);
  EXPECT_NEAR(worst_condition({12, 10}), 13, 0.5);
  EXPECT_NEAR(worst_condition({14, 10}), 128, 0.5);
}

TEST(Encode, IsUntouchedByClassesThatTheWorkerDoesNotCombine) {
  const std::vector<int> group{2, 0};
  const std::vector<float> scores{1.5F, std::numeric_limits<float>::quiet_NaN(), -3.0F};
  EXPECT_EQ(encode(select_rows(group, 3), scores), (std::vector<float>{-3.0F, 1.5F}));
}

TEST(Encode, IsLinear) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    const Generator generator = random_generator(random);
    const std::vector<float> a = random_scores(random, generator.classes), b = random_scores(random, generator.classes);
    std::vector<float> both(a);
    for (std::size_t c = 0; c < both.size(); ++c) both[c] += b[c];
    for (const WorkerRows& worker : generator.workers) {
      const std::vector<float> ya = encode(worker, a), yb = encode(worker, b), y = encode(worker, both);
      for (std::size_t j = 0; j < y.size(); ++j) RC_ASSERT(std::abs(y[j] - (ya[j] + yb[j])) < 1e-4F);
    }
  }));
}

}  // namespace
