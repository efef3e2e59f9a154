#include "collectives/tree.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace coppice::collectives {
namespace {

struct Visit {
  int node;
  int depth;
};

// Trees may come from other planners: a node that is entered twice is visited once, so nothing here runs forever.
std::vector<Visit> breadth_first(const Tree& tree) {
  std::map<int, std::vector<int>> below;
  for (const TreeEdge& edge : tree.edges) below[edge.from].push_back(edge.to);
  std::vector<Visit> visits = {{tree.root, 0}};
  std::set<int> seen = {tree.root};
  for (std::size_t next = 0; next < visits.size(); ++next) {
    const Visit visit = visits[next];
    for (const int child : below[visit.node]) {
      if (seen.insert(child).second) visits.push_back({child, visit.depth + 1});
    }
  }
  return visits;
}

}  // namespace

TreeEdge turned(const TreeEdge& edge) {
  return {edge.to, edge.from, {edge.path.rbegin(), edge.path.rend()}, {edge.links.rbegin(), edge.links.rend()}};
}

std::vector<TreeEdge> turned(const std::vector<TreeEdge>& edges) {
  std::vector<TreeEdge> back;
  for (auto edge = edges.rbegin(); edge != edges.rend(); ++edge) back.push_back(turned(*edge));
  return back;
}

std::vector<int> children(const Tree& tree, int node) {
  std::vector<int> found;
  for (const TreeEdge& edge : tree.edges) {
    if (edge.from == node) found.push_back(edge.to);
  }
  return found;
}

std::optional<int> parent(const Tree& tree, int node) {
  const auto found = std::ranges::find(tree.edges, node, &TreeEdge::to);
  if (found == tree.edges.end()) return std::nullopt;
  return found->from;
}

int depth(const Tree& tree) { return breadth_first(tree).back().depth; }

std::vector<int> order(const Tree& tree) {
  std::vector<int> nodes;
  for (const Visit& visit : breadth_first(tree)) nodes.push_back(visit.node);
  return nodes;
}

}  // namespace coppice::collectives
