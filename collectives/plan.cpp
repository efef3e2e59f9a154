#include "collectives/plan.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "collectives/chunk.hpp"
#include "collectives/grow.hpp"
#include "collectives/network.hpp"
#include "collectives/situation.hpp"
#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

tl::unexpected<Error> error(ErrorCode code, std::string what) { return tl::unexpected(Error{code, std::move(what)}); }

std::vector<char> reached(const Network& network, int root, const mpz_class& units_min) {
  std::vector<char> inside(index(network.nodes()), 0);
  inside[index(root)] = 1;
  reach(network, units_min, inside);
  return inside;
}

// Distinct capacities, the largest first.
std::vector<mpz_class> capacities(const Network& network) {
  std::vector<mpz_class> units;
  for (const Arc& arc : network.arcs) units.push_back(arc.units);
  std::ranges::sort(units, std::greater{});
  const auto repeats = std::ranges::unique(units);
  units.erase(repeats.begin(), repeats.end());
  return units;
}

// The largest capacity whose arcs alone reach every participant. REQUIRES: all arcs together do.
mpz_class widest(const Network& network, int root, const std::vector<int>& participants,
                 const std::vector<mpz_class>& units) {
  const auto enough = [&](const mpz_class& units_min) {
    const std::vector<char> inside = reached(network, root, units_min);
    return std::ranges::all_of(participants, [&](int host) { return inside[index(host)] != 0; });
  };
  return *std::ranges::partition_point(units, [&](const mpz_class& units_min) { return !enough(units_min); });
}

// At most `size_max`, evenly spaced, the first among them.
template <class T>
void thin(std::vector<T>& values, std::size_t size_max) {
  if (values.size() <= size_max) return;
  const std::size_t size = values.size();
  std::vector<T> kept;
  for (std::size_t next = 0; next < size_max; ++next) kept.push_back(std::move(values[next * size / size_max]));
  values = std::move(kept);
}

// A tree's rate is a capacity divided by a number of crossings. Descending, in the network's units. The last is one at
// which a tree is found for certain: every arc of the widest reach then carries as many copies as there are receivers.
std::vector<Rational> candidate_rates(const Network& network, int root, const std::vector<int>& participants,
                                      const mpz_class& bound) {
  std::vector<mpz_class> units = capacities(network);
  const mpz_class wide = widest(network, root, participants, units);
  const int receivers = static_cast<int>(participants.size()) - 1;
  const Rational certain(Rational(wide) / receivers);
  constexpr std::size_t kCapacitiesMax = 512;
  thin(units, kCapacitiesMax);
  units.push_back(wide);
  std::vector<Rational> rates = {certain};
  for (const mpz_class& capacity : units) {
    // Every number of crossings up to 31, then steps of a sixteenth: it keeps the list short, near any rate.
    for (int crossings = 1; crossings <= receivers; crossings += std::max(1, crossings / 16)) {
      const Rational rate(Rational(capacity) / crossings);
      if (rate < certain) break;
      if (rate <= bound) rates.push_back(rate);
    }
  }
  std::ranges::sort(rates, std::greater{});
  const auto repeats = std::ranges::unique(rates);
  rates.erase(repeats.begin(), repeats.end());
  return rates;
}

// The better of the trees that either preference finds at a rate.
std::optional<Grown> grow(const Network& network, int root, int participants, const Rational& units) {
  auto near = grow_tree(network, root, participants, units, Prefer::near);
  auto strong = grow_tree(network, root, participants, units, Prefer::strong);
  if (!near || !strong) return near ? near : strong;
  const bool strong_is_better =
      strong->tree.rate > near->tree.rate || (strong->tree.rate == near->tree.rate && strong->depth < near->depth);
  return strong_is_better ? strong : near;
}

// Keeps as many rates as a planning time of about a second allows, from the highest that yields a tree downwards.
void keep_affordable(const Network& network, int root, int participants, std::vector<Rational>& rates) {
  const std::size_t work = network.arcs.size() * static_cast<std::size_t>(participants);
  const std::size_t rates_max = std::clamp<std::size_t>((std::size_t{1} << 26) / work, 16, 1024);
  if (rates.size() <= rates_max) return;
  // Greedy searches are not strictly monotone in the rate; a near miss costs a little of it, never the tree.
  const auto first = std::ranges::partition_point(
      rates, [&](const Rational& rate) { return !grow(network, root, participants, rate); });
  const Rational certain = rates.back();
  rates.erase(rates.begin(), first);
  thin(rates, rates_max);
  if (rates.empty() || rates.back() != certain) rates.push_back(certain);
}

// Seconds that a tree is predicted to take, or nothing when rates are all there is to go by.
std::optional<double> predicted_seconds(const Grown& grown, const std::string& unit, const PlanOptions& options) {
  const auto unit_bytes = unit_bytes_per_s(unit);
  const bool known = std::isfinite(options.bytes) && std::isfinite(options.latency_s) && options.bytes > 0 &&
                     options.latency_s > 0 && unit_bytes;
  if (!known) return std::nullopt;
  const Rational bytes_per_s(grown.tree.rate * *unit_bytes);
  return pipeline_seconds({.depth = grown.depth,
                           .bytes = options.bytes,
                           .bytes_per_s = bytes_per_s.get_d(),
                           .latency_s = options.latency_s});
}

Tree best_tree(const Network& network, int root, const std::vector<int>& participants, const mpz_class& bound,
               const std::string& unit, const PlanOptions& options) {
  const int count = static_cast<int>(participants.size());
  std::vector<Rational> rates = candidate_rates(network, root, participants, bound);
  keep_affordable(network, root, count, rates);
  std::optional<Grown> best;
  double best_seconds = 0;
  for (const Rational& rate : rates) {
    auto grown = grow(network, root, count, rate);
    if (!grown) continue;
    const auto seconds = predicted_seconds(*grown, unit, options);
    if (!seconds) return std::move(grown->tree);  // the highest rate comes first
    // Equal times: the higher rate, which came before.
    if (!best || *seconds < best_seconds) {
      best = std::move(grown);
      best_seconds = *seconds;
    }
  }
  return std::move(best.value().tree);  // there is one: at the last rate for certain
}

}  // namespace

Tree widest_tree(const Network& network, int root, const std::vector<int>& participants, const mpz_class& bound) {
  return best_tree(network, root, participants, bound, "", {});
}

Expected<Plan> plan_broadcast(const Topology& topology, int root, const PlanOptions& options) {
  if (auto valid = validate(topology); !valid) return tl::unexpected(valid.error());
  auto participants = participants_of(topology, root, options.participants);
  if (!participants) return tl::unexpected(participants.error());
  const Network network = network_of(topology, *participants);
  const std::vector<char> inside = reached(network, root, 0);
  for (const int host : *participants) {
    if (inside[index(host)] == 0) {
      return error(ErrorCode::disconnected, "nothing leads from root " + in_quotes(topology.nodes[index(root)].id) +
                                                " to " + in_quotes(topology.nodes[index(host)].id));
    }
  }
  Plan plan;
  plan.topology = topology.name;
  plan.unit = topology.unit;
  plan.participants = *std::move(participants);
  CutBound bound = broadcast_bound(network, root, plan.participants);
  plan.bound = network.rate_of(bound.units);
  plan.certificate = Cut{std::move(bound.nodes)};
  plan.trees.push_back(plan.participants.size() == 1
                           ? Tree{.rate = 0, .root = root, .edges = {}}
                           : best_tree(network, root, plan.participants, bound.units, topology.unit, options));
  plan.rate = plan.trees.front().rate;
  return plan;
}

}  // namespace coppice::collectives
