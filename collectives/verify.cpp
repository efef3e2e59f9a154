#include "collectives/verify.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

using Pair = std::pair<int, int>;
using Load = std::map<Pair, Rational>;

std::size_t index(int node) { return static_cast<std::size_t>(node); }

tl::unexpected<Error> wrong(std::string what) { return tl::unexpected(Error{ErrorCode::wrong_plan, std::move(what)}); }

bool is_rooted(Operation operation) {
  return operation == Operation::broadcast || operation == Operation::reduce || operation == Operation::scatter ||
         operation == Operation::gather;
}

bool is_path(Operation operation) { return operation == Operation::scatter || operation == Operation::gather; }

// Whether the data runs towards the root.
bool is_inward(Operation operation) {
  return operation == Operation::reduce || operation == Operation::gather || operation == Operation::reduce_scatter;
}

// Whether every root carries its own part: rates are of parts, and the plan's is their sum.
bool is_by_parts(Operation operation) {
  return operation == Operation::allgather || operation == Operation::reduce_scatter;
}

class Verifier {
 public:
  Verifier(const Plan& plan, const Topology& topology) : plan_(plan), topology_(topology) {}

  Expected<void> run() {
    if (auto held = participants(); !held) return held;
    read_capacities();
    for (std::size_t at = 0; at < plan_.trees.size(); ++at) {
      if (auto held = tree(at); !held) return held;
    }
    if (auto held = shares(); !held) return held;
    for (const auto& [pair, used] : load_) {
      if (used > capacity_.at(pair)) {
        return wrong("the link " + arrow(pair) + " carries " + to_string(used) + " of " +
                     to_string(capacity_.at(pair)));
      }
    }
    for (const auto& [way, used] : link_load_) {
      const Rational& capacity = topology_.links[index(way.first)].capacity;
      if (used > capacity)
        return wrong(numbered("link ", way.first) + " carries " + to_string(used) + " of " + to_string(capacity) +
                     " from " + named(way.second));
    }
    const auto bound = std::visit([&](const auto& kind) { return bound_of(kind); }, plan_.certificate);
    if (!bound) return tl::unexpected(bound.error());
    if (*bound != plan_.bound) {
      return wrong("the certificate gives " + to_string(*bound) + ", not the bound " + to_string(plan_.bound));
    }
    if (plan_.rate > plan_.bound) return wrong("the rate exceeds the bound");
    return {};
  }

 private:
  std::string named(int node) const { return in_quotes(topology_.nodes[index(node)].id); }
  std::string arrow(const Pair& pair) const { return named(pair.first) + " -> " + named(pair.second); }
  std::size_t host_count() const { return plan_.participants.size(); }
  bool lone() const { return plan_.participants.size() == 1; }
  bool is_host(int node) const { return std::ranges::binary_search(plan_.participants, node); }

  Expected<void> participants() const {
    if (plan_.participants.empty()) return wrong("nobody takes part");
    for (std::size_t at = 0; at < plan_.participants.size(); ++at) {
      const int host = plan_.participants[at];
      if (host < 0 || index(host) >= topology_.nodes.size() || topology_.nodes[index(host)].is_switch) {
        return wrong("who takes part must be a host");
      }
      if (at > 0 && plan_.participants[at - 1] >= host) return wrong("those who take part are not in order");
    }
    return {};
  }

  void read_capacities() {
    const auto used = [&](int node) { return topology_.nodes[index(node)].is_switch || is_host(node); };
    for (const Link& link : topology_.links) {
      if (!used(link.from) || !used(link.to)) continue;
      capacity_[{link.from, link.to}] += link.capacity;
      if (link.duplex) capacity_[{link.to, link.from}] += link.capacity;
    }
  }

