// collectives/balanced_program.hpp: the linear program of what trees can carry where switches only forward. Private.
//
// Out-trees take a part b of the capacities, in-trees (the reduce) a part a, with a + b <= c, and both are balanced at
// every switch: what enters leaves. Root r's trees carry x(r). Trees exist exactly if, for every set S with a host, b
// into S and a out of S are at least the x of the hosts outside (then switches can be split off, splitting.hpp). These
// rows are added as solutions break them, found by minimum cuts.
#pragma once

#include <optional>
#include <vector>

#include "collectives/plan.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {

struct BalancedProgram {
  const Network& network;
  const std::vector<int>& hosts;
  // What each node's trees carry of the rate, adding up to 1, and only out-trees; empty: in- and out-trees, x free.
  std::vector<Rational> share;
};

struct BalancedSolution {
  Rational rate;
  std::vector<Rational> root;  // [nodes]: x
  std::vector<RatedArc> out;   // b
  // a; empty where an arc's opposite has as much: what one way serves to broadcast the other way serves to reduce.
  std::vector<RatedArc> in;
  Dual dual;  // proves the rate
};

// Nothing when the floating-point solver fails or its basis does not prove to be optimal.
std::optional<BalancedSolution> solve_balanced(const BalancedProgram& program);

}  // namespace coppice::collectives
