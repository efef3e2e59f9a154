#include "collectives/rivals.hpp"

namespace coppice::collectives {
Expected<Plan> rival_plan(const Situation&, const PlanRequest&) {
  return tl::unexpected(Error{ErrorCode::not_planned, "not yet"});
}
}  // namespace coppice::collectives
