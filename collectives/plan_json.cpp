// Plans as JSON, in the words of `coppice plan --json`.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "collectives/plan.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;


json ids(const Topology& topology, const std::vector<int>& nodes) {
  json names = json::array();
  for (const int node : nodes) names.push_back(topology.nodes[static_cast<std::size_t>(node)].id);
  return names;
}

json edge_json(const Topology& topology, const TreeEdge& edge) {
  json object = {{"from", topology.nodes[static_cast<std::size_t>(edge.from)].id},
                 {"to", topology.nodes[static_cast<std::size_t>(edge.to)].id}};
  if (edge.path.size() > 2) object["path"] = ids(topology, edge.path);
  if (!edge.links.empty()) object["links"] = edge.links;
  return object;
}

json edges_json(const Topology& topology, const std::vector<TreeEdge>& list) {
  json edges = json::array();
  for (const TreeEdge& edge : list) edges.push_back(edge_json(topology, edge));
  return edges;
}

json tree_json(const Topology& topology, const Tree& tree) {
  json object = {{"rate", to_string(tree.rate)},
                 {"root", topology.nodes[static_cast<std::size_t>(tree.root)].id},
                 {"edges", edges_json(topology, tree.edges)}};
  if (!tree.reduce_edges.empty()) object["reduce_edges"] = edges_json(topology, tree.reduce_edges);
  if (tree.target) object["for"] = topology.nodes[static_cast<std::size_t>(*tree.target)].id;
  return object;
}

json certificate_json(const Topology& topology, const Cut& cut) {
  return {{"kind", "cut"}, {"nodes", ids(topology, cut.nodes)}};
}

json certificate_json(const Topology& topology, const Partition& partition) {
  json parts = json::array();
  for (const auto& part : partition.parts) parts.push_back(ids(topology, part));
  return {{"kind", "partition"}, {"parts", std::move(parts)}};
}

json sets_json(const Topology& topology, const std::vector<WeightedSet>& sets) {
  json list = json::array();
  for (const WeightedSet& set : sets) {
    list.push_back({{"nodes", ids(topology, set.nodes)}, {"weight", to_string(set.weight)}});
  }
  return list;
}

json certificate_json(const Topology& topology, const Dual& dual) {
  const auto id = [&](int node) { return topology.nodes[static_cast<std::size_t>(node)].id; };
  json price = json::array();
  for (const ArcPrice& each : dual.price) price.push_back({id(each.from), id(each.to), to_string(each.price)});
  json switches = json::object();
  for (const SwitchPotential& each : dual.switches) switches[id(each.node)] = {to_string(each.out), to_string(each.in)};
  return {{"kind", "dual"},
          {"price", std::move(price)},
          {"out", sets_json(topology, dual.out)},
          {"in", sets_json(topology, dual.in)},
          {"switch", std::move(switches)}};
}

}  // namespace

json to_json(const Plan& plan, const Topology& topology, double seconds) {
  json trees = json::array();
  for (const Tree& tree : plan.trees) trees.push_back(tree_json(topology, tree));
  json object = {
      {"topology", plan.topology},
      {"op", name(plan.operation)},
      {"unit", plan.unit},
      {"rate", to_string(plan.rate)},
      {"bound", to_string(plan.bound)},
      {"optimal", plan.optimal()},
      {"certificate", std::visit([&](const auto& kind) { return certificate_json(topology, kind); }, plan.certificate)},
      {"trees", std::move(trees)},
      {"seconds", seconds}};
  if (plan.trees_bound > 0) object["trees_bound"] = plan.trees_bound;
  if (plan.participants != hosts(topology)) object["participants"] = ids(topology, plan.participants);
  return object;
}

}  // namespace coppice::collectives
