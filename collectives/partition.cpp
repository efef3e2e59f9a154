#include "collectives/partition.hpp"

#include <algorithm>
#include <map>
#include <numeric>

#include "collectives/flow.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

struct Pair {
  int a;  // indices into the hosts
  int b;
  mpz_class units;
};

std::vector<Pair> pairs_of(const Network& network, const std::vector<int>& hosts) {
  std::vector<int> compact(index(network.nodes()), -1);
  for (std::size_t host = 0; host < hosts.size(); ++host) compact[index(hosts[host])] = static_cast<int>(host);
  std::vector<Pair> pairs;
  for (const Arc& arc : network.arcs) {
    if (arc.from < arc.to) pairs.push_back({compact[index(arc.from)], compact[index(arc.to)], arc.units});
  }
  return pairs;
}

template <class Value>
Value value_of(const mpz_class& number) {
  if constexpr (std::is_same_v<Value, mpz_class>) {
    return number;
  } else {
    return number.get_si();
  }
}

// Which host's part is which, by union of sets.
class Parts {
 public:
  explicit Parts(int hosts) : of_(index(hosts)) { std::iota(of_.begin(), of_.end(), 0); }

  void unite(int a, int b) {
    const int before = of_[index(a)];
    const int after = of_[index(b)];
    std::ranges::replace(of_, before, after);
  }
  int of(int host) const { return of_[index(host)]; }

  std::vector<std::vector<int>> list() const {
    std::map<int, std::vector<int>> by_name;
    for (std::size_t host = 0; host < of_.size(); ++host) by_name[of_[host]].push_back(static_cast<int>(host));
    std::vector<std::vector<int>> parts;
    for (auto& [name, members] : by_name) parts.push_back(std::move(members));
    return parts;
  }

 private:
  std::vector<int> of_;
};

// The least y with y(S) >= capacity within S + tree for every set S of hosts, and the partition of all hosts for which
// capacity within the parts + tree × parts is most.
template <class Value>
struct Covered {
  std::vector<Value> y;
  Parts parts;
};

// Host by host: y of the next host is the most that a set of it and earlier ones still lacks, found by one minimum cut.
template <class Value>
Covered<Value> cover(int hosts, const std::vector<Pair>& pairs, const mpz_class& multiplier, const Value& tree) {
  const int sink = hosts;
  FlowGraph<Value> flow(hosts + 1);
  std::vector<Value> capacity;
  for (const Pair& pair : pairs) {
    capacity.push_back(value_of<Value>(pair.units * multiplier));
    flow.add_arc(pair.a, pair.b, 0);
    flow.add_arc(pair.b, pair.a, 0);
  }
  const int to_sink = 2 * static_cast<int>(pairs.size());
  for (int host = 0; host < hosts; ++host) flow.add_arc(host, sink, 0);
  Covered<Value> covered{std::vector<Value>(index(hosts), 0), Parts(hosts)};
  std::vector<Value> degree(index(hosts), 0);  // within the hosts so far
  for (int newest = 0; newest < hosts; ++newest) {
    for (std::size_t at = 0; at < pairs.size(); ++at) {
      if (std::max(pairs[at].a, pairs[at].b) != newest) continue;
      flow.set_capacity(static_cast<int>(2 * at), capacity[at]);
      flow.set_capacity(static_cast<int>(2 * at + 1), capacity[at]);
      degree[index(pairs[at].a)] += capacity[at];
      degree[index(pairs[at].b)] += capacity[at];
    }
    // In the set S of the cut with the newest: twice (y(S) - capacity within S), constants left out.
    FlowGraph<Value> cut = flow;
    Value gained = 0;
    Value most = 1;
    for (int host = 0; host < newest; ++host) {
      const Value cost = 2 * covered.y[index(host)] - degree[index(host)];
      if (cost > 0) {
        cut.set_capacity(to_sink + host, cost);
        most += cost;
      } else if (cost < 0) {
        const Value gain = -cost;
        cut.add_arc(newest, host, gain);
        gained += gain;
      }
    }
    const std::vector<int> sources = {newest};
    const std::vector<int> sinks = {sink};
    const Value least = cut.max_flow(sources, sinks, most);
    const Value twice = degree[index(newest)] + gained - least;
    covered.y[index(newest)] = tree + twice / 2;
    const std::vector<char> side = cut.source_side();
    for (int host = 0; host < newest; ++host) {
      if (side[index(host)] != 0) covered.parts.unite(host, newest);
    }
  }
  return covered;
}

// Sums and their doubles fit a machine word.
bool fits(const std::vector<Pair>& pairs, const mpz_class& multiplier, const mpz_class& tree, std::size_t hosts) {
  mpz_class total = 0;
  for (const Pair& pair : pairs) total += pair.units * multiplier;
  return (total + tree * static_cast<unsigned long>(hosts)) * 8 < (mpz_class(1) << 62);
}

