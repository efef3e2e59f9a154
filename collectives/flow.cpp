#include "collectives/flow.hpp"

#include <algorithm>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

}  // namespace

template <class Value>
FlowGraph<Value>::FlowGraph(int nodes)
    : around_(index(nodes)), level_(index(nodes), -1), next_(index(nodes), 0), is_sink_(index(nodes), 0) {}

template <class Value>
int FlowGraph<Value>::add_arc(int from, int to, Value capacity) {
  const int arc = static_cast<int>(capacity_.size());
  around_[index(from)].push_back(2 * arc);
  around_[index(to)].push_back(2 * arc + 1);
  halves_.push_back({to, 0});
  halves_.push_back({from, 0});
  capacity_.push_back(std::move(capacity));
  return arc;
}

template <class Value>
bool FlowGraph<Value>::label(std::span<const int> sources) {
  std::ranges::fill(level_, -1);
  queue_.assign(sources.begin(), sources.end());
  for (const int source : sources) level_[index(source)] = 0;
  bool reached = false;
  for (std::size_t at = 0; at < queue_.size(); ++at) {
    const int node = queue_[at];
    if (is_sink_[index(node)] != 0) {
      reached = true;
      break;  // nodes as far as this one or further are of no use
    }
    for (const int half : around_[index(node)]) {
      const Half& way = halves_[index(half)];
      if (level_[index(way.to)] >= 0 || way.residual == 0) continue;
      level_[index(way.to)] = level_[index(node)] + 1;
      queue_.push_back(way.to);
    }
  }
  return reached;
}

// One augmenting way from the source along rising levels; 0 when there is none left.
template <class Value>
Value FlowGraph<Value>::push(int source, const Value& limit) {
  way_.clear();
  int node = source;
  while (is_sink_[index(node)] == 0) {
    const auto& around = around_[index(node)];
    std::size_t& next = next_[index(node)];
    while (next < around.size()) {
      const Half& half = halves_[index(around[next])];
      if (half.residual != 0 && level_[index(half.to)] == level_[index(node)] + 1) break;
      ++next;
    }
    if (next < around.size()) {
      way_.push_back(around[next]);
      node = halves_[index(around[next])].to;
    } else {
      if (node == source) return 0;
      node = halves_[index(way_.back() ^ 1)].to;
      way_.pop_back();
      ++next_[index(node)];
    }
  }
  Value amount = limit;
  for (const int half : way_) {
    if (halves_[index(half)].residual < amount) amount = halves_[index(half)].residual;
  }
  for (const int half : way_) {
    halves_[index(half)].residual -= amount;
    halves_[index(half ^ 1)].residual += amount;
  }
  return amount;
}

template <class Value>
Value FlowGraph<Value>::max_flow(std::span<const int> sources, std::span<const int> sinks, const Value& limit) {
  for (std::size_t arc = 0; arc < capacity_.size(); ++arc) {
    halves_[2 * arc].residual = capacity_[arc];
    halves_[2 * arc + 1].residual = 0;
  }
  std::ranges::fill(is_sink_, 0);
  for (const int sink : sinks) is_sink_[index(sink)] = 1;
  Value flow = 0;
  while (flow < limit && label(sources)) {
    std::ranges::fill(next_, 0);
    for (const int source : sources) {
      while (flow < limit) {
        const Value rest = limit - flow;
        const Value pushed = push(source, rest);
        if (pushed == 0) break;
        flow += pushed;
      }
    }
  }
  return flow;
}

template <class Value>
std::vector<char> FlowGraph<Value>::source_side() const {
  std::vector<char> side(level_.size());
  for (std::size_t node = 0; node < side.size(); ++node) side[node] = level_[node] >= 0 ? 1 : 0;
  return side;
}

template <class Value>
std::vector<char> FlowGraph<Value>::sink_side() const {
  std::vector<char> side = is_sink_;
  std::vector<int> open;
  for (int node = 0; node < nodes(); ++node) {
    if (side[index(node)] != 0) open.push_back(node);
  }
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    for (const int half : around_[index(node)]) {
      const int before = halves_[index(half)].to;
      if (side[index(before)] != 0 || halves_[index(half ^ 1)].residual == 0) continue;
      side[index(before)] = 1;
      open.push_back(before);
    }
  }
  return side;
}

template <class Value>
Value FlowGraph<Value>::flow_on(int arc) const {
  const Value unused = halves_[2 * index(arc)].residual;
  return unused < capacity_[index(arc)] ? Value(capacity_[index(arc)] - unused) : Value(0);
}

template class FlowGraph<std::int64_t>;
template class FlowGraph<mpz_class>;

}  // namespace coppice::collectives
