#include "collectives/exact.hpp"

#include <algorithm>
#include <map>

#include "collectives/balanced_program.hpp"
#include "collectives/family_bound.hpp"
#include "collectives/partition.hpp"
#include "collectives/rates.hpp"
#include "collectives/ring.hpp"
#include "collectives/servers.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

Rational sum_of(const std::vector<Tree>& trees) {
  Rational sum = 0;
  for (const Tree& tree : trees) sum += tree.rate;
  return sum;
}

Rational in_whole_grains(const Rational& rate, int grain) {
  if (grain == 0) return rate;
  const mpz_class grains = rate.get_num() * grain / rate.get_den();
  Rational whole(grains, grain);
  whole.canonicalize();
  return whole;
}

// No switch lets more out than in: what its splitting needs.
bool switches_pass(const std::vector<char>& is_switch, const std::vector<RatedArc>& arcs) {
  std::map<int, Rational> surplus;
  for (const RatedArc& arc : arcs) {
    if (is_switch[index(arc.to)] != 0) surplus[arc.to] += arc.capacity;
    if (is_switch[index(arc.from)] != 0) surplus[arc.from] -= arc.capacity;
  }
  return std::ranges::all_of(surplus, [](const auto& entry) { return sgn(entry.second) >= 0; });
}

bool has_switched_arcs(const Network& network) {
  return std::ranges::any_of(network.arcs, [&](const Arc& arc) {
    return network.is_switch[index(arc.from)] != 0 || network.is_switch[index(arc.to)] != 0;
  });
}

// Trees that the packing gave more finely than the grain are cut down to it.
void cut_to_grain(std::vector<Tree>& trees, int grain) {
  if (grain == 0) return;
  for (Tree& tree : trees) tree.rate = in_whole_grains(tree.rate, grain);
  std::erase_if(trees, [](const Tree& tree) { return sgn(tree.rate) == 0; });
}

// How many ways to grow are worth trying: planning time is a promise too.
PackingEffort effort_for(std::size_t hosts, int enough) {
  if (hosts <= 8) return {.attempts = 32, .enough = enough, .flatten = 16};
  if (hosts <= 16) return {.attempts = 16, .enough = enough, .flatten = 8};
  if (hosts <= 32) return {.attempts = 8, .enough = enough, .flatten = 4};
  return {.attempts = hosts <= 64 ? 2 : 1, .enough = enough, .flatten = 1};
}

std::vector<RatedArc> not_entering(std::vector<RatedArc> arcs, int root) {
  std::erase_if(arcs, [&](const RatedArc& arc) { return arc.to == root; });
  return arcs;
}

std::vector<Rational> demand_of(const Situation& situation, const std::vector<int>& roots, const Rational& each) {
  std::vector<Rational> demand(index(situation.nodes()));
  for (const int root : roots) demand[index(root)] = each;
  return demand;
}

// A dual of the network turned around, read the right way again.
Dual turned(Dual dual) {
  std::swap(dual.out, dual.in);
  for (ArcPrice& price : dual.price) std::swap(price.from, price.to);
  for (SwitchPotential& potential : dual.switches) {
    const Rational out = -potential.in;
    potential.in = -potential.out;
    potential.out = out;
  }
  return dual;
}

Certificate certificate_of(const Situation& situation, const Dual& dual) {
  return situation.turned() ? turned(dual) : dual;
}

Plan lone_plan(const Situation& situation) {
  Plan plan = empty_plan(situation);
  if (situation.operation == Operation::allreduce) {
    plan.certificate = Partition{{situation.hosts}};
  } else {
    plan.certificate = Cut{};
  }
  if (situation.operation != Operation::scatter && situation.operation != Operation::gather) {
    plan.trees.push_back({.rate = 0, .root = situation.hosts.front(), .edges = {}});
  }
  return plan;
}

// More hosts behind switches than this are not split apart: the flows would take minutes.
constexpr std::size_t kSplitHostsMax = 64;

// Trees from every host over every other are not laid along rings for more hosts than this: they would fill the memory.
constexpr std::size_t kFromAllHostsMax = 1536;

// ---- broadcast -----------------------------------------------------------------------------------------------------

