#include "collectives/parallel_links.hpp"

#include <algorithm>
#include <map>

namespace coppice::collectives {
namespace {

using Pair = std::pair<int, int>;

// What is left of the links of one direction of a pair.
struct Lanes {
  struct Lane {
    int link;
    Rational left;
  };
  std::vector<Lane> lanes;
  std::size_t next = 0;  // the first that is not full

  Lane& open() {
    // What does not fit is the last one's: verify says so of a plan that overloads the pair.
    while (next + 1 < lanes.size() && sgn(lanes[next].left) <= 0) ++next;
    return lanes[next];
  }
};

class Layer {
 public:
  explicit Layer(const Topology& topology) : topology_(topology) {
    std::map<Pair, std::vector<int>> between;
    for (std::size_t at = 0; at < topology.links.size(); ++at) {
      const Link& link = topology.links[at];
      between[{link.from, link.to}].push_back(static_cast<int>(at));
      if (link.duplex) between[{link.to, link.from}].push_back(static_cast<int>(at));
    }
    for (const auto& [pair, links] : between) {
      const auto has_address = [&](int at) {
        const Link& link = topology.links[static_cast<std::size_t>(at)];
        return link.from_address || link.to_address;
      };
      if (links.size() < 2 || std::ranges::none_of(links, has_address)) continue;
      for (const int at : links) parallel_[pair].lanes.push_back({at, topology.links[static_cast<std::size_t>(at)].capacity});
    }
  }

  bool needed() const { return !parallel_.empty(); }

  // The tree, or the trees that it is divided into. inward: its data runs towards the root; both: and away from it.
  std::vector<Tree> lay(Tree tree, bool inward, bool both) {
    if (both && tree.reduce_edges.empty() && crosses(tree.edges)) tree.reduce_edges = turned(tree.edges);
    if (!crosses(tree.edges) && !crosses(tree.reduce_edges)) return {std::move(tree)};
    std::map<Pair, unsigned long> uses;
    count(tree.edges, inward, uses);
    count(tree.reduce_edges, false, uses);
    std::vector<Tree> pieces;
    Rational left = tree.rate;
    do {
      Rational piece = left;
      for (const auto& [pair, times] : uses) {
        const Rational fits(parallel_.at(pair).open().left / times);
        if (sgn(fits) > 0) piece = std::min(piece, fits);
      }
      Tree& own = pieces.emplace_back(tree);
      own.rate = piece;
      name_links(own.edges, inward);
      name_links(own.reduce_edges, false);
      if (both && own.reduce_edges == turned(own.edges)) own.reduce_edges.clear();
      for (const auto& [pair, times] : uses) parallel_.at(pair).open().left -= piece * times;
      left -= piece;
    } while (sgn(left) > 0);
    return pieces;
  }

 private:
  static std::vector<int> path_of(const TreeEdge& edge) {
    return edge.path.empty() ? std::vector{edge.from, edge.to} : edge.path;
  }
  static Pair pair_of(const std::vector<int>& path, std::size_t hop, bool inward) {
    return inward ? Pair{path[hop], path[hop - 1]} : Pair{path[hop - 1], path[hop]};
  }

  bool crosses(const std::vector<TreeEdge>& edges) const {
    return std::ranges::any_of(edges, [&](const TreeEdge& edge) {
      const auto path = path_of(edge);
      for (std::size_t hop = 1; hop < path.size(); ++hop)
        if (parallel_.contains({path[hop - 1], path[hop]}) || parallel_.contains({path[hop], path[hop - 1]})) return true;
      return false;
    });
  }

  void count(const std::vector<TreeEdge>& edges, bool inward, std::map<Pair, unsigned long>& uses) const {
    for (const TreeEdge& edge : edges) {
      const auto path = path_of(edge);
      for (std::size_t hop = 1; hop < path.size(); ++hop)
        if (const Pair pair = pair_of(path, hop, inward); parallel_.contains(pair)) ++uses[pair];
    }
  }

  void name_links(std::vector<TreeEdge>& edges, bool inward) {
    for (TreeEdge& edge : edges) {
      if (!crosses({edge})) continue;
      const auto path = path_of(edge);
      edge.links.clear();
      for (std::size_t hop = 1; hop < path.size(); ++hop) {
        const Pair pair = pair_of(path, hop, inward);
        const auto lanes = parallel_.find(pair);
        edge.links.push_back(lanes != parallel_.end() ? lanes->second.open().link
                                                      : link_between(topology_, pair.first, pair.second).value_or(0));
      }
    }
  }

  const Topology& topology_;
  std::map<Pair, Lanes> parallel_;  // by direction
};

}  // namespace

Plan on_links(Plan plan, const Topology& topology) {
  Layer layer(topology);
  if (!layer.needed()) return plan;
  const bool inward = plan.operation == Operation::reduce || plan.operation == Operation::reduce_scatter ||
                      plan.operation == Operation::gather;
  std::vector<Tree> trees;
  for (Tree& tree : plan.trees)
    for (Tree& piece : layer.lay(std::move(tree), inward, plan.operation == Operation::allreduce)) trees.push_back(std::move(piece));
  plan.trees = std::move(trees);
  return plan;
}

}  // namespace coppice::collectives
