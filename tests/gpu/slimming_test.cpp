#include "gpu/slimming.hpp"

#include <gtest/gtest.h>

#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

Network residual() {
  Builder b({1, 12, 12}, 1);
  int v = b.relu(b.norm(b.conv3x3(0, 32)));
  for (int i = 0; i < 4; ++i) v = b.relu(b.add(b.norm(b.conv3x3(b.relu(b.norm(b.conv3x3(v, 32))), 32)), v));
  b.dense(b.flatten(b.push(GlobalAveragePool{}, {v})), 10);
  return b.net;
}

std::vector<std::vector<double>> ascending(const Slimmable& of) {
  std::vector<std::vector<double>> scores;
  for (const auto& set : of.graph.sets) {
    scores.emplace_back();
    for (std::int64_t c = 0; c < set.width; ++c) scores.back().push_back(static_cast<double>(c));
  }
  return scores;
}

// Sets lose alike; block b costs b + 1.
Sensitivity even(const Slimmable& of) {
  Sensitivity s;
  for (const auto& set : of.graph.sets) s.sets.push_back({{set.width, 0}, {8, 1}});
  for (std::size_t b = 0; b < of.blocks.size(); ++b) s.blocks.push_back(static_cast<double>(b) + 1);
  return s;
}

TEST(Cost, IsThatOfTheNetItself) {
  const auto of = slimmable(residual());
  ASSERT_TRUE(of);
  EXPECT_EQ(of->blocks.size(), 4U);
  EXPECT_DOUBLE_EQ(cost(*of, whole_shape(*of), 10).multiply_adds, static_cast<double>(multiply_adds(of->net)));
}

TEST(FitBudget, HoldsAndTheCostIsThatOfTheSlimmedNet) {
  const auto of = slimmable(residual()).value();
  const auto whole = static_cast<double>(multiply_adds(of.net));
  for (const double share : {0.8, 0.5, 0.2, 0.1, 0.05}) {
    const auto shape = fit_budget(of, even(of), {share, 1, 8}, 2);
    ASSERT_TRUE(shape) << shape.error().what;
    for (std::size_t s = 0; s < of.graph.sets.size(); ++s)
      EXPECT_TRUE(of.graph.sets[s].pinned || shape->width[s] % 8 == 0);
    const auto net = slimmed(of, *shape, dearest(of, *shape, ascending(of)), {3, 7});
    ASSERT_TRUE(net) << net.error().what;
    EXPECT_LE(static_cast<double>(multiply_adds(*net)), share * whole);
    EXPECT_DOUBLE_EQ(cost(of, *shape, 2).multiply_adds, static_cast<double>(multiply_adds(*net)));
    EXPECT_EQ(infer_shapes(*net)->back(), Dims{2});
  }
}

TEST(FitBudget, DropsTheBlockThatCostsLeast) {
  const auto of = slimmable(residual()).value();
  auto worth = even(of);
  for (auto& set : worth.sets) set.back().loss = 100;
  worth.blocks = {5, 5, 0.01, 5};
  const auto shape = fit_budget(of, worth, {0.8, 1, 8}, 10);
  ASSERT_TRUE(shape);
  EXPECT_EQ(shape->gone, (std::vector<bool>{false, false, true, false}));
}

TEST(FitBudget, TimeIsSavedByDepth) {
  const auto of = slimmable(residual()).value();
  const auto shape = fit_budget(of, even(of), {1, 0.3, 8}, 10);
  ASSERT_TRUE(shape) << shape.error().what;
  EXPECT_LE(cost(of, *shape, 10).microseconds, 0.3 * cost(of, whole_shape(of), 10).microseconds);
}

TEST(FitBudget, SaysHowFarItGoes) {
  const auto of = slimmable(residual()).value();
  const auto shape = fit_budget(of, even(of), {1e-6, 1, 8}, 10);
  ASSERT_FALSE(shape);
  EXPECT_NE(shape.error().what.find("as far as it goes"), std::string::npos);
  EXPECT_FALSE(fit_budget(of, even(of), {0, 1, 8}, 10));
}

TEST(Slimmed, KeepsTheDearest) {
  Builder b({1, 4, 4}, 2);
  b.dense(b.flatten(b.relu(b.conv3x3(0, 16))), 2);
  const auto of = slimmable(b.net).value();
  auto shape = whole_shape(of);
  for (std::size_t s = 0; s < of.graph.sets.size(); ++s)
    if (!of.graph.sets[s].pinned) shape.width[s] = 8;
  const auto net = slimmed(of, shape, dearest(of, shape, ascending(of)), {0, 1});
  ASSERT_TRUE(net);
  const auto& whole = std::get<Convolution>(b.net.nodes[0].op).weight;
  EXPECT_EQ(std::get<Convolution>(net->nodes[0].op).weight, (std::vector<float>(whole.begin() + 8 * 9, whole.end())));
}

}  // namespace
}  // namespace coppice::gpu
