#include "collectives/planner.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "collectives/builtin.hpp"
#include "collectives/verify.hpp"
#include "tests/collectives/optima.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

PlanRequest request_of(Operation operation, std::optional<int> root = std::nullopt) {
  PlanRequest request;
  request.operation = operation;
  request.root = root;
  return request;
}

// The plan, verified, and verified again after a way through JSON.
Plan planned(const Topology& topology, const PlanRequest& request) {
  auto plan = make_plan(topology, request);
  EXPECT_TRUE(plan) << topology.name << " " << name(request.operation) << ": " << plan.error().what;
  if (!plan) return {};
  const auto held = verify(*plan, topology);
  EXPECT_TRUE(held) << topology.name << " " << name(request.operation) << ": " << held.error().what;
  const auto read = parse_plan(to_json(*plan, topology, 0), topology);
  EXPECT_TRUE(read) << read.error().what;
  EXPECT_TRUE(read && verify(*read, topology));
  return *std::move(plan);
}

Plan exactly(const Topology& topology, Operation operation, std::optional<int> root = std::nullopt) {
  Plan plan = planned(topology, request_of(operation, root));
  EXPECT_TRUE(plan.optimal()) << topology.name << " " << name(operation) << ": " << to_string(plan.rate) << " of "
                              << to_string(plan.bound);
  return plan;
}

Rational rate(const char* topology, Operation operation) {
  return exactly(builtin_topology(topology).value(), operation).rate;
}

Topology without_link(Topology topology, std::size_t link) {
  topology.links.erase(topology.links.begin() + static_cast<std::ptrdiff_t>(link));
  return topology;
}

TEST(Planner, ReachesTheKnownOptimaOfMachines) {
  EXPECT_EQ(rate("dgx-1p", Operation::broadcast), 4);
  EXPECT_EQ(rate("dgx-1p", Operation::allgather), Rational(32, 7));
  EXPECT_EQ(rate("dgx-1p", Operation::allreduce), Rational(16, 7));
  EXPECT_EQ(rate("dgx-1v", Operation::broadcast), 6);
  EXPECT_EQ(rate("dgx-1v", Operation::allgather), Rational(48, 7));
  EXPECT_EQ(rate("dgx-1v", Operation::allreduce), Rational(24, 7));
  EXPECT_EQ(rate("dgx-2", Operation::allgather), 160);
  EXPECT_EQ(rate("dgx-2", Operation::allreduce), 80);
  EXPECT_EQ(rate("dgx-a100", Operation::allgather), Rational(2400, 7));
  EXPECT_EQ(rate("dgx-a100x2", Operation::allgather), Rational(1040, 3));
  EXPECT_EQ(rate("dgx-a100x2", Operation::allreduce), Rational(520, 3));
  EXPECT_EQ(rate("dgx-a100x4", Operation::allgather), Rational(800, 3));
  EXPECT_EQ(rate("dgx-a100x4", Operation::allreduce), Rational(400, 3));
  EXPECT_EQ(rate("mi250", Operation::allgather), Rational(2400, 7));
  EXPECT_EQ(rate("mi250x2", Operation::allgather), Rational(5312, 15));
  EXPECT_EQ(rate("mi250x2", Operation::allreduce), Rational(2656, 15));
}

// What facts tell of the 14 and 46 allocations: three or more GPUs that NVLinks join, up to isomorphism.
TEST(Planner, IsExactOnEveryAllocationOfADgx1) {
  for (const auto& [machine, classes, above] : {std::tuple(dgx_1p(), 14U, 9), std::tuple(dgx_1v(), 46U, 43)}) {
    const auto allocations = allocation_classes(machine, 3, 8);
    EXPECT_EQ(allocations.size(), classes);
    int better = 0;
    for (const auto& hosts : allocations) {
      const Topology allocation = without_others(machine, hosts);
      testing::Optima optima(allocation);
      for (int root = 0; root < static_cast<int>(hosts.size()); ++root) {
        const Plan plan = exactly(allocation, Operation::broadcast, root);
        EXPECT_EQ(plan.rate, optima.broadcast(root, false));
        EXPECT_LE(plan.trees.size(), 4U);
        EXPECT_GE(static_cast<int>(plan.trees.size()), plan.trees_bound);
      }
      const Plan gathered = exactly(allocation, Operation::allgather);
      const Plan reduced = exactly(allocation, Operation::allreduce);
      EXPECT_EQ(gathered.rate, optima.allgather(false));
      EXPECT_EQ(reduced.rate, optima.allreduce());
      better += reduced.rate > gathered.rate / 2 ? 1 : 0;
    }
    EXPECT_EQ(better, above) << machine.name;
  }
}

