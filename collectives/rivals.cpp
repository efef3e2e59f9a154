#include "collectives/rivals.hpp"

#include <algorithm>

#include "collectives/exact.hpp"
#include "collectives/mwu.hpp"
#include "collectives/partition.hpp"
#include "collectives/ring.hpp"
#include "collectives/servers.hpp"

namespace coppice::collectives {
namespace {

tl::unexpected<Error> not_planned(std::string what) {
  return tl::unexpected(Error{ErrorCode::not_planned, std::move(what)});
}

bool is_path(Operation operation) { return operation == Operation::scatter || operation == Operation::gather; }

bool is_by_parts(Operation operation) {
  return operation == Operation::allgather || operation == Operation::reduce_scatter;
}

Expected<std::vector<Tree>> by_rings(const Situation& situation, bool best) {
  if (is_path(situation.operation)) return not_planned("rings do not scatter or gather");
  const auto rings =
      best ? widest_ring(situation.network, situation.hosts) : disjoint_rings(situation.network, situation.hosts);
  if (rings.empty()) return not_planned("no ring through all hosts was found");
  return trees_along(rings, situation);
}

Expected<std::vector<Tree>> by_weights(const Situation& situation, double epsilon) {
  const bool both = situation.operation == Operation::allreduce;
  if (is_path(situation.operation) || is_by_parts(situation.operation)) {
    return not_planned("mwu plans broadcast, reduce and allreduce");
  }
  const auto& is_switch = situation.network.is_switch;
  const auto at_switch = [&](const Arc& arc) {
    return is_switch[static_cast<std::size_t>(arc.from)] != 0 || is_switch[static_cast<std::size_t>(arc.to)] != 0;
  };
  if (std::ranges::any_of(situation.network.arcs, at_switch)) return not_planned("mwu plans direct links only");
  if (both && !is_direct_and_symmetric(situation.network)) {
    return not_planned("mwu plans an allreduce over links that are alike both ways only");
  }
  // Among the hosts that take part, and back.
  std::vector<int> compact(static_cast<std::size_t>(situation.nodes()), -1);
  for (std::size_t at = 0; at < situation.hosts.size(); ++at) {
    compact[static_cast<std::size_t>(situation.hosts[at])] = static_cast<int>(at);
  }
  std::vector<RatedArc> arcs = rated_arcs(situation.network);
  for (RatedArc& arc : arcs) {
    arc.from = compact[static_cast<std::size_t>(arc.from)];
    arc.to = compact[static_cast<std::size_t>(arc.to)];
  }
  const int root = both ? 0 : compact[static_cast<std::size_t>(situation.root)];
  auto trees = mwu_trees(static_cast<int>(situation.hosts.size()), arcs, root, epsilon, both);
  const auto renamed = [&](int& node) { node = situation.hosts[static_cast<std::size_t>(node)]; };
  for (Tree& tree : trees) {
    renamed(tree.root);
    for (TreeEdge& edge : tree.edges) {
      renamed(edge.from);
      renamed(edge.to);
      for (int& node : edge.path) renamed(node);
    }
    if (both) tree = from_centre(tree);
  }
  return trees;
}

Expected<std::vector<Tree>> by_two_phases(const Situation& situation, const Plan& exact) {
  if (is_by_parts(situation.operation)) return exact.trees;
  if (situation.operation != Operation::allreduce) {
    return not_planned("rs_ag plans allreduce, allgather and reduce_scatter");
  }
  auto plan = reduce_scatter_allgather(situation);
  if (plan.trees.empty()) return not_planned("no reduce_scatter was found");
  return std::move(plan.trees);
}

Expected<std::vector<Tree>> by_three_phases(const Situation& situation) {
  if (!has_servers(situation))
    return not_planned("three_phase needs hosts in two servers or more: name each node's \"server\" in the topology");
  auto trees = three_phase_trees(situation);
  if (trees.empty()) return not_planned("no plan of three phases was found");
  return trees;
}

Expected<std::vector<Tree>> rival_trees(const Situation& situation, const PlanRequest& request, const Plan& exact) {
  switch (request.planner) {
    case Planner::mwu:
      return by_weights(situation, request.epsilon);
    case Planner::rs_ag:
      return by_two_phases(situation, exact);
    case Planner::rings:
      return by_rings(situation, false);
    case Planner::best_ring:
      return by_rings(situation, true);
    case Planner::three_phase:
      return by_three_phases(situation);
    case Planner::exact:
      break;
  }
  return exact.trees;
}

}  // namespace

Expected<Plan> rival_plan(const Situation& situation, const PlanRequest& request) {
  if (request.grain != 0) return not_planned("a grain is for the exact planner");
  Plan plan = exact_plan(situation, 0);
  auto trees = rival_trees(situation, request, plan);
  if (!trees) return tl::unexpected(trees.error());
  plan.trees = *std::move(trees);
  plan.trees_bound = 0;
  plan.rate = 0;
  for (const Tree& tree : plan.trees) plan.rate += tree.rate;
  return plan;
}

}  // namespace coppice::collectives
