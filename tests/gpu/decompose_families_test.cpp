// Every family that sensAI reports goes the whole way: statistics, slimming, training together. On CIFAR's shape, small.
#include "gpu/families.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "gpu/decompose.hpp"
#include "gpu/distill.hpp"
#include "tests/gpu/bars_data.hpp"

namespace coppice::gpu {
namespace {

struct Case {
  const char* family;
  double budget;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.family; }

class EveryFamily : public testing::TestWithParam<Case> {};

TEST_P(EveryFamily, DecomposesAndTrains) {
  constexpr int kClasses = 4;
  const auto data = bars({3, 32, 32}, kClasses, 32, 1);
  std::vector<std::int64_t> items(32);
  std::iota(items.begin(), items.end(), 0);
  auto device = make_cpu_device({1}).value();
  const auto base = family(GetParam().family, data.item, kClasses, 1, 0.5);
  ASSERT_TRUE(base) << base.error().what;
  DecomposeOptions o;
  o.groups = 2;
  o.budget.multiply_adds = GetParam().budget;
  o.statistics_items = 8;
  o.sensitivity_items = 4;
  o.normalisation = {0.25F, 0.15F};
  const auto parts = decompose(*device, *base, data, items, o);
  ASSERT_TRUE(parts) << parts.error().what;
  std::vector<Network> nets;
  Ensemble ensemble;
  for (const auto& subnet : parts->subnets) {
    EXPECT_LE(static_cast<double>(multiply_adds(subnet.net)), GetParam().budget * static_cast<double>(multiply_adds(*base)));
    nets.push_back(subnet.net);
    ensemble.outputs.push_back(subnet.classes);
  }
  TrainerOptions how;
  how.epochs = 1;
  how.batch = 16;
  how.schedule.peak = 0.01F;
  how.normalisation = o.normalisation;
  const auto trained = train(*device, nets, data, items, ensemble_loss({ensemble}, kClasses, nullptr, {}), how);
  ASSERT_TRUE(trained) << trained.error().what;
  const auto scores = ensemble_scores(*device, trained->nets, ensemble, kClasses, data, items, o.normalisation);
  ASSERT_TRUE(scores) << scores.error().what;
  for (const float score : *scores) EXPECT_TRUE(std::isfinite(score));
}

INSTANTIATE_TEST_SUITE_P(Cifar, EveryFamily,
                         testing::Values(Case{"vgg11-bn", 0.2}, Case{"resnet-18", 0.2}, Case{"resnet-20", 0.3},
                                         Case{"mobilenet-v2", 0.4}, Case{"shufflenet-v2", 0.5}));

}  // namespace
}  // namespace coppice::gpu
