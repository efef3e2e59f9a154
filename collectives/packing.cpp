#include "collectives/packing.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

template <class Value>
class Packer {
 public:
  Packer(int nodes, const std::vector<PackArc<Value>>& arcs, const std::vector<Value>& demand, const PackStyle& style)
      : nodes_(nodes),
        source_(nodes),
        style_(style),
        flow_(nodes + 1),
        arcs_(arcs),
        leaving_(index(nodes)),
        demand_(demand),
        depth_(index(nodes), -1),
        refused_(arcs.size(), 0),
        allowed_(arcs.size()),
        rank_(arcs.size()) {
    for (std::size_t arc = 0; arc < arcs.size(); ++arc) {
      flow_.add_arc(arcs[arc].from, arcs[arc].to, arcs[arc].capacity);
      leaving_[index(arcs[arc].from)].push_back(static_cast<int>(arc));
    }
    for (int node = 0; node < nodes; ++node) flow_.add_arc(source_, node, demand[index(node)]);
    std::iota(rank_.begin(), rank_.end(), 0);
    if (style.shuffle != 0) std::ranges::shuffle(rank_, std::mt19937(style.shuffle));
    for (const Value& each : demand) total_ += each;
  }

  std::optional<std::vector<PackedTree<Value>>> run() {
    std::vector<PackedTree<Value>> trees;
    for (int root = 0; root < nodes_; ++root) {
      while (demand_[index(root)] != 0) {
        if (!grow(root)) return std::nullopt;
        trees.push_back(tree_);
        total_ -= tree_.weight;
      }
    }
    return trees;
  }

 private:
  // Grows tree_ and takes its weight off the capacities and the root's demand.
  bool grow(int root) {
    const Value whole = demand_[index(root)];
    begin(root, whole);
    while (joined_ < nodes_) {
      const auto [arc, weight] = best();
      if (weight == 0) return false;
      const bool stuck = weight < tree_.weight;
      if (stuck && style_.restart && joined_ > 1) {
        give_back();
        begin(root, weight);
        continue;
      }
      if (stuck) reweigh(weight);
      join(arc);
    }
    return true;
  }

  void begin(int root, const Value& weight) {
    std::ranges::fill(depth_, -1);
    std::ranges::fill(refused_, 0);
    tree_ = {root, weight, {}};
    order_ = {root};
    depth_[index(root)] = 0;
    joined_ = 1;
    take(static_cast<int>(arcs_.size()) + root, weight);
    demand_[index(root)] -= weight;
  }

  void take(int arc, const Value& amount) { flow_.set_capacity(arc, flow_.capacity(arc) - amount); }

  void give_back() {
    const Value back = -tree_.weight;
    for (const int arc : tree_.arcs) take(arc, back);
    take(static_cast<int>(arcs_.size()) + tree_.root, back);
    demand_[index(tree_.root)] += tree_.weight;
  }

  void reweigh(const Value& weight) {
    const Value change = weight - tree_.weight;  // negative
    for (const int arc : tree_.arcs) take(arc, change);
    take(static_cast<int>(arcs_.size()) + tree_.root, change);
    demand_[index(tree_.root)] -= change;
    tree_.weight = weight;
    std::ranges::fill(refused_, 0);
  }

  void join(int arc) {
    const PackArc<Value>& joining = arcs_[index(arc)];
    take(arc, tree_.weight);
    tree_.arcs.push_back(arc);
    depth_[index(joining.to)] = depth_[index(joining.from)] + 1;
    order_.push_back(joining.to);
    ++joined_;
  }

  // The arc that can join at the largest weight up to the tree's own, the first in the style's order among equals.
  std::pair<int, Value> best() {
    frontier();
    int found = -1;
    Value most = 0;
    for (const int arc : frontier_) {
      // As the tree grows at one weight an arc can only lose: one refused earlier is tried again last, if at all.
      if (refused_[index(arc)] != 0) continue;
      const Value weight = allowed(arc, tree_.weight);
      if (weight == tree_.weight) return {arc, weight};
      refused_[index(arc)] = 1;
      allowed_[index(arc)] = weight;
    }
    std::ranges::stable_sort(frontier_, [&](int a, int b) { return allowed_[index(a)] > allowed_[index(b)]; });
    for (const int arc : frontier_) {
      if (allowed_[index(arc)] <= most) break;
      const Value weight = allowed(arc, allowed_[index(arc)]);
      allowed_[index(arc)] = weight;
      if (weight > most) {
        most = weight;
        found = arc;
      }
    }
    return {found, most};
  }

