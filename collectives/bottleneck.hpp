// collectives/bottleneck.hpp: how fast one tree of a plan is when it has all links to itself. Pure. Private.
#pragma once

#include "collectives/plan.hpp"

namespace coppice::collectives {

// Of the links that the tree uses, the least of capacity ÷ uses, for an allreduce there and back; at least its rate in
// the plan. Planners give each tree what the others leave of its links.
Rational bottleneck(const Plan& plan, const Tree& tree, const Topology& topology);

}  // namespace coppice::collectives
