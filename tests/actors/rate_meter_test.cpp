#include "actors/rate_meter.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace coppice::actors {
namespace {

using namespace std::chrono_literals;

// Bytes that have come by a time in seconds, looked at every `step` until there is a rate.
struct Settled {
  std::optional<RateMeter::Rate> rate;
  double after_s = 0;
};
Settled watch(RateMeter meter, const std::function<double(double)>& bytes, std::chrono::microseconds step = 5ms) {
  for (std::chrono::microseconds at{0}; at < 10s; at += step) {
    const double t = std::chrono::duration<double>(at).count();
    meter.add(at, static_cast<std::uint64_t>(bytes(t)));
    if (const auto rate = meter.rate()) return {rate, t};
  }
  return {};
}

TEST(RateMeter, ASteadyRateIsKnownAfterWarmUpAndFourWindows) {
  const auto seen = watch(RateMeter(), [](double t) { return 1e6 * t; });
  ASSERT_TRUE(seen.rate);
  EXPECT_TRUE(seen.rate->settled);
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 1e3);
  EXPECT_NEAR(seen.after_s, 1.2, 0.01);
}

TEST(RateMeter, WhatPassesAtOnceInTheBeginningDoesNotCount) {
  const auto seen = watch(RateMeter(), [](double t) { return 300'000 + 1e6 * t; });
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 1e3);
}

TEST(RateMeter, ARateThatStillRisesIsWaitedFor) {
  // Doubles every 0.2 s until it is full after 1 s, as a slow start over a long way does.
  const auto seen = watch(RateMeter(), [](double t) {
    double sum = 0;
    for (double s = 0; s < t; s += 0.001) sum += 1e3 * std::min(32.0, std::pow(2.0, s / 0.2));
    return sum;
  });
  ASSERT_TRUE(seen.rate);
  EXPECT_TRUE(seen.rate->settled);
  EXPECT_NEAR(seen.rate->bytes_per_s, 32e6, 1e6);
}

TEST(RateMeter, LargeFramesOnASlowLinkAreNoUnsteadiness) {
  const auto seen = watch(RateMeter(), [](double t) { return 65'536 * std::floor(t / 0.084); }, 84ms);
  ASSERT_TRUE(seen.rate);
  EXPECT_NEAR(seen.rate->bytes_per_s, 65'536 / 0.084, 0.02 * 65'536 / 0.084);
}

TEST(RateMeter, OneThatNeverSettlesGivesItsMedianWindowInTheEnd) {
  // Stands still for 60 ms of every 700: most windows know nothing of it.
  const auto seen = watch(RateMeter(), [](double t) { return 1e6 * (t - 0.06 * std::floor(t / 0.7) - std::min(0.06, std::fmod(t, 0.7))); });
  ASSERT_TRUE(seen.rate);
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 2e4);
  const auto wild = watch(RateMeter(), [](double t) { return 1e6 * t + 2e5 * std::sin(8 * t); });
  ASSERT_TRUE(wild.rate);
  EXPECT_FALSE(wild.rate->settled);
  EXPECT_NEAR(wild.after_s, 3.0, 0.02);
}

TEST(RateMeter, AShareIsItsMeanOverAFixedTime) {
  const RateMeterOptions share{.warm_up = 600ms, .longest = 2s, .settles = false};
  const auto seen = watch(RateMeter(share), [](double t) { return t < 1.3 ? 2e6 * t : 2.6e6; }, 90ms);
  ASSERT_TRUE(seen.rate);
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 0.1e6);
  EXPECT_NEAR(seen.after_s, 2.0, 0.1);
}

TEST(RateMeter, WhatGoesBackwardsIsLeftOut) {
  RateMeter meter;
  meter.add(1s, 1'000'000);
  meter.add(500ms, 2'000'000);
  meter.add(2s, 500'000);
  EXPECT_FALSE(meter.rate());
  EXPECT_EQ(meter.recent(), 0);
}

}  // namespace
}  // namespace coppice::actors
