#include "collectives/planner.hpp"

#include "collectives/exact.hpp"
#include "collectives/parallel_links.hpp"
#include "collectives/rivals.hpp"

namespace coppice::collectives {
Expected<Plan> make_plan(const Topology& topology, const PlanRequest& request) {
  auto situation = situation_of(topology, request);
  if (!situation) return tl::unexpected(situation.error());
  if (request.planner != Planner::exact && !situation->lone()) {
    auto rival = rival_plan(*situation, request);
    if (!rival) return rival;
    return on_links(*std::move(rival), topology);
  }
  Plan plan = exact_plan(*situation, request.grain);
  const bool sends = !situation->lone() && sgn(plan.rate) == 0;
  if (sends) {
    return tl::unexpected(
        Error{ErrorCode::not_planned,
              request.grain == 0 ? "no plan was found" : "no tree carries a whole grain of the unit to every host"});
  }
  return on_links(std::move(plan), topology);
}

}  // namespace coppice::collectives
