#include "gpu/class_groups.hpp"

#include <gtest/gtest.h>

#include <random>

namespace coppice::gpu {
namespace {

TEST(ContiguousGroups, AsEvenAsCanBe) {
  EXPECT_EQ(contiguous_groups(6, 3), (ClassGroups{{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(contiguous_groups(5, 1), (ClassGroups{{0, 1, 2, 3, 4}}));
  for (int classes = 1; classes < 30; ++classes)
    for (int groups = 1; groups <= classes; ++groups) {
      const auto made = contiguous_groups(classes, groups);
      ASSERT_EQ(std::ssize(made), groups);
      EXPECT_TRUE(check_groups(made, classes));
      for (const auto& group : made) {
        EXPECT_GE(std::ssize(group), classes / groups);
        EXPECT_LE(std::ssize(group), (classes + groups - 1) / groups);
      }
    }
}

TEST(SimilarGroups, FindWhatBelongsTogether) {
  // Class c lies near corner c % 4 of a square.
  std::mt19937_64 random(1);
  std::normal_distribution<double> noise(0, 0.05);
  std::vector<std::vector<double>> features;
  for (int c = 0; c < 20; ++c)
    features.push_back({static_cast<double>(c % 2) + noise(random), static_cast<double>(c / 2 % 2) + noise(random)});
  const auto groups = similar_groups(features, 4, 7);
  ASSERT_TRUE(groups);
  for (const auto& group : *groups) {
    EXPECT_EQ(group.size(), 5U);
    for (const int c : group) EXPECT_EQ(c % 4, group.front() % 4);
  }
}

TEST(SimilarGroups, SizesDifferByOneAtMostAndASeedDecides) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> draw;
  for (int classes : {1, 7, 10, 23})
    for (int k = 1; k <= classes; k += 2) {
      std::vector<std::vector<double>> features(static_cast<std::size_t>(classes), std::vector<double>(3));
      for (auto& point : features)
        for (double& value : point) value = draw(random);
      const auto groups = similar_groups(features, k, 3);
      ASSERT_TRUE(groups);
      EXPECT_TRUE(check_groups(*groups, classes));
      for (const auto& group : *groups) EXPECT_LE(std::ssize(group), (classes + k - 1) / k);
      EXPECT_EQ(*groups, *similar_groups(features, k, 3));
    }
}

TEST(SimilarGroups, BadInputIsNamed) {
  EXPECT_FALSE(similar_groups({{1.0}, {2.0}}, 3, 0));
  EXPECT_FALSE(similar_groups({{1.0}, {2.0}}, 0, 0));
  const auto unseen = similar_groups({{1.0}, {}}, 1, 0);
  ASSERT_FALSE(unseen);
  EXPECT_NE(unseen.error().what.find("class 1"), std::string::npos);
}

TEST(CheckGroups, NamesTheClass) {
  EXPECT_NE(check_groups({{0, 1}, {1}}, 2).error().what.find("class 1 is in two groups"), std::string::npos);
  EXPECT_NE(check_groups({{0}}, 2).error().what.find("class 1 is in no group"), std::string::npos);
  EXPECT_NE(check_groups({{0, 2}}, 2).error().what.find("class 2"), std::string::npos);
  EXPECT_FALSE(check_groups({{0, 1}, {}}, 2));
}

}  // namespace
}  // namespace coppice::gpu
