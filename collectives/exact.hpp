// collectives/exact.hpp: the optima, their certificates and the packings that reach them, operation by operation.
// Private.
#pragma once

#include <optional>

#include "collectives/situation.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {

// Each gives a plan with its bound and certificate. grain as in PlanRequest. A plan without trees: there is none in
// such grains. A lone host: no edges, rate and bound 0.
Plan exact_broadcast(const Situation& situation, int grain);  // and reduce
Plan exact_allgather(const Situation& situation, int grain);  // and reduce_scatter
Plan exact_scatter(const Situation& situation, int grain);    // and gather
Plan exact_allreduce(const Situation& situation, int grain);

Plan exact_plan(const Situation& situation, int grain);  // whichever it is

// Allreduce as an optimal reduce_scatter and then an optimal allgather that share the links in time. No bound yet.
Plan reduce_scatter_allgather(const Situation& situation);

// No packing of the rate has fewer trees: at a set of nodes that the rate fills, each tree enters once, over one arc,
// so it takes as many as there are arcs; and none is wider than the widest way to every host. units: the rate.
int fewest_trees_bound(const Network& network, int root, const std::vector<int>& hosts, const mpz_class& units);

}  // namespace coppice::collectives
