#include "collectives/servers.hpp"

#include <algorithm>
#include <map>
#include <optional>

#include "collectives/exact.hpp"
#include "collectives/ring.hpp"
#include "collectives/tree_packing.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

const std::string& server_of(const Situation& situation, int node) {
  return situation.topology.nodes[index(node)].server;
}

// The network with the arcs that `keep` wants.
template <class Keep>
Network part_of(const Network& network, const Keep& keep) {
  Network part{.is_switch = network.is_switch, .arcs = {}, .out = {}, .scale = network.scale};
  part.out.resize(network.is_switch.size());
  for (const Arc& arc : network.arcs) {
    if (!keep(arc)) continue;
    part.out[index(arc.from)].push_back(static_cast<int>(part.arcs.size()));
    part.arcs.push_back(arc);
  }
  return part;
}

bool joined(const Network& network, const std::vector<int>& hosts) {
  std::vector<char> inside(index(network.nodes()), 0);
  inside[index(hosts.front())] = 1;
  reach(network, 0, inside);
  return std::ranges::all_of(hosts, [&](int host) { return inside[index(host)] != 0; });
}

Situation part_situation(const Situation& whole, Network network, std::vector<int> hosts, Operation operation) {
  Situation part = whole;
  part.network = std::move(network);
  part.hosts = std::move(hosts);
  part.operation = operation;
  part.root = -1;
  return part;
}

// Chains around a ring: every server is an end of as many of them as every other, which spares each the same.
std::vector<Tree> chains(const Network& network, const std::vector<int>& hosts) {
  const auto rings = widest_ring(network, hosts);
  if (rings.empty()) return {};
  const auto& edges = rings.front().edges;
  std::vector<Tree> trees;
  const std::size_t step = edges.size() % 2 == 0 ? 2 : 1;
  for (std::size_t first = 0; first < edges.size(); first += step) {
    Tree tree{.rate = 1, .root = edges[first].from, .edges = {}};
    for (std::size_t at = 0; at + 1 < edges.size(); ++at) tree.edges.push_back(edges[(first + at) % edges.size()]);
    trees.push_back(from_centre(tree));
  }
  return trees;
}

class ThreePhases {
 public:
  explicit ThreePhases(const Situation& situation) : situation_(situation) {
    for (const int host : situation.hosts) servers_[server_of(situation, host)].push_back(host);
  }

  std::vector<Tree> run() {
    std::size_t parts = SIZE_MAX;
    for (const auto& [server, hosts] : servers_) parts = std::min(parts, hosts.size());
    for (const auto& [server, hosts] : servers_) {
      if (!plan_inside(server, hosts)) return {};
    }
    for (std::size_t part = 0; part < parts; ++part) {
      if (!plan_part(part)) return {};
    }
    scale();
    return std::move(trees_);
  }

 private:
  // By root, trees over its server whose rates add up to 1.
  bool plan_inside(const std::string& server, const std::vector<int>& hosts) {
    if (hosts.size() == 1) {
      inside_[hosts.front()] = {Tree{.rate = 1, .root = hosts.front(), .edges = {}}};
      return true;
    }
    Network network = part_of(situation_.network, [&](const Arc& arc) {
      return server_of(situation_, arc.from) == server && server_of(situation_, arc.to) == server;
    });
    if (!joined(network, hosts) || !joined(reversed(network), hosts)) return false;
    const Situation local = part_situation(situation_, std::move(network), hosts, Operation::allgather);
    Plan plan = exact_allgather(local, 0);
    if (plan.trees.empty()) return false;
    const Rational each(plan.rate / Rational(static_cast<unsigned long>(hosts.size())));
    for (Tree& tree : plan.trees) {
      tree.rate /= each;
      inside_[tree.root].push_back(std::move(tree));
    }
    return true;
  }

