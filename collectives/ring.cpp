#include "collectives/ring.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

// The search gives up after so many hops tried: finding a ring through all hosts is hard in general.
constexpr long kHopsMax = 200'000;

class RingSearch {
 public:
  RingSearch(const Network& network, const std::vector<int>& hosts) : network_(network), hosts_(hosts) {
    for (const Arc& arc : network.arcs) left_.push_back(arc.units);
  }

  const std::vector<mpz_class>& left() const { return left_; }

  // A ring from `start` on which every link has `units` to spare for each time it is crossed; taken off what is left.
  std::optional<Ring> find(const mpz_class& units, int start, long& hops_left) {
    start_ = start;
    units_ = units;
    hops_left_ = &hops_left;
    visited_.assign(index(network_.nodes()), 0);
    edges_.clear();
    visited_[index(start)] = 1;
    if (!extend(start, 1)) return std::nullopt;
    return Ring{network_.rate_of(units), edges_};
  }

  // The same hosts the other way round, through the same switches, as wide as what is left allows.
  std::optional<Ring> backwards(const Ring& ring) {
    std::map<std::pair<int, int>, std::size_t> at;
    for (std::size_t arc = 0; arc < network_.arcs.size(); ++arc) {
      at[{network_.arcs[arc].from, network_.arcs[arc].to}] = arc;
    }
    Ring turned{.width = 0, .edges = {}};
    std::map<std::size_t, int> crossings;
    for (auto edge = ring.edges.rbegin(); edge != ring.edges.rend(); ++edge) {
      turned.edges.push_back({edge->to, edge->from, {edge->path.rbegin(), edge->path.rend()}});
      const auto& path = turned.edges.back().path;
      for (std::size_t hop = 1; hop < path.size(); ++hop) {
        const auto found = at.find({path[hop - 1], path[hop]});
        if (found == at.end()) return std::nullopt;
        ++crossings[found->second];
      }
    }
    for (const auto& [arc, count] : crossings) {
      const Rational each = network_.rate_of(left_[arc]) / count;
      if (sgn(turned.width) == 0 || each < turned.width) turned.width = each;
      if (sgn(left_[arc]) == 0) return std::nullopt;
    }
    return turned;
  }

 private:
  struct Hop {
    int host;
    std::vector<int> arcs;
  };

  // Hosts not yet on the ring (in the end: its first), over direct links or through switches: the nearest first, among
  // equals the one with most to spare.
  std::vector<Hop> hops(int from, bool closing) const {
    std::vector<int> by(index(network_.nodes()), -1);
    std::vector<int> open = {from};
    std::vector<Hop> found;
    std::vector<char> seen(index(network_.nodes()), 0);
    seen[index(from)] = 1;
    for (std::size_t next = 0; next < open.size(); ++next) {
      for (const int arc : network_.out[index(open[next])]) {
        const int to = network_.arcs[index(arc)].to;
        if (seen[index(to)] != 0 || left_[index(arc)] < units_) continue;
        seen[index(to)] = 1;
        by[index(to)] = arc;
        if (network_.is_switch[index(to)] != 0) {
          open.push_back(to);
        } else if (closing ? to == start_ : visited_[index(to)] == 0) {
          Hop& hop = found.emplace_back(Hop{to, {}});
          for (int node = to; node != from; node = network_.arcs[index(by[index(node)])].from) {
            hop.arcs.push_back(by[index(node)]);
          }
          std::ranges::reverse(hop.arcs);
        }
      }
    }
    // Where links are wide there is room to come through again: what is narrow is left for when nothing else is.
    const auto width = [&](const Hop& hop) {
      mpz_class least = left_[index(hop.arcs.front())];
      for (const int arc : hop.arcs) least = std::min(least, left_[index(arc)]);
      return least;
    };
    std::ranges::stable_sort(found, [&](const Hop& a, const Hop& b) {
      return a.arcs.size() != b.arcs.size() ? a.arcs.size() < b.arcs.size() : width(a) > width(b);
    });
    return found;
  }