// A link, a pair or a GPU lost, of every allocation: what is left is planned exactly as long as it hangs together.
TEST(Planner, IsExactOnDegradedAllocations) {
  int planned_of = 0;
  for (const Topology& machine : {dgx_1p(), dgx_1v()}) {
    for (const auto& hosts : allocation_classes(machine, 3, 8)) {
      const Topology allocation = without_others(machine, hosts);
      std::vector<Topology> degraded;
      for (std::size_t link = 0; link < allocation.links.size(); ++link) {
        degraded.push_back(without_link(allocation, link));
        if (allocation.links[link].capacity > 1) {
          degraded.push_back(allocation);
          degraded.back().links[link].capacity -= 1;
        }
      }
      for (const int lost : hosts) {
        std::vector<int> left = hosts;
        std::erase(left, lost);
        degraded.push_back(without_others(machine, left));
      }
      for (const Topology& each : degraded) {
        const auto plan = make_plan(each, request_of(Operation::allreduce));
        if (!plan) {
          EXPECT_EQ(plan.error().code, ErrorCode::disconnected);
          continue;
        }
        ++planned_of;
        testing::Optima optima(each);
        EXPECT_TRUE(verify(*plan, each));
        EXPECT_EQ(plan->rate, optima.allreduce());
        EXPECT_EQ(exactly(each, Operation::broadcast).rate, optima.broadcast(0, false));
        EXPECT_EQ(exactly(each, Operation::allgather).rate, optima.allgather(false));
      }
    }
  }
  EXPECT_GT(planned_of, 500);
}

TEST(Planner, GainsOnDegradedDgx1) {
  // One double pair lost: 22/7 instead of 16/7 (facts); one sub-link: 23/7.
  Topology lost = without_link(dgx_1v(), 0);
  EXPECT_EQ(exactly(lost, Operation::allreduce).rate, Rational(22, 7));
  Topology thinner = dgx_1v();
  thinner.links[0].capacity = 1;
  EXPECT_EQ(exactly(thinner, Operation::allreduce).rate, Rational(23, 7));
  EXPECT_EQ(exactly(without_link(dgx_1p(), 0), Operation::allreduce).rate, Rational(15, 7));
}

// A star whose one network card is at a fraction a of the others: min(a, (p - 1 + a) / 2 (p - 1)).
TEST(Planner, PassesASlowCardBy) {
  for (const int hosts : {4, 8, 16}) {
    for (const Rational& slow : {Rational(1, 2), Rational(3, 4), Rational(9, 10), Rational(99, 100)}) {
      Topology star = testing::star(hosts, 1, "links");
      star.links[0].capacity = slow;
      const Rational balanced((hosts - 1 + slow) / Rational(2 * (hosts - 1)));
      EXPECT_EQ(exactly(star, Operation::allreduce).rate, std::min(slow, balanced)) << hosts << " " << to_string(slow);
    }
  }
}

#ifdef __SANITIZE_ADDRESS__
constexpr std::uint32_t kShare = 20;  // of the random graphs only one in twenty: each costs ten times as much
#else
constexpr std::uint32_t kShare = 1;
#endif

