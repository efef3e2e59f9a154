// collectives/tournament.hpp: rounds of pairs in which nobody plays twice.
#pragma once

#include <span>
#include <utility>
#include <vector>

namespace coppice::collectives {

// Every pair of 0..players-1 once, first < second. Round by round of the circle method: players - 1 rounds, or players where
// their number is odd. Source: Kirkman, 1850; "round-robin tournament".
std::vector<std::pair<int, int>> tournament(int players);

// Rounds of indices into `pairs`, in which no player is twice: each pair goes into the first round that has room for it.
// Out of a tournament come its own rounds; out of a few of its pairs as many fewer.
std::vector<std::vector<int>> disjoint_rounds(std::span<const std::pair<int, int>> pairs);

}  // namespace coppice::collectives