  bool extend(int host, std::size_t count) {
    const bool closing = count == hosts_.size();
    for (const Hop& hop : hops(host, closing)) {
      if (--*hops_left_ < 0) return false;
      TreeEdge edge{host, hop.host, {host}};
      for (const int arc : hop.arcs) {
        left_[index(arc)] -= units_;
        edge.path.push_back(network_.arcs[index(arc)].to);
      }
      edges_.push_back(std::move(edge));
      visited_[index(hop.host)] = 1;
      if (closing || extend(hop.host, count + 1)) return true;
      if (!closing) visited_[index(hop.host)] = 0;
      edges_.pop_back();
      for (const int arc : hop.arcs) left_[index(arc)] += units_;
    }
    return false;
  }

  const Network& network_;
  const std::vector<int>& hosts_;
  std::vector<mpz_class> left_;  // [arcs]
  mpz_class units_;
  int start_ = -1;
  long* hops_left_ = nullptr;
  std::vector<char> visited_;  // [nodes]
  std::vector<TreeEdge> edges_;
};

std::vector<mpz_class> distinct_widths(const std::vector<mpz_class>& left) {
  std::vector<mpz_class> widths = left;
  std::erase(widths, 0);
  std::ranges::sort(widths, std::greater{});
  const auto repeats = std::ranges::unique(widths);
  widths.erase(repeats.begin(), repeats.end());
  return widths;
}

std::optional<Ring> widest(RingSearch& search, const std::vector<int>& hosts) {
  constexpr std::size_t kWidthsMax = 64;
  std::vector<mpz_class> widths = distinct_widths(search.left());
  if (widths.size() > kWidthsMax) widths.erase(widths.begin() + kWidthsMax, widths.end());
  for (const mpz_class& width : widths) {
    // From several hosts: where a ring comes back to the one that it began at, that one's card must have room.
    constexpr std::size_t kStartsMax = 16;
    const std::size_t starts = std::min(hosts.size(), kStartsMax);
    for (std::size_t start = 0; start < starts; ++start) {
      long hops_left = kHopsMax / static_cast<long>(starts);
      if (auto ring = search.find(width, hosts[start], hops_left)) return ring;
    }
  }
  return std::nullopt;
}

bool has_switched_arcs(const Network& network) {
  return std::ranges::any_of(network.arcs, [&](const Arc& arc) {
    return network.is_switch[index(arc.from)] != 0 || network.is_switch[index(arc.to)] != 0;
  });
}

// All directed rings of a small direct network, and the most of them, each as often as it fits, by branch and bound.
class RingChoice {
 public:
  RingChoice(const Network& network, const std::vector<int>& hosts) : network_(network), hosts_(hosts) {
    for (const Arc& arc : network.arcs) unit_ = unit_ == 0 || arc.units < unit_ ? arc.units : unit_;
    for (std::size_t arc = 0; arc < network.arcs.size(); ++arc) {
      const mpz_class whole = network.arcs[arc].units / unit_;
      left_.push_back(whole < 64 ? static_cast<int>(whole.get_si()) : 64);
      at_[{network.arcs[arc].from, network.arcs[arc].to}] = static_cast<int>(arc);
    }
    order_ = {hosts.front()};
    list();
  }

  std::vector<Ring> run() {
    choose(0);
    std::vector<Ring> rings;
    for (const std::size_t chosen : best_) {
      Ring& ring = rings.emplace_back(Ring{network_.rate_of(unit_), {}});
      for (const int arc : rings_[chosen]) {
        const Arc& of = network_.arcs[index(arc)];
        ring.edges.push_back({of.from, of.to, {of.from, of.to}});
      }
    }
    return rings;
  }

