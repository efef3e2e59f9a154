// collectives/ring.hpp: rings through all hosts, and plans made of them. Private.
#pragma once

#include <vector>

#include "collectives/situation.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {

struct Ring {
  Rational width;
  std::vector<TreeEdge> edges;  // one a host; each begins where the one before ends, the first where the last ends
};

// Rings that share no capacity, as many units in sum as are found. Up to 8 hosts without switches: the most whole rings
// of the narrowest link's width; otherwise the widest ring that a search of bounded effort finds, again and again.
std::vector<Ring> disjoint_rings(const Network& network, const std::vector<int>& hosts);

// The widest ring and, with what is left, the same one backwards. Empty: none was found.
std::vector<Ring> widest_ring(const Network& network, const std::vector<int>& hosts);

// Chains along the rings for broadcast, and from every host for allgather (and their kin); allreduce as NCCL does it:
// every host's part is reduced all round the ring to it and sent all round again.
std::vector<Tree> trees_along(const std::vector<Ring>& rings, const Situation& situation);

}  // namespace coppice::collectives
