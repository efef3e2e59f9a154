#include "runtime/scheduler.hpp"

#include <algorithm>

#include "collectives/plan.hpp"
#include "collectives/topology.hpp"
#include "collectives/tree.hpp"
#include "runtime/communicator.hpp"

namespace coppice::runtime {
namespace {

// Of one chunk on one hop, socket to socket through two actors: measured on loopback (ARCHITECTURE.md).
constexpr double kHopSeconds = 300e-6;

}  // namespace

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