  // Adds what the edge carries on every link of its path.
  Expected<void> edge(const std::string& where, const TreeEdge& edge, const Rational& rate, bool backwards) {
    if (!is_host(edge.from) || !is_host(edge.to)) return wrong(where + ": an edge between other than hosts");
    const std::vector<int> path = edge.path.empty() ? std::vector{edge.from, edge.to} : edge.path;
    if (path.size() < 2 || path.front() != edge.from || path.back() != edge.to) {
      return wrong(where + ": the path of " + arrow({edge.from, edge.to}) + " has other ends");
    }
    for (std::size_t hop = 1; hop < path.size(); ++hop) {
      const Pair pair = backwards ? Pair{path[hop], path[hop - 1]} : Pair{path[hop - 1], path[hop]};
      if (!capacity_.contains(pair)) return wrong(where + ": there is no link " + arrow(pair));
      if (hop + 1 < path.size() && !topology_.nodes[index(path[hop])].is_switch) {
        return wrong(where + ": the path of " + arrow({edge.from, edge.to}) + " passes a host");
      }
      load_[pair] += rate;
    }
    return on_links(where, edge, path, rate, backwards);
  }

  // What the edge carries on the links that it names.
  Expected<void> on_links(const std::string& where, const TreeEdge& edge, const std::vector<int>& path,
                          const Rational& rate, bool backwards) {
    if (edge.links.empty()) return {};
    if (edge.links.size() + 1 != path.size())
      return wrong(where + ": the edge " + arrow({edge.from, edge.to}) + " names another number of links than it has hops");
    for (std::size_t hop = 1; hop < path.size(); ++hop) {
      const int at = edge.links[hop - 1];
      const Pair pair = backwards ? Pair{path[hop], path[hop - 1]} : Pair{path[hop - 1], path[hop]};
      const auto between = links_between(topology_, pair.first, pair.second);
      if (!std::ranges::binary_search(between, at)) return wrong(where + numbered(": link ", at) + " is not one of " + arrow(pair));
      link_load_[{at, pair.first}] += rate;
    }
    return {};
  }

  Expected<void> tree(std::size_t at) {
    const Tree& tree = plan_.trees[at];
    const std::string where = numbered("tree ", at);
    if (!is_host(tree.root)) return wrong(where + ": its root takes no part");
    if (sgn(tree.rate) <= 0 && !lone()) return wrong(where + ": its rate is not above zero");
    const bool backwards = is_inward(plan_.operation);
    for (const TreeEdge& each : tree.edges) {
      if (auto held = edge(where, each, tree.rate, backwards); !held) return held;
    }
    if (is_path(plan_.operation)) return path(where, tree);
    if (auto held = spans(where, tree.root, tree.edges); !held) return held;
    if (plan_.operation != Operation::allreduce) {
      return tree.reduce_edges.empty() ? Expected<void>{} : wrong(where + ": only an allreduce has reduce_edges");
    }
    const bool own = !tree.reduce_edges.empty();
    for (const TreeEdge& each : own ? tree.reduce_edges : tree.edges) {
      if (auto held = edge(where, each, tree.rate, !own); !held) return held;
    }
    std::vector<TreeEdge> turned;
    for (auto each = tree.reduce_edges.rbegin(); each != tree.reduce_edges.rend(); ++each) {
      turned.push_back({each->to, each->from, {}});
    }
    return own ? spans(where, tree.root, turned) : Expected<void>{};
  }

  Expected<void> spans(const std::string& where, int root, const std::vector<TreeEdge>& edges) const {
    std::set<int> holds = {root};
    for (const TreeEdge& each : edges) {
      if (!holds.contains(each.from)) return wrong(where + ": an edge leaves " + named(each.from) + " too early");
      if (!holds.insert(each.to).second) return wrong(where + ": " + named(each.to) + " is entered twice");
    }
    for (const int host : plan_.participants) {
      if (!holds.contains(host)) return wrong(where + ": it leaves out " + named(host));
    }
    return {};
  }

  Expected<void> path(const std::string& where, const Tree& tree) const {
    if (!tree.target || !is_host(*tree.target)) return wrong(where + ": it names no host that it is for");
    int node = tree.root;
    for (const TreeEdge& each : tree.edges) {
      if (each.from != node) return wrong(where + ": its edges are not a path");
      node = each.to;
    }
    return node == *tree.target ? Expected<void>{} : wrong(where + ": it does not lead to " + named(*tree.target));
  }

