// collectives/plan.hpp: which trees carry an operation over a topology, how fast, and a proof of how fast it could be.
//
// A plan is a value; planner.hpp makes plans of every operation, verify.hpp checks any plan, whoever made it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "collectives/error.hpp"
#include "collectives/operation.hpp"
#include "collectives/topology.hpp"
#include "collectives/tree.hpp"

namespace coppice::collectives {

// A set of nodes. The bound is, with hosts counted among those that take part:
//   broadcast: the capacity that enters it (reduce: leaves it); it is without the root;
//   allgather: hosts × the capacity that leaves it ÷ hosts inside (reduce_scatter: enters it);
//   scatter: hosts × the capacity that enters it ÷ hosts inside (gather: leaves it); it is without the root.
struct Cut {
  std::vector<int> nodes;  // ascending indices into Topology::nodes
  bool operator==(const Cut&) const = default;
};

// Of all nodes, none of them a switch. Allreduce: the bound is the capacity between parts, of both directions,
// ÷ 2 (parts - 1): each element needs parts - 1 crossings to be reduced and as many to be known everywhere.
// Sources: Tutte 1961, Nash-Williams 1961.
struct Partition {
  std::vector<std::vector<int>> parts;
  bool operator==(const Partition&) const = default;
};

struct ArcPrice {
  int from = -1;
  int to = -1;
  Rational price;
  bool operator==(const ArcPrice&) const = default;
};

struct WeightedSet {
  std::vector<int> nodes;
  Rational weight;
  bool operator==(const WeightedSet&) const = default;
};

struct SwitchPotential {
  int node = -1;
  Rational out;  // π
  Rational in;   // ρ
  bool operator==(const SwitchPotential&) const = default;
};

// A solution of the dual of the linear program that balances what enters and leaves every switch. The bound is the sum
// of capacity × price. Prices and weights are >= 0, every set holds a host, and for every arc u -> v
//   the weights of the out sets that it enters + π(v) - π(u) <= its price, and
//   the weights of the in sets that it leaves + ρ(v) - ρ(u) <= its price.
// Allreduce: for every host the weights of the sets without it add up to 1 or more. Broadcast: so for the root, and
// there are no in sets (reduce: no out sets). Allgather: so for the mean over the hosts (reduce_scatter: with in sets).
struct Dual {
  std::vector<ArcPrice> price;  // of arcs not named: 0
  std::vector<WeightedSet> out;
  std::vector<WeightedSet> in;
  std::vector<SwitchPotential> switches;
  bool operator==(const Dual&) const = default;
};

// What lets anyone derive the bound again.
using Certificate = std::variant<Cut, Partition, Dual>;

struct Plan {
  std::string topology;  // its name
  Operation operation = Operation::broadcast;
  std::string unit;  // of every rate
  // Bytes of the whole buffer per unit of time, as capacities count them; the trees' rates add up to it.
  Rational rate;
  Rational bound;  // no schedule exceeds it
  Certificate certificate;
  std::vector<Tree> trees;
  // The hosts that hold the data in the end, the root among them; ascending. The bound and its certificate are of the
  // topology without the other hosts.
  std::vector<int> participants;

  // No packing of this rate has fewer trees; 0: not known.
  int trees_bound = 0;

  bool optimal() const { return rate == bound; }
  bool operator==(const Plan&) const = default;
};

struct PlanOptions {
  // Only these hosts need the data, and only they and switches pass it on. Nothing: every host. Must name the root.
  std::optional<std::vector<int>> participants;
  // The buffer. With latency_s, and a unit that unit_bytes_per_s knows, the tree that is predicted to be done first is
  // chosen: flatter for small buffers. 0, or no latency: the one of the highest rate, flattest among equals.
  double bytes = 0;
  double latency_s = 0;  // of one chunk on one hop
};

// Broadcast over the one tree that carries most, for those who relay over a single tree. It reaches the bound where
// links are switched and often does not where hosts have several links (DGX-1V: 2 of 6): make_plan packs several.
// Sources: Edmonds 1973 (bound); Blink, MLSys 2020 (trees instead of rings).
// Data goes from the root to every participant over a tree that spans them. A lone root: no edges, rate and bound 0.
// Errors: those of validate, unknown_node (a participant is no host), bad_root, disconnected.
// Cost: at most one maximum flow a host, and some hundreds of greedy searches: well below a millisecond for 8 hosts,
// seconds for 4,000 behind switches; meshes of thousands of hosts with hundreds of direct links each take minutes.
Expected<Plan> plan_broadcast(const Topology& topology, int root, const PlanOptions& options = {});

// The inverse of to_json for plans of this topology, for plans from anywhere. What is not a plan at all is an error;
// what is a wrong one is for verify to find. Errors: malformed, unknown_node.
Expected<Plan> parse_plan(const nlohmann::json& document, const Topology& topology);

// In the words of `coppice plan --json`. seconds: how long planning took, as its caller measured. A plan that leaves
// out hosts names its "participants". REQUIRES: the plan is of this topology.
nlohmann::json to_json(const Plan& plan, const Topology& topology, double seconds);

}  // namespace coppice::collectives
