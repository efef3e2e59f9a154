#include "actors/latency_book.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <vector>

using namespace coppice::actors;
using namespace std::chrono_literals;

namespace {

const double kBucket = std::exp2(1.0 / 8);  // one edge over the one below
constexpr double kRounding = 1e-9;

TEST(LatencyBook, SaysZeroBeforeAnythingIsAdded) {
  const LatencyBook book;
  EXPECT_EQ(book.count(), 0U);
  EXPECT_EQ(book.quantile_us(0.5), 0.0);
}

TEST(LatencyBook, NeverUnderstatesAQuantileAndIsWithinNinePercentOfIt) {
  EXPECT_TRUE(rc::check([] {
    const auto micros = *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(1, 100'000'000)));
    const double q = *rc::gen::inRange(0, 1001) / 1000.0;
    LatencyBook book;
    for (int us : micros) book.add(std::chrono::microseconds(us));
    auto sorted = micros;
    std::sort(sorted.begin(), sorted.end());
    const auto rank = std::max(1.0, std::ceil(q * static_cast<double>(sorted.size())));
    const double exact = sorted[static_cast<std::size_t>(rank) - 1];
    RC_ASSERT(book.count() == micros.size());
    RC_ASSERT(book.quantile_us(q) >= exact * (1 - kRounding));
    RC_ASSERT(book.quantile_us(q) <= exact * kBucket * (1 + kRounding));
  }));
}

TEST(LatencyBook, TakesNegativeZeroAndEndlessLatenciesWithoutLosingCount) {
  LatencyBook book;
  for (const Duration latency : {Duration{-5s}, Duration{0}, Duration{1ns}}) book.add(latency);
  EXPECT_LE(book.quantile_us(1), kBucket * (1 + kRounding));
  book.add(Duration::max());
  EXPECT_EQ(book.count(), 4U);
  EXPECT_EQ(book.quantile_us(1), std::exp2(32));
}

TEST(LatencyBook, TakesSharesOutsideZeroToOneAsTheNearestOfThem) {
  LatencyBook book;
  book.add(10us);
  book.add(1ms);
  EXPECT_EQ(book.quantile_us(-1), book.quantile_us(0));
  EXPECT_EQ(book.quantile_us(7), book.quantile_us(1));
  EXPECT_LT(book.quantile_us(0), book.quantile_us(1));
}

}  // namespace