  Expected<void> shares() const {
    std::map<int, Rational> share;  // by root, or by target of a path
    std::set<int> roots;
    Rational sum = 0;
    for (const Tree& tree : plan_.trees) {
      roots.insert(tree.root);
      share[is_path(plan_.operation) ? *tree.target : tree.root] += tree.rate;
      sum += tree.rate;
    }
    if (is_rooted(plan_.operation) && roots.size() > 1) return wrong("the trees have different roots");
    if (!is_path(plan_.operation) && !is_by_parts(plan_.operation)) {
      return sum == plan_.rate ? Expected<void>{} : wrong("the trees' rates add up to " + to_string(sum));
    }
    const Rational each(plan_.rate / Rational(static_cast<unsigned long>(host_count())));
    for (const int host : plan_.participants) {
      if (is_path(plan_.operation) && (lone() || roots.contains(host))) continue;
      if (share[host] != each) return wrong("the part of " + named(host) + " gets " + to_string(share[host]));
    }
    return {};
  }

  Expected<std::set<int>> checked(const std::vector<int>& nodes, bool without_root) const {
    const std::set<int> set(nodes.begin(), nodes.end());
    const bool known =
        std::ranges::all_of(set, [&](int node) { return node >= 0 && index(node) < topology_.nodes.size(); });
    if (!known) return wrong("the certificate names no such node");
    if (std::ranges::none_of(set, [&](int node) { return is_host(node); })) {
      return wrong("a set of the certificate holds no host");
    }
    if (without_root && !plan_.trees.empty() && set.contains(plan_.trees.front().root)) {
      return wrong("the cut holds the root");
    }
    return set;
  }

  Rational crossing(const std::set<int>& inside, bool entering) const {
    Rational sum = 0;
    for (const auto& [pair, capacity] : capacity_) {
      const bool from = inside.contains(pair.first);
      const bool to = inside.contains(pair.second);
      if (entering ? !from && to : from && !to) sum += capacity;
    }
    return sum;
  }

  unsigned long hosts_in(const std::set<int>& set) const {
    return static_cast<unsigned long>(std::ranges::count_if(set, [&](int node) { return is_host(node); }));
  }

  Expected<Rational> bound_of(const Cut& cut) const {
    if (plan_.operation == Operation::allreduce) return wrong("a cut proves nothing of an allreduce");
    if (lone() && cut.nodes.empty()) return Rational(0);
    const auto set = checked(cut.nodes, is_rooted(plan_.operation));
    if (!set) return tl::unexpected(set.error());
    const bool entering = is_rooted(plan_.operation) != is_inward(plan_.operation);
    const Rational capacity = crossing(*set, entering);
    if (plan_.operation == Operation::broadcast || plan_.operation == Operation::reduce) return capacity;
    if (is_by_parts(plan_.operation) && hosts_in(*set) == host_count()) return wrong("the cut holds every host");
    Rational each(capacity * static_cast<unsigned long>(host_count()) / Rational(hosts_in(*set)));
    each.canonicalize();
    return each;
  }

  Expected<Rational> bound_of(const Partition& partition) const {
    if (plan_.operation != Operation::allreduce) return wrong("a partition proves the bound of an allreduce only");
    std::map<int, std::size_t> part_of;
    for (std::size_t part = 0; part < partition.parts.size(); ++part) {
      if (partition.parts[part].empty()) return wrong("a part of the partition is empty");
      for (const int host : partition.parts[part]) {
        if (!is_host(host)) return wrong("a part of the partition holds other than hosts that take part");
        if (!part_of.emplace(host, part).second) return wrong(named(host) + " is in two parts");
      }
    }
    if (part_of.size() != host_count()) return wrong("the partition leaves out a host");
    if (lone()) return Rational(0);
    if (partition.parts.size() < 2) return wrong("the partition has one part");
    Rational sum = 0;
    for (const auto& [pair, capacity] : capacity_) {
      if (!is_host(pair.first) || !is_host(pair.second))
        return wrong("a partition proves nothing where there are switches");
      if (part_of[pair.first] != part_of[pair.second]) sum += capacity;
    }
    return Rational(sum / Rational(2 * static_cast<unsigned long>(partition.parts.size() - 1)));
  }

