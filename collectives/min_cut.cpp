#include "collectives/min_cut.hpp"

#include <lemon/preflow.h>
#include <lemon/smart_graph.h>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace coppice::collectives {
namespace {

using Graph = lemon::SmartDigraph;

template <class Value>
MinCut solve(int nodes, const std::vector<Arc>& arcs, const std::vector<char>& source, int sink) {
  const auto index = [](int node) { return static_cast<std::size_t>(node); };
  Graph graph;
  graph.reserveNode(nodes + 1);
  const Graph::Node origin = graph.addNode();  // all of `source` in one
  std::vector<Graph::Node> node_of(index(nodes), origin);
  for (int node = 0; node < nodes; ++node) {
    if (source[index(node)] == 0) node_of[index(node)] = graph.addNode();
  }
  Graph::ArcMap<Value> capacity(graph);
  for (const Arc& arc : arcs) {
    if (source[index(arc.to)] != 0) continue;  // no cut counts what flows back to the source
    const Graph::Arc added = graph.addArc(node_of[index(arc.from)], node_of[index(arc.to)]);
    if constexpr (std::is_same_v<Value, std::int64_t>) {
      capacity[added] = arc.units.get_si();
    } else {
      capacity[added] = arc.units;
    }
  }
  lemon::Preflow<Graph, Graph::ArcMap<Value>> flow(graph, capacity, origin, node_of[index(sink)]);
  flow.runMinCut();
  MinCut cut{mpz_class(flow.flowValue()), std::vector<char>(index(nodes), 0)};
  for (int node = 0; node < nodes; ++node) {
    cut.sink_side[index(node)] = source[index(node)] == 0 && !flow.minCut(node_of[index(node)]) ? 1 : 0;
  }
  return cut;
}

}  // namespace

MinCut min_cut(int nodes, const std::vector<Arc>& arcs, const std::vector<char>& source, int sink) {
  static_assert(sizeof(long) == sizeof(std::int64_t), "get_si must give 64 bits");
  mpz_class total = 0;
  for (const Arc& arc : arcs) total += arc.units;
  // Nothing in a flow exceeds the sum of all capacities: where that is a machine word, so is everything.
  return total <= mpz_class(std::numeric_limits<std::int64_t>::max() / 2)
             ? solve<std::int64_t>(nodes, arcs, source, sink)
             : solve<mpz_class>(nodes, arcs, source, sink);
}

}  // namespace coppice::collectives
