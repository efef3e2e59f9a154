#include "collectives/group_planner.hpp"

#include <algorithm>
#include <string>

namespace coppice::collectives {
namespace {

std::size_t index(int at) { return static_cast<std::size_t>(at); }

// What a plan's edges between two hosts carry together, and the node before the second on their path; -1: it is the first.
struct Between {
  Rational rate;
  int last = -1;
};

Between between(const Plan& plan, int from, int to) {
  Between out;
  const auto add = [&](const TreeEdge& edge, const Rational& rate, bool back) {
    const int a = back ? edge.to : edge.from, b = back ? edge.from : edge.to;
    if (a != from || b != to || edge.path.size() < 3) return;
    out.rate += rate;
    out.last = back ? edge.path[1] : edge.path[edge.path.size() - 2];
  };
  for (const auto& tree : plan.trees) {
    for (const auto& edge : tree.edges) {
      add(edge, tree.rate, false);
      add(edge, tree.rate, true);
    }
    for (const auto& edge : tree.reduce_edges) add(edge, tree.rate, false);
  }
  return out;
}

}  // namespace

PlanRequest GroupPlanner::request(Operation operation, int root, const std::vector<int>& members) const {
  PlanRequest wanted{.operation = operation, .planner = planner_};
  wanted.participants = participants_;
  if (!members.empty()) {
    wanted.participants->clear();
    for (const int rank : members) wanted.participants->push_back(participants_[index(rank)]);
  }
  if (root >= 0) wanted.root = participants_[index(root)];
  return wanted;
}

Expected<Plan> GroupPlanner::plan(Operation operation, int root, const std::vector<int>& members) const {
  return make_plan(topology_, request(operation, root, members));
}

Expected<Program> GroupPlanner::program(const CallKind& kind, std::int64_t chunks, const std::vector<int>& members) const {
  const ProgramOptions cut{.element = kind.element, .reduction = kind.reduction, .bytes = kind.bytes, .root = kind.root,
                           .nodes = participants_, .chunks = chunks, .as_planned = planner_ != Planner::exact};
  if (hybrid_) {
    const auto hybrid = plan_hybrid(topology_, request(kind.operation, kind.root, members), *hybrid_, static_cast<double>(kind.bytes));
    if (!hybrid) return tl::unexpected(hybrid.error());
    return make_program(*hybrid, cut);
  }
  const auto planned = plan(kind.operation, kind.root, members);
  if (!planned) return tl::unexpected(planned.error());
  return make_program(*planned, topology_, cut);
}

Expected<Program> GroupPlanner::passing_on(const CallKind& kind, int from, const std::vector<int>& members) const {
  const auto planned = plan(Operation::broadcast, from, members);
  if (!planned) return tl::unexpected(planned.error());
  return make_program(*planned, topology_,
                      {.element = kind.element, .reduction = kind.reduction, .bytes = kind.bytes, .root = kind.root,
                       .nodes = participants_, .known_at_root = true});
}

Expected<Program> GroupPlanner::resume(const CallKind& kind, const Program& program,
                                       const std::vector<RankProgress>& progress) const {
  const auto replan = [&](Operation operation, int root) {
    auto own = plan(operation, root, program.members);
    if (own || planner_ == Planner::exact) return own;
    auto wanted = request(operation, root, program.members);
    wanted.planner = Planner::exact;
    return make_plan(topology_, wanted);
  };
  return collectives::resume(program, progress, kind.root, replan, participants_, topology_,
                             std::max<std::int64_t>(chunks_of(program), 1));
}

bool GroupPlanner::can_resume(const CallKind& kind, const std::vector<int>& members) const {
  if (planner_ == Planner::exact) return true;
  const int source = kind.root >= 0 ? kind.root : members.empty() ? 0 : members.front();
  return plan(kind.operation, kind.root, members) && plan(Operation::broadcast, source, members);
}

void GroupPlanner::degrade(const RankEdge& edge, std::int64_t bytes_per_s) {
  const auto unit = unit_bytes_per_s(topology_.unit);
  if (!unit || bytes_per_s < 0 || edge.from < 0 || edge.from >= ranks() || edge.to < 0 || edge.to >= ranks()) return;
  const int from = participants_[index(edge.from)], to = participants_[index(edge.to)];
  Rational now(mpz_class(std::to_string(bytes_per_s)));
  now /= *unit;
  if (link_between(topology_, from, to)) {
    if (now < link_capacity(topology_, from, to, edge.from_address, edge.to_address))
      topology_ = with_link_capacity(topology_, from, to, edge.from_address, edge.to_address, now);
    return;
  }
  const auto planned = plan(Operation::allreduce, -1);
  if (!planned) return;
  const auto [rate, last] = between(*planned, from, to);
  const auto link = last < 0 ? std::nullopt : link_between(topology_, last, to);
  if (!link || sgn(rate) == 0) return;
  const Rational share = std::min<Rational>(now / rate, 1);
  topology_ = with_capacity(topology_, last, to, topology_.links[index(*link)].capacity * share);
}

}  // namespace coppice::collectives