  struct Weighted {
    std::set<int> nodes;
    Rational weight;
  };

  Expected<std::vector<Weighted>> weighted(const std::vector<WeightedSet>& sets) const {
    std::vector<Weighted> list;
    for (const WeightedSet& each : sets) {
      auto nodes = checked(each.nodes, false);
      if (!nodes) return tl::unexpected(nodes.error());
      if (sgn(each.weight) < 0) return wrong("a set of the certificate has a weight below zero");
      list.push_back({*std::move(nodes), each.weight});
    }
    return list;
  }

  // Hosts whose share the sets without them must cover, and how much of the cover each needs.
  Expected<void> covered(const std::vector<Weighted>& out, const std::vector<Weighted>& in) const {
    std::map<int, Rational> cover;
    Rational sum = 0;
    for (const int host : plan_.participants) {
      for (const auto* sets : {&out, &in}) {
        for (const Weighted& each : *sets) {
          if (!each.nodes.contains(host)) cover[host] += each.weight;
        }
      }
      sum += cover[host];
      if (plan_.operation == Operation::allreduce && cover[host] < 1) {
        return wrong("the certificate's sets without " + named(host) + " weigh less than 1");
      }
    }
    const bool by_root = plan_.operation == Operation::broadcast || plan_.operation == Operation::reduce;
    if (by_root && cover[plan_.trees.front().root] < 1) return wrong("the sets without the root weigh less than 1");
    if (is_by_parts(plan_.operation) && sum < static_cast<unsigned long>(host_count())) {
      return wrong("the certificate's sets weigh less than 1 in the mean");
    }
    return {};
  }

  Expected<Rational> bound_of(const Dual& dual) const {
    if (is_path(plan_.operation)) return wrong("a dual proves nothing of paths");
    if (lone()) return Rational(0);
    const auto out = weighted(dual.out);
    if (!out) return tl::unexpected(out.error());
    const auto in = weighted(dual.in);
    if (!in) return tl::unexpected(in.error());
    const bool both = plan_.operation == Operation::allreduce;
    if (!both && !(is_inward(plan_.operation) ? *out : *in).empty())
      return wrong("the certificate's sets are of the wrong way");
    if (auto held = covered(*out, *in); !held) return tl::unexpected(held.error());
    std::map<int, std::pair<Rational, Rational>> potential;
    for (const SwitchPotential& each : dual.switches) {
      if (each.node < 0 || index(each.node) >= topology_.nodes.size() || !topology_.nodes[index(each.node)].is_switch) {
        return wrong("the certificate has a potential for what is no switch");
      }
      potential[each.node] = {each.out, each.in};
    }
    Load price;
    for (const ArcPrice& each : dual.price) {
      if (sgn(each.price) < 0) return wrong("the price of " + arrow({each.from, each.to}) + " is below zero");
      price[{each.from, each.to}] = each.price;
    }
    Rational sum = 0;
    for (const auto& [pair, capacity] : capacity_) {
      const Rational& asked = price[pair];
      Rational by_out = potential[pair.second].first - potential[pair.first].first;
      Rational by_in = potential[pair.second].second - potential[pair.first].second;
      for (const Weighted& each : *out) {
        if (!each.nodes.contains(pair.first) && each.nodes.contains(pair.second)) by_out += each.weight;
      }
      for (const Weighted& each : *in) {
        if (each.nodes.contains(pair.first) && !each.nodes.contains(pair.second)) by_in += each.weight;
      }
      const bool uses_out = both || !is_inward(plan_.operation);
      const bool uses_in = both || is_inward(plan_.operation);
      if ((uses_out && by_out > asked) || (uses_in && by_in > asked)) {
        return wrong("the price of " + arrow(pair) + " is too low");
      }
      sum += capacity * asked;
    }
    return sum;
  }

  const Plan& plan_;
  const Topology& topology_;
  Load capacity_;
  Load load_;
  Load link_load_;  // by link and the node that it is left from
};

}  // namespace

Expected<void> verify(const Plan& plan, const Topology& topology) {
  if (auto valid = validate(topology); !valid) return valid;
  return Verifier(plan, topology).run();
}

}  // namespace coppice::collectives
