#include "collectives/mwu.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "collectives/arborescence.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

struct Candidate {
  std::vector<int> arcs;  // indices
  double weight = 0;
};

class Weights {
 public:
  Weights(int nodes, const std::vector<RatedArc>& arcs, int root, bool either_way)
      : nodes_(nodes), arcs_(arcs), root_(root), pool_(arcs.size()) {
    std::map<std::pair<int, int>, int> pool_of;
    for (std::size_t arc = 0; arc < arcs.size(); ++arc) {
      ends_.emplace_back(arcs[arc].from, arcs[arc].to);
      auto key = ends_.back();
      if (either_way && key.first > key.second) std::swap(key.first, key.second);
      const auto [found, added] = pool_of.try_emplace(key, static_cast<int>(capacity_.size()));
      if (added) capacity_.push_back(arcs[arc].capacity);
      pool_[arc] = found->second;
    }
  }

  std::vector<Tree> run(double epsilon) {
    fractional(epsilon);
    double rate = 0;
    for (const Candidate& candidate : candidates_) rate += candidate.weight;
    constexpr double kThreshold = 0.05;
    Rational unit = *std::ranges::min_element(capacity_);
    for (int halvings = 0; halvings < 4; ++halvings, unit /= 2) {
      const auto counts = whole(unit, std::floor(rate / unit.get_d() + 1e-9));
      const int trees = std::accumulate(counts.begin(), counts.end(), 0);
      if (trees * unit.get_d() >= (1 - kThreshold) * rate) return trees_of(counts, unit);
    }
    return fractional_trees();
  }

