#include "collectives/plan.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;
using Pair = std::pair<int, int>;

// Capacity of each ordered pair, hosts that take no part left out. Written apart from the planner's own.
std::map<Pair, Rational> capacity_of(const Topology& topology, const std::vector<int>& participants) {
  const auto takes_part = [&](int node) {
    return topology.nodes[static_cast<std::size_t>(node)].is_switch || std::ranges::count(participants, node) > 0;
  };
  std::map<Pair, Rational> capacity;
  for (const Link& link : topology.links) {
    if (!takes_part(link.from) || !takes_part(link.to)) continue;
    capacity[{link.from, link.to}] += link.capacity;
    if (link.duplex) capacity[{link.to, link.from}] += link.capacity;
  }
  return capacity;
}

Rational entering(const std::map<Pair, Rational>& capacity, const std::set<int>& nodes) {
  Rational sum = 0;
  for (const auto& [pair, amount] : capacity) {
    if (!nodes.contains(pair.first) && nodes.contains(pair.second)) sum += amount;
  }
  return sum;
}

// The first promise of a plan that does not hold, or nothing.
std::string broken_promise(const Topology& topology, int root, const Plan& plan) {
  const auto capacity = capacity_of(topology, plan.participants);
  std::map<Pair, Rational> used;
  Rational rate = 0;
  for (const Tree& tree : plan.trees) {
    rate += tree.rate;
    if (tree.root != root) return "another root";
    std::set<int> holds = {root};
    for (const TreeEdge& edge : tree.edges) {
      if (!holds.contains(edge.from)) return "an edge leaves a node that has nothing yet";
      if (!holds.insert(edge.to).second) return "a node is entered twice";
      if (edge.path.size() < 2 || edge.path.front() != edge.from || edge.path.back() != edge.to) return "a path's ends";
      for (std::size_t hop = 1; hop < edge.path.size(); ++hop) {
        const Pair pair{edge.path[hop - 1], edge.path[hop]};
        if (!capacity.contains(pair)) return "a path where there is no link";
        used[pair] += tree.rate;
        const bool inner = hop + 1 < edge.path.size();
        if (inner && !topology.nodes[static_cast<std::size_t>(pair.second)].is_switch) return "a host inside a path";
      }
    }
    if (!std::ranges::equal(holds, plan.participants)) return "the tree does not span the participants";
  }
  bool tight = plan.participants.size() == 1;
  for (const auto& [pair, amount] : used) {
    if (amount > capacity.at(pair)) return "a link beyond its capacity";
    tight = tight || amount == capacity.at(pair);
  }
  if (!tight) return "no link is full, so the rate could be higher";
  if (rate != plan.rate) return "the trees do not add up";
  if (plan.rate > plan.bound) return "a rate above its bound";
  if (plan.optimal() != (plan.rate == plan.bound)) return "optimal";
  const auto& cut = std::get<Cut>(plan.certificate).nodes;
  const std::set<int> nodes(cut.begin(), cut.end());
  if (nodes.contains(root)) return "the cut holds the root";
  const bool holds_host = std::ranges::any_of(plan.participants, [&](int host) { return nodes.contains(host); });
  if (!holds_host && plan.participants.size() > 1) return "the cut holds no participant";
  if (entering(capacity, nodes) != plan.bound) return "the cut is not the bound";
  return "";
}

Plan checked(const Topology& topology, int root, const PlanOptions& options = {}) {
  auto plan = plan_broadcast(topology, root, options);
  EXPECT_TRUE(plan) << plan.error().what;
  EXPECT_EQ(broken_promise(topology, root, plan.value()), "") << topology.name << " from " << root;
  return plan.value();
}

ErrorCode fault(const Topology& topology, int root, const PlanOptions& options = {}) {
  const auto plan = plan_broadcast(topology, root, options);
  EXPECT_FALSE(plan);
  EXPECT_FALSE(plan.error().what.empty());
  return plan.error().code;
}

