// Decomposition from end to end on data that a small net learns in seconds.
#include "gpu/decompose.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "gpu/distill.hpp"
#include "gpu/trainer.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"
#include "tests/gpu/bars_data.hpp"

namespace coppice::gpu {
namespace {

constexpr int kClasses = 6;
const Normalisation kNormalisation{0.25F, 0.15F};

std::vector<std::int64_t> range(std::int64_t count) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}
std::vector<int> all_classes() { return {0, 1, 2, 3, 4, 5}; }

TrainerOptions trainer(int epochs) {
  TrainerOptions t;
  t.epochs = epochs;
  t.batch = 32;
  t.schedule.peak = 0.05F;
  t.normalisation = kNormalisation;
  t.seed = 3;
  return t;
}

class Decomposing : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    device_ = make_cpu_device({1}).value().release();
    data_ = new Dataset(bars({1, 12, 12}, kClasses, 960, 1));
    const auto start = vgg({1, 12, 12}, {16, 16, 16, 16}, kClasses, 1);
    auto trained = train(*device_, {start}, *data_, range(960),
                         ensemble_loss({{{all_classes()}}}, kClasses, nullptr, {}), trainer(4));
    ASSERT_TRUE(trained) << trained.error().what;
    base_ = new Network(trained->nets.front());
  }
  static void TearDownTestSuite() {
    delete base_;
    delete data_;
    delete device_;
  }
  static double accuracy(std::span<const Network> nets, const Ensemble& ensemble) {
    const auto items = range(data_->count());
    const auto scores = ensemble_scores(*device_, nets, ensemble, kClasses, *data_, items, kNormalisation);
    EXPECT_TRUE(scores) << scores.error().what;
    return accuracy_percent(*scores, kClasses, *data_, items);
  }
  static DecomposeOptions options() {
    DecomposeOptions o;
    o.groups = 3;
    o.budget.multiply_adds = 0.4;
    o.statistics_items = 300;
    o.sensitivity_items = 100;
    o.normalisation = kNormalisation;
    return o;
  }

  static Device* device_;
  static Dataset* data_;
  static Network* base_;
};
Device* Decomposing::device_;
Dataset* Decomposing::data_;
Network* Decomposing::base_;

TEST_F(Decomposing, TheBaseLearns) { EXPECT_GT(accuracy({base_, 1}, {{all_classes()}}), 97); }

TEST_F(Decomposing, StatisticsAreThoseOfTheDefinition) {
  const auto graph = channel_graph(*base_).value();
  const auto items = range(60);
  const auto found = channel_statistics(*device_, *base_, graph, *data_, items, {25, kNormalisation, nullptr});
  ASSERT_TRUE(found) << found.error().what;
  // The first ReLU's channels, by the reference.
  std::size_t relu = 0;
  while (!std::holds_alternative<Relu>(base_->nodes[relu].op)) ++relu;
  const Network head{"head", base_->input, {base_->nodes.begin(), base_->nodes.begin() + static_cast<std::ptrdiff_t>(relu) + 1}};
  const auto set = static_cast<std::size_t>(graph.values[relu + 1][0].set);
  std::vector<std::vector<double>> zeros(kClasses, std::vector<double>(16)), magnitude = zeros;
  std::vector<float> image(144);
  for (const auto index : items) {
    item(*data_, index, kNormalisation, image);
    const auto values = reference::forward(head, image);
    const auto label = data_->labels[static_cast<std::size_t>(index)];
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto c = static_cast<std::size_t>(graph.values[relu + 1][i / 144].index);
      zeros[label][c] += std::abs(values[i]) <= 0.005F ? 1 / 1440.0 : 0;
      magnitude[label][c] += std::abs(values[i]) / 1440.0;
    }
  }
  for (std::size_t label = 0; label < kClasses; ++label) {
    EXPECT_EQ(found->items[label], 10);
    for (std::size_t c = 0; c < 16; ++c) {
      EXPECT_NEAR(found->zeros[set][label][c], zeros[label][c], 0.01);
      EXPECT_NEAR(found->magnitude[set][label][c], magnitude[label][c], 1e-3 * (1 + magnitude[label][c]));
    }
  }
}

// Without a channel the loss changes by about its Taylor score, to first order: the dearest costs more than the cheapest.
TEST_F(Decomposing, TaylorScoresOrderWhatRemovalCosts) {
  const auto of = slimmable(*base_).value();
  const auto items = range(300);
  const auto found = channel_statistics(*device_, *base_, of.graph, *data_, items, {50, kNormalisation, nullptr}).value();
  const auto scores = importance(found, all_classes(), Ranking::taylor, 0);
  auto shape = whole_shape(of);
  for (std::size_t s = 0; s < of.graph.sets.size(); ++s)
    if (!of.graph.sets[s].pinned) shape.width[s] = 8;
  auto cheapest = scores;
  for (auto& set : cheapest)
    for (double& score : set) score = -score;
  const auto kept_best = slimmed(of, shape, dearest(of, shape, scores), all_classes()).value();
  const auto kept_worst = slimmed(of, shape, dearest(of, shape, cheapest), all_classes()).value();
  EXPECT_GT(accuracy({&kept_best, 1}, {{all_classes()}}), accuracy({&kept_worst, 1}, {{all_classes()}}));
}

