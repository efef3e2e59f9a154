#include "collectives/rates.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "collectives/flow.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

template <class Value>
Value value_of(const mpz_class& number) {
  if constexpr (std::is_same_v<Value, mpz_class>) {
    return number;
  } else {
    return number.get_si();
  }
}

bool fits(const Network& network, const Rational& part, std::size_t hosts) {
  mpz_class total = part.get_num() * static_cast<unsigned long>(hosts);
  for (const Arc& arc : network.arcs) total += arc.units * part.get_den();
  return total < (mpz_class(1) << 60);
}

// In the network's units: what leaves the set ÷ hosts inside.
Rational leaving_each(const Network& network, const std::vector<char>& inside, const std::vector<int>& hosts) {
  mpz_class leaving = 0;
  for (const Arc& arc : network.arcs) {
    if (inside[index(arc.from)] != 0 && inside[index(arc.to)] == 0) leaving += arc.units;
  }
  const auto count = std::ranges::count_if(hosts, [&](int host) { return inside[index(host)] != 0; });
  Rational each(leaving, static_cast<unsigned long>(count));
  each.canonicalize();
  return each;
}

std::vector<int> listed(const std::vector<char>& inside, int nodes) {
  std::vector<int> list;
  for (int node = 0; node < nodes; ++node) {
    if (inside[index(node)] != 0) list.push_back(node);
  }
  return list;
}

// All arcs times the part's denominator, and an arc of its numerator between `extra` and each host.
template <class Value>
FlowGraph<Value> graph_of(const Network& network, const std::vector<int>& hosts, const Rational& part, bool feeds) {
  FlowGraph<Value> flow(network.nodes() + 1);
  for (const Arc& arc : network.arcs) {
    flow.add_arc(arc.from, arc.to, value_of<Value>(arc.units * part.get_den()));
  }
  const int extra = network.nodes();
  for (const int host : hosts) {
    const Value each = value_of<Value>(part.get_num());
    feeds ? flow.add_arc(extra, host, each) : flow.add_arc(host, extra, each);
  }
  return flow;
}

// The source's side of a cut below what every host is to receive at this part, if there is one. Hosts before `first`
// are known to receive theirs at a larger part; it moves on to the first that does not.
template <class Value>
std::optional<std::vector<char>> starved(const Network& network, const std::vector<int>& hosts, const Rational& part,
                                         std::size_t& first) {
  FlowGraph<Value> flow = graph_of<Value>(network, hosts, part, true);
  const Value wanted = value_of<Value>(part.get_num() * static_cast<unsigned long>(hosts.size()));
  const std::vector<int> sources = {network.nodes()};
  for (; first < hosts.size(); ++first) {
    const std::vector<int> sinks = {hosts[first]};
    if (flow.max_flow(sources, sinks, wanted) == wanted) continue;
    return flow.source_side();
  }
  return std::nullopt;
}

}  // namespace

PartBound allgather_bound(const Network& network, const std::vector<int>& hosts) {
  std::vector<char> best;
  std::optional<Rational> part;
  const auto consider = [&](const std::vector<char>& inside) {
    const Rational each = leaving_each(network, inside, hosts);
    if (part && each >= *part) return;
    part = each;
    best = inside;
  };
  for (const int host : hosts) {  // everything but one host
    std::vector<char> inside(index(network.nodes()), 1);
    inside[index(host)] = 0;
    consider(inside);
  }
  // A smaller part starves nobody who had enough at a larger one: each host is looked at until it has enough.
  std::size_t first = 0;
  while (true) {
    auto inside = fits(network, *part, hosts.size()) ? starved<std::int64_t>(network, hosts, *part, first)
                                                     : starved<mpz_class>(network, hosts, *part, first);
    if (!inside) break;
    inside->resize(index(network.nodes()));
    consider(*inside);
  }
  return {Rational(*part / Rational(network.scale)), listed(best, network.nodes())};
}