// 10,000 graphs without switches: the rate is the bound worked out by enumeration.
TEST(Planner, IsExactOnRandomGraphs) {
  for (std::uint32_t seed = 1; seed <= 10'000 / kShare; ++seed) {
    SCOPED_TRACE(seed);
    RandomShape shape;
    shape.hosts = 2 + static_cast<int>(seed % 5);
    shape.symmetric = seed % 3 != 0;
    shape.denominator_max = seed % 2 == 0 ? 1 : 5;
    shape.density = 0.2 + 0.1 * (seed % 7);
    const Topology topology = random_topology(shape, seed);
    testing::Optima optima(topology);
    const int root = static_cast<int>(seed) % shape.hosts;
    for (const Operation operation : kOperations) {
      const Rational rate = exactly(topology, operation, root).rate;
      switch (operation) {
        case Operation::broadcast:
        case Operation::reduce:
          EXPECT_EQ(rate, optima.broadcast(root, operation == Operation::reduce));
          break;
        case Operation::scatter:
        case Operation::gather:
          EXPECT_EQ(rate, optima.scatter(root, operation == Operation::gather));
          break;
        case Operation::allgather:
        case Operation::reduce_scatter:
          EXPECT_EQ(rate, optima.allgather(operation == Operation::reduce_scatter));
          break;
        case Operation::allreduce:
          EXPECT_LE(rate, optima.allreduce());
          EXPECT_TRUE(!shape.symmetric || rate == optima.allreduce());
          break;
      }
    }
  }
}

// Balanced switches cost nothing: the same bounds are reached through them.
TEST(Planner, IsExactThroughSwitches) {
  for (std::uint32_t seed = 1; seed <= 1000 / kShare; ++seed) {
    SCOPED_TRACE(seed);
    RandomShape shape;
    shape.hosts = 2 + static_cast<int>(seed % 4);
    shape.switches = 1 + static_cast<int>(seed % 3);
    shape.density = 0.3 + 0.1 * (seed % 5);
    const Topology topology = random_topology(shape, seed);
    const testing::Optima optima(topology);
    EXPECT_EQ(exactly(topology, Operation::broadcast, 0).rate, optima.broadcast(0, false));
    EXPECT_EQ(exactly(topology, Operation::allgather).rate, optima.allgather(false));
    EXPECT_EQ(exactly(topology, Operation::scatter, 0).rate, optima.scatter(0, false));
    EXPECT_GE(exactly(topology, Operation::allreduce).rate, optima.allgather(false) / 2);
  }
}

// Where more can leave a switch than can enter it, the cut is out of reach and the dual says so.
TEST(Planner, ProvesWhatASwitchCannotCopy) {
  for (std::uint32_t seed = 1; seed <= 500 / kShare; ++seed) {
    SCOPED_TRACE(seed);
    RandomShape shape;
    shape.hosts = 2 + static_cast<int>(seed % 4);
    shape.switches = 1 + static_cast<int>(seed % 3);
    shape.symmetric = false;
    shape.density = 0.3 + 0.1 * (seed % 5);
    const Topology topology = random_topology(shape, seed);
    const testing::Optima optima(topology);
    for (const Operation operation : kOperations) exactly(topology, operation);
    EXPECT_LE(exactly(topology, Operation::broadcast, 0).rate, optima.broadcast(0, false));
  }
  // One host feeds a switch by 1; it could pass 1 to each of two hosts, but has only one copy.
  Topology fan{
      .name = "fan", .unit = "links", .nodes = {{"h0", false}, {"h1", false}, {"h2", false}, {"s", true}}, .links = {}};
  for (const auto& [from, to] : {std::pair(0, 3), std::pair(3, 1), std::pair(3, 2)}) {
    Link link;
    link.from = from;
    link.to = to;
    link.capacity = 1;
    link.duplex = false;
    fan.links.push_back(link);
  }
  EXPECT_EQ(exactly(fan, Operation::broadcast, 0).rate, Rational(1, 2));
}

