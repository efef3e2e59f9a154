#include "actors/hop_log.hpp"

#include <gtest/gtest.h>

namespace coppice::actors {
namespace {

TEST(HopLog, KeepsNoMoreThanItMayAndSaysHowManyItLost) {
  HopLog log(3);
  for (std::uint64_t chunk = 0; chunk < 5; ++chunk) log.add({.chunk = chunk, .from = "h0"});
  EXPECT_EQ(log.lost(), 2U);
  const auto hops = log.take();
  ASSERT_EQ(hops.size(), 3U);
  EXPECT_EQ(hops.back().chunk, 2U);
  EXPECT_TRUE(log.take().empty());
}

TEST(HopLog, NotesNothingWhileItIsOff) {
  HopLog log;
  log.record(false);
  log.add({});
  log.record(true);
  log.add({.chunk = 7, .from = "h0"});
  const auto hops = log.take();
  ASSERT_EQ(hops.size(), 1U);
  EXPECT_EQ(hops.front().chunk, 7U);
}

}  // namespace
}  // namespace coppice::actors
