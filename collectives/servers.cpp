#include "collectives/servers.hpp"

#include <algorithm>
#include <map>
#include <optional>

#include "collectives/exact.hpp"
#include "collectives/linear_program.hpp"
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

using Load = std::map<std::pair<int, int>, Rational>;  // by arc

// What the trees put on each arc. both_ways: trees without reduce edges of their own are reduced along backwards.
Load load_of(const std::vector<Tree>& trees, bool both_ways) {
  Load load;
  for (const Tree& tree : trees) {
    for (const auto* edges : {&tree.edges, &tree.reduce_edges}) {
      for (const TreeEdge& edge : *edges) {
        for (std::size_t hop = 1; hop < edge.path.size(); ++hop) {
          load[{edge.path[hop - 1], edge.path[hop]}] += tree.rate;
          if (both_ways && tree.reduce_edges.empty()) load[{edge.path[hop], edge.path[hop - 1]}] += tree.rate;
        }
      }
    }
  }
  return load;
}

// A factor for each group of trees, so that together they carry most within the capacities; each group carries as much
// as every other at the factor 1. Nothing where the linear program was not proven.
std::optional<std::vector<Rational>> fill(const std::vector<Load>& groups, const Network& network) {
  Load capacity;
  for (const Arc& arc : network.arcs) capacity[{arc.from, arc.to}] = network.rate_of(arc.units);
  std::map<std::pair<int, int>, std::vector<std::pair<int, Rational>>> rows;
  LinearProgram program;
  for (const Load& group : groups) {
    const int column = program.add_column(1);
    for (const auto& [arc, used] : group) rows[arc].emplace_back(column, used);
  }
  for (auto& [arc, row] : rows) program.add_row(std::move(row), capacity[arc]);
  if (!program.solve()) return std::nullopt;
  auto exact = program.prove();
  if (!exact) return std::nullopt;
  return std::move(exact->x);
}

