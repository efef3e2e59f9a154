#include "gpu/slimming.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "gpu/families.hpp"
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

// No block can go, and every convolution has a width of its own.
Network chain() {
  Builder b({3, 12, 12}, 2);
  int v = 0;
  for (const int width : {16, 72, 40, 80, 48}) v = b.relu(b.norm(b.conv3x3(v, width)));
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

// What is left of every value, counted channel by channel.
TEST(Cost, IsThatOfEveryChannelCountedByItself) {
  for (const auto name : {"vgg19-bn", "resnet-110", "resnet-18", "mobilenet-v2", "shufflenet-v2"}) {
    const auto of = slimmable(family(name, {3, 32, 32}, 10, 1, 0.25).value()).value();
    NetSampler sample(4);
    auto shape = whole_shape(of);
    for (std::size_t s = 0; s < of.graph.sets.size(); ++s)
      if (!of.graph.sets[s].pinned) shape.width[s] = sample.number(1, shape.width[s]);
    const auto left = [&](int value) {
      double sum = 0;
      for (const auto& channel : of.graph.values[static_cast<std::size_t>(value)]) {
        const auto set = static_cast<std::size_t>(channel.set);
        sum += static_cast<double>(shape.width[set]) / static_cast<double>(of.graph.sets[set].width);
      }
      return sum;
    };
    double products = 0;
    for (std::size_t i = 0; i < of.net.nodes.size(); ++i) {
      const auto& node = of.net.nodes[i];
      const auto out = static_cast<int>(i) + 1;
      if (const auto* c = std::get_if<Convolution>(&node.op)) {
        const auto& dims = of.shapes[i + 1];
        products += left(node.inputs[0]) * (c->groups == 1 ? left(out) : 1) *
                    static_cast<double>(c->window.kernel_h * c->window.kernel_w * dims[1] * dims[2]);
      } else if (std::holds_alternative<Dense>(node.op)) {
        const auto spread = of.graph.spread[static_cast<std::size_t>(node.inputs[0])];
        products += left(node.inputs[0]) * static_cast<double>(spread) *
                    (i + 1 == of.net.nodes.size() ? 3 : left(out));
      }
    }
    EXPECT_NEAR(cost(of, shape, 3).multiply_adds / products, 1, 1e-12) << name;
  }
}

TEST(EvenShape, IsTheWidestOfOneShareThatFits) {
  for (const auto& net : {residual(), chain()})
    for (const int multiple : {8, 4})
      for (const auto& [share, latency] : {std::pair{0.9, 1.0}, {0.5, 1.0}, {0.08, 1.0}, {1.0, 0.5}}) {
        const Budget budget{share, latency, multiple};
        SCOPED_TRACE(net.name + " " + std::to_string(budget.multiply_adds) + " " + std::to_string(multiple));
        const auto of = slimmable(net).value();
        const auto whole = cost(of, whole_shape(of), 10);
        const auto of_share = [&](int parts) {
          auto shape = whole_shape(of);
          for (std::size_t s = 0; s < shape.width.size(); ++s)
            if (!of.graph.sets[s].pinned)
              shape.width[s] = std::max<std::int64_t>(shape.width[s] * parts / 256 / multiple * multiple, multiple);
          return shape;
        };
        const auto fits = [&](const SubnetShape& shape) {
          const auto takes = cost(of, shape, 2);
          return takes.multiply_adds <= budget.multiply_adds * whole.multiply_adds &&
                 takes.microseconds <= budget.latency * whole.microseconds;
        };
        int parts = 256;
        while (parts > 0 && !fits(of_share(parts))) --parts;
        const auto shape = even_shape(of, budget, 2);
        EXPECT_EQ(shape.width, of_share(parts).width);
        EXPECT_EQ(shape.gone, std::vector<bool>(of.blocks.size(), false));
        EXPECT_TRUE(fits(shape) || parts == 0);
        for (std::size_t s = 0; s < shape.width.size(); ++s)
          EXPECT_TRUE(of.graph.sets[s].pinned || shape.width[s] % multiple == 0);
      }
}

TEST(EvenShape, IsTheWholeNetWhereThatFits) {
  const auto of = slimmable(chain()).value();
  EXPECT_EQ(even_shape(of, {1, 1, 8}, 10).width, whole_shape(of).width);
}

TEST(EvenShape, IsTheNarrowestWhereNothingFits) {
  const auto of = slimmable(chain()).value();
  const auto shape = even_shape(of, {1e-6, 1, 8}, 10);
  for (std::size_t s = 0; s < shape.width.size(); ++s)
    EXPECT_EQ(shape.width[s], of.graph.sets[s].pinned ? of.graph.sets[s].width : 8);
}

TEST(EvenShape, KeepsSetsThatAreNarrowerThanTheMultiple) {
  Builder b({1, 8, 8}, 3);
  b.dense(b.flatten(b.relu(b.conv3x3(b.relu(b.conv3x3(0, 6)), 32))), 4);
  const auto of = slimmable(b.net).value();
  const auto shape = even_shape(of, {0.3, 1, 8}, 4);
  for (std::size_t s = 0; s < shape.width.size(); ++s)
    EXPECT_TRUE(of.graph.sets[s].width != 6 || shape.width[s] == 6);
}

// One set after the other costs nothing, all others much: as lopsided as a budget can be met.
TEST(Evenness, NoSetFallsBelowItsShareOfTheEvenWidth) {
  for (const auto& net : {residual(), chain()}) {
    const auto of = slimmable(net).value();
    for (const double evenness : {0.0, 0.5, 0.75, 0.9, 0.91, 1.0})
      for (const double share : {0.7, 0.3, 0.1})
        for (std::size_t cheap = 0; cheap < of.graph.sets.size(); ++cheap) {
          SCOPED_TRACE(std::to_string(evenness) + " " + std::to_string(share) + " " + std::to_string(cheap));
          const Budget budget{share, 1, 8, evenness};
          auto worth = even(of);
          for (std::size_t s = 0; s < worth.sets.size(); ++s) worth.sets[s].back().loss = s == cheap ? 0 : 1e3;
          for (double& block : worth.blocks) block = 1e6;
          const auto shape = fit_budget(of, worth, budget, 2);
          ASSERT_TRUE(shape) << shape.error().what;
          const auto even_one = even_shape(of, budget, 2);
          EXPECT_LE(cost(of, *shape, 2).multiply_adds, share * cost(of, whole_shape(of), 10).multiply_adds);
          for (std::size_t s = 0; s < shape->width.size(); ++s) {
            EXPECT_GE(static_cast<double>(shape->width[s]), evenness * static_cast<double>(even_one.width[s]) - 1e-9);
            EXPECT_TRUE(of.graph.sets[s].pinned || shape->width[s] % 8 == 0);
          }
        }
  }
}

TEST(Evenness, OfZeroLeavesASetThatIsWorthNothingItsLastEight) {
  const auto of = slimmable(chain()).value();
  std::size_t widest = 0;
  for (std::size_t s = 0; s < of.graph.sets.size(); ++s)
    if (!of.graph.sets[s].pinned && of.graph.sets[s].width > of.graph.sets[widest].width) widest = s;
  auto worth = even(of);
  for (std::size_t s = 0; s < worth.sets.size(); ++s) worth.sets[s].back().loss = s == widest ? 0 : 1e3;
  EXPECT_EQ(fit_budget(of, worth, {0.2, 1, 8, 0}, 10)->width[widest], 8);
  EXPECT_GT(fit_budget(of, worth, {0.2, 1, 8, 0.9}, 10)->width[widest], 8);
}

// Nothing that is nowhere narrower fits such a budget but the even shape itself.
TEST(Evenness, OfOneIsTheEvenShapeWhereThatFillsTheBudget) {
  const auto of = slimmable(chain()).value();
  ASSERT_TRUE(of.blocks.empty());
  const auto whole = cost(of, whole_shape(of), 10).multiply_adds;
  auto worth = even(of);
  for (std::size_t s = 0; s < worth.sets.size(); ++s) worth.sets[s].back().loss = static_cast<double>(s * s);
  for (const double share : {0.6, 0.25, 0.1}) {
    const auto shape = even_shape(of, {share, 1, 8}, 10);
    const double filled = cost(of, shape, 10).multiply_adds / whole * (1 + 1e-9);
    ASSERT_EQ(even_shape(of, {filled, 1, 8}, 10).width, shape.width);
    EXPECT_EQ(fit_budget(of, worth, {filled, 1, 8, 1}, 10)->width, shape.width);
    EXPECT_NE(fit_budget(of, worth, {filled, 1, 8, 0}, 10)->width, shape.width);
  }
}

TEST(Evenness, IsAShare) {
  const auto of = slimmable(chain()).value();
  for (const double evenness : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_FALSE(fit_budget(of, even(of), {0.5, 1, 8, evenness}, 10));
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