TEST(PlanBroadcast, BoundsTheKnownMachines) {
  for (int root = 0; root < 8; ++root) {
    EXPECT_EQ(checked(testing::dgx_1p(), root).bound, 4);
    EXPECT_EQ(checked(testing::dgx_1v(), root).bound, 6);
  }
  for (int root = 0; root < 5; ++root) EXPECT_EQ(checked(testing::dgx_1v_fragment(5), root).bound, 2);
  for (int root = 0; root < 6; ++root) EXPECT_EQ(checked(testing::dgx_1v_fragment(6), root).bound, 3);
}

TEST(PlanBroadcast, TakesTheDoubleLinksOfADgx1v) {
  const Plan plan = checked(testing::dgx_1v(), 0);
  EXPECT_EQ(plan.rate, 2);
  EXPECT_FALSE(plan.optimal());
  EXPECT_EQ(depth(plan.trees[0]), 4);  // both ways round the ring of double links
}

TEST(PlanBroadcast, ReachesTheFullRateOfAStarByAChain) {
  const Plan plan = checked(testing::star(4, 200, "Mbit/s"), 1);
  EXPECT_EQ(plan.bound, 200);
  EXPECT_EQ(plan.rate, 200);
  EXPECT_TRUE(plan.optimal());
  EXPECT_EQ(depth(plan.trees[0]), 3);
}

TEST(PlanBroadcast, CrossesATrunkOnceAndFansOutBehindIt) {
  const Plan plan = checked(parse_topology(json::parse(testing::kTwoRacks)).value(), 0);
  EXPECT_EQ(plan.bound, 100);
  EXPECT_TRUE(plan.optimal());
  EXPECT_EQ(depth(plan.trees[0]), 2);
}

TEST(PlanBroadcast, FillsAStarsTrunksInTurn) {
  // Three racks of three under a core switch, every link alike: one chain through all of them at the full rate.
  Topology topology{.name = "racks", .unit = "Gbit/s", .nodes = {}, .links = {}};
  const auto join = [&](int from, int to) {
    Link link;
    link.from = from;
    link.to = to;
    link.capacity = 10;
    topology.links.push_back(link);
  };
  for (int host = 0; host < 9; ++host) topology.nodes.push_back({testing::numbered("h", host), false});
  for (int rack = 0; rack < 3; ++rack) topology.nodes.push_back({testing::numbered("leaf", rack), true});
  topology.nodes.push_back({"core", true});
  for (int host = 0; host < 9; ++host) join(host, 9 + host % 3);  // interleaved, so the order of names is no help
  for (int rack = 0; rack < 3; ++rack) join(9 + rack, 12);
  for (int root = 0; root < 9; ++root) EXPECT_TRUE(checked(topology, root).optimal()) << root;
}

TEST(PlanBroadcast, LetsAHostThatSendsSlowlyOnlyReceive) {
  Topology topology = testing::star(5, 200, "Mbit/s");
  // h1: fast from the switch, slow to it.
  topology.links[1].duplex = false;
  topology.links[1].capacity = 1;
  Link down = topology.links[1];
  std::swap(down.from, down.to);
  down.capacity = 200;
  topology.links.push_back(down);
  const Plan plan = checked(topology, 0);
  EXPECT_TRUE(plan.optimal());
  EXPECT_EQ(plan.rate, 200);
  EXPECT_TRUE(children(plan.trees[0], 1).empty());
}

TEST(PlanBroadcast, AddsUpParallelLinks) {
  const Topology topology = testing::direct(2, {{0, 1, 3}, {1, 0, 4}});
  const Plan plan = checked(topology, 0);
  EXPECT_EQ(plan.bound, 7);
  EXPECT_TRUE(plan.optimal());
}

TEST(PlanBroadcast, FollowsOneWayLinks) {
  Topology topology = testing::direct(3, {{0, 1, 1}, {1, 2, 1}});
  for (Link& link : topology.links) link.duplex = false;
  EXPECT_EQ(checked(topology, 0).rate, 1);
  EXPECT_EQ(fault(topology, 1), ErrorCode::disconnected);
}

