// collectives/parallel_links.hpp: which of several links between one pair each tree takes. Pure. Private.
#pragma once

#include "collectives/plan.hpp"

namespace coppice::collectives {

// Planners load pairs of nodes; frames take links. Trees are laid, in order, on the first link of a pair that is not full:
// one that needs two of them is divided into two of the same edges, so that each keeps to one link a hop. Only links
// with addresses are told apart: of others nobody could choose one. Rates and what arrives where stay as they were.
Plan on_links(Plan plan, const Topology& topology);

}  // namespace coppice::collectives