 private:
  // Garg and Könemann: the cheapest tree takes as much as its narrowest arc has, and arcs grow dear as they fill.
  void fractional(double epsilon) {
    const double count = static_cast<double>(capacity_.size());
    const double begin = (1 + epsilon) * std::pow((1 + epsilon) * count, -1 / epsilon);
    std::vector<double> price;
    for (const Rational& capacity : capacity_) price.push_back(begin / capacity.get_d());
    std::map<std::vector<int>, double> weight;
    std::vector<double> cost(arcs_.size());
    std::mt19937 rng(1);  // equals in any order, as they come out of rounding elsewhere: it is what makes trees many
    while (true) {
      for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
        cost[arc] = price[index(pool_[arc])] * (1 + 1e-8 * static_cast<double>(rng() % 1000));
      }
      const std::vector<int> tree = cheapest_arborescence(nodes_, ends_, cost, root_);
      double sum = 0;
      double narrowest = 1e300;
      for (const int arc : tree) {
        sum += cost[index(arc)];
        narrowest = std::min(narrowest, capacity_[index(pool_[index(arc)])].get_d());
      }
      if (sum >= 1) break;
      weight[tree] += narrowest;
      for (const int arc : tree) {
        double& dear = price[index(pool_[index(arc)])];
        dear *= 1 + epsilon * narrowest / capacity_[index(pool_[index(arc)])].get_d();
      }
    }
    scale(weight);
  }

  // Down to where the fullest arc is just full.
  void scale(const std::map<std::vector<int>, double>& weight) {
    std::vector<double> load(capacity_.size(), 0);
    for (const auto& [tree, amount] : weight) {
      for (const int arc : tree) load[index(pool_[index(arc)])] += amount;
    }
    double fullest = 0;
    for (std::size_t pool = 0; pool < load.size(); ++pool)
      fullest = std::max(fullest, load[pool] / capacity_[pool].get_d());
    for (const auto& [tree, amount] : weight) candidates_.push_back({tree, amount / fullest});
    std::ranges::stable_sort(candidates_, [](const Candidate& a, const Candidate& b) { return a.weight > b.weight; });
  }

  // Which candidates to take, each at the unit or not at all, for as many trees as can be and no more than `most`:
  // branch and bound of bounded effort.
  std::vector<int> whole(const Rational& unit, double most) {
    // No packing takes so many trees of one unit: beyond, the number would only not fit.
    constexpr double kUnitsMax = 1e6;
    left_.clear();
    for (const Rational& capacity : capacity_) {
      const double units = std::floor(capacity.get_d() / unit.get_d() + 1e-9);
      left_.push_back(static_cast<int>(std::min(units, kUnitsMax)));
    }
    counts_.assign(candidates_.size(), 0);
    best_ = counts_;
    best_trees_ = 0;
    steps_left_ = 20'000;
    most_ = static_cast<int>(std::min(most, kUnitsMax));
    choose(0);
    return best_;
  }

  bool fits(std::size_t candidate) const {
    return counts_[candidate] == 0 && std::ranges::all_of(candidates_[candidate].arcs,
                                                          [&](int arc) { return left_[index(pool_[index(arc)])] > 0; });
  }

  // The candidates to branch on. Every tree enters every node: where no more can enter a node than trees are still
  // wanted, each of its arcs must be used, so the arc with the fewest candidates decides; elsewhere any candidate may
  // come next.
  std::vector<std::size_t> branches(int wanted) const {
    std::vector<std::size_t> open;
    for (std::size_t at = 0; at < candidates_.size(); ++at) {
      if (fits(at)) open.push_back(at);
    }
    std::vector<int> entering(index(nodes_), 0);
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) entering[index(ends_[arc].second)] += left_[index(pool_[arc])];
    std::vector<std::size_t> fewest = open;
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
      const int head = ends_[arc].second;
      if (head == root_ || left_[index(pool_[arc])] == 0 || entering[index(head)] > wanted) continue;
      std::vector<std::size_t> users;
      for (const std::size_t at : open) {
        if (std::ranges::count(candidates_[at].arcs, static_cast<int>(arc)) > 0) users.push_back(at);
      }
      if (users.size() < fewest.size()) fewest = std::move(users);
    }
    return fewest;
  }

  void choose(int trees) {
    if (trees > best_trees_) {
      best_trees_ = trees;
      best_ = counts_;
    }
    if (best_trees_ >= most_) return;
    for (const std::size_t at : branches(most_ - trees)) {
      if (best_trees_ >= most_ || --steps_left_ < 0) return;
      for (const int arc : candidates_[at].arcs) --left_[index(pool_[index(arc)])];
      ++counts_[at];
      choose(trees + 1);
      --counts_[at];
      for (const int arc : candidates_[at].arcs) ++left_[index(pool_[index(arc)])];
    }
  }

  Tree tree_of(const Candidate& candidate, const Rational& rate) const {
    Tree tree{.rate = rate, .root = root_, .edges = {}};
    std::vector<int> left = candidate.arcs;
    std::vector<char> inside(index(nodes_), 0);
    inside[index(root_)] = 1;
    while (!left.empty()) {  // parents before children
      for (const int arc : std::vector<int>(left)) {
        if (inside[index(arcs_[index(arc)].from)] == 0) continue;
        inside[index(arcs_[index(arc)].to)] = 1;
        tree.edges.push_back(
            {arcs_[index(arc)].from, arcs_[index(arc)].to, {arcs_[index(arc)].from, arcs_[index(arc)].to}});
        std::erase(left, arc);
      }
    }
    return tree;
  }

  std::vector<Tree> trees_of(const std::vector<int>& counts, const Rational& unit) const {
    std::vector<Tree> trees;
    for (std::size_t at = 0; at < counts.size(); ++at) {
      if (counts[at] > 0) trees.push_back(tree_of(candidates_[at], unit * counts[at]));
    }
    return trees;
  }

  // In fractions of 2⁻²⁰ of the narrowest arc, rounded down: never beyond a capacity.
  std::vector<Tree> fractional_trees() const {
    const Rational unit(*std::ranges::min_element(capacity_) / (1 << 20));
    std::vector<Tree> trees;
    for (const Candidate& candidate : candidates_) {
      const double units = std::floor(candidate.weight / unit.get_d() * (1 - 1e-9));
      if (units >= 1) trees.push_back(tree_of(candidate, unit * mpz_class(units)));
    }
    return trees;
  }

  int nodes_;
  const std::vector<RatedArc>& arcs_;
  int root_;
  std::vector<std::pair<int, int>> ends_;  // [arcs]
  std::vector<int> pool_;                  // [arcs]: which capacity it draws on
  std::vector<Rational> capacity_;         // [pools]
  std::vector<Candidate> candidates_;
  std::vector<int> left_;  // [pools]: in units
  std::vector<int> counts_;
  std::vector<int> best_;
  int best_trees_ = 0;
  int most_ = 0;
  long steps_left_ = 0;
};

}  // namespace

std::vector<Tree> mwu_trees(int nodes, const std::vector<RatedArc>& arcs, int root, double epsilon, bool either_way) {
  return Weights(nodes, arcs, root, either_way).run(epsilon);
}

}  // namespace coppice::collectives
