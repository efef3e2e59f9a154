#include "collectives/planner.hpp"

#include "collectives/exact.hpp"
#include "collectives/rivals.hpp"

namespace coppice::collectives {
namespace {

Plan exact_plan(const Situation& situation, int grain) {
  switch (situation.operation) {
    case Operation::broadcast:
    case Operation::reduce:
      return exact_broadcast(situation, grain);
    case Operation::allgather:
    case Operation::reduce_scatter:
      return exact_allgather(situation, grain);
    case Operation::scatter:
    case Operation::gather:
      return exact_scatter(situation, grain);
    case Operation::allreduce:
      break;
  }
  return exact_allreduce(situation, grain);
}

}  // namespace

Expected<Plan> make_plan(const Topology& topology, const PlanRequest& request) {
  auto situation = situation_of(topology, request);
  if (!situation) return tl::unexpected(situation.error());
  if (request.planner != Planner::exact && !situation->lone()) return rival_plan(*situation, request);
  Plan plan = exact_plan(*situation, request.grain);
  const bool sends = !situation->lone() && sgn(plan.rate) == 0;
  if (sends) {
    return tl::unexpected(Error{ErrorCode::not_planned, request.grain == 0
                                                            ? "no plan was found"
                                                            : "no tree carries a whole grain of the unit to every host"});
  }
  return plan;
}

}  // namespace coppice::collectives