TEST(PlanBroadcast, StaysExactBeyondMachineWords) {
  Topology topology = testing::direct(3, {{0, 1, 1}, {1, 2, 1}, {0, 2, 1}});
  topology.links[0].capacity = parse_rational(std::string(kDigitsMax, '7')).value();
  topology.links[1].capacity = Rational(1, 3);
  topology.links[2].capacity = parse_rational("1/" + std::string(kDigitsMax, '7')).value();
  const Plan plan = checked(topology, 0);
  EXPECT_EQ(plan.bound, Rational(topology.links[1].capacity + topology.links[2].capacity));
  EXPECT_EQ(plan.rate, Rational(1, 3));
}

TEST(PlanBroadcast, ServesOnlyThoseThatTakePart) {
  PlanOptions options;
  options.participants = {4, 0, 3, 1, 2, 3};
  const Plan plan = checked(testing::dgx_1v(), 0, options);
  EXPECT_EQ(plan.bound, 2);
  EXPECT_EQ(plan.participants, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_EQ(to_json(plan, testing::dgx_1v(), 0)["participants"], (json{"h0", "h1", "h2", "h3", "h4"}));
}

TEST(PlanBroadcast, OfALoneRootSendsNothing) {
  const Plan plan = checked(single_switch({"alone"}), 0);
  EXPECT_EQ(plan.rate, 0);
  EXPECT_TRUE(plan.optimal());
  ASSERT_EQ(plan.trees.size(), 1U);
  EXPECT_TRUE(plan.trees[0].edges.empty());
}

TEST(PlanBroadcast, NamesEveryFault) {
  const Topology star = testing::star(3, 1, "Mbit/s");
  EXPECT_EQ(fault(star, -1), ErrorCode::bad_root);
  EXPECT_EQ(fault(star, 4), ErrorCode::bad_root);
  EXPECT_EQ(fault(star, 3), ErrorCode::bad_root);  // the switch
  PlanOptions options;
  options.participants = {1, 2};
  EXPECT_EQ(fault(star, 0, options), ErrorCode::bad_root);
  options.participants = {0, 3};
  EXPECT_EQ(fault(star, 0, options), ErrorCode::unknown_node);
  options.participants = {0, 7};
  EXPECT_EQ(fault(star, 0, options), ErrorCode::unknown_node);
  const Topology halves = testing::direct(4, {{0, 1, 1}, {2, 3, 1}});
  EXPECT_EQ(fault(halves, 0), ErrorCode::disconnected);
  // 1 is between 0 and 2, but takes no part.
  options.participants = {0, 2};
  EXPECT_EQ(fault(testing::direct(3, {{0, 1, 1}, {1, 2, 1}}), 0, options), ErrorCode::disconnected);
  EXPECT_EQ(fault(testing::direct(2, {{0, 1, 0}}), 0), ErrorCode::bad_capacity);
  EXPECT_EQ(fault(Topology{}, 0), ErrorCode::malformed);
}

TEST(PlanBroadcast, IsFlatForSmallBuffersAndFastForLargeOnes) {
  const Topology star = testing::star(16, 200, "Mbit/s");
  const auto planned = [&](double bytes) {
    return checked(star, 0, {.participants = {}, .bytes = bytes, .latency_s = 1e-3});
  };
  const Plan small = planned(1000);
  EXPECT_EQ(depth(small.trees[0]), 1);
  const Plan middle = planned(100e3);
  EXPECT_GT(depth(middle.trees[0]), 1);
  EXPECT_LT(depth(middle.trees[0]), 15);
  const Plan large = planned(1e9);
  EXPECT_EQ(large.rate, 200);
  EXPECT_EQ(depth(large.trees[0]), 15);
}

TEST(PlanBroadcast, GoesByTheRateWhereTheUnitOrTheLatencyIsNotKnown) {
  EXPECT_TRUE(checked(testing::star(8, 1, "links"), 0, {.participants = {}, .bytes = 10, .latency_s = 1}).optimal());
  EXPECT_TRUE(checked(testing::star(8, 1, "Mbit/s"), 0, {.participants = {}, .bytes = 10, .latency_s = 0}).optimal());
}

TEST(PlanBroadcast, CopesWithManyHosts) {
  const Plan plan = checked(testing::star(500, 25, "Gbit/s"), 17);
  EXPECT_TRUE(plan.optimal());
}

TEST(PlanJson, IsInTheWordsOfTheHandbook) {
  const Topology topology = parse_topology(json::parse(R"({"name": "example", "unit": "Mbit/s",
    "nodes": [{"id": "h0"}, {"id": "h1"}, {"id": "sw", "switch": true}, {"id": "h2"}],
    "links": [{"from": "h0", "to": "sw", "capacity": "25/2"}, {"from": "sw", "to": "h1", "capacity": 25},
              {"from": "h1", "to": "h2", "capacity": 13}]})"))
                                .value();
  EXPECT_EQ(to_json(checked(topology, 0), topology, 0.004), json::parse(R"({
    "topology": "example", "op": "broadcast", "unit": "Mbit/s", "rate": "25/2", "bound": "25/2", "optimal": true,
    "certificate": {"kind": "cut", "nodes": ["h1", "sw", "h2"]},
    "trees": [{"rate": "25/2", "root": "h0", "edges": [{"from": "h0", "to": "h1", "path": ["h0", "sw", "h1"]},
                                                       {"from": "h1", "to": "h2"}]}],
    "seconds": 0.004})"));
}

TEST(Operations, AreNamed) {
  for (const char* word : {"broadcast", "reduce", "allreduce", "allgather", "reduce_scatter", "gather", "scatter"}) {
    ASSERT_TRUE(operation_of(word)) << word;
    EXPECT_EQ(name(*operation_of(word)), word);
  }
  EXPECT_EQ(operation_of("shuffle"), std::nullopt);
}

// Random connected topologies, and the answers by enumeration.

// inRange alone stays near its lower end: it grows with the size of the case, which is small for most cases.
int any_in(int from, int end) { return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(from, end)); }