// Chains around a ring. Each server is an end of as many of them as every other, which spares each the same; a server
// with a slow card is spared by more of the chain that it ends.
std::vector<Tree> chains(const Network& network, const std::vector<int>& hosts) {
  const auto rings = widest_ring(network, hosts);
  if (rings.empty()) return {};
  const auto& edges = rings.front().edges;
  std::vector<Tree> trees;
  std::vector<Load> loads;
  const std::size_t step = edges.size() % 2 == 0 ? 2 : 1;
  for (std::size_t first = 0; first < edges.size(); first += step) {
    Tree tree{.rate = 1, .root = edges[first].from, .edges = {}};
    for (std::size_t at = 0; at + 1 < edges.size(); ++at) tree.edges.push_back(edges[(first + at) % edges.size()]);
    trees.push_back(from_centre(tree));
    loads.push_back(load_of({trees.back()}, true));
  }
  if (const auto rates = fill(loads, network)) {
    for (std::size_t at = 0; at < trees.size(); ++at) trees[at].rate = (*rates)[at];
    std::erase_if(trees, [](const Tree& tree) { return sgn(tree.rate) == 0; });
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
    const bool from_all = both_ways() && situation_.operation != Operation::allreduce;
    for (const auto& [server, hosts] : servers_) {
      if (from_all && hosts.size() != parts) return {};  // some host would be in no group of one of each server
    }
    for (const auto& [server, hosts] : servers_) {
      if (!plan_inside(server, hosts)) return {};
    }
    std::vector<std::vector<Tree>> by_part;
    for (std::size_t part = 0; part < parts; ++part) {
      if (!plan_part(part)) return {};
      by_part.push_back(std::move(trees_));
      trees_.clear();
    }
    // Where every host's part must get the same, one factor serves all.
    if (from_all) join(by_part);
    scale(by_part);
    join(by_part);
    return by_part.empty() ? std::vector<Tree>{} : std::move(by_part.front());
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
    if (!joined(network, hosts) || (both_ways() && !joined(reversed(network), hosts))) return false;
    Situation local = part_situation(situation_, std::move(network), hosts, Operation::allgather);
    if (is_rooted(situation_.operation) && server == server_of(situation_, situation_.root)) return plan_home(local);
    Plan plan = exact_allgather(local, 0);
    if (plan.trees.empty()) return false;
    const Rational each(plan.rate / Rational(static_cast<unsigned long>(hosts.size())));
    for (Tree& tree : plan.trees) {
      tree.rate /= each;
      inside_[tree.root].push_back(std::move(tree));
    }
    return true;
  }

  // At home all data is the root's.
  bool plan_home(Situation& home) {
    home.operation = Operation::broadcast;
    home.root = situation_.root;
    Plan plan = exact_broadcast(home, 0);
    for (Tree& tree : plan.trees) {
      tree.rate /= plan.rate;
      inside_[tree.root].push_back(std::move(tree));
    }
    return !inside_[home.root].empty();
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
      const bool inner =
          server_of(situation_, arc.from) == server_of(situation_, arc.to) && !server_of(situation_, arc.from).empty();
      return usable(arc.from) && usable(arc.to) && !inner;
    });
    if (!joined(network, leaders) || (both_ways() && !joined(reversed(network), leaders))) return false;
    std::vector<Tree> outer = outer_trees(std::move(network), leaders, part);
    Rational rate = 0;
    for (const Tree& tree : outer) rate += tree.rate;
    for (Tree& tree : outer) {
      tree.rate /= rate;
      hang(tree);
    }
    return !outer.empty();
  }

  bool both_ways() const { return !is_rooted(situation_.operation); }

  std::vector<Tree> outer_trees(Network network, const std::vector<int>& leaders, std::size_t part) const {
    constexpr std::size_t kExactMax = 32;
    Situation outer = part_situation(situation_, std::move(network), leaders, situation_.operation);
    if (is_rooted(situation_.operation)) {
      outer.root = servers_.at(server_of(situation_, situation_.root))[part];
      return exact_broadcast(outer, 0).trees;
    }
    if (situation_.operation != Operation::allreduce) return exact_allgather(outer, 0).trees;
    std::vector<Tree> trees;
    if (leaders.size() <= kExactMax) trees = exact_allreduce(outer, 0).trees;
    return trees.empty() ? chains(outer.network, leaders) : trees;
  }

  // Where the server's inner tree begins: the root's own data is in its server already.
  int inner_root(int leader) const {
    const bool at_home =
        is_rooted(situation_.operation) && server_of(situation_, leader) == server_of(situation_, situation_.root);
    return at_home ? situation_.root : leader;
  }

  // The servers' inner trees from the hosts of the outer tree, each server's in turn for its share of the rate.
  void hang(const Tree& outer) {
    std::vector<int> leaders = order(outer);
    std::map<int, std::pair<std::size_t, Rational>> at;  // by leader: which tree, and what is left of it
    for (const int leader : leaders) at[leader] = {0, inside_.at(inner_root(leader)).front().rate};
    Rational left = 1;
    while (sgn(left) > 0) {
      Rational piece = left;
      for (const auto& [leader, next] : at) piece = std::min(piece, next.second);
      Tree& tree = trees_.emplace_back(outer);
      tree.rate = outer.rate * piece;
      tree.root = inner_root(outer.root);
      std::vector<TreeEdge> reduce;
      const bool own_way = !outer.reduce_edges.empty();
      for (const int leader : leaders) {
        const auto& inner = inside_.at(inner_root(leader))[at[leader].first].edges;
        const bool first = inner_root(leader) != leader;  // the outer tree begins at a host of this inner one
        tree.edges.insert(first ? tree.edges.begin() : tree.edges.end(), inner.begin(), inner.end());
        for (auto edge = inner.rbegin(); own_way && edge != inner.rend(); ++edge) {
          reduce.push_back({edge->to, edge->from, {edge->path.rbegin(), edge->path.rend()}});
        }
      }
      tree.reduce_edges.insert(tree.reduce_edges.begin(), reduce.begin(), reduce.end());
      for (auto& [leader, next] : at) {
        next.second -= piece;
        const auto& inner = inside_.at(inner_root(leader));
        if (sgn(next.second) == 0 && next.first + 1 < inner.size()) next.second = inner[++next.first].rate;
      }
      left -= piece;
    }
  }

  static void join(std::vector<std::vector<Tree>>& by_part) {
    for (std::size_t part = 1; part < by_part.size(); ++part) {
      for (Tree& tree : by_part[part]) by_part.front().push_back(std::move(tree));
    }
    by_part.resize(1);
  }

  // Rates as high as the links allow. An arc that is missing one way lets nothing through.
  void scale(std::vector<std::vector<Tree>>& by_part) const {
    std::vector<Load> loads;
    for (const auto& trees : by_part) loads.push_back(load_of(trees, situation_.operation == Operation::allreduce));
    const auto factors = fill(loads, situation_.network);
    for (std::size_t part = 0; part < by_part.size(); ++part) {
      for (Tree& tree : by_part[part]) tree.rate *= factors ? (*factors)[part] : Rational(0);
      std::erase_if(by_part[part], [](const Tree& tree) { return sgn(tree.rate) == 0; });
    }
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
  const bool shared = std::ranges::any_of(count, [](const auto& server) { return server.second > 1; });
  return count.size() > 1 && shared && !count.contains("");
}

std::vector<Tree> three_phase_trees(const Situation& situation) {
  const bool paths = situation.operation == Operation::scatter || situation.operation == Operation::gather;
  return paths ? std::vector<Tree>{} : ThreePhases(situation).run();
}

}  // namespace coppice::collectives
