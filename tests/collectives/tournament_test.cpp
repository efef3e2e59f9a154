#include "collectives/tournament.hpp"

#include <gtest/gtest.h>

#include <set>

namespace coppice::collectives {
namespace {

TEST(Tournament, EveryPairPlaysOnceInTheFewestRounds) {
  for (int players = 0; players <= 17; ++players) {
    const auto pairs = tournament(players);
    const std::set<std::pair<int, int>> different(pairs.begin(), pairs.end());
    EXPECT_EQ(std::ssize(pairs), players * (players - 1) / 2) << players;
    EXPECT_EQ(different.size(), pairs.size()) << players;
    for (const auto& [a, b] : pairs) EXPECT_TRUE(0 <= a && a < b && b < players);
    const auto rounds = disjoint_rounds(pairs);
    EXPECT_EQ(std::ssize(rounds), players < 2 ? 0 : players - 1 + players % 2) << players;
  }
}

TEST(Tournament, NobodyPlaysTwiceInARound) {
  const std::vector<std::pair<int, int>> pairs{{0, 1}, {0, 1}, {2, 3}, {1, 2}, {0, 3}};
  const auto rounds = disjoint_rounds(pairs);
  std::size_t played = 0;
  for (const auto& round : rounds) {
    std::set<int> busy;
    for (const int i : round) {
      EXPECT_TRUE(busy.insert(pairs[static_cast<std::size_t>(i)].first).second);
      EXPECT_TRUE(busy.insert(pairs[static_cast<std::size_t>(i)].second).second);
      ++played;
    }
  }
  EXPECT_EQ(played, pairs.size());
  EXPECT_EQ(rounds.size(), 3U);
}

}  // namespace
}  // namespace coppice::collectives
