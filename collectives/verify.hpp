// collectives/verify.hpp: whether a plan keeps what it promises, worked out again from the topology alone.
//
// Shares no code with the planner beyond reading trees: capacities are added up and certificates evaluated here.
#pragma once

#include "collectives/plan.hpp"

namespace coppice::collectives {

// Every tree spans those who take part (or is a path to its target), along links that exist, through switches only, the
// shares add up to the rate, no link is used beyond its capacity in either direction, the certificate is one for the
// operation and gives the bound, and the rate is within the bound.
// Errors: wrong_plan, naming the tree, link or set at fault; those of validate.
Expected<void> verify(const Plan& plan, const Topology& topology);

}  // namespace coppice::collectives
