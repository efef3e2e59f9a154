#include "runtime/scheduler.hpp"

#include <algorithm>
#include <compare>
#include <limits>
#include <map>
#include <numeric>
#include <queue>

#include "actors/head_choice.hpp"
#include "collectives/plan.hpp"
#include "collectives/topology.hpp"
#include "collectives/tree.hpp"
#include "runtime/communicator.hpp"

namespace coppice::runtime {
namespace {

// Of one chunk on one hop, socket to socket through two actors: measured on loopback (ARCHITECTURE.md).
constexpr double kHopSeconds = 300e-6;

// What it costs to carry a byte from one node to each: the least sum of 1 / capacity. Dijkstra.
std::vector<double> costs_from(const collectives::Topology& topology, int source) {
  std::vector<std::vector<std::pair<int, double>>> arcs(topology.nodes.size());
  for (const auto& link : topology.links) {
    const double cost = 1 / link.capacity.get_d();
    arcs[static_cast<std::size_t>(link.from)].emplace_back(link.to, cost);
    if (link.duplex) arcs[static_cast<std::size_t>(link.to)].emplace_back(link.from, cost);
  }
  std::vector<double> costs(topology.nodes.size(), std::numeric_limits<double>::infinity());
  std::priority_queue<std::pair<double, int>, std::vector<std::pair<double, int>>, std::greater<>> near;
  near.emplace(costs[static_cast<std::size_t>(source)] = 0, source);
  while (!near.empty()) {
    const auto [cost, node] = near.top();
    near.pop();
    if (cost > costs[static_cast<std::size_t>(node)]) continue;
    for (const auto& [to, further] : arcs[static_cast<std::size_t>(node)])
      if (auto& known = costs[static_cast<std::size_t>(to)]; cost + further < known) near.emplace(known = cost + further, to);
  }
  return costs;
}

}  // namespace

Expected<std::vector<std::vector<int>>> place_heads(const Cluster& cluster) {
  const int n = cluster.code.shape.workers;
  std::vector<std::vector<int>> heads(static_cast<std::size_t>(cluster.code.blocks));
  if (!cluster.code.gateway_heads) {
    const auto topology = topology_of(cluster);
    if (!topology) return tl::unexpected(topology.error());
    const auto node = [&](const std::string& name) { return *collectives::find_node(*topology, name); };
    const auto from_gateway = costs_from(*topology, node(cluster.gateway().name));
    const auto workers = cluster.workers();
    std::vector<int> nodes;
    for (const auto& worker : workers) nodes.push_back(node(worker.name));
    std::map<std::string, int> heads_at;  // by the machine's address: of heads that cost the same, each block takes another's
    for (int block = 0; block < cluster.code.blocks; ++block) {
      struct Priced {
        float cost;  // rounded: paths of the same links, summed in another order, are to be equal
        int heads_there, head;
        auto operator<=>(const Priced&) const = default;
      };
      std::vector<Priced> priced;
      for (int head = block * n; head < (block + 1) * n; ++head) {
        const auto at = nodes[static_cast<std::size_t>(head)];
        const auto from_head = costs_from(*topology, at);
        double cost = from_gateway[static_cast<std::size_t>(at)];
        for (int worker = block * n; worker < (block + 1) * n; ++worker)
          cost += from_head[static_cast<std::size_t>(nodes[static_cast<std::size_t>(worker)])];
        priced.push_back({static_cast<float>(cost), heads_at[workers[static_cast<std::size_t>(head)].address], head});
      }
      std::ranges::sort(priced);
      ++heads_at[workers[static_cast<std::size_t>(priced.front().head)].address];
      for (const auto& choice : priced) heads[static_cast<std::size_t>(block)].push_back(choice.head);
    }
  }
  for (auto& order : heads) order.push_back(actors::kGatewayHead);
  return heads;
}

Expected<std::vector<actors::RelayNode>> plan_relays(const Cluster& cluster, const std::vector<std::string>& members,
                                                     std::size_t bytes) {
  std::vector<std::string> hosts{cluster.gateway().name};
  hosts.insert(hosts.end(), members.begin(), members.end());
  const auto topology = topology_of(cluster);
  if (!topology) return tl::unexpected(topology.error());
  std::vector<int> participants;
  for (const auto& host : hosts) {
    participants.push_back(*collectives::find_node(*topology, host));  // topology_of has seen to it
  }
  const int root = participants.front();
  collectives::PlanOptions options;
  options.participants = participants;
  options.bytes = static_cast<double>(bytes);
  options.latency_s = kHopSeconds;
  const auto plan = collectives::plan_broadcast(*topology, root, options);
  if (!plan) return bad_input((cluster.topology.empty() ? "broadcast" : cluster.topology.string()) + ": " + plan.error().what);

  // A list with parents before children, as the relays read it.
  const auto& tree = plan->trees.front();
  std::vector<actors::RelayNode> relays;
  std::vector<int> nodes = collectives::order(tree);
  for (const int node : nodes) {
    const auto parent = collectives::parent(tree, node);
    const auto at = parent ? std::find(nodes.begin(), nodes.end(), *parent) - nodes.begin() : -1;
    relays.push_back({topology->nodes[static_cast<std::size_t>(node)].id, static_cast<std::int32_t>(at)});
  }
  return relays;
}

}  // namespace coppice::runtime
