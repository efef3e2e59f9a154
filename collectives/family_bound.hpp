// collectives/family_bound.hpp: a bound of allreduce for networks of any size, from sets that share no node. Private.
#pragma once

#include <vector>

#include "collectives/network.hpp"
#include "collectives/plan.hpp"

namespace coppice::collectives {

struct FamilyBound {
  Rational rate;
  Dual dual;  // proves it
};

// What may be exchanged between k disjoint sets of nodes: each element enters k - 1 of them and leaves k - 1. Direct
// arcs between sets count, and of what passes switches outside of all sets the lesser of what enters and leaves those;
// the sum ÷ 2 (k - 1), or (k - 1) with arcs counted one way each. The sets tried: every host alone, and what stays
// together when links below a width are cut, width by width. REQUIRES: at least two hosts, connected.
FamilyBound family_bound(const Network& network, const std::vector<int>& hosts);

}  // namespace coppice::collectives
