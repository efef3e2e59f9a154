#include "collectives/network.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

mpz_class whole_units(const Rational& capacity, const mpz_class& scale) {
  return capacity.get_num() * (scale / capacity.get_den());
}

void merge_parallel(std::vector<Arc>& arcs) {
  const auto ends = [](const Arc& arc) { return std::pair(arc.from, arc.to); };
  std::ranges::stable_sort(arcs, {}, ends);
  std::size_t kept = 0;
  for (std::size_t next = 0; next < arcs.size(); ++next) {
    if (kept > 0 && ends(arcs[kept - 1]) == ends(arcs[next])) {
      arcs[kept - 1].units += arcs[next].units;
    } else {
      if (kept != next) arcs[kept] = std::move(arcs[next]);
      ++kept;
    }
  }
  arcs.resize(kept);
}

std::vector<mpz_class> units_entering(const Network& network) {
  std::vector<mpz_class> entering(index(network.nodes()));
  for (const Arc& arc : network.arcs) entering[index(arc.to)] += arc.units;
  return entering;
}

// The nodes that no cut below the best one separates from the root: the root, hosts whose own cut was computed, and
// every node into which those together send at least the best cut's capacity. Smaller cuts around the others have all
// of them on the root's side, so they count as one with the root, and most hosts need no flow of their own.
// Source: the contraction of Nagamochi and Ibaraki, 1992, for directed cuts from one root.
class Settled {
 public:
  explicit Settled(const Network& network)
      : network_(network), inside_(index(network.nodes()), 0), entering_(index(network.nodes())) {}

  const std::vector<char>& inside() const { return inside_; }

  // The best cut has become smaller, or known.
  void lower(const mpz_class& best) {
    best_ = best;
    for (int node = 0; node < network_.nodes(); ++node) {
      if (entering_[index(node)] >= *best_) join(node);
    }
  }

  void join(int node) {
    std::vector<int> open = {node};
    while (!open.empty()) {
      const int joined = open.back();
      open.pop_back();
      if (inside_[index(joined)] != 0) continue;
      inside_[index(joined)] = 1;
      for (const int leaving : network_.out[index(joined)]) {
        const Arc& arc = network_.arcs[index(leaving)];
        entering_[index(arc.to)] += arc.units;
        if (best_ && entering_[index(arc.to)] >= *best_) open.push_back(arc.to);
      }
    }
  }

 private:
  const Network& network_;
  std::vector<char> inside_;         // [nodes]
  std::vector<mpz_class> entering_;  // [nodes]: from those inside
  std::optional<mpz_class> best_;
};

}  // namespace

Rational Network::rate_of(const mpz_class& units) const {
  Rational rate(units, scale);
  rate.canonicalize();
  return rate;
}

Network network_of(const Topology& topology, const std::vector<int>& participants) {
  Network network;
  std::vector<char> used;
  for (const Node& node : topology.nodes) {
    network.is_switch.push_back(node.is_switch ? 1 : 0);
    used.push_back(node.is_switch ? 1 : 0);
  }
  for (const int host : participants) used[index(host)] = 1;
  const auto carries = [&](const Link& link) { return used[index(link.from)] != 0 && used[index(link.to)] != 0; };
  for (const Link& link : topology.links) {
    if (carries(link)) network.scale = lcm(network.scale, link.capacity.get_den());
  }
  for (const Link& link : topology.links) {
    if (!carries(link)) continue;
    const mpz_class units = whole_units(link.capacity, network.scale);
    network.arcs.push_back({link.from, link.to, units});
    if (link.duplex) network.arcs.push_back({link.to, link.from, units});
  }
  merge_parallel(network.arcs);
  network.out.resize(topology.nodes.size());
  for (std::size_t arc = 0; arc < network.arcs.size(); ++arc) {
    network.out[index(network.arcs[arc].from)].push_back(static_cast<int>(arc));
  }
  return network;
}

void reach(const Network& network, const mpz_class& units_min, std::vector<char>& inside) {
  std::vector<int> open;
  for (int node = 0; node < network.nodes(); ++node) {
    if (inside[index(node)] != 0) open.push_back(node);
  }
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    for (const int leaving : network.out[index(node)]) {
      const Arc& arc = network.arcs[index(leaving)];
      if (inside[index(arc.to)] != 0 || arc.units < units_min) continue;
      inside[index(arc.to)] = 1;
      open.push_back(arc.to);
    }
  }
}

CutBound broadcast_bound(const Network& network, int root, const std::vector<int>& participants) {
  // The host that least can enter first: its cut is likely the smallest, and settles the others.
  std::vector<int> hosts = participants;
  const std::vector<mpz_class> entering = units_entering(network);
  std::ranges::stable_sort(hosts, [&](int a, int b) { return entering[index(a)] < entering[index(b)]; });
  Settled settled(network);
  settled.join(root);
  std::optional<MinCut> best;
  for (const int host : hosts) {
    if (settled.inside()[index(host)] != 0) continue;
    MinCut cut = min_cut(network.nodes(), network.arcs, settled.inside(), host);
    if (!best || cut.units < best->units) {
      best = std::move(cut);
      settled.lower(best->units);
    }
    settled.join(host);
  }
  CutBound bound;
  if (!best) return bound;
  bound.units = best->units;
  for (int node = 0; node < network.nodes(); ++node) {
    if (best->sink_side[index(node)] != 0) bound.nodes.push_back(node);
  }
  return bound;
}

}  // namespace coppice::collectives