Rational rate_between(const std::vector<Pair>& pairs, const Parts& parts, std::size_t count) {
  mpz_class between = 0;
  for (const Pair& pair : pairs) {
    if (parts.of(pair.a) != parts.of(pair.b)) between += pair.units;
  }
  Rational rate(between, static_cast<unsigned long>(count - 1));
  rate.canonicalize();
  return rate;
}

Parts most_covered(int hosts, const std::vector<Pair>& pairs, const Rational& rate) {
  return fits(pairs, rate.get_den(), rate.get_num(), index(hosts))
             ? cover<std::int64_t>(hosts, pairs, rate.get_den(), rate.get_num().get_si()).parts
             : cover<mpz_class>(hosts, pairs, rate.get_den(), rate.get_num()).parts;
}

// rate: in the network's units.
template <class Value>
std::optional<std::vector<RatedArc>> oriented(const Network& network, const std::vector<int>& hosts, int root,
                                              const Rational& rate) {
  const int count = static_cast<int>(hosts.size());
  const std::vector<Pair> pairs = pairs_of(network, hosts);
  const Value tree = value_of<Value>(rate.get_num());
  Covered<Value> covered = cover<Value>(count, pairs, rate.get_den(), tree);
  const int origin = count + static_cast<int>(pairs.size());
  FlowGraph<Value> flow(origin + 2);
  Value total = 0;
  for (std::size_t at = 0; at < pairs.size(); ++at) {
    const Value capacity = value_of<Value>(pairs[at].units * rate.get_den());
    const int node = count + static_cast<int>(at);
    flow.add_arc(origin, node, capacity);
    flow.add_arc(node, pairs[at].a, capacity);
    flow.add_arc(node, pairs[at].b, capacity);
    total += capacity;
  }
  const int at_root = static_cast<int>(std::ranges::find(hosts, root) - hosts.begin());
  Value wanted = 0;
  for (int host = 0; host < count; ++host) {
    const Value entering = host == at_root ? Value(covered.y[index(host)] - tree) : covered.y[index(host)];
    flow.add_arc(host, origin + 1, entering);
    wanted += entering;
  }
  const std::vector<int> sources = {origin};
  const std::vector<int> sinks = {origin + 1};
  const Value flowed = flow.max_flow(sources, sinks, total);
  if (wanted != total || flowed != total) return std::nullopt;
  const mpz_class scale = network.scale * rate.get_den();
  std::vector<RatedArc> arcs;
  for (std::size_t at = 0; at < pairs.size(); ++at) {
    const int a = hosts[index(pairs[at].a)];
    const int b = hosts[index(pairs[at].b)];
    for (const auto& [from, to, arc] : {std::tuple(b, a, 3 * at + 1), std::tuple(a, b, 3 * at + 2)}) {
      Rational capacity(mpz_class(flow.flow_on(static_cast<int>(arc))), scale);
      capacity.canonicalize();
      if (sgn(capacity) > 0) arcs.push_back({from, to, capacity});
    }
  }
  return arcs;
}

}  // namespace

bool is_direct_and_symmetric(const Network& network) {
  std::map<std::pair<int, int>, const mpz_class*> units;
  for (const Arc& arc : network.arcs) {
    if (network.is_switch[index(arc.from)] != 0 || network.is_switch[index(arc.to)] != 0) return false;
    units[{arc.from, arc.to}] = &arc.units;
  }
  return std::ranges::all_of(network.arcs, [&](const Arc& arc) {
    const auto opposite = units.find({arc.to, arc.from});
    return opposite != units.end() && *opposite->second == arc.units;
  });
}

PartitionBound partition_bound(const Network& network, const std::vector<int>& hosts) {
  const int count = static_cast<int>(hosts.size());
  if (count == 1) return {.rate = 0, .parts = {hosts}};
  const std::vector<Pair> pairs = pairs_of(network, hosts);
  Parts parts(count);  // every host alone
  Rational rate = rate_between(pairs, parts, hosts.size());
  while (true) {
    const Parts next = most_covered(count, pairs, rate);
    const std::size_t size = next.list().size();
    if (size == 1) break;  // nothing exceeds all hosts together: the rate can be met
    const Rational lower = rate_between(pairs, next, size);
    if (lower >= rate) break;
    rate = lower;
    parts = next;
  }
  PartitionBound bound{.rate = rate / Rational(network.scale), .parts = {}};
  for (const auto& part : parts.list()) {
    std::vector<int>& nodes = bound.parts.emplace_back();
    for (const int host : part) nodes.push_back(hosts[index(host)]);
  }
  return bound;
}

std::optional<std::vector<RatedArc>> orient(const Network& network, const std::vector<int>& hosts, int root,
                                            const Rational& rate) {
  const Rational units(rate * Rational(network.scale));
  return fits(pairs_of(network, hosts), units.get_den(), units.get_num(), hosts.size())
             ? oriented<std::int64_t>(network, hosts, root, units)
             : oriented<mpz_class>(network, hosts, root, units);
}

}  // namespace coppice::collectives
