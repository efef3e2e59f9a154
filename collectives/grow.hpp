// collectives/grow.hpp: one spanning tree that carries a given rate, if a greedy search finds it. Private.
//
// At rate r an arc can be crossed by floor(capacity / r) edges of the tree. That one number makes the shapes of old
// special cases: behind one switch, r = capacity gives a chain, capacity/2 a binary tree, capacity/(n-1) a fan-out;
// where hosts are joined directly it gives the breadth-first tree of the links that are wide enough.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "collectives/network.hpp"
#include "collectives/tree.hpp"

namespace coppice::collectives {

// Whom a host sends to first, where it cannot send to all that it reaches. Neither is best everywhere.
enum class Prefer : std::uint8_t {
  near,    // fewest hops among those that can pass the data on: crosses a trunk once, last
  strong,  // those that can pass on most copies
};

struct Grown {
  Tree tree;  // rate: exact, the least capacity ÷ crossings over the arcs crossed; at least the one asked for
  int depth = 0;
};

// units: the rate asked for, in the network's units; > 0. Nothing when the search gets stuck.
// Always found when every arc that is needed has units × (participants - 1) or more.
// Cost: O(participants × (switches + arcs at the switches) + arcs).
std::optional<Grown> grow_tree(const Network& network, int root, int participants, const Rational& units,
                               Prefer prefer);

}  // namespace coppice::collectives
