// collectives/arborescence.hpp: the cheapest spanning out-tree. Private; kept to C++17, see CMakeLists.txt.
#pragma once

#include <utility>
#include <vector>

namespace coppice::collectives {

// Indices of the arcs (from, to) of the out-tree from the root over all nodes whose costs add up to least.
// REQUIRES: the root reaches all. Source: Chu and Liu 1965, Edmonds 1967, as in LEMON.
std::vector<int> cheapest_arborescence(int nodes, const std::vector<std::pair<int, int>>& arcs,
                                       const std::vector<double>& cost, int root);

}  // namespace coppice::collectives
