#include "collectives/splitting.hpp"

#include <algorithm>
#include <map>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

// A way that comes back to a switch leaves out what lies between.
std::vector<int> without_detours(const std::vector<int>& path) {
  std::vector<int> kept;
  for (const int node : path) {
    const auto seen = std::ranges::find(kept, node);
    kept.erase(seen, kept.end());
    kept.push_back(node);
  }
  return kept;
}

template <class Value>
class Splitter {
 public:
  Splitter(const std::vector<char>& is_switch, const std::vector<int>& hosts, const std::vector<PackArc<Value>>& arcs,
           const std::vector<Value>& demand)
      : is_switch_(is_switch), source_(static_cast<int>(is_switch.size())), flow_(source_ + 1), hosts_(hosts) {
    for (const PackArc<Value>& arc : arcs) add({arc, {arc.from, arc.to}});
    for (const int host : hosts) {
      if (demand[index(host)] != 0) flow_.add_arc(source_, host, demand[index(host)]);
      total_ += demand[index(host)];
    }
  }

  std::optional<std::vector<Passage<Value>>> run(const Value& evenly) {
    for (int node = 0; node < source_; ++node) {
      if (is_switch_[index(node)] != 0 && !take_out(node, evenly)) return std::nullopt;
    }
    std::vector<Passage<Value>> left;
    std::map<std::vector<int>, Value> direct;
    for (const auto& [path, arc] : passages_) {
      if (flow_.capacity(arc) != 0) direct[without_detours(path)] += flow_.capacity(arc);
    }
    for (const auto& [path, capacity] : direct) left.push_back({{path.front(), path.back(), capacity}, path});
    return left;
  }

 private:
  void add(const Passage<Value>& passage) {
    const auto found = passages_.find(passage.path);
    if (found != passages_.end()) {
      const int arc = found->second;
      flow_.set_capacity(arc, flow_.capacity(arc) + passage.arc.capacity);
      return;
    }
    passages_[passage.path] = flow_.add_arc(passage.arc.from, passage.arc.to, passage.arc.capacity);
  }

  std::vector<std::vector<int>> paths_at(int node, bool entering) const {
    std::vector<std::vector<int>> paths;
    for (const auto& [path, arc] : passages_) {
      if ((entering ? path.back() : path.front()) == node && flow_.capacity(arc) != 0) paths.push_back(path);
    }
    return paths;
  }

  bool take_out(int node, const Value& evenly) {
    const auto entering = paths_at(node, true);
    const auto leaving = paths_at(node, false);
    if (evenly != 0) pair_up(node, entering, leaving, evenly);
    pair_up(node, entering, leaving, -1);
    for (const auto& path : leaving) {
      if (flow_.capacity(passages_.at(path)) != 0) return false;
    }
    // What could enter and is not needed.
    for (const auto& path : entering) flow_.set_capacity(passages_.at(path), 0);
    return true;
  }

  // Neighbours in turn, so that where all is alike a ring arises; back to where it came from only in the end.
  void pair_up(int node, const std::vector<std::vector<int>>& entering, const std::vector<std::vector<int>>& leaving,
               const Value& most) {
    const std::size_t count = leaving.size();
    for (std::size_t step = 1; step <= count; ++step) {
      for (std::size_t from = 0; from < entering.size(); ++from) {
        const auto& out = leaving[(from + step) % count];
        if (entering[from].front() != out.back()) split(node, entering[from], out, most);
      }
    }
    if (most >= 0) return;
    for (const auto& in : entering) {
      for (const auto& out : leaving) {
        if (in.front() == out.back()) split(node, in, out, most);
      }
    }
  }

  void split(int node, const std::vector<int>& in, const std::vector<int>& out, const Value& most) {
    const int arc_in = passages_.at(in);
    const int arc_out = passages_.at(out);
    Value amount = std::min(flow_.capacity(arc_in), flow_.capacity(arc_out));
    if (most >= 0 && most < amount) amount = most;
    if (amount == 0) return;
    amount = spared_around(node, in.front(), out.back(), amount);
    amount = spared_at(node, in.front(), out.back(), amount);
    if (amount == 0) return;
    flow_.set_capacity(arc_in, flow_.capacity(arc_in) - amount);
    flow_.set_capacity(arc_out, flow_.capacity(arc_out) - amount);
    if (in.front() == out.back()) return;
    Passage<Value> passage{{in.front(), out.back(), amount}, in};
    passage.path.insert(passage.path.end(), out.begin() + 1, out.end());
    add(passage);
  }

  Value least(const std::vector<int>& sources, const std::vector<int>& sinks, const Value& amount) {
    const Value flow = flow_.max_flow(sources, sinks, total_ + amount);
    return flow > total_ ? Value(flow - total_) : Value(0);
  }

  // Sets with both neighbours and without the switch lose what enters them from the switch.
  Value spared_around(int node, int from, int to, Value amount) {
    std::vector<int> sinks = {from};
    if (to != from) sinks.push_back(to);
    if (is_switch_[index(from)] == 0 || is_switch_[index(to)] == 0) return least({source_, node}, sinks, amount);
    sinks.push_back(-1);
    for (const int host : hosts_) {  // a set without a host needs nothing
      sinks.back() = host;
      amount = least({source_, node}, sinks, amount);
      if (amount == 0) break;
    }
    return amount;
  }

  // Sets with the switch and without either neighbour lose what enters the switch.
  Value spared_at(int node, int from, int to, Value amount) {
    std::vector<int> sources = {source_, from};
    if (to != from) sources.push_back(to);
    // Mostly the switch itself has enough, and with it every set that holds it.
    if (least(sources, {node}, amount) == amount) return amount;
    for (const int host : hosts_) {
      if (host == from || host == to) continue;
      amount = least(sources, {node, host}, amount);
      if (amount == 0) break;
    }
    return amount;
  }

  const std::vector<char>& is_switch_;
  int source_;
  FlowGraph<Value> flow_;
  const std::vector<int>& hosts_;
  Value total_ = 0;
  std::map<std::vector<int>, int> passages_;  // the flow's arc, by path
};

}  // namespace

template <class Value>
std::optional<std::vector<Passage<Value>>> split_switches(const std::vector<char>& is_switch,
                                                          const std::vector<int>& hosts,
                                                          const std::vector<PackArc<Value>>& arcs,
                                                          const std::vector<Value>& demand, const Value& evenly) {
  return Splitter<Value>(is_switch, hosts, arcs, demand).run(evenly);
}

template std::optional<std::vector<Passage<std::int64_t>>> split_switches(const std::vector<char>&,
                                                                          const std::vector<int>&,
                                                                          const std::vector<PackArc<std::int64_t>>&,
                                                                          const std::vector<std::int64_t>&,
                                                                          const std::int64_t&);
template std::optional<std::vector<Passage<mpz_class>>> split_switches(const std::vector<char>&,
                                                                       const std::vector<int>&,
                                                                       const std::vector<PackArc<mpz_class>>&,
                                                                       const std::vector<mpz_class>&, const mpz_class&);

}  // namespace coppice::collectives