class Broadcast {
 public:
  Broadcast(const Situation& situation, int grain)
      : situation_(situation),
        grain_(grain),
        coarse_(grain == 0 ? situation.network : in_grains(situation.network, grain)),
        plan_(empty_plan(situation)) {}

  Plan run() {
    const CutBound cut = broadcast_bound(situation_.network, situation_.root, situation_.hosts);
    plan_.bound = situation_.network.rate_of(cut.units);
    plan_.certificate = Cut{cut.nodes};
    if (grain_ == 0) {
      plan_.trees_bound = fewest_trees_bound(situation_.network, situation_.root, situation_.hosts, cut.units);
    }
    find_trees();
    plan_.rate = sum_of(plan_.trees);
    // A bound on the trees is one for the rate that it was made for.
    if (!plan_.optimal()) plan_.trees_bound = 0;
    return std::move(plan_);
  }

 private:
  void find_trees() {
    std::vector<char> inside(index(situation_.nodes()), 0);
    inside[index(situation_.root)] = 1;
    reach(coarse_, 0, inside);
    const auto reached = [&](int host) { return inside[index(host)] != 0; };
    if (!std::ranges::all_of(situation_.hosts, reached)) return;  // the grain left no way
    const CutBound cut = grain_ == 0 ? CutBound{} : broadcast_bound(coarse_, situation_.root, situation_.hosts);
    const Rational rate = grain_ == 0 ? plan_.bound : coarse_.rate_of(cut.units);
    const bool switched = has_switched_arcs(coarse_);
    if (switched && one_tree(rate)) return;
    if (switched && situation_.hosts.size() > kSplitHostsMax) {
      keep_one_tree(rate);
      return try_phases();
    }
    const std::vector<RatedArc> arcs = not_entering(rated_arcs(coarse_), situation_.root);
    if (switches_pass(coarse_.is_switch, arcs) && pack_at(arcs, rate)) return;
    if (!balance(rate)) keep_one_tree(rate);
  }

  bool pack_at(const std::vector<RatedArc>& arcs, const Rational& rate) {
    const PackingProblem problem{coarse_.is_switch, situation_.hosts, arcs,
                                 demand_of(situation_, {situation_.root}, rate)};
    auto trees = pack(problem, effort_for(situation_.hosts.size(), plan_.trees_bound));
    if (!trees) return false;
    plan_.trees = *std::move(trees);
    return true;
  }

  Tree widest(const Rational& rate) const {
    const Rational units(rate * Rational(coarse_.scale));
    Tree tree = widest_tree(coarse_, situation_.root, situation_.hosts, units.get_num() / units.get_den());
    tree.rate = in_whole_grains(tree.rate, grain_);
    return tree;
  }

  void try_phases() {
    if (grain_ != 0 || !has_servers(situation_)) return;
    auto trees = three_phase_trees(situation_);
    if (sum_of(trees) > sum_of(plan_.trees)) plan_.trees = std::move(trees);
  }

  bool one_tree(const Rational& rate) {
    Tree tree = widest(rate);
    if (tree.rate < rate) return false;
    tree.rate = rate;
    plan_.trees = {std::move(tree)};
    return true;
  }

  void keep_one_tree(const Rational& rate) {
    plan_.trees = {widest(rate)};
    if (sgn(plan_.trees.front().rate) == 0) plan_.trees.clear();
  }

  // A switch that cannot send on all that a cut counts on: the cut is not reached, the balanced program says what is.
  bool balance(const Rational& rate) {
    if (situation_.hosts.size() > static_cast<std::size_t>(kSwitchedHostsMax)) return false;
    const auto solved = solve_balanced({coarse_, situation_.hosts, demand_of(situation_, {situation_.root}, 1)});
    if (!solved) return false;
    if (grain_ == 0 && solved->rate < rate) {
      plan_.bound = solved->rate;
      plan_.certificate = certificate_of(situation_, solved->dual);
      plan_.trees_bound = 0;
    }
    if (!pack_at(not_entering(solved->out, situation_.root), solved->rate)) return false;
    cut_to_grain(plan_.trees, grain_);
    return !plan_.trees.empty();
  }

  const Situation& situation_;
  int grain_;
  Network coarse_;
  Plan plan_;
};

// ---- allgather -----------------------------------------------------------------------------------------------------

Rational hosts_of(const Situation& situation) { return Rational(static_cast<unsigned long>(situation.hosts.size())); }

