// collectives/packing.hpp: out-trees packed into a graph without switches, as many as its cuts allow. Private.
//
// Each root r has a demand; together the trees of r carry it, every tree spans all nodes, and no arc is used beyond its
// capacity. That is possible exactly if from a source that feeds each root its demand, every node can receive the sum
// of all demands. Trees are grown arc by arc: an arc joins when a maximum flow shows that the rest stays possible.
// Sources: Edmonds, Edge-Disjoint Branchings, 1973; Lovász, On Two Minimax Theorems in Graph, 1976 (growing);
// Schrijver, Combinatorial Optimization, 2003, section 53.4 (weights).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "collectives/flow.hpp"

namespace coppice::collectives {

template <class Value>
struct PackArc {
  int from = -1;
  int to = -1;
  Value capacity;
};

template <class Value>
struct PackedTree {
  int root = -1;
  Value weight;
  std::vector<int> arcs;  // indices; an arc comes after the one that enters its tail
};

enum class GrowFrom : std::uint8_t {
  shallow,  // nodes nearest to the root first: flat trees
  wide,     // arcs of the most capacity first
  latest,   // the node that joined last: chains
};

struct PackStyle {
  GrowFrom grow = GrowFrom::shallow;
  // When a tree gets stuck at a weight, begin it anew at the largest weight that goes on, instead of lowering it there.
  bool restart = false;
  std::uint32_t shuffle = 0;  // other than 0: a seed that orders equals at random
};

// Every tree takes the largest weight at which it can be grown. Nothing where no packing meets the demands.
// Value: std::int64_t, or mpz_class where sums do not fit. All whole numbers, and so is every weight.
// Cost: a maximum flow for each arc that joins a tree or is refused; at most arcs + roots trees in practice.
template <class Value>
std::optional<std::vector<PackedTree<Value>>> pack_trees(int nodes, const std::vector<PackArc<Value>>& arcs,
                                                         const std::vector<Value>& demand, const PackStyle& style);

}  // namespace coppice::collectives