 private:
  void list() {
    const bool closing = order_.size() == hosts_.size();
    for (const int host : hosts_) {
      const bool fits = closing ? host == hosts_.front() : std::ranges::count(order_, host) == 0;
      const auto found = at_.find({order_.back(), host});
      if (!fits || found == at_.end()) continue;
      arcs_.push_back(found->second);
      if (closing) {
        rings_.push_back(arcs_);
      } else {
        order_.push_back(host);
        list();
        order_.pop_back();
      }
      arcs_.pop_back();
    }
  }

  // No more rings than the narrowest host can still send.
  std::size_t most() const {
    std::size_t least = SIZE_MAX;
    for (const int host : hosts_) {
      std::size_t leaving = 0;
      for (const int arc : network_.out[index(host)]) leaving += static_cast<std::size_t>(left_[index(arc)]);
      least = std::min(least, leaving);
    }
    return least;
  }

  void choose(std::size_t from) {
    if (chosen_.size() > best_.size()) best_ = chosen_;
    if (--steps_left_ < 0) return;
    for (std::size_t at = from; at < rings_.size(); ++at) {
      if (chosen_.size() + most() <= best_.size()) return;
      if (!std::ranges::all_of(rings_[at], [&](int arc) { return left_[index(arc)] > 0; })) continue;
      for (const int arc : rings_[at]) --left_[index(arc)];
      chosen_.push_back(at);
      choose(at);
      chosen_.pop_back();
      for (const int arc : rings_[at]) ++left_[index(arc)];
    }
  }

  const Network& network_;
  const std::vector<int>& hosts_;
  mpz_class unit_ = 0;
  std::map<std::pair<int, int>, int> at_;
  std::vector<int> left_;  // [arcs]: in units
  std::vector<int> order_;
  std::vector<int> arcs_;
  std::vector<std::vector<int>> rings_;
  std::vector<std::size_t> chosen_;
  std::vector<std::size_t> best_;
  long steps_left_ = 200'000;
};

std::vector<TreeEdge> chain(const Ring& ring, std::size_t first) {
  std::vector<TreeEdge> edges;
  for (std::size_t at = 0; at + 1 < ring.edges.size(); ++at) {
    edges.push_back(ring.edges[(first + at) % ring.edges.size()]);
  }
  return edges;
}

}  // namespace

std::vector<Ring> disjoint_rings(const Network& network, const std::vector<int>& hosts) {
  if (hosts.size() <= 8 && !has_switched_arcs(network)) return RingChoice(network, hosts).run();
  RingSearch search(network, hosts);
  constexpr std::size_t kRingsMax = 64;
  std::vector<Ring> rings;
  while (rings.size() < kRingsMax) {
    auto ring = widest(search, hosts);
    if (!ring) break;
    rings.push_back(*std::move(ring));
  }
  return rings;
}

std::vector<Ring> widest_ring(const Network& network, const std::vector<int>& hosts) {
  RingSearch search(network, hosts);
  auto ring = widest(search, hosts);
  if (!ring) return {};
  auto back = search.backwards(*ring);
  std::vector<Ring> rings = {*std::move(ring)};
  if (back) rings.push_back(*std::move(back));
  return rings;
}

std::vector<Tree> trees_along(const std::vector<Ring>& rings, const Situation& situation) {
  std::vector<Tree> trees;
  const bool from_all = !is_rooted(situation.operation);
  const bool both = situation.operation == Operation::allreduce;
  for (const Ring& ring : rings) {
    const auto others = static_cast<unsigned long>(ring.edges.size() - 1);
    for (std::size_t first = 0; first < ring.edges.size(); ++first) {
      const int root = ring.edges[first].from;
      if (!from_all && root != situation.root) continue;
      Tree& tree = trees.emplace_back();
      tree.root = root;
      tree.edges = chain(ring, first);
      tree.rate = from_all ? Rational(ring.width / Rational(both ? 2 * others : others)) : ring.width;
      if (both) tree.reduce_edges = chain(ring, (first + 1) % ring.edges.size());
    }
  }
  return trees;
}

}  // namespace coppice::collectives
