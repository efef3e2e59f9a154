// collectives/flow.hpp: maximum flows asked again and again of one graph whose capacities change. Private.
//
// Why not LEMON's, which min_cut.hpp uses: a packing asks tens of thousands of flows of graphs of some hundred arcs,
// from several nodes to several, and mostly needs to know only whether a bound is reached. Tests hold this one to
// LEMON's.
#pragma once

#include <gmpxx.h>

#include <cstdint>
#include <span>
#include <vector>

namespace coppice::collectives {

// Value: std::int64_t, or mpz_class where sums of capacities do not fit. REQUIRES: they fit.
// Source: Dinic, Algorithm for Solution of a Problem of Maximum Flow in Networks, 1970.
template <class Value>
class FlowGraph {
 public:
  explicit FlowGraph(int nodes);

  // The new arc's index, counted from 0. capacity >= 0.
  int add_arc(int from, int to, Value capacity);
  const Value& capacity(int arc) const { return capacity_[static_cast<std::size_t>(arc)]; }
  void set_capacity(int arc, Value capacity) { capacity_[static_cast<std::size_t>(arc)] = std::move(capacity); }
  int nodes() const { return static_cast<int>(around_.size()); }

  // The most that the sources together send to the sinks together, or `limit` where that is less.
  // REQUIRES: no node is both. Cost: O(nodes² arcs), in practice near O(arcs) a level of the way.
  Value max_flow(std::span<const int> sources, std::span<const int> sinks, const Value& limit);

  // After a max_flow below its limit: 1 for every node that the sources still reach. Its arcs out are a least cut.
  std::vector<char> source_side() const;
  // After a max_flow below its limit: 1 for every node that still reaches the sinks.
  std::vector<char> sink_side() const;
  // After a max_flow.
  Value flow_on(int arc) const;

 private:
  struct Half {  // one direction of an arc in the residual graph; its opposite is at index ^ 1
    int to;
    Value residual;
  };

  bool label(std::span<const int> sources);
  Value push(int source, const Value& limit);

  std::vector<Value> capacity_;           // [arcs]
  std::vector<Half> halves_;              // [2 arcs]
  std::vector<std::vector<int>> around_;  // [nodes]: halves that leave
  std::vector<int> level_;                // [nodes]: hops from the sources, -1 where they do not reach
  std::vector<std::size_t> next_;         // [nodes]: the half that was not yet seen to be useless on this level
  std::vector<char> is_sink_;             // [nodes]
  std::vector<int> queue_;
  std::vector<int> way_;  // halves, from a source on
};

}  // namespace coppice::collectives