namespace {

std::vector<int> without(std::vector<int> hosts, int root) {
  std::erase(hosts, root);
  return hosts;
}

// The set of nodes that cannot have the part, if there is one.
template <class Value>
std::optional<std::vector<char>> unserved(const Network& network, int root, const std::vector<int>& receivers,
                                          const Rational& part) {
  FlowGraph<Value> flow = graph_of<Value>(network, receivers, part, false);
  const Value wanted = value_of<Value>(part.get_num() * static_cast<unsigned long>(receivers.size()));
  const std::vector<int> sources = {root};
  const std::vector<int> sinks = {network.nodes()};
  if (flow.max_flow(sources, sinks, wanted) == wanted) return std::nullopt;
  std::vector<char> side = flow.source_side();
  side.resize(index(network.nodes()));
  for (char& inside : side) inside = inside == 0 ? 1 : 0;
  return side;
}

Rational entering_each(const Network& network, const std::vector<char>& inside, const std::vector<int>& receivers) {
  mpz_class entering = 0;
  for (const Arc& arc : network.arcs) {
    if (inside[index(arc.from)] == 0 && inside[index(arc.to)] != 0) entering += arc.units;
  }
  const auto count = std::ranges::count_if(receivers, [&](int host) { return inside[index(host)] != 0; });
  Rational each(entering, static_cast<unsigned long>(count));
  each.canonicalize();
  return each;
}

// What flows, arc by arc, as whole numbers; taken away path by path, the widest first.
template <class Value>
class Paths {
 public:
  Paths(const Network& network, int root, FlowGraph<Value>& flow) : network_(network), root_(root) {
    for (std::size_t arc = 0; arc < network.arcs.size(); ++arc) left_.push_back(flow.flow_on(static_cast<int>(arc)));
  }

  // A path to the host of at most `most`, and how much it carries.
  std::pair<std::vector<int>, Value> take(int host, const Value& most) {
    std::vector<Value> width(index(network_.nodes()), 0);
    std::vector<int> by(index(network_.nodes()), -1);
    std::vector<char> done(index(network_.nodes()), 0);
    width[index(root_)] = most;
    while (true) {  // Dijkstra's order, by width
      int node = -1;
      for (int next = 0; next < network_.nodes(); ++next) {
        if (done[index(next)] == 0 && width[index(next)] > 0 && (node < 0 || width[index(next)] > width[index(node)])) {
          node = next;
        }
      }
      if (node < 0 || node == host) break;
      done[index(node)] = 1;
      for (const int arc : network_.out[index(node)]) {
        const int to = network_.arcs[index(arc)].to;
        const Value through = std::min(width[index(node)], left_[index(arc)]);
        if (through <= width[index(to)]) continue;
        width[index(to)] = through;
        by[index(to)] = arc;
      }
    }
    std::vector<int> nodes = {host};
    for (int node = host; node != root_; node = nodes.back()) {
      left_[index(by[index(node)])] -= width[index(host)];
      nodes.push_back(network_.arcs[index(by[index(node)])].from);
    }
    std::ranges::reverse(nodes);
    return {nodes, width[index(host)]};
  }

 private:
  const Network& network_;
  int root_;
  std::vector<Value> left_;
};

template <class Value>
std::vector<std::vector<RatedPath>> paths_of(const Network& network, int root, const std::vector<int>& receivers,
                                             const Rational& part) {
  FlowGraph<Value> flow = graph_of<Value>(network, receivers, part, false);
  const Value each = value_of<Value>(part.get_num());
  const Value wanted = value_of<Value>(part.get_num() * static_cast<unsigned long>(receivers.size()));
  const std::vector<int> sources = {root};
  const std::vector<int> sinks = {network.nodes()};
  flow.max_flow(sources, sinks, wanted);
  Paths<Value> paths(network, root, flow);
  const mpz_class scale = network.scale * part.get_den();
  std::vector<std::vector<RatedPath>> all;
  for (const int host : receivers) {
    std::vector<RatedPath>& of_host = all.emplace_back();
    for (Value left = each; left != 0;) {
      auto [nodes, amount] = paths.take(host, left);
      Rational rate(mpz_class(amount), scale);
      rate.canonicalize();
      of_host.push_back({rate, std::move(nodes)});
      left -= amount;
    }
  }
  return all;
}

}  // namespace

PartBound scatter_bound(const Network& network, int root, const std::vector<int>& hosts) {
  const std::vector<int> receivers = without(hosts, root);
  std::vector<char> best(index(network.nodes()), 1);
  best[index(root)] = 0;
  Rational part = entering_each(network, best, receivers);
  while (true) {
    const auto inside = fits(network, part, hosts.size()) ? unserved<std::int64_t>(network, root, receivers, part)
                                                          : unserved<mpz_class>(network, root, receivers, part);
    if (!inside) break;
    best = *inside;
    part = entering_each(network, best, receivers);
  }
  return {Rational(part / Rational(network.scale)), listed(best, network.nodes())};
}

std::vector<std::vector<RatedPath>> scatter_paths(const Network& network, int root, const std::vector<int>& hosts,
                                                  const Rational& part) {
  const Rational units(part * Rational(network.scale));
  const std::vector<int> receivers = without(hosts, root);
  return fits(network, units, hosts.size()) ? paths_of<std::int64_t>(network, root, receivers, units)
                                            : paths_of<mpz_class>(network, root, receivers, units);
}

}  // namespace coppice::collectives
