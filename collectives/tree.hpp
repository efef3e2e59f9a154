// collectives/tree.hpp: one tree over hosts, as a plan holds it. Pure values.
//
// Nodes are indices into Topology::nodes; edges point away from the root. Every edge leaves a host and enters a host;
// what lies between on its path are switches.
#pragma once

#include <optional>
#include <vector>

#include "collectives/rational.hpp"

namespace coppice::collectives {

struct TreeEdge {
  int from = -1;
  int to = -1;
  std::vector<int> path;  // from, the switches in order, to; a direct link: {from, to}
  // Of each hop, the index of the link that it takes; empty: between each pair there is one, or which one does not matter.
  std::vector<int> links = {};
  bool operator==(const TreeEdge&) const = default;
};

struct Tree {
  Rational rate;  // share of the plan's rate that this tree carries, in the topology's unit
  int root = -1;
  std::vector<TreeEdge> edges;  // a parent's edge comes before its children's
  // Allreduce, where the way of reducing is not the way of broadcasting backwards: edges that point to the root, a
  // child's before its parent's.
  std::vector<TreeEdge> reduce_edges = {};
  // Scatter and gather: the one host that this path is for.
  std::optional<int> target = std::nullopt;
  bool operator==(const Tree&) const = default;
};

TreeEdge turned(const TreeEdge& edge);

// Every edge the other way, the last one first: what points away from a root points to it, and the reverse.
std::vector<TreeEdge> turned(const std::vector<TreeEdge>& edges);

// In the order of the edges: whom to send to first. O(edges), as are the others.
std::vector<int> children(const Tree& tree, int node);

// Nothing for the root and for a node that is not in the tree.
std::optional<int> parent(const Tree& tree, int node);

// Edges on the longest way from the root; 0 for a tree of its root alone.
int depth(const Tree& tree);

// Every node once, the root first, then breadth first.
std::vector<int> order(const Tree& tree);

}  // namespace coppice::collectives
