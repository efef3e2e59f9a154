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

TEST(RateMeter, ASteadyRateIsKnownAfterTheShortestTime) {
  const auto seen = watch(RateMeter(), [](double t) { return 1e6 * t; });
  ASSERT_TRUE(seen.rate);
  EXPECT_TRUE(seen.rate->settled);
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 1e3);
  EXPECT_NEAR(seen.after_s, 1.2, 0.03);
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

TEST(RateMeter, LumpsOnASlowLinkAreNoUnsteadinessAndNoBias) {
  // 64 KiB at once, wherever in the first lump measuring begins.
  for (const double rate : {780e3, 1.5625e6, 3e6}) {
    for (const double phase : {0.0, 0.3, 0.6, 0.9}) {
      const double lump_s = 65'160 / rate;
      const auto seen = watch(RateMeter(), [&](double t) { return 65'160 * std::floor(t / lump_s + phase); }, 1ms);
      ASSERT_TRUE(seen.rate);
      EXPECT_NEAR(seen.rate->bytes_per_s, rate, 0.02 * rate) << rate << ' ' << phase;
    }
  }
}

TEST(RateMeter, OneThatNeverSettlesEndsAfterTheLongestTimeAndSaysSo) {
  const auto wild = watch(RateMeter(), [](double t) { return 1e6 * t * t; });
  ASSERT_TRUE(wild.rate);
  EXPECT_FALSE(wild.rate->settled);
  EXPECT_NEAR(wild.after_s, 3.0, 0.05);
}

TEST(RateMeter, APauseThatTheLinkMakesUpForDoesNoHarm) {
  // Nothing for 60 ms, and then all of it at once: the receiver was busy elsewhere, the link was not.
  const auto seen = watch(RateMeter(), [](double t) { return t > 0.9 && t < 0.96 ? 0.9e6 : 1e6 * t; });
  ASSERT_TRUE(seen.rate);
  EXPECT_NEAR(seen.rate->bytes_per_s, 1e6, 1e4);
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
