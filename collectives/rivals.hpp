// collectives/rivals.hpp: what others plan on the same topology, to tell what the exact packing gains. Private.
#pragma once

#include "collectives/planner.hpp"
#include "collectives/situation.hpp"

namespace coppice::collectives {

// request.planner is not exact. The bound is the exact planner's. Errors: not_planned.
Expected<Plan> rival_plan(const Situation& situation, const PlanRequest& request);

}  // namespace coppice::collectives
