// collectives/rates.hpp: the exact optima of operations in which every host has its own part. Private.
#pragma once

#include <vector>

#include "collectives/network.hpp"

namespace coppice::collectives {

// What each host's part gets, and a set of nodes that lets it have no more.
struct PartBound {
  Rational part;
  std::vector<int> nodes;  // ascending
};

// Allgather: the least of the capacity that leaves a set ÷ hosts inside, over sets without some host.
// REQUIRES: every host reaches every other. Source: ForestColl, 2024 (the bound); found by Dinkelbach's iteration,
// 1967, on maximum flows from a source that feeds every host: exact, and some rounds of one flow a host.
PartBound allgather_bound(const Network& network, const std::vector<int>& hosts);

// Scatter: the least of the capacity that enters a set without the root ÷ hosts inside. REQUIRES: the root reaches all.
PartBound scatter_bound(const Network& network, int root, const std::vector<int>& hosts);

struct RatedPath {
  Rational rate;
  std::vector<int> nodes;  // from the root on
};

// For each host but the root, paths from the root that together give it `part`. REQUIRES: part is within the bound.
std::vector<std::vector<RatedPath>> scatter_paths(const Network& network, int root, const std::vector<int>& hosts,
                                                  const Rational& part);

}  // namespace coppice::collectives