Topology random_topology(int hosts, int switches) {
  Topology topology{.name = "random", .unit = "Mbit/s", .nodes = {}, .links = {}};
  for (int host = 0; host < hosts; ++host) topology.nodes.push_back({testing::numbered("h", host), false});
  for (int node = 0; node < switches; ++node) topology.nodes.push_back({testing::numbered("s", node), true});
  const int count = hosts + switches;
  const auto join = [&](int from, int to, bool duplex) {
    Link link;
    link.from = from;
    link.to = to;
    link.capacity = Rational(any_in(1, 30), any_in(1, 5));
    link.capacity.canonicalize();
    link.duplex = duplex;
    topology.links.push_back(link);
  };
  for (int node = 1; node < count; ++node) join(any_in(0, node), node, true);
  for (int extra = any_in(0, 2 * count); extra > 0; --extra) {
    const int from = any_in(0, count);
    const int to = any_in(0, count);
    if (from != to) join(from, to, *rc::gen::arbitrary<bool>());
  }
  return topology;
}

// Every cut that holds a participant and not the root.
Rational least_cut(const Topology& topology, int root, const std::vector<int>& participants) {
  const auto capacity = capacity_of(topology, participants);
  std::optional<Rational> least;
  for (unsigned bits = 1; bits < 1U << topology.nodes.size(); ++bits) {
    std::set<int> nodes;
    for (int node = 0; node < static_cast<int>(topology.nodes.size()); ++node) {
      if ((bits >> node & 1U) != 0) nodes.insert(node);
    }
    if (nodes.contains(root)) continue;
    if (!std::ranges::any_of(participants, [&](int host) { return nodes.contains(host); })) continue;
    const Rational cut = entering(capacity, nodes);
    if (!least || cut < *least) least = cut;
  }
  return least.value();
}