class Allgather {
 public:
  Allgather(const Situation& situation, int grain)
      : situation_(situation),
        grain_(grain),
        coarse_(grain == 0 ? situation.network : in_grains(situation.network, grain)),
        plan_(empty_plan(situation)) {}

  Plan run() {
    const PartBound bound = allgather_bound(situation_.network, situation_.hosts);
    plan_.bound = bound.part * hosts_of(situation_);
    plan_.certificate = Cut{bound.nodes};
    find_trees(bound.part);
    plan_.rate = sum_of(plan_.trees);
    return std::move(plan_);
  }

 private:
  void find_trees(const Rational& part) {
    if (has_switched_arcs(coarse_) && situation_.hosts.size() > kSplitHostsMax) {
      if (situation_.hosts.size() > kFromAllHostsMax) return;
      plan_.trees = trees_along(disjoint_rings(coarse_, situation_.hosts), situation_);
      if (grain_ != 0) return level();
      if (!has_servers(situation_)) return;
      auto trees = three_phase_trees(situation_);
      if (sum_of(trees) > sum_of(plan_.trees)) plan_.trees = std::move(trees);
      return;
    }
    const std::vector<RatedArc> arcs = rated_arcs(coarse_);
    const Rational each = grain_ == 0 ? part : in_whole_grains(coarse_part(), grain_);
    if (sgn(each) == 0) return;
    if (switches_pass(coarse_.is_switch, arcs) && pack_at(arcs, each)) return;
    const std::size_t count = situation_.hosts.size();
    if (count > static_cast<std::size_t>(kSwitchedHostsMax)) return;
    const Rational share = 1 / hosts_of(situation_);
    const auto solved = solve_balanced({coarse_, situation_.hosts, demand_of(situation_, situation_.hosts, share)});
    if (!solved) return;
    if (grain_ == 0 && solved->rate < plan_.bound) {
      plan_.bound = solved->rate;
      plan_.certificate = certificate_of(situation_, solved->dual);
    }
    pack_at(solved->out, in_whole_grains(Rational(solved->rate * share), grain_));
    if (grain_ != 0) level();
  }

  Rational coarse_part() const {
    std::vector<char> inside(index(situation_.nodes()), 0);
    inside[index(situation_.hosts.front())] = 1;
    reach(coarse_, 0, inside);
    std::vector<char> back(index(situation_.nodes()), 0);
    back[index(situation_.hosts.front())] = 1;
    reach(reversed(coarse_), 0, back);
    const auto joined = [&](int host) { return inside[index(host)] != 0 && back[index(host)] != 0; };
    if (!std::ranges::all_of(situation_.hosts, joined)) return 0;
    return allgather_bound(coarse_, situation_.hosts).part;
  }

  // Cut to the grain, every root must still carry as much as every other.
  void level() {
    cut_to_grain(plan_.trees, grain_);
    std::map<int, Rational> carried;
    for (const int host : situation_.hosts) carried[host] = 0;
    for (const Tree& tree : plan_.trees) carried[tree.root] += tree.rate;
    Rational least = carried.begin()->second;
    for (const auto& [root, rate] : carried) least = std::min(least, rate);
    for (Tree& tree : plan_.trees) {
      const Rational surplus = carried[tree.root] - least;
      const Rational taken = std::min(surplus, tree.rate);
      tree.rate -= taken;
      carried[tree.root] -= taken;
    }
    std::erase_if(plan_.trees, [](const Tree& tree) { return sgn(tree.rate) == 0; });
  }

  bool pack_at(const std::vector<RatedArc>& arcs, const Rational& each) {
    const PackingProblem problem{coarse_.is_switch, situation_.hosts, arcs,
                                 demand_of(situation_, situation_.hosts, each)};
    const std::size_t count = situation_.hosts.size();
    const int attempts = count <= 8 ? 8 : count <= 16 ? 4 : 1;
    auto trees = pack(problem, {.attempts = attempts, .enough = static_cast<int>(count), .flatten = 2});
    if (!trees) return false;
    plan_.trees = *std::move(trees);
    return true;
  }

  const Situation& situation_;
  int grain_;
  Network coarse_;
  Plan plan_;
};

// ---- allreduce -----------------------------------------------------------------------------------------------------

