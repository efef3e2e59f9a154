// collectives/network.hpp: a topology as planners compute on it. Private to collectives/.
#pragma once

#include <vector>

#include "collectives/min_cut.hpp"
#include "collectives/topology.hpp"

namespace coppice::collectives {

// The nodes are the topology's. Each arc is one direction of a pair, parallel links added up, in whole units of
// 1/scale. Hosts that take no part have no arcs: they relay nothing.
struct Network {
  std::vector<char> is_switch;        // [nodes]
  std::vector<Arc> arcs;              // by (from, to), which differ from arc to arc
  std::vector<std::vector<int>> out;  // [nodes]: indices of the arcs that leave
  mpz_class scale = 1;                // the denominators' least common multiple

  int nodes() const { return static_cast<int>(is_switch.size()); }
  Rational rate_of(const mpz_class& units) const;
};

// REQUIRES: the topology is valid; participants are hosts of it.
Network network_of(const Topology& topology, const std::vector<int>& participants);

// Adds to `inside` (1 in [nodes]) all that it reaches over arcs of at least units_min.
void reach(const Network& network, const mpz_class& units_min, std::vector<char>& inside);

// The least of what enters any of `participants` but the root, and the nodes that it enters (ascending, never the
// root). Nothing received by the whole of a set of nodes can arrive faster, so no broadcast exceeds it; trees reach it
// where no switch is in the way (Edmonds 1973, Edge-Disjoint Branchings).
struct CutBound {
  mpz_class units;
  std::vector<int> nodes;
};

// Cost: at most one min_cut a participant; one is enough for the hosts of a star.
CutBound broadcast_bound(const Network& network, int root, const std::vector<int>& participants);

}  // namespace coppice::collectives
