// collectives/tree_packing.hpp: packings of trees over a topology's own nodes, switches and fractions among them.
// Private.
#pragma once

#include <optional>
#include <vector>

#include "collectives/network.hpp"
#include "collectives/rational.hpp"
#include "collectives/tree.hpp"

namespace coppice::collectives {

struct RatedArc {
  int from = -1;
  int to = -1;
  Rational capacity;
};

std::vector<RatedArc> rated_arcs(const Network& network);

// What is to be packed: trees from every host that has a demand, each over all hosts.
struct PackingProblem {
  const std::vector<char>& is_switch;  // [nodes]
  const std::vector<int>& hosts;       // those that take part
  std::vector<RatedArc> arcs;          // between them and switches
  std::vector<Rational> demand;        // [nodes]
};

struct PackingEffort {
  int attempts = 1;  // ways to grow that are tried; the fewest trees are kept, of these the flattest
  int enough = 0;    // no packing has fewer trees than this
  int flatten = 1;   // with enough trees found, so many ways are tried for the sake of depth
};

// Nothing where the demands cannot be met, which the caller has ruled out but for switches that more can leave than
// enter.
std::optional<std::vector<Tree>> pack(const PackingProblem& problem, const PackingEffort& effort);

// The same tree from the node that makes it flattest, each edge used in both directions alike.
Tree from_centre(const Tree& tree);

int depth_max(const std::vector<Tree>& trees);

}  // namespace coppice::collectives
