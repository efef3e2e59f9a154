// collectives/min_cut.hpp: exact minimum cuts. Private to collectives/; kept to C++17, see CMakeLists.txt.
#pragma once

#include <gmpxx.h>

#include <vector>

namespace coppice::collectives {

struct Arc {
  int from = -1;
  int to = -1;
  mpz_class units;  // capacity × Network::scale; > 0
};

struct MinCut {
  mpz_class units;              // capacity of the arcs that enter sink_side
  std::vector<char> sink_side;  // [nodes]; 1: on the sink's side
};

// Least capacity that separates every node of `source` (1 in [nodes], as if they were one node) from `sink`.
// REQUIRES: source[sink] == 0, and source holds a node. Cost: O(nodes² √arcs).
// Source: Goldberg and Tarjan, A New Approach to the Maximum-Flow Problem, 1988, as in LEMON.
MinCut min_cut(int nodes, const std::vector<Arc>& arcs, const std::vector<char>& source, int sink);

}  // namespace coppice::collectives
