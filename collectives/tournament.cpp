#include "collectives/tournament.hpp"

#include <algorithm>
#include <set>

namespace coppice::collectives {

std::vector<std::pair<int, int>> tournament(int players) {
  std::vector<std::pair<int, int>> pairs;
  const int seats = players + players % 2;  // one stays empty where their number is odd
  for (int round = 0; round + 1 < seats; ++round) {
    // The last one stays, the others move on round the table; who sit face to face play.
    const auto at = [&](int seat) { return seat == seats - 1 ? seat : (seat + round) % (seats - 1); };
    for (int seat = 0; seat < seats / 2; ++seat) {
      const int a = at(seat), b = at(seats - 1 - seat);
      if (std::max(a, b) < players) pairs.emplace_back(std::min(a, b), std::max(a, b));
    }
  }
  return pairs;
}

std::vector<std::vector<int>> disjoint_rounds(std::span<const std::pair<int, int>> pairs) {
  std::vector<std::vector<int>> rounds;
  std::vector<std::set<int>> busy;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto [a, b] = pairs[i];
    std::size_t round = 0;
    while (round < rounds.size() && (busy[round].contains(a) || busy[round].contains(b))) ++round;
    if (round == rounds.size()) {
      rounds.emplace_back();
      busy.emplace_back();
    }
    rounds[round].push_back(static_cast<int>(i));
    busy[round].insert({a, b});
  }
  return rounds;
}

}  // namespace coppice::collectives
