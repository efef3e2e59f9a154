#include "actors/head_choice.hpp"

#include <gtest/gtest.h>

#include <set>

namespace coppice::actors {
namespace {

using namespace std::chrono_literals;

const Instant kStart{};

TEST(HeadChoice, TakesTheFirstThatIsReady) {
  const HeadChoice heads({{2, 0, 1, kGatewayHead}});
  const auto with = [&](const std::set<int>& ready) {
    return heads.choose(0, [&](int head) { return ready.contains(head); }, kStart);
  };
  EXPECT_EQ(with({0, 1, 2, kGatewayHead}), 2);
  EXPECT_EQ(with({0, 1, kGatewayHead}), 0);
  EXPECT_EQ(with({kGatewayHead}), kGatewayHead);
  EXPECT_EQ(with({}), std::nullopt);
}

TEST(HeadChoice, PassesOverASuspectForAWhileAndOnlyInItsBlock) {
  HeadChoice heads({{0, 1}, {0, 1}}, 5s);
  const auto all = [](int) { return true; };
  heads.suspect(0, 0, kStart);
  EXPECT_EQ(heads.choose(0, all, kStart + 1s), 1);
  EXPECT_EQ(heads.choose(1, all, kStart + 1s), 0);
  EXPECT_EQ(heads.choose(0, all, kStart + 5s), 0);
}

TEST(HeadChoice, WhereAllAreSuspectsTheLongestOneIsTriedAgain) {
  HeadChoice heads({{0, 1, 2}}, 5s);
  const auto all = [](int) { return true; };
  heads.suspect(0, 1, kStart);
  heads.suspect(0, 0, kStart + 1s);
  heads.suspect(0, 2, kStart + 2s);
  EXPECT_EQ(heads.choose(0, all, kStart + 3s), 1);
  EXPECT_EQ(heads.choose(0, [](int head) { return head != 1; }, kStart + 3s), 0);
}

}  // namespace
}  // namespace coppice::actors
