// collectives/mwu.hpp: Blink's way of packing trees: approximate, then in whole links. Private.
#pragma once

#include <vector>

#include "collectives/situation.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {

// Out-trees from the root over direct arcs. either_way: arcs come in opposite pairs that share one capacity, and trees
// are packed without direction, for an allreduce. First a fractional packing by multiplicative weights of at least (1 -
// epsilon) ³ of the optimum; then of its trees the most whole ones of the narrowest arc's width; when that loses more
// than a twentieth, of half, a quarter, an eighth of it; at last the fractional packing itself. Sources: Garg and
// Könemann 1998; Blink (MLSys 2020), section 3.2.
std::vector<Tree> mwu_trees(int nodes, const std::vector<RatedArc>& arcs, int root, double epsilon, bool either_way);

}  // namespace coppice::collectives