bool is_symmetric(const Network& network) {
  std::map<std::pair<int, int>, const mpz_class*> units;
  for (const Arc& arc : network.arcs) units[{arc.from, arc.to}] = &arc.units;
  return std::ranges::all_of(network.arcs, [&](const Arc& arc) {
    const auto opposite = units.find({arc.to, arc.from});
    return opposite != units.end() && *opposite->second == arc.units;
  });
}

std::vector<TreeEdge> towards_root(const Tree& tree) {
  std::vector<TreeEdge> edges;
  for (auto edge = tree.edges.rbegin(); edge != tree.edges.rend(); ++edge) {
    edges.push_back({edge->to, edge->from, {edge->path.rbegin(), edge->path.rend()}});
  }
  return edges;
}

// Trees that reduce and trees that broadcast, root by root the same rate of both: pairs of them that share their rates.
// in: edges away from the root, against the way the data runs.
std::vector<Tree> paired(std::vector<Tree> out, std::vector<Tree> in) {
  std::vector<Tree> pairs;
  for (Tree& away : out) {
    for (Tree& back : in) {
      if (back.root != away.root || sgn(back.rate) == 0 || sgn(away.rate) == 0) continue;
      Tree& tree = pairs.emplace_back(away);
      tree.rate = std::min(away.rate, back.rate);
      tree.reduce_edges = towards_root(back);
      away.rate -= tree.rate;
      back.rate -= tree.rate;
    }
  }
  return pairs;
}

std::vector<Tree> undirected_trees(const Situation& situation, const Network& network, const Rational& rate) {
  std::vector<Tree> best;
  const std::size_t count = situation.hosts.size();
  const std::size_t roots = count <= 16 ? std::min<std::size_t>(count, 4) : 1;
  for (std::size_t at = 0; at < roots; ++at) {
    const int root = situation.hosts[at * count / roots];
    auto arcs = orient(network, situation.hosts, root, rate);
    if (!arcs) continue;
    const PackingProblem problem{network.is_switch, situation.hosts, *std::move(arcs),
                                 demand_of(situation, {root}, rate)};
    auto trees = pack(problem, {.attempts = count <= 8 ? 4 : 2, .enough = 1, .flatten = 1});
    if (!trees) continue;
    for (Tree& tree : *trees) tree = from_centre(tree);
    const auto key = [](const std::vector<Tree>& packed) { return std::pair(packed.size(), depth_max(packed)); };
    if (best.empty() || key(*trees) < key(best)) best = *std::move(trees);
  }
  return best;
}

Plan direct_allreduce(const Situation& situation, int grain) {
  Plan plan = empty_plan(situation);
  PartitionBound bound = partition_bound(situation.network, situation.hosts);
  plan.bound = bound.rate;
  plan.certificate = Partition{std::move(bound.parts)};
  if (grain == 0) {
    plan.trees = undirected_trees(situation, situation.network, plan.bound);
  } else {
    const Network coarse = in_grains(situation.network, grain);
    const Rational rate = in_whole_grains(partition_bound(coarse, situation.hosts).rate, grain);
    if (sgn(rate) > 0) plan.trees = undirected_trees(situation, coarse, rate);
  }
  plan.rate = sum_of(plan.trees);
  return plan;
}

// The same hosts and network for another operation.
Situation as(const Situation& situation, Operation operation) {
  Situation other = situation;
  other.operation = operation;
  if (other.turned() != situation.turned()) other.network = reversed(situation.network);
  return other;
}

std::vector<Tree> trees_of(const Situation& situation, const BalancedSolution& solved) {
  const auto packed = [&](const std::vector<RatedArc>& arcs) {
    return pack({situation.network.is_switch, situation.hosts, arcs, solved.root},
                {.attempts = situation.hosts.size() <= 8 ? 4 : 1, .enough = 1, .flatten = 1});
  };
  auto out = packed(solved.out);
  if (!out) return {};
  if (solved.in.empty()) return *std::move(out);
  std::vector<RatedArc> turned_in;
  for (const RatedArc& arc : solved.in) turned_in.push_back({arc.to, arc.from, arc.capacity});
  auto in = packed(turned_in);
  return in ? paired(*std::move(out), *std::move(in)) : std::vector<Tree>{};
}