  // Arcs with capacity left that leave the tree, in the style's order.
  void frontier() {
    frontier_.clear();
    const bool backwards = style_.grow == GrowFrom::latest;
    for (std::size_t at = 0; at < order_.size(); ++at) {
      const int node = backwards ? order_[order_.size() - 1 - at] : order_[at];
      const std::size_t begun = frontier_.size();
      for (const int arc : leaving_[index(node)]) {
        if (depth_[index(arcs_[index(arc)].to)] < 0 && flow_.capacity(arc) != 0) frontier_.push_back(arc);
      }
      const auto first = frontier_.begin() + static_cast<std::ptrdiff_t>(begun);
      std::sort(first, frontier_.end(), [&](int a, int b) { return rank_[index(a)] < rank_[index(b)]; });
    }
    if (style_.grow == GrowFrom::wide) {
      std::ranges::stable_sort(frontier_, [&](int a, int b) { return flow_.capacity(a) > flow_.capacity(b); });
    } else if (style_.grow == GrowFrom::shallow) {
      std::ranges::stable_sort(frontier_, {}, [&](int arc) { return depth_[index(arcs_[index(arc)].from)]; });
    }
  }

  // What weight up to `most` the arc could carry for this tree with all the rest still possible. The sets that bind
  // hold its head, not its tail, and part of the tree; what enters them must be `total - the tree's weight` and this
  // weight. Sets without part of the tree need not be told apart: they have at least the tree's weight to spare.
  Value allowed(int arc, const Value& most) {
    const PackArc<Value>& joining = arcs_[index(arc)];
    const Value upper = std::min(most, flow_.capacity(arc));
    const Value rest = total_ - tree_.weight;
    const Value needed = rest + upper;
    const std::array<int, 2> sources = {source_, joining.from};
    const std::array<int, 1> sinks = {joining.to};
    const Value flow = flow_.max_flow(sources, sinks, needed);
    return flow > rest ? Value(flow - rest) : Value(0);
  }

  int nodes_;
  int source_;
  PackStyle style_;
  FlowGraph<Value> flow_;  // what is left, this tree taken off; last the arcs from the source, one a node
  const std::vector<PackArc<Value>>& arcs_;
  std::vector<std::vector<int>> leaving_;
  std::vector<Value> demand_;  // [nodes]: what is left, this tree taken off
  Value total_ = 0;            // of the demands, this tree's weight among them
  PackedTree<Value> tree_;
  std::vector<int> order_;  // nodes of the tree as they joined
  int joined_ = 0;
  std::vector<int> depth_;      // [nodes]: -1 outside the tree
  std::vector<char> refused_;   // [arcs]: at the tree's weight
  std::vector<Value> allowed_;  // [arcs]: of those refused, when they were
  std::vector<int> rank_;       // [arcs]: their order among equals
  std::vector<int> frontier_;
};

}  // namespace

template <class Value>
std::optional<std::vector<PackedTree<Value>>> pack_trees(int nodes, const std::vector<PackArc<Value>>& arcs,
                                                         const std::vector<Value>& demand, const PackStyle& style) {
  return Packer<Value>(nodes, arcs, demand, style).run();
}

template std::optional<std::vector<PackedTree<std::int64_t>>> pack_trees(int, const std::vector<PackArc<std::int64_t>>&,
                                                                         const std::vector<std::int64_t>&,
                                                                         const PackStyle&);
template std::optional<std::vector<PackedTree<mpz_class>>> pack_trees(int, const std::vector<PackArc<mpz_class>>&,
                                                                      const std::vector<mpz_class>&, const PackStyle&);

}  // namespace coppice::collectives
