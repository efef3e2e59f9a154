#include "collectives/tree.hpp"

#include <gtest/gtest.h>

namespace coppice::collectives {
namespace {

Tree sample() {
  //      4
  //    1   3
  //   0
  //  2
  return {.rate = 1, .root = 4, .edges = {{4, 1, {4, 1}}, {4, 3, {4, 9, 3}}, {1, 0, {1, 0}}, {0, 2, {0, 2}}}};
}

TEST(Tree, KnowsItsShape) {
  const Tree tree = sample();
  EXPECT_EQ(children(tree, 4), (std::vector<int>{1, 3}));
  EXPECT_TRUE(children(tree, 2).empty());
  EXPECT_EQ(parent(tree, 0), 1);
  EXPECT_EQ(parent(tree, 4), std::nullopt);
  EXPECT_EQ(parent(tree, 9), std::nullopt);
  EXPECT_EQ(depth(tree), 3);
  EXPECT_EQ(order(tree), (std::vector<int>{4, 1, 3, 0, 2}));
}

TEST(Tree, OfItsRootAloneHasNoDepth) {
  const Tree tree{.rate = 0, .root = 7, .edges = {}};
  EXPECT_EQ(depth(tree), 0);
  EXPECT_EQ(order(tree), (std::vector<int>{7}));
}

TEST(Tree, VisitsANodeOnceEvenInACycle) {
  const Tree cycle{.rate = 1, .root = 0, .edges = {{0, 1, {0, 1}}, {1, 0, {1, 0}}}};
  EXPECT_EQ(order(cycle), (std::vector<int>{0, 1}));
}

}  // namespace
}  // namespace coppice::collectives
