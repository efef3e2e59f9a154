#include "apps/plan_deploy.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace coppice::apps {
namespace {

using collectives::Operation;
using collectives::to_string;

std::string_view way_of(Operation operation, bool own_reduce) {
  switch (operation) {
    case Operation::allreduce:
      return own_reduce ? "broadcast" : "both";
    case Operation::reduce:
    case Operation::reduce_scatter:
    case Operation::gather:
      return "reduce";
    default:
      return "broadcast";
  }
}

collectives::Tree turned(const collectives::Tree& tree) {
  collectives::Tree back{.rate = tree.rate, .root = tree.root, .edges = {}};
  for (auto edge = tree.reduce_edges.rbegin(); edge != tree.reduce_edges.rend(); ++edge) {
    back.edges.push_back({edge->to, edge->from, {edge->path.rbegin(), edge->path.rend()}});
  }
  return back;
}

runtime::Expected<RelayChain> chain_of(const collectives::Tree& tree, const collectives::Topology& topology,
                                       const runtime::Cluster& cluster, std::size_t number, std::string_view way) {
  RelayChain chain{.tree = number, .way = std::string(way), .rate = tree.rate, .relays = {}};
  const std::vector<int> order = collectives::order(tree);
  for (const int node : order) {
    const std::string& id = topology.nodes[static_cast<std::size_t>(node)].id;
    const auto* host = cluster.find(id);
    if (host == nullptr) {
      return runtime::bad_input(runtime::one_line("the topology's host \"" + id + "\" is not in the cluster file"));
    }
    const auto parent = collectives::parent(tree, node);
    const auto at = parent ? std::ranges::find(order, *parent) - order.begin() : -1;
    chain.relays.push_back(
        {"tree" + std::to_string(number) + "." + id, id, host->address, host->port, static_cast<int>(at)});
  }
  return chain;
}

}  // namespace

runtime::Expected<std::vector<RelayChain>> deploy(const collectives::Plan& plan, const collectives::Topology& topology,
                                                  const runtime::Cluster& cluster) {
  std::vector<RelayChain> chains;
  for (std::size_t number = 0; number < plan.trees.size(); ++number) {
    const auto& tree = plan.trees[number];
    const bool own_reduce = !tree.reduce_edges.empty();
    if (own_reduce) {
      auto back = chain_of(turned(tree), topology, cluster, number, "reduce");
      if (!back) return tl::unexpected(back.error());
      chains.push_back(*std::move(back));
    }
    auto chain = chain_of(tree, topology, cluster, number, way_of(plan.operation, own_reduce));
    if (!chain) return tl::unexpected(chain.error());
    chains.push_back(*std::move(chain));
  }
  return chains;
}

nlohmann::json to_json(const std::vector<RelayChain>& chains) {
  auto list = nlohmann::json::array();
  for (const RelayChain& chain : chains) {
    auto relays = nlohmann::json::array();
    for (const Relay& relay : chain.relays) {
      relays.push_back({{"actor", relay.name},
                        {"host", relay.host},
                        {"address", relay.address},
                        {"port", relay.port},
                        {"parent", relay.parent < 0 ? nlohmann::json() : nlohmann::json(relay.parent)}});
    }
    list.push_back(
        {{"tree", chain.tree}, {"way", chain.way}, {"rate", to_string(chain.rate)}, {"relays", std::move(relays)}});
  }
  return list;
}

std::string to_text(const std::vector<RelayChain>& chains) {
  std::string text;
  for (const RelayChain& chain : chains) {
    text += "tree " + std::to_string(chain.tree) + ", " + chain.way + ", rate " + to_string(chain.rate) + "\n";
    for (const Relay& relay : chain.relays) {
      text += "  " + relay.name + " on " + relay.host + " (" + relay.address + ":" + std::to_string(relay.port) + ")";
      if (relay.parent >= 0) text += ", parent " + chain.relays[static_cast<std::size_t>(relay.parent)].name;
      text += "\n";
    }
  }
  return text;
}

}  // namespace coppice::apps