TEST(Planner, KeepsToTheGrain) {
  const std::vector<std::pair<int, Rational>> expected = {{1, 3}, {2, 3}, {3, Rational(10, 3)}, {7, Rational(24, 7)}};
  for (const auto& [grain, rate] : expected) {
    PlanRequest request = request_of(Operation::allreduce);
    request.grain = grain;
    const Plan plan = planned(dgx_1v(), request);
    EXPECT_EQ(plan.rate, rate) << grain;
    EXPECT_EQ(plan.bound, Rational(24, 7));
    for (const Tree& tree : plan.trees) EXPECT_EQ(Rational(tree.rate * grain).get_den(), 1);
  }
  for (const char* topology : {"dgx-1v", "dgx-2", "dgx-a100x2", "two-racks"}) {
    for (const Operation operation : kOperations) {
      PlanRequest request = request_of(operation);
      request.grain = 2;
      for (const Tree& tree : planned(builtin_topology(topology).value(), request).trees) {
        EXPECT_EQ(Rational(tree.rate * 2).get_den(), 1);
      }
    }
  }
  PlanRequest request = request_of(Operation::broadcast);
  request.grain = 1;
  const auto thin = make_plan(testing::star(3, Rational(1, 2), "links"), request);
  ASSERT_FALSE(thin);
  EXPECT_EQ(thin.error().code, ErrorCode::not_planned);
}

TEST(Planner, StaysExactBeyondMachineWords) {
  Topology topology = testing::direct(4, {{0, 1, 1}, {1, 2, 1}, {0, 2, 1}, {2, 3, 1}, {0, 3, 1}});
  topology.links[0].capacity = parse_rational(std::string(kDigitsMax, '7')).value();
  topology.links[1].capacity = Rational(1, 3);
  topology.links[2].capacity = parse_rational("1/" + std::string(kDigitsMax, '7')).value();
  for (const Operation operation : kOperations) exactly(topology, operation);
}

TEST(Planner, OfALoneHostSendsNothing) {
  for (const Operation operation : kOperations) {
    const Plan plan = exactly(single_switch({"alone"}), operation);
    EXPECT_EQ(plan.rate, 0);
  }
}

TEST(Planner, ServesOnlyThoseThatTakePart) {
  for (const Operation operation : kOperations) {
    PlanRequest request = request_of(operation);
    request.participants = {6, 5, 7, 4};
    const Plan plan = planned(dgx_1v(), request);
    EXPECT_EQ(plan.participants, (std::vector<int>{4, 5, 6, 7}));
    EXPECT_TRUE(plan.optimal());
    // Of a switched machine, those left out relay nothing either.
    const Topology switched = builtin_topology("dgx-a100x2").value();
    const std::vector<int> all = hosts(switched);
    request.participants = {all[0], all[2], all[5], all[8], all[9], all[15]};
    EXPECT_TRUE(planned(switched, request).optimal());
  }
}

TEST(Planner, NamesEveryFault) {
  const auto fault = [](const Topology& topology, const PlanRequest& request) {
    const auto plan = make_plan(topology, request);
    EXPECT_FALSE(plan);
    return plan ? ErrorCode::malformed : plan.error().code;
  };
  const Topology star = testing::star(3, 1, "links");
  EXPECT_EQ(fault(star, request_of(Operation::broadcast, 3)), ErrorCode::bad_root);
  EXPECT_EQ(fault(star, request_of(Operation::reduce, 9)), ErrorCode::bad_root);
  const Topology halves = testing::direct(4, {{0, 1, 1}, {2, 3, 1}});
  for (const Operation operation : kOperations)
    EXPECT_EQ(fault(halves, request_of(operation)), ErrorCode::disconnected);
  Topology one_way = testing::direct(3, {{0, 1, 1}, {1, 2, 1}});
  for (Link& link : one_way.links) link.duplex = false;
  EXPECT_TRUE(make_plan(one_way, request_of(Operation::broadcast, 0)));
  EXPECT_TRUE(make_plan(one_way, request_of(Operation::reduce, 2)));
  EXPECT_EQ(fault(one_way, request_of(Operation::reduce, 0)), ErrorCode::disconnected);
  EXPECT_EQ(fault(one_way, request_of(Operation::allreduce)), ErrorCode::disconnected);
}