RC_GTEST_PROP(PlanBroadcast, KeepsItsPromisesOnAnyTopology, ()) {
  const int hosts = any_in(2, 7);
  const Topology topology = random_topology(hosts, any_in(0, 4));
  const int root = any_in(0, hosts);
  PlanOptions options;
  if (*rc::gen::arbitrary<bool>()) options = {.participants = {}, .bytes = 1e5, .latency_s = 1e-3};
  const Plan plan = plan_broadcast(topology, root, options).value();
  RC_ASSERT(broken_promise(topology, root, plan) == "");
  RC_ASSERT(plan.bound == least_cut(topology, root, plan.participants));
  RC_CLASSIFY(topology.nodes.size() > 7, "large");
}

RC_GTEST_PROP(PlanBroadcast, KeepsItsPromisesToAnyParticipants, ()) {
  const int hosts = any_in(2, 7);
  const Topology topology = random_topology(hosts, any_in(0, 3));
  const int root = any_in(0, hosts);
  PlanOptions options;
  options.participants = {root};
  for (int host = 0; host < hosts; ++host) {
    if (*rc::gen::arbitrary<bool>()) options.participants->push_back(host);
  }
  const auto plan = plan_broadcast(topology, root, options);
  if (!plan) {
    RC_ASSERT(plan.error().code == ErrorCode::disconnected);
    return;
  }
  RC_ASSERT(broken_promise(topology, root, *plan) == "");
  if (plan->participants.size() > 1) RC_ASSERT(plan->bound == least_cut(topology, root, plan->participants));
}

// Where no switch is in the way, each link carries one edge of a tree at most: the widest tree is the best there is.
RC_GTEST_PROP(PlanBroadcast, FindsTheWidestTreeOfDirectLinks, ()) {
  const int hosts = any_in(2, 8);
  const Topology topology = random_topology(hosts, 0);
  const Plan plan = plan_broadcast(topology, 0).value();
  // The widest way to each host, relaxed until nothing changes; the tree is as wide as the narrowest of them.
  const auto capacity = capacity_of(topology, plan.participants);
  std::map<int, Rational> width;
  for (int round = 0; round < hosts; ++round) {
    for (const auto& [pair, amount] : capacity) {
      const bool from_root = pair.first == 0;
      if (!from_root && !width.contains(pair.first)) continue;
      const Rational through = from_root ? amount : std::min(amount, width[pair.first]);
      if (pair.second != 0 && through > width[pair.second]) width[pair.second] = through;
    }
  }
  Rational narrowest = plan.bound;
  for (const auto& [node, wide] : width) narrowest = std::min(narrowest, wide);
  RC_ASSERT(plan.rate == narrowest);
}

// Behind one switch the greedy choice is the best choice: as many copies as the uplinks allow.
RC_GTEST_PROP(PlanBroadcast, FindsTheBestTreeOfAStar, ()) {
  const int hosts = any_in(2, 7);
  Topology topology = testing::star(hosts, 1, "Mbit/s");
  for (Link& link : topology.links) link.capacity = any_in(1, 40);
  const Plan plan = plan_broadcast(topology, 0).value();
  const auto feasible = [&](const Rational& rate) {
    int copies = 0;
    for (int host = 0; host < hosts; ++host) {
      const Rational& capacity = topology.links[static_cast<std::size_t>(host)].capacity;
      if (host != 0 && capacity < rate) return false;
      const Rational ratio = capacity / rate;
      const mpz_class whole = ratio.get_num() / ratio.get_den();
      if (host == 0 && whole == 0) return false;
      copies += static_cast<int>(whole.get_si());
    }
    return copies >= hosts - 1;
  };
  Rational best = 0;
  for (const Link& link : topology.links) {
    for (int copies = 1; copies < hosts; ++copies) {
      const Rational rate = link.capacity / copies;
      if (rate > best && feasible(rate)) best = rate;
    }
  }
  RC_ASSERT(plan.rate == best);
}

}  // namespace
}  // namespace coppice::collectives