TEST_F(Decomposing, SubnetsKeepTheirBudgetAndLearnTogether) {
  const auto parts = decompose(*device_, *base_, *data_, range(960), options());
  ASSERT_TRUE(parts) << parts.error().what;
  std::vector<Network> nets;
  Ensemble ensemble;
  for (const auto& subnet : parts->subnets) {
    EXPECT_EQ(subnet.classes.size(), 2U);
    EXPECT_LE(static_cast<double>(multiply_adds(subnet.net)), 0.4 * static_cast<double>(multiply_adds(*base_)));
    nets.push_back(subnet.net);
    ensemble.outputs.push_back(subnet.classes);
  }
  EXPECT_TRUE(check_groups(ensemble.outputs, kClasses));
  const auto teacher = Teacher::make(*device_, *base_, 32);
  ASSERT_TRUE(teacher) << teacher.error().what;
  const auto trained = train(*device_, nets, *data_, range(960), ensemble_loss({ensemble}, kClasses, *teacher, {}), trainer(4));
  ASSERT_TRUE(trained) << trained.error().what;
  EXPECT_GT(accuracy(trained->nets, ensemble), 95);
  EXPECT_GT(accuracy(trained->nets, ensemble), accuracy(nets, ensemble));
}

TEST_F(Decomposing, TheSameSeedGivesTheSameNets) {
  const auto a = decompose(*device_, *base_, *data_, range(400), options()).value();
  const auto b = decompose(*device_, *base_, *data_, range(400), options()).value();
  for (std::size_t i = 0; i < a.subnets.size(); ++i) {
    EXPECT_EQ(a.subnets[i].classes, b.subnets[i].classes);
    EXPECT_EQ(a.subnets[i].kept, b.subnets[i].kept);
  }
}

TEST_F(Decomposing, AGroupOfOneAndOfAll) {
  for (const int groups : {1, kClasses}) {
    auto o = options();
    o.groups = groups;
    const auto parts = decompose(*device_, *base_, *data_, range(300), o);
    ASSERT_TRUE(parts) << parts.error().what;
    EXPECT_EQ(std::ssize(parts->subnets), groups);
  }
}

TEST_F(Decomposing, BadInputIsNamed) {
  auto o = options();
  o.given = {{0, 1, 2}, {3, 4}};
  EXPECT_NE(decompose(*device_, *base_, *data_, range(100), o).error().what.find("class 5"), std::string::npos);
  o = options();
  o.budget.multiply_adds = 1e-9;
  EXPECT_NE(decompose(*device_, *base_, *data_, range(100), o).error().what.find("as far as it goes"), std::string::npos);
  EXPECT_FALSE(decompose(*device_, vgg({1, 10, 10}, {8, 8}, kClasses, 1), *data_, range(100), options()));
}

TEST_F(Decomposing, TrainedAloneAndCalibrated) {
  const ClassGroups groups{{0, 1, 2}, {3, 4, 5}};
  auto o = options();
  o.given = groups;
  const auto parts = decompose(*device_, *base_, *data_, range(960), o);
  ASSERT_TRUE(parts) << parts.error().what;
  std::vector<Network> nets;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto start = with_other(parts->subnets[i].net, 1).value();
    EXPECT_EQ(infer_shapes(start)->back(), Dims{4});
    const auto items = balanced_items(*data_, range(960), groups[i]);
    std::vector<int> count(kClasses, 0);
    for (const auto index : items) ++count[data_->labels[static_cast<std::size_t>(index)]];
    EXPECT_EQ(count[static_cast<std::size_t>(groups[i][0])], 480);
    const auto trained = train(*device_, {start}, *data_, items, alone_loss(groups[i]), trainer(2));
    ASSERT_TRUE(trained) << trained.error().what;
    nets.push_back(without_other(trained->nets.front()).value());
  }
  EXPECT_GT(accuracy(nets, {groups}), 90);
  // One net that shouts is brought back.
  auto& dense = std::get<Dense>(nets[0].nodes.back().op);
  for (float& value : dense.bias) value += 100;
  EXPECT_LT(accuracy(nets, {groups}), 60);
  const auto items = range(960);
  const auto scores = ensemble_scores(*device_, nets, {groups}, kClasses, *data_, items, kNormalisation).value();
  ASSERT_TRUE(calibrate(nets, {groups}, scores, kClasses, *data_, items));
  EXPECT_GT(accuracy(nets, {groups}), 90);
}

TEST_F(Decomposing, NormsThatWereFoldedAwayComeBackAndChangeNothing) {
  const auto folded = simplified(*base_);
  ASSERT_TRUE(std::ranges::none_of(folded.nodes, [](const Node& n) { return std::holds_alternative<BatchNorm>(n.op); }));
  const auto normed = with_norms(*device_, folded, *data_, range(500), kNormalisation);
  ASSERT_TRUE(normed) << normed.error().what;
  EXPECT_EQ(std::ranges::count_if(normed->nodes, [](const Node& n) { return std::holds_alternative<BatchNorm>(n.op); }), 4);
  const auto input = random_input(*base_, 3, 1);
  EXPECT_LT(reference::error(reference::forward(*normed, input), reference::forward(*base_, input)), 1e-3);
}

}  // namespace
}  // namespace coppice::gpu