// The widest tree there is, at what its links carry when it reduces and broadcasts at once.
Tree both_ways(const Situation& situation) {
  const int root = situation.hosts.front();
  const CutBound cut = broadcast_bound(situation.network, root, situation.hosts);
  Tree tree = widest_tree(situation.network, root, situation.hosts, cut.units);
  std::map<std::pair<int, int>, unsigned long> crossings;
  for (const TreeEdge& edge : tree.edges) {
    for (std::size_t hop = 1; hop < edge.path.size(); ++hop) {
      ++crossings[{edge.path[hop - 1], edge.path[hop]}];
      ++crossings[{edge.path[hop], edge.path[hop - 1]}];
    }
  }
  for (const Arc& arc : situation.network.arcs) {
    const auto found = crossings.find({arc.from, arc.to});
    if (found == crossings.end()) continue;
    const Rational each(situation.network.rate_of(arc.units) / Rational(found->second));
    tree.rate = std::min(tree.rate, each);
    crossings.erase(found);
  }
  if (!crossings.empty()) tree.rate = 0;  // a link of one way only
  return tree;
}

// Where nothing exact was found: the best of what can be made at any size.
void keep_best(const Situation& situation, Plan& plan) {
  const auto offer = [&](std::vector<Tree> trees) {
    if (sum_of(trees) <= sum_of(plan.trees)) return;
    plan.trees = std::move(trees);
    plan.rate = sum_of(plan.trees);
  };
  if (!plan.optimal() && has_servers(situation)) offer(three_phase_trees(situation));
  if (plan.optimal() || !plan.trees.empty()) return;
  if (situation.hosts.size() > kFromAllHostsMax) return offer({both_ways(situation)});
  offer(trees_along(widest_ring(situation.network, situation.hosts), situation));
}

Plan general_allreduce(const Situation& situation, int grain) {
  Plan plan = reduce_scatter_allgather(situation);
  FamilyBound family = family_bound(situation.network, situation.hosts);
  plan.bound = family.rate;
  plan.certificate = std::move(family.dual);
  if (!plan.optimal() && situation.hosts.size() <= static_cast<std::size_t>(kSwitchedHostsMax)) {
    if (auto solved = solve_balanced({situation.network, situation.hosts, {}})) {
      plan.bound = solved->rate;
      plan.certificate = solved->dual;
      if (!plan.optimal()) {
        auto trees = trees_of(situation, *solved);
        if (sum_of(trees) > plan.rate) plan.trees = std::move(trees);
        plan.rate = sum_of(plan.trees);
      }
    }
  }
  keep_best(situation, plan);
  cut_to_grain(plan.trees, grain);
  plan.rate = sum_of(plan.trees);
  return plan;
}

}  // namespace

Plan exact_broadcast(const Situation& situation, int grain) {
  return situation.lone() ? lone_plan(situation) : Broadcast(situation, grain).run();
}

Plan exact_allgather(const Situation& situation, int grain) {
  return situation.lone() ? lone_plan(situation) : Allgather(situation, grain).run();
}

Plan exact_scatter(const Situation& situation, int grain) {
  if (situation.lone()) return lone_plan(situation);
  Plan plan = empty_plan(situation);
  const PartBound bound = scatter_bound(situation.network, situation.root, situation.hosts);
  plan.bound = bound.part * hosts_of(situation);
  plan.certificate = Cut{bound.nodes};
  Network coarse = grain == 0 ? situation.network : in_grains(situation.network, grain);
  Rational part = bound.part;
  if (grain != 0) {
    std::vector<char> inside(index(situation.nodes()), 0);
    inside[index(situation.root)] = 1;
    reach(coarse, 0, inside);
    const auto reached = [&](int host) { return inside[index(host)] != 0; };
    if (!std::ranges::all_of(situation.hosts, reached)) return plan;
    part = in_whole_grains(scatter_bound(coarse, situation.root, situation.hosts).part, grain);
    if (sgn(part) == 0) return plan;
  }
  for (const auto& of_host : scatter_paths(coarse, situation.root, situation.hosts, part)) {
    for (const RatedPath& path : of_host) {
      Tree& tree = plan.trees.emplace_back();
      tree.rate = path.rate;
      tree.root = situation.root;
      tree.target = path.nodes.back();
      std::size_t begun = 0;
      for (std::size_t at = 1; at < path.nodes.size(); ++at) {
        if (coarse.is_switch[index(path.nodes[at])] != 0) continue;
        tree.edges.push_back({path.nodes[begun],
                              path.nodes[at],
                              {path.nodes.begin() + static_cast<std::ptrdiff_t>(begun),
                               path.nodes.begin() + static_cast<std::ptrdiff_t>(at) + 1}});
        begun = at;
      }
    }
  }
  plan.rate = part * hosts_of(situation);
  return plan;
}

