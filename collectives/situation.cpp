#include "collectives/situation.hpp"

#include <algorithm>
#include <array>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

constexpr std::array<std::string_view, 6> kPlannerNames = {"exact", "mwu",       "rs_ag",
                                                           "rings", "best_ring", "three_phase"};

std::size_t index(int node) { return static_cast<std::size_t>(node); }

tl::unexpected<Error> error(ErrorCode code, std::string what) { return tl::unexpected(Error{code, std::move(what)}); }

Expected<void> check_root(const Topology& topology, int root) {
  const int count = static_cast<int>(topology.nodes.size());
  if (root < 0 || root >= count) {
    return error(ErrorCode::bad_root, numbered("there is no node ", root) + " to be the root");
  }
  if (topology.nodes[index(root)].is_switch) {
    return error(ErrorCode::bad_root, "root " + in_quotes(topology.nodes[index(root)].id) + " is a switch");
  }
  return {};
}

Expected<void> check_participant(const Topology& topology, int host) {
  const int count = static_cast<int>(topology.nodes.size());
  if (host < 0 || host >= count) {
    return error(ErrorCode::unknown_node, numbered("there is no node ", host) + " to take part");
  }
  if (topology.nodes[index(host)].is_switch) {
    return error(ErrorCode::unknown_node, "participant " + in_quotes(topology.nodes[index(host)].id) + " is a switch");
  }
  return {};
}

Expected<void> check_reach(const Situation& situation, const Network& network, int from, const char* verb) {
  std::vector<char> inside(index(network.nodes()), 0);
  inside[index(from)] = 1;
  reach(network, 0, inside);
  for (const int host : situation.hosts) {
    if (inside[index(host)] != 0) continue;
    const auto& nodes = situation.topology.nodes;
    const bool away = verb[0] == 't';
    return error(ErrorCode::disconnected, "nothing leads from " + in_quotes(nodes[index(away ? from : host)].id) +
                                              " to " + in_quotes(nodes[index(away ? host : from)].id));
  }
  return {};
}

}  // namespace

std::string_view name(Planner planner) { return kPlannerNames.at(static_cast<std::size_t>(planner)); }

std::optional<Planner> planner_of(std::string_view word) {
  const auto found = std::ranges::find(kPlannerNames, word);
  if (found == kPlannerNames.end()) return std::nullopt;
  return static_cast<Planner>(found - kPlannerNames.begin());
}

bool is_rooted(Operation operation) {
  return operation == Operation::broadcast || operation == Operation::reduce || operation == Operation::scatter ||
         operation == Operation::gather;
}

bool Situation::turned() const {
  return operation == Operation::reduce || operation == Operation::gather || operation == Operation::reduce_scatter;
}

Expected<std::vector<int>> participants_of(const Topology& topology, std::optional<int> root,
                                           const std::optional<std::vector<int>>& participants) {
  if (root) {
    if (auto known = check_root(topology, *root); !known) return tl::unexpected(known.error());
  }
  if (!participants) return hosts(topology);
  std::vector<int> taking_part = *participants;
  for (const int host : taking_part) {
    if (auto known = check_participant(topology, host); !known) return tl::unexpected(known.error());
  }
  std::ranges::sort(taking_part);
  const auto repeats = std::ranges::unique(taking_part);
  taking_part.erase(repeats.begin(), repeats.end());
  if (taking_part.empty()) return error(ErrorCode::unknown_node, "nobody takes part");
  if (root && !std::ranges::binary_search(taking_part, *root)) {
    return error(ErrorCode::bad_root, "root " + in_quotes(topology.nodes[index(*root)].id) + " takes no part");
  }
  return taking_part;
}

Expected<Situation> situation_of(const Topology& topology, const PlanRequest& request) {
  if (auto valid = validate(topology); !valid) return tl::unexpected(valid.error());
  const bool rooted = is_rooted(request.operation);
  auto taking_part = participants_of(topology, rooted ? request.root : std::nullopt, request.participants);
  if (!taking_part) return tl::unexpected(taking_part.error());
  Situation situation{topology, request.operation, -1, *std::move(taking_part), {}};
  if (rooted) situation.root = request.root.value_or(situation.hosts.front());
  situation.network = network_of(topology, situation.hosts);
  if (situation.turned()) situation.network = reversed(situation.network);
  const int from = rooted ? situation.root : situation.hosts.front();
  if (auto held = check_reach(situation, situation.network, from, situation.turned() ? "from" : "to"); !held) {
    return tl::unexpected(held.error());
  }
  if (!rooted) {
    const Network back = reversed(situation.network);
    if (auto held = check_reach(situation, back, from, situation.turned() ? "to" : "from"); !held) {
      return tl::unexpected(held.error());
    }
  }
  return situation;
}

Network reversed(const Network& network) {
  Network turned = network;
  for (auto& leaving : turned.out) leaving.clear();
  for (std::size_t arc = 0; arc < turned.arcs.size(); ++arc) {
    std::swap(turned.arcs[arc].from, turned.arcs[arc].to);
    turned.out[index(turned.arcs[arc].from)].push_back(static_cast<int>(arc));
  }
  return turned;
}

Network in_grains(const Network& network, int grain) {
  Network coarse{.is_switch = network.is_switch, .arcs = {}, .out = {}, .scale = grain};
  coarse.out.resize(network.is_switch.size());
  for (const Arc& arc : network.arcs) {
    const mpz_class grains = arc.units * grain / network.scale;
    if (grains == 0) continue;
    coarse.out[index(arc.from)].push_back(static_cast<int>(coarse.arcs.size()));
    coarse.arcs.push_back({arc.from, arc.to, grains});
  }
  return coarse;
}

Plan empty_plan(const Situation& situation) {
  Plan plan;
  plan.topology = situation.topology.name;
  plan.operation = situation.operation;
  plan.unit = situation.topology.unit;
  plan.participants = situation.hosts;
  return plan;
}

}  // namespace coppice::collectives
