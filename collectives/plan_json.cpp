// Plans as JSON, in the words of `coppice plan --json`.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "collectives/plan.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 7> kOperations = {"broadcast",      "reduce", "allreduce", "allgather",
                                                         "reduce_scatter", "gather", "scatter"};

json ids(const Topology& topology, const std::vector<int>& nodes) {
  json names = json::array();
  for (const int node : nodes) names.push_back(topology.nodes[static_cast<std::size_t>(node)].id);
  return names;
}

json edge_json(const Topology& topology, const TreeEdge& edge) {
  json object = {{"from", topology.nodes[static_cast<std::size_t>(edge.from)].id},
                 {"to", topology.nodes[static_cast<std::size_t>(edge.to)].id}};
  if (edge.path.size() > 2) object["path"] = ids(topology, edge.path);
  return object;
}

json tree_json(const Topology& topology, const Tree& tree) {
  json edges = json::array();
  for (const TreeEdge& edge : tree.edges) edges.push_back(edge_json(topology, edge));
  return {{"rate", to_string(tree.rate)},
          {"root", topology.nodes[static_cast<std::size_t>(tree.root)].id},
          {"edges", std::move(edges)}};
}

json certificate_json(const Topology& topology, const Cut& cut) {
  return {{"kind", "cut"}, {"nodes", ids(topology, cut.nodes)}};
}

}  // namespace

std::string_view name(Operation operation) { return kOperations.at(static_cast<std::size_t>(operation)); }

std::optional<Operation> operation_of(std::string_view word) {
  const auto found = std::ranges::find(kOperations, word);
  if (found == kOperations.end()) return std::nullopt;
  return static_cast<Operation>(found - kOperations.begin());
}

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
  if (plan.participants != hosts(topology)) object["participants"] = ids(topology, plan.participants);
  return object;
}

}  // namespace coppice::collectives