Plan exact_allreduce(const Situation& situation, int grain) {
  if (situation.lone()) return lone_plan(situation);
  return is_direct_and_symmetric(situation.network) ? direct_allreduce(situation, grain)
                                                    : general_allreduce(situation, grain);
}

Plan exact_plan(const Situation& situation, int grain) {
  switch (situation.operation) {
    case Operation::broadcast:
    case Operation::reduce:
      return exact_broadcast(situation, grain);
    case Operation::allgather:
    case Operation::reduce_scatter:
      return exact_allgather(situation, grain);
    case Operation::scatter:
    case Operation::gather:
      return exact_scatter(situation, grain);
    case Operation::allreduce:
      break;
  }
  return exact_allreduce(situation, grain);
}

Plan reduce_scatter_allgather(const Situation& situation) {
  Plan plan = empty_plan(situation);
  if (has_switched_arcs(situation.network) && situation.hosts.size() > kSplitHostsMax) return plan;
  Plan gathered = exact_allgather(as(situation, Operation::allgather), 0);
  if (gathered.trees.empty()) return plan;
  const bool symmetric = is_symmetric(situation.network);
  Plan scattered = symmetric ? gathered : exact_allgather(as(situation, Operation::reduce_scatter), 0);
  if (scattered.trees.empty()) return plan;
  const Rational rate = 1 / (1 / gathered.rate + 1 / scattered.rate);
  const auto scale = [&](Plan& phase) {
    const Rational share = rate / phase.rate;
    for (Tree& tree : phase.trees) tree.rate *= share;
  };
  scale(gathered);
  scale(scattered);
  plan.trees = symmetric ? std::move(gathered.trees) : paired(std::move(gathered.trees), std::move(scattered.trees));
  plan.rate = sum_of(plan.trees);
  return plan;
}

int fewest_trees_bound(const Network& network, int root, const std::vector<int>& hosts, const mpz_class& units) {
  int fewest = 1;
  const auto consider = [&](const auto& inside) {
    mpz_class entering = 0;
    int arcs = 0;
    for (const Arc& arc : network.arcs) {
      if (inside(arc.from) || !inside(arc.to)) continue;
      entering += arc.units;
      ++arcs;
    }
    if (entering == units) fewest = std::max(fewest, arcs);
  };
  constexpr int kAllSetsNodesMax = 10;
  if (network.nodes() <= kAllSetsNodesMax) {
    unsigned host_mask = 0;
    for (const int host : hosts) host_mask |= 1U << index(host);
    for (unsigned set = 1; set < 1U << index(network.nodes()); ++set) {
      if ((set >> index(root) & 1U) != 0 || (set & host_mask) == 0) continue;
      consider([&](int node) { return (set >> index(node) & 1U) != 0; });
    }
  } else {
    for (const int host : hosts) {
      if (host != root) consider([&](int node) { return node == host; });
    }
  }
  // The widest way to every host: the rate of the widest tree, were trees alone on the network.
  std::vector<mpz_class> widths;
  for (const Arc& arc : network.arcs) widths.push_back(arc.units);
  std::ranges::sort(widths, std::greater{});
  const auto narrow = std::ranges::partition_point(widths, [&](const mpz_class& width) {
    std::vector<char> inside(index(network.nodes()), 0);
    inside[index(root)] = 1;
    reach(network, width, inside);
    return !std::ranges::all_of(hosts, [&](int host) { return inside[index(host)] != 0; });
  });
  if (narrow != widths.end()) {
    const mpz_class trees = (units + *narrow - 1) / *narrow;
    fewest = std::max(fewest, static_cast<int>(trees.get_si()));
  }
  return fewest;
}

}  // namespace coppice::collectives