  bool plan_part(std::size_t part) {
    std::vector<int> leaders;
    for (const auto& [server, hosts] : servers_) leaders.push_back(hosts[part]);
    std::ranges::sort(leaders);
    // Between servers, and through none of the hosts that are not the part's own.
    Network network = part_of(situation_.network, [&](const Arc& arc) {
      const auto usable = [&](int node) {
        return situation_.network.is_switch[index(node)] != 0 || std::ranges::binary_search(leaders, node);
      };
      const bool inner = server_of(situation_, arc.from) == server_of(situation_, arc.to) &&
                         !server_of(situation_, arc.from).empty();
      return usable(arc.from) && usable(arc.to) && !inner;
    });
    if (!joined(network, leaders) || !joined(reversed(network), leaders)) return false;
    constexpr std::size_t kExactMax = 32;
    std::vector<Tree> outer;
    Rational rate = 0;
    if (leaders.size() <= kExactMax) {
      Plan plan = exact_allreduce(part_situation(situation_, network, leaders, Operation::allreduce), 0);
      outer = std::move(plan.trees);
    }
    if (outer.empty()) outer = chains(network, leaders);
    for (const Tree& tree : outer) rate += tree.rate;
    for (Tree& tree : outer) {
      tree.rate /= rate;
      hang(tree);
    }
    return !outer.empty();
  }

  // The servers' inner trees from the hosts of the outer tree, each server's in turn for its share of the rate.
  void hang(const Tree& outer) {
    std::vector<int> leaders = order(outer);
    std::map<int, std::pair<std::size_t, Rational>> at;  // by leader: which tree, and what is left of it
    for (const int leader : leaders) at[leader] = {0, inside_.at(leader).front().rate};
    Rational left = 1;
    while (sgn(left) > 0) {
      Rational piece = left;
      for (const auto& [leader, next] : at) piece = std::min(piece, next.second);
      Tree& tree = trees_.emplace_back(outer);
      tree.rate = outer.rate * piece;
      std::vector<TreeEdge> reduce;
      const bool own_way = !outer.reduce_edges.empty();
      for (const int leader : leaders) {
        const auto& inner = inside_.at(leader)[at[leader].first].edges;
        tree.edges.insert(tree.edges.end(), inner.begin(), inner.end());
        for (auto edge = inner.rbegin(); own_way && edge != inner.rend(); ++edge) {
          reduce.push_back({edge->to, edge->from, {edge->path.rbegin(), edge->path.rend()}});
        }
      }
      tree.reduce_edges.insert(tree.reduce_edges.begin(), reduce.begin(), reduce.end());
      for (auto& [leader, next] : at) {
        next.second -= piece;
        if (sgn(next.second) == 0 && next.first + 1 < inside_.at(leader).size()) {
          ++next.first;
          next.second = inside_.at(leader)[next.first].rate;
        }
      }
      left -= piece;
    }
  }

  // All rates alike, until the fullest arc is full. An arc that is missing one way lets nothing through.
  void scale() {
    std::map<std::pair<int, int>, Rational> load;
    const auto add = [&](const std::vector<int>& path, const Rational& rate, bool backwards) {
      for (std::size_t hop = 1; hop < path.size(); ++hop) {
        load[backwards ? std::pair(path[hop], path[hop - 1]) : std::pair(path[hop - 1], path[hop])] += rate;
      }
    };
    for (const Tree& tree : trees_) {
      for (const TreeEdge& edge : tree.edges) add(edge.path, tree.rate, false);
      for (const TreeEdge& edge : tree.reduce_edges) add(edge.path, tree.rate, false);
      if (!tree.reduce_edges.empty()) continue;
      for (const TreeEdge& edge : tree.edges) add(edge.path, tree.rate, true);
    }
    std::map<std::pair<int, int>, Rational> capacity;
    for (const Arc& arc : situation_.network.arcs) {
      capacity[{arc.from, arc.to}] = situation_.network.rate_of(arc.units);
    }
    std::optional<Rational> factor;
    for (const auto& [arc, used] : load) {
      const Rational each = capacity[arc] / used;
      if (!factor || each < *factor) factor = each;
    }
    if (!factor || sgn(*factor) == 0) return trees_.clear();
    for (Tree& tree : trees_) tree.rate *= *factor;
  }

  const Situation& situation_;
  std::map<std::string, std::vector<int>> servers_;
  std::map<int, std::vector<Tree>> inside_;
  std::vector<Tree> trees_;
};

}  // namespace

bool has_servers(const Situation& situation) {
  std::map<std::string, int> count;
  for (const int host : situation.hosts) ++count[server_of(situation, host)];
  return count.size() > 1 && !count.contains("");
}

std::vector<Tree> three_phase_trees(const Situation& situation) { return ThreePhases(situation).run(); }

}  // namespace coppice::collectives
