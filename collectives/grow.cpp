#include "collectives/grow.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

struct Target {
  int host;
  int hops;
  long power;  // copies that the host could pass on
};

class Growth {
 public:
  Growth(const Network& network, int root, int participants, const Rational& units, Prefer prefer)
      : network_(network),
        prefer_(prefer),
        spare_(network.arcs.size()),
        crossings_(network.arcs.size(), 0),
        power_(index(network.nodes()), 0),
        depth_(index(network.nodes()), -1),
        entered_by_(index(network.nodes()), -1),
        seen_by_(index(network.nodes()), -1) {
    for (std::size_t arc = 0; arc < spare_.size(); ++arc) {
      // More copies than there are receivers are never sent.
      const mpz_class copies = network.arcs[arc].units * units.get_den() / units.get_num();
      spare_[arc] = copies < participants ? static_cast<int>(copies.get_si()) : participants;
      power_[index(network.arcs[arc].from)] += spare_[arc];
    }
    tree_.root = root;
    depth_[index(root)] = 0;
  }

  std::optional<Grown> run(int participants) {
    std::vector<int> queue = {tree_.root};
    for (std::size_t next = 0; next < queue.size(); ++next) expand(queue[next], queue);
    if (static_cast<int>(queue.size()) < participants) return std::nullopt;
    tree_.rate = rate();
    return Grown{std::move(tree_), depth_[index(queue.back())]};
  }

 private:
  // Sends from `host` to all that it may, best first.
  void expand(int host, std::vector<int>& queue) {
    bool again = true;
    while (again) {
      std::vector<Target> targets = search(host);
      const auto worse = [&](const Target& a, const Target& b) { return key(a) > key(b); };
      std::ranges::make_heap(targets, worse);
      bool attached = false;
      bool skipped = false;
      while (!targets.empty() && power_[index(host)] > 0) {
        std::ranges::pop_heap(targets, worse);
        const int target = targets.back().host;
        targets.pop_back();
        if (attach(host, target)) {
          queue.push_back(target);
          attached = true;
        } else {
          skipped = true;
        }
      }
      // Another way may lead to those whose way was used up by the ones before them.
      again = attached && skipped;
    }
  }

  std::tuple<bool, long, long, int> key(const Target& target) const {
    if (prefer_ == Prefer::near) return {target.power == 0, target.hops, -target.power, target.host};
    return {false, -target.power, target.hops, target.host};
  }

  // The hosts outside the tree that `host` reaches through switches with copies to spare. Ways are left in entered_by_.
  std::vector<Target> search(int host) {
    ++searches_;
    std::vector<Target> targets;
    std::vector<std::pair<int, int>> open = {{host, 0}};
    seen_by_[index(host)] = searches_;
    for (std::size_t next = 0; next < open.size(); ++next) {
      const auto [node, hops] = open[next];
      for (const int leaving : network_.out[index(node)]) {
        const int to = network_.arcs[index(leaving)].to;
        if (spare_[index(leaving)] == 0 || seen_by_[index(to)] == searches_ || depth_[index(to)] >= 0) continue;
        seen_by_[index(to)] = searches_;
        entered_by_[index(to)] = leaving;
        if (network_.is_switch[index(to)] != 0) {
          open.emplace_back(to, hops + 1);
        } else {
          targets.push_back({to, hops + 1, power_[index(to)]});
        }
      }
    }
    return targets;
  }

  bool attach(int host, int target) {
    std::vector<int> way;  // arcs, from the target back
    for (int node = target; node != host; node = network_.arcs[index(way.back())].from) {
      way.push_back(entered_by_[index(node)]);
      if (spare_[index(way.back())] == 0) return false;
    }
    TreeEdge edge{.from = host, .to = target, .path = {host}};
    for (auto arc = way.rbegin(); arc != way.rend(); ++arc) {
      --spare_[index(*arc)];
      --power_[index(network_.arcs[index(*arc)].from)];
      ++crossings_[index(*arc)];
      edge.path.push_back(network_.arcs[index(*arc)].to);
    }
    tree_.edges.push_back(std::move(edge));
    depth_[index(target)] = depth_[index(host)] + 1;
    return true;
  }

  Rational rate() const {
    Rational least = 0;
    for (std::size_t arc = 0; arc < crossings_.size(); ++arc) {
      if (crossings_[arc] == 0) continue;
      const Rational share = network_.rate_of(network_.arcs[arc].units) / crossings_[arc];
      if (least == 0 || share < least) least = share;
    }
    return least;
  }

  const Network& network_;
  Prefer prefer_;
  std::vector<int> spare_;       // [arcs]: copies that an arc can still carry
  std::vector<int> crossings_;   // [arcs]: edges of the tree that cross it
  std::vector<long> power_;      // [nodes]: the same, of all arcs that leave
  std::vector<int> depth_;       // [nodes]: of hosts in the tree, else -1
  std::vector<int> entered_by_;  // [nodes]: the arc by which the latest search came
  std::vector<int> seen_by_;     // [nodes]: the latest search that saw it
  int searches_ = -1;
  Tree tree_;
};

}  // namespace

std::optional<Grown> grow_tree(const Network& network, int root, int participants, const Rational& units,
                               Prefer prefer) {
  return Growth(network, root, participants, units, prefer).run(participants);
}

}  // namespace coppice::collectives
