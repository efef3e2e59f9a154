#include "collectives/family_bound.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <optional>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

using Family = std::vector<int>;  // [nodes]: the set's number, -1 outside of all

int find(std::vector<int>& up, int node) {
  while (up[index(node)] != node) {
    up[index(node)] = up[index(up[index(node)])];
    node = up[index(node)];
  }
  return node;
}

// What arcs of at least `width` hold together; what holds no host is outside.
Family held_together(const Network& network, const std::vector<int>& hosts, const mpz_class& width) {
  std::vector<int> up(index(network.nodes()));
  std::iota(up.begin(), up.end(), 0);
  for (const Arc& arc : network.arcs) {
    if (arc.units >= width) up[index(find(up, arc.from))] = find(up, arc.to);
  }
  std::map<int, int> numbers;
  for (const int host : hosts) numbers.try_emplace(find(up, host), static_cast<int>(numbers.size()));
  Family family(index(network.nodes()), -1);
  for (int node = 0; node < network.nodes(); ++node) {
    const auto found = numbers.find(find(up, node));
    if (found != numbers.end()) family[index(node)] = found->second;
  }
  return family;
}

struct Crossing {
  mpz_class direct;  // from set to set
  mpz_class to_outside;
  mpz_class from_outside;

  const mpz_class& outside() const { return to_outside < from_outside ? to_outside : from_outside; }
};

Crossing crossing_of(const Network& network, const Family& family) {
  Crossing crossing;
  for (const Arc& arc : network.arcs) {
    const int from = family[index(arc.from)];
    const int to = family[index(arc.to)];
    if (from == to) continue;
    (from < 0 ? crossing.from_outside : to < 0 ? crossing.to_outside : crossing.direct) += arc.units;
  }
  return crossing;
}

int sets_in(const Family& family) { return *std::ranges::max_element(family) + 1; }

Rational rate_of(const Network& network, const Family& family) {
  const Crossing crossing = crossing_of(network, family);
  Rational rate(crossing.direct + crossing.outside(), network.scale * 2 * (sets_in(family) - 1));
  rate.canonicalize();
  return rate;
}

// Each set weighs 1 ÷ 2 (k - 1) both as an out set and as an in set. Switches outside pass this weight on, so that what
// goes through them pays once: on the way in or on the way out, whichever is narrower.
Dual dual_of(const Network& network, const Family& family) {
  Dual dual;
  const Rational weight(1, 2 * static_cast<unsigned long>(sets_in(family) - 1));
  const Crossing crossing = crossing_of(network, family);
  const bool pay_entering = crossing.to_outside < crossing.from_outside;
  std::vector<std::vector<int>> sets(index(sets_in(family)));
  for (int node = 0; node < network.nodes(); ++node) {
    if (family[index(node)] >= 0) {
      sets[index(family[index(node)])].push_back(node);
    } else if (network.is_switch[index(node)] != 0) {
      const Rational out = pay_entering ? weight : Rational(0);
      dual.switches.push_back({node, out, Rational(out - weight)});
    }
  }
  for (auto& set : sets) {
    dual.out.push_back({set, weight});
    dual.in.push_back({std::move(set), weight});
  }
  for (const Arc& arc : network.arcs) {
    const int from = family[index(arc.from)];
    const int to = family[index(arc.to)];
    const bool pays = from != to && (from < 0 ? !pay_entering : to < 0 ? pay_entering : true);
    if (pays) dual.price.push_back({arc.from, arc.to, weight});
  }
  return dual;
}

}  // namespace

FamilyBound family_bound(const Network& network, const std::vector<int>& hosts) {
  Family alone(index(network.nodes()), -1);
  for (std::size_t host = 0; host < hosts.size(); ++host) alone[index(hosts[host])] = static_cast<int>(host);
  Family best = alone;
  Rational rate = rate_of(network, alone);
  std::vector<mpz_class> widths;
  for (const Arc& arc : network.arcs) widths.push_back(arc.units);
  std::ranges::sort(widths, std::greater{});
  const auto repeats = std::ranges::unique(widths);
  widths.erase(repeats.begin(), repeats.end());
  constexpr std::size_t kWidthsMax = 32;
  const std::size_t step = std::max<std::size_t>(1, widths.size() / kWidthsMax);
  for (std::size_t at = 0; at < widths.size(); at += step) {
    Family family = held_together(network, hosts, widths[at]);
    if (sets_in(family) < 2) break;
    const Rational tried = rate_of(network, family);
    if (tried >= rate) continue;
    rate = tried;
    best = std::move(family);
  }
  return {.rate = rate, .dual = dual_of(network, best)};
}

}  // namespace coppice::collectives
