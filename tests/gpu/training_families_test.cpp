// One network of each family of the literature learns: its scores are the reference's, and a batch that it sees again
// and again is learnt by heart.
#include <gtest/gtest.h>

#include <algorithm>

#include "gpu/families.hpp"
#include "gpu/trainer.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/training_reference.hpp"

namespace coppice::gpu {
namespace {

constexpr int kBatch = 6, kClasses = 5;

class TrainingFamilies : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    source_ = family(GetParam(), {3, 8, 8}, kClasses, 3, 0.125).value();
    auto made = make_cpu_device({1}).value()->compile_training(source_, {.batch = kBatch});
    ASSERT_TRUE(made) << made.error().what;
    net_ = std::move(*made);
    images_ = random_input(source_, kBatch, 4);
    scores_.resize(static_cast<std::size_t>(net_->output_elements()));
  }
  double step(float rate) {
    const std::vector<std::uint16_t> labels{0, 1, 2, 3, 4, 0};
    std::vector<float> gradients(scores_.size());
    EXPECT_TRUE(net_->forward(images_, scores_, Mode::train));
    const double loss = cross_entropy(scores_, labels, kClasses, gradients);
    EXPECT_TRUE(net_->backward(gradients));
    EXPECT_TRUE(net_->update({.rate = rate}));
    return loss;
  }

  Network source_;
  std::unique_ptr<TrainableNet> net_;
  std::vector<float> images_, scores_;
};

TEST_P(TrainingFamilies, ScoresAreTheReferences) {
  for (const auto mode : {Mode::train, Mode::evaluate}) {
    const auto net = net_->network(false).value();
    ASSERT_TRUE(net_->forward(images_, scores_, mode));
    const auto expected = reference::all_values(net, images_, mode).back();
    EXPECT_LT(reference::error(scores_, reference::flattened(expected)), 1e-3);
  }
}

TEST_P(TrainingFamilies, ABatchIsLearntByHeart) {
  const double before = step(0.02F);
  double after = before;
  for (int i = 0; i < 40; ++i) after = step(0.02F);
  EXPECT_LT(after, before / 2);
}

INSTANTIATE_TEST_SUITE_P(OfThePapers, TrainingFamilies,
                         testing::Values("vgg11-bn", "resnet-18", "resnet-20", "resnet-50", "mobilenet-v2",
                                         "shufflenet-v2"),
                         [](const auto& param) {
                           std::string name = param.param;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

}  // namespace
}  // namespace coppice::gpu
