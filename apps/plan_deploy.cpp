#include "apps/plan_deploy.hpp"

#include <algorithm>
#include <optional>
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

// What is reduced along edges of its own, as a tree that points away from the root.
collectives::Tree reducing(const collectives::Tree& tree) {
  return {.rate = tree.rate, .root = tree.root, .edges = collectives::turned(tree.reduce_edges)};
}

// The part of the buffer that a tree carries, by the rates of all that carry the same part.
collectives::Rational share_of(const collectives::Plan& plan, const collectives::Tree& tree) {
  collectives::Rational all;
  for (const auto& other : plan.trees)
    if (!collectives::has_parts(plan.operation) || (other.root == tree.root && other.target == tree.target)) all += other.rate;
  if (sgn(all) == 0) return 1;
  const collectives::Rational parts(collectives::has_parts(plan.operation) ? static_cast<unsigned long>(plan.participants.size()) : 1UL);
  return tree.rate / all / parts;
}

// The ends of the link by which a host is reached from its parent.
std::pair<std::string, std::string> link_to(const collectives::Tree& tree, const collectives::Topology& topology, int node) {
  const auto edge = std::ranges::find(tree.edges, node, &collectives::TreeEdge::to);
  if (edge == tree.edges.end()) return {};
  const auto path = edge->path.empty() ? std::vector{edge->from, edge->to} : edge->path;
  const auto ends = [&](std::size_t hop) -> std::pair<std::string, std::string> {
    const auto link = !edge->links.empty() ? std::optional(edge->links[hop]) : collectives::link_between(topology, path[hop], path[hop + 1]);
    if (!link) return {};
    return collectives::addresses_from(topology.links[static_cast<std::size_t>(*link)], path[hop]);
  };
  return {ends(0).first, ends(path.size() - 2).second};
}

runtime::Expected<RelayChain> chain_of(const collectives::Tree& tree, const collectives::Topology& topology,
                                       const runtime::Cluster& cluster, std::size_t number, std::string_view way) {
  RelayChain chain{.tree = number, .way = std::string(way), .rate = tree.rate, .share = 1, .relays = {}};
  const std::vector<int> order = collectives::order(tree);
  for (const int node : order) {
    const std::string& id = topology.nodes[static_cast<std::size_t>(node)].id;
    const auto* host = cluster.find(id);
    if (host == nullptr) {
      return runtime::bad_input(runtime::one_line("the topology's host \"" + id + "\" is not in the cluster file"));
    }
    const auto parent = collectives::parent(tree, node);
    const auto at = parent ? std::ranges::find(order, *parent) - order.begin() : -1;
    auto [from, to] = link_to(tree, topology, node);
    if (at >= 0) chain.relays[static_cast<std::size_t>(at)].children.push_back(static_cast<int>(chain.relays.size()));
    chain.relays.push_back({"tree" + std::to_string(number) + "." + id, id, host->address, host->port, static_cast<int>(at), {},
                            std::move(from), std::move(to)});
  }
  return chain;
}

}  // namespace

runtime::Expected<std::vector<RelayChain>> deploy(const collectives::Plan& plan, const collectives::Topology& topology,
                                                  const runtime::Cluster& cluster, std::size_t first) {
  std::vector<RelayChain> chains;
  for (std::size_t at = 0; at < plan.trees.size(); ++at) {
    const auto& tree = plan.trees[at];
    const auto add = [&](const collectives::Tree& way, std::string_view name) -> runtime::Expected<void> {
      auto chain = chain_of(way, topology, cluster, first + at, name);
      if (!chain) return tl::unexpected(chain.error());
      chain->share = share_of(plan, tree);
      chains.push_back(*std::move(chain));
      return {};
    };
    const bool own_reduce = !tree.reduce_edges.empty();
    if (own_reduce)
      if (auto added = add(reducing(tree), "reduce"); !added) return tl::unexpected(added.error());
    if (auto added = add(tree, way_of(plan.operation, own_reduce)); !added) return tl::unexpected(added.error());
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
                        {"parent", relay.parent < 0 ? nlohmann::json() : nlohmann::json(relay.parent)},
                        {"children", relay.children}});
      if (!relay.from_address.empty() || !relay.to_address.empty())
        relays.back()["link"] = {{"from_address", relay.from_address}, {"to_address", relay.to_address}};
    }
    list.push_back({{"tree", chain.tree},
                    {"way", chain.way},
                    {"rate", to_string(chain.rate)},
                    {"share", to_string(chain.share)},
                    {"relays", std::move(relays)}});
  }
  return list;
}

std::string to_text(const std::vector<RelayChain>& chains) {
  std::string text;
  for (const RelayChain& chain : chains) {
    text += "tree " + std::to_string(chain.tree) + ", " + chain.way + ", rate " + to_string(chain.rate) + ", share " +
            to_string(chain.share) + "\n";
    for (const Relay& relay : chain.relays) {
      text += "  " + relay.name + " on " + relay.host + " (" + relay.address + ":" + std::to_string(relay.port) + ")";
      if (relay.parent >= 0) text += ", parent " + chain.relays[static_cast<std::size_t>(relay.parent)].name;
      if (!relay.from_address.empty() || !relay.to_address.empty())
        text += " by " + relay.from_address + " -> " + relay.to_address;
      for (const int child : relay.children)
        text += (child == relay.children.front() ? ", children " : " ") + chain.relays[static_cast<std::size_t>(child)].host;
      text += "\n";
    }
  }
  return text;
}

}  // namespace coppice::apps
