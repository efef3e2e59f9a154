#include "collectives/tree_packing.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "collectives/packing.hpp"
#include "collectives/splitting.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

mpz_class common_denominator(const PackingProblem& problem) {
  mpz_class common = 1;
  for (const RatedArc& arc : problem.arcs) common = lcm(common, arc.capacity.get_den());
  for (const Rational& demand : problem.demand) common = lcm(common, demand.get_den());
  return common;
}

mpz_class whole(const Rational& value, const mpz_class& scale) { return value.get_num() * (scale / value.get_den()); }

template <class Value>
Value value_of(const mpz_class& number) {
  if constexpr (std::is_same_v<Value, mpz_class>) {
    return number;
  } else {
    return number.get_si();
  }
}

template <class Value>
class NetworkPacker {
 public:
  NetworkPacker(const PackingProblem& problem, const mpz_class& scale)
      : problem_(problem), scale_(scale), compact_(problem.is_switch.size(), -1) {
    for (std::size_t host = 0; host < problem.hosts.size(); ++host) {
      compact_[index(problem.hosts[host])] = static_cast<int>(host);
    }
    for (const RatedArc& arc : problem.arcs) {
      if (sgn(arc.capacity) == 0) continue;
      arcs_.push_back({arc.from, arc.to, value_of<Value>(whole(arc.capacity, scale))});
      switched_ = switched_ || problem.is_switch[index(arc.from)] != 0 || problem.is_switch[index(arc.to)] != 0;
    }
    for (const Rational& demand : problem.demand) demand_.push_back(value_of<Value>(whole(demand, scale)));
  }

  std::optional<std::vector<Tree>> run(const PackingEffort& effort) {
    std::optional<std::vector<Tree>> best;
    for (int attempt = 0; attempt < effort.attempts; ++attempt) {
      const bool enough = best && static_cast<int>(best->size()) <= effort.enough;
      if (enough && attempt >= effort.flatten) break;
      auto trees = attempt_once(attempt);
      if (!trees) return std::nullopt;
      const auto key = [](const std::vector<Tree>& packed) { return std::pair(packed.size(), depth_max(packed)); };
      if (!best || key(*trees) < key(*best)) best = std::move(trees);
    }
    return best;
  }

 private:
  static constexpr std::array<PackStyle, 4> kStyles = {{{GrowFrom::shallow, true, 0},
                                                        {GrowFrom::wide, true, 0},
                                                        {GrowFrom::shallow, false, 0},
                                                        {GrowFrom::latest, true, 0}}};

  std::optional<std::vector<Tree>> attempt_once(int attempt) {
    PackStyle style = kStyles[static_cast<std::size_t>(attempt) % kStyles.size()];
    style.shuffle = static_cast<std::uint32_t>(attempt) / static_cast<std::uint32_t>(kStyles.size());
    const auto passages = passages_for(attempt % 2 == 0);
    if (!passages) return std::nullopt;
    std::vector<PackArc<Value>> arcs;
    for (const Passage<Value>& passage : *passages) {
      arcs.push_back({compact_[index(passage.arc.from)], compact_[index(passage.arc.to)], passage.arc.capacity});
    }
    std::vector<Value> demand;
    for (const int host : problem_.hosts) demand.push_back(demand_[index(host)]);
    const auto packed = pack_trees(static_cast<int>(problem_.hosts.size()), arcs, demand, style);
    if (!packed) return std::nullopt;
    return trees_of(*packed, *passages);
  }

  std::optional<std::vector<Passage<Value>>> passages_for(bool even) {
    if (!switched_) {
      std::vector<Passage<Value>> direct;
      for (const PackArc<Value>& arc : arcs_) direct.push_back({arc, {arc.from, arc.to}});
      return direct;
    }
    std::optional<std::vector<Passage<Value>>>& known = split_[even ? 1 : 0];
    if (known) return known;
    Value most = 0;
    for (const Value& demand : demand_) most = std::max(most, demand);
    known = split_switches(problem_.is_switch, problem_.hosts, arcs_, demand_, even ? most : Value(0));
    return known;
  }

  std::vector<Tree> trees_of(const std::vector<PackedTree<Value>>& packed,
                             const std::vector<Passage<Value>>& passages) const {
    std::vector<Tree> trees;
    for (const PackedTree<Value>& each : packed) {
      Tree& tree = trees.emplace_back();
      tree.rate = Rational(mpz_class(each.weight), scale_);
      tree.rate.canonicalize();
      tree.root = problem_.hosts[index(each.root)];
      for (const int arc : each.arcs) {
        const Passage<Value>& passage = passages[index(arc)];
        tree.edges.push_back({passage.path.front(), passage.path.back(), passage.path});
      }
    }
    return trees;
  }

  const PackingProblem& problem_;
  const mpz_class& scale_;
  std::vector<int> compact_;  // [nodes]: among the hosts
  std::vector<PackArc<Value>> arcs_;
  std::vector<Value> demand_;
  bool switched_ = false;
  std::array<std::optional<std::vector<Passage<Value>>>, 2> split_;
};

}  // namespace

std::vector<RatedArc> rated_arcs(const Network& network) {
  std::vector<RatedArc> arcs;
  for (const Arc& arc : network.arcs) arcs.push_back({arc.from, arc.to, network.rate_of(arc.units)});
  return arcs;
}

std::optional<std::vector<Tree>> pack(const PackingProblem& problem, const PackingEffort& effort) {
  const mpz_class scale = common_denominator(problem);
  Rational total = 0;
  for (const RatedArc& arc : problem.arcs) total += arc.capacity;
  for (const Rational& demand : problem.demand) total += demand;
  // No flow, and nothing that is added to one, exceeds twice the sum of all.
  const bool fits = whole(total, scale) < (mpz_class(1) << 60);
  return fits ? NetworkPacker<std::int64_t>(problem, scale).run(effort)
              : NetworkPacker<mpz_class>(problem, scale).run(effort);
}

Tree from_centre(const Tree& tree) {
  std::map<int, std::vector<TreeEdge>> around;
  for (const TreeEdge& edge : tree.edges) {
    around[edge.from].push_back(edge);
    around[edge.to].push_back({edge.to, edge.from, {edge.path.rbegin(), edge.path.rend()}});
  }
  const auto rooted = [&](int root) {
    Tree turned{.rate = tree.rate, .root = root, .edges = {}};
    std::vector<std::pair<int, int>> open = {{root, -1}};
    for (std::size_t next = 0; next < open.size(); ++next) {
      const auto [node, before] = open[next];
      for (const TreeEdge& edge : around[node]) {
        if (edge.to == before) continue;
        turned.edges.push_back(edge);
        open.emplace_back(edge.to, node);
      }
    }
    return turned;
  };
  // The middle of a longest way: from the far end of the tree to the far end seen from there.
  const auto last = [](const Tree& from) { return order(from).back(); };
  const Tree across = rooted(last(tree));
  int middle = last(across);
  for (int up = depth(across) / 2; up > 0; --up) middle = parent(across, middle).value();
  return rooted(middle);
}

int depth_max(const std::vector<Tree>& trees) {
  int most = 0;
  for (const Tree& tree : trees) most = std::max(most, depth(tree));
  return most;
}

}  // namespace coppice::collectives
