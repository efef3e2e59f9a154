#include "collectives/arborescence.hpp"

#include <lemon/min_cost_arborescence.h>
#include <lemon/smart_graph.h>

namespace coppice::collectives {

std::vector<int> cheapest_arborescence(int nodes, const std::vector<std::pair<int, int>>& arcs,
                                       const std::vector<double>& cost, int root) {
  using Graph = lemon::SmartDigraph;
  Graph graph;
  std::vector<Graph::Node> node_of;
  for (int node = 0; node < nodes; ++node) node_of.push_back(graph.addNode());
  Graph::ArcMap<double> price(graph);
  for (std::size_t arc = 0; arc < arcs.size(); ++arc) {
    const Graph::Arc added = graph.addArc(node_of[static_cast<std::size_t>(arcs[arc].first)],
                                          node_of[static_cast<std::size_t>(arcs[arc].second)]);
    price[added] = cost[arc];
  }
  lemon::MinCostArborescence<Graph, Graph::ArcMap<double>> search(graph, price);
  search.run(node_of[static_cast<std::size_t>(root)]);
  std::vector<int> chosen;
  for (std::size_t arc = 0; arc < arcs.size(); ++arc) {
    if (search.arborescence(graph.arcFromId(static_cast<int>(arc)))) chosen.push_back(static_cast<int>(arc));
  }
  return chosen;
}

}  // namespace coppice::collectives
