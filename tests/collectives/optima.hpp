// The optima of small topologies by enumeration: every set, every partition. Written apart from the planner.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "collectives/plan.hpp"

namespace coppice::collectives::testing {

class Optima {
 public:
  explicit Optima(const Topology& topology) : nodes_(static_cast<int>(topology.nodes.size())) {
    for (const Link& link : topology.links) {
      capacity_[{link.from, link.to}] += link.capacity;
      if (link.duplex) capacity_[{link.to, link.from}] += link.capacity;
    }
    for (int node = 0; node < nodes_; ++node) {
      if (!topology.nodes[static_cast<std::size_t>(node)].is_switch) hosts_ |= 1U << node;
    }
    for (unsigned set = 0; set < 1U << nodes_; ++set) entering_.push_back(entering(set));
  }

  unsigned count(unsigned set) const { return static_cast<unsigned>(__builtin_popcount(set & hosts_)); }

  Rational broadcast(int root, bool inward) const {
    return least([&](unsigned set) -> std::optional<Rational> {
      if ((set >> root & 1U) != 0 || count(set) == 0) return std::nullopt;
      return crossing(set, !inward);
    });
  }

  Rational scatter(int root, bool inward) const {
    return least([&](unsigned set) -> std::optional<Rational> {
      if ((set >> root & 1U) != 0 || count(set) == 0) return std::nullopt;
      return Rational(crossing(set, !inward) * count(hosts_) / Rational(count(set)));
    });
  }

  Rational allgather(bool inward) const {
    return least([&](unsigned set) -> std::optional<Rational> {
      if (count(set) == 0 || count(set) == count(hosts_)) return std::nullopt;
      return Rational(crossing(set, inward) * count(hosts_) / Rational(count(set)));
    });
  }

  // Where there are no switches: over all partitions of the hosts.
  Rational allreduce() {
    best_.reset();
    std::vector<int> part(static_cast<std::size_t>(nodes_), 0);
    partitions(part, 1, 1);
    return *best_;
  }

 private:
  Rational entering(unsigned set) const {
    Rational sum = 0;
    for (const auto& [pair, capacity] : capacity_) {
      if ((set >> pair.first & 1U) == 0 && (set >> pair.second & 1U) != 0) sum += capacity;
    }
    return sum;
  }

  Rational crossing(unsigned set, bool into) const {
    return into ? entering_[set] : entering_[~set & ((1U << nodes_) - 1U)];
  }

  template <class Bound>
  Rational least(const Bound& bound) const {
    std::optional<Rational> found;
    for (unsigned set = 1; set < 1U << nodes_; ++set) {
      const auto value = bound(set);
      if (value && (!found || *value < *found)) found = *value;
    }
    return *found;
  }

  void partitions(std::vector<int>& part, int node, int parts) {
    if (node == nodes_) {
      if (parts < 2) return;
      Rational sum = 0;
      for (const auto& [pair, capacity] : capacity_) {
        if (part[static_cast<std::size_t>(pair.first)] != part[static_cast<std::size_t>(pair.second)]) sum += capacity;
      }
      const Rational bound(sum / Rational(2 * (parts - 1)));
      if (!best_ || bound < *best_) best_ = bound;
      return;
    }
    for (int own = 0; own <= parts; ++own) {
      part[static_cast<std::size_t>(node)] = own;
      partitions(part, node + 1, std::max(parts, own + 1));
    }
  }

  int nodes_;
  unsigned hosts_ = 0;
  std::map<std::pair<int, int>, Rational> capacity_;
  std::vector<Rational> entering_;
  std::optional<Rational> best_;
};

}  // namespace coppice::collectives::testing