// Every way to spoil a plan is noticed.
TEST(Verify, NoticesWhatIsBroken) {
  const Topology topology = dgx_1v();
  const auto spoiled = [&](Operation operation, const auto& spoil) {
    Plan plan = exactly(topology, operation);
    spoil(plan);
    const auto held = verify(plan, topology);
    EXPECT_FALSE(held);
  };
  spoiled(Operation::broadcast, [](Plan& plan) { plan.rate += 1; });
  spoiled(Operation::broadcast, [](Plan& plan) { plan.bound += 1; });
  spoiled(Operation::broadcast, [](Plan& plan) { plan.trees[0].edges.pop_back(); });
  spoiled(Operation::broadcast, [](Plan& plan) { plan.trees[0].rate += 1, plan.rate += 1, plan.bound += 1; });
  spoiled(Operation::broadcast, [](Plan& plan) { std::get<Cut>(plan.certificate).nodes = {0}; });
  spoiled(Operation::broadcast, [](Plan& plan) { std::swap(plan.trees[0].edges.front(), plan.trees[0].edges.back()); });
  spoiled(Operation::allreduce, [](Plan& plan) { std::get<Partition>(plan.certificate).parts.pop_back(); });
  spoiled(Operation::allreduce,
          [](Plan& plan) { plan.trees.push_back(plan.trees[0]), plan.rate += plan.trees[0].rate; });
  spoiled(Operation::allgather, [](Plan& plan) { plan.trees.pop_back(); });
  spoiled(Operation::scatter, [](Plan& plan) { plan.trees[0].target.reset(); });
  const Topology switched = builtin_topology("dgx-2").value();
  Plan plan = exactly(switched, Operation::allreduce);
  std::get<Dual>(plan.certificate).price[0].price /= 2;
  EXPECT_FALSE(verify(plan, switched));
  plan = exactly(switched, Operation::allreduce);
  std::get<Dual>(plan.certificate).out[0].weight /= 2;
  EXPECT_FALSE(verify(plan, switched));
}

TEST(ParsePlan, RefusesWhatIsNoPlan) {
  const Topology topology = dgx_1v();
  const nlohmann::json good = to_json(exactly(topology, Operation::allreduce), topology, 0);
  const nlohmann::json flat = good.flatten();
  int refused = 0;
  for (const auto& [pointer, unused] : flat.items()) {
    for (const nlohmann::json& value : {nlohmann::json(nullptr), nlohmann::json("x"), nlohmann::json("1/0"),
                                        nlohmann::json(-1), nlohmann::json::array(), nlohmann::json::object()}) {
      nlohmann::json mutated = good;
      mutated[nlohmann::json::json_pointer(pointer)] = value;
      const auto plan = parse_plan(mutated, topology);
      if (!plan || !verify(*plan, topology)) ++refused;
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_FALSE(parse_plan(nlohmann::json::array(), topology));
}

TEST(Builtin, AreValidAndOfTheirSizes) {
  const std::vector<std::pair<const char*, std::size_t>> expected = {
      {"dgx-1p", 8},       {"dgx-1v", 8},      {"dgx-1v-pcie", 8}, {"dgx-2", 16},      {"dgx-a100", 8},
      {"dgx-a100x4", 32},  {"h100x2", 16},     {"mi250", 16},      {"mi250x2", 32},    {"two-racks", 8},
      {"two-racksx3", 6},  {"fat-tree-4", 16}, {"torus-3x4", 12},  {"torus-2x2x2", 8}, {"random-12", 12},
      {"random-12-9", 12}, {"star-5", 5},      {"ring-6", 6},      {"complete-7", 7}};
  for (const auto& [name, count] : expected) {
    const auto topology = builtin_topology(name);
    ASSERT_TRUE(topology) << name;
    EXPECT_EQ(hosts(*topology).size(), count) << name;
    EXPECT_TRUE(make_plan(*topology, request_of(Operation::broadcast))) << name;
  }
  for (const char* name : {"", "dgx", "dgx-3", "torus-", "torus-1x4", "torus-4000x4000", "fat-tree-3", "random-0",
                           "dgx-a100x0", "dgx-a100x9999", "star-0", "complete-99999", "random-5-5-5", "torus-4xx4"}) {
    EXPECT_FALSE(builtin_topology(name)) << name;
  }
  EXPECT_EQ(random_topology({}, 7), random_topology({}, 7));
}

}  // namespace
}  // namespace coppice::collectives
