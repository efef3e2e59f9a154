// collectives/partition.hpp: how much allreduce a network of direct, symmetric links can carry, and how. Private.
#pragma once

#include <optional>
#include <vector>

#include "collectives/network.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {

// No arc at a switch, and each arc's opposite is as wide.
bool is_direct_and_symmetric(const Network& network);

// The least of the capacity between parts ÷ (parts - 1), each pair's capacity of one direction, over all partitions.
// That many undirected spanning trees can be packed (Tutte 1961, Nash-Williams 1961).
struct PartitionBound {
  Rational rate;
  std::vector<std::vector<int>> parts;  // of the hosts; a lone host: itself, rate 0
};

// REQUIRES: direct and symmetric, connected.
// Source: Cunningham, Optimal Attack and Reinforcement of a Network, 1985; greedy tight sets as in Frank 2011, by one
// minimum cut a host, within Newton's iteration on the rate. Cost: a few × hosts cuts.
PartitionBound partition_bound(const Network& network, const std::vector<int>& hosts);

// Each link's capacity divided between its two directions so that `root` can send every host `rate`. Out-trees packed
// into it from the root, with their directions forgotten, are an undirected packing of that rate.
// Nothing where rate exceeds the bound. Source: Frank 2011 (orientations); Hakimi 1965.
std::optional<std::vector<RatedArc>> orient(const Network& network, const std::vector<int>& hosts, int root,
                                            const Rational& rate);

}  // namespace coppice::collectives
