#include "collectives/bottleneck.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "collectives/topology.hpp"

namespace coppice::collectives {

Rational bottleneck(const Plan& plan, const Tree& tree, const Topology& topology) {
  std::map<std::pair<int, int>, std::pair<Rational, unsigned long>> links;  // by ends: capacity, uses
  const auto use = [&](const TreeEdge& edge, bool back) {
    const std::vector<int> path = edge.path.empty() ? std::vector{edge.from, edge.to} : edge.path;
    for (std::size_t hop = 1; hop < path.size(); ++hop)
      ++links[back ? std::pair{path[hop], path[hop - 1]} : std::pair{path[hop - 1], path[hop]}].second;
  };
  const bool there_and_back = plan.operation == Operation::allreduce;
  const bool up = there_and_back || plan.operation == Operation::reduce || plan.operation == Operation::reduce_scatter ||
                  plan.operation == Operation::gather;
  for (const TreeEdge& edge : tree.edges) {
    if (there_and_back || !up) use(edge, false);
    if (up && tree.reduce_edges.empty()) use(edge, true);
  }
  for (const TreeEdge& edge : tree.reduce_edges) use(edge, false);
  for (const Link& link : topology.links) {
    const auto add = [&](int from, int to) {
      if (const auto used = links.find({from, to}); used != links.end()) used->second.first += link.capacity;
    };
    add(link.from, link.to);
    if (link.duplex) add(link.to, link.from);
  }
  Rational least;
  for (const auto& [ends, link] : links) {
    const Rational each(link.first / link.second);
    if (sgn(least) == 0 || each < least) least = each;
  }
  return std::max(least, tree.rate);
}

}  // namespace coppice::collectives
