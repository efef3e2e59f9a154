#include "collectives/flow.hpp"

#include <gtest/gtest.h>

#include <random>

#include "collectives/min_cut.hpp"

namespace coppice::collectives {
namespace {

struct Sample {
  int nodes;
  std::vector<Arc> arcs;
  std::vector<char> source;
};

Sample sample(std::uint32_t seed) {
  std::mt19937 rng(seed);
  const auto below = [&](int end) { return static_cast<int>(rng() % static_cast<std::uint32_t>(end)); };
  Sample random{.nodes = 2 + below(12), .arcs = {}, .source = {}};
  for (int arc = below(5 * random.nodes); arc >= 0; --arc) {
    const int from = below(random.nodes);
    const int to = below(random.nodes);
    if (from != to) random.arcs.push_back({from, to, 1 + below(20)});
  }
  for (int node = 0; node < random.nodes; ++node) random.source.push_back(node == 0 || below(6) == 0 ? 1 : 0);
  random.source.back() = 0;
  return random;
}

template <class Value>
void agrees_with_lemon(const Sample& random, const Value& unit) {
  FlowGraph<Value> flow(random.nodes);
  for (const Arc& arc : random.arcs) flow.add_arc(arc.from, arc.to, Value(unit * arc.units.get_si()));
  std::vector<int> sources;
  for (int node = 0; node < random.nodes; ++node) {
    if (random.source[static_cast<std::size_t>(node)] != 0) sources.push_back(node);
  }
  const int sink = random.nodes - 1;
  const MinCut cut = min_cut(random.nodes, random.arcs, random.source, sink);
  const std::vector<int> sinks = {sink};
  const Value limit = unit * 100'000;
  EXPECT_EQ(flow.max_flow(sources, sinks, limit), Value(unit * cut.units.get_si()));
  // Both of its cuts have the flow's value.
  for (const bool near : {false, true}) {
    const std::vector<char> side = near ? flow.sink_side() : flow.source_side();
    mpz_class crossing = 0;
    for (const Arc& arc : random.arcs) {
      const bool from = (side[static_cast<std::size_t>(arc.from)] != 0) != near;
      const bool to = (side[static_cast<std::size_t>(arc.to)] != 0) != near;
      if (from && !to) crossing += arc.units;
    }
    EXPECT_EQ(crossing, cut.units);
  }
  if (cut.units > 1) {
    EXPECT_EQ(flow.max_flow(sources, sinks, unit), unit);  // never more than was asked for
  }
}

TEST(Flow, AgreesWithLemonOnRandomGraphs) {
  for (std::uint32_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    const Sample random = sample(seed);
    agrees_with_lemon<std::int64_t>(random, 1);
    agrees_with_lemon<mpz_class>(random, mpz_class("1000000000000000000000000000000"));
  }
}

TEST(Flow, IsAskedAgainAfterCapacitiesChange) {
  FlowGraph<std::int64_t> flow(3);
  const int first = flow.add_arc(0, 1, 5);
  flow.add_arc(1, 2, 4);
  const std::vector<int> sources = {0};
  const std::vector<int> sinks = {2};
  EXPECT_EQ(flow.max_flow(sources, sinks, 100), 4);
  EXPECT_EQ(flow.flow_on(first), 4);
  flow.set_capacity(first, 3);
  EXPECT_EQ(flow.max_flow(sources, sinks, 100), 3);
}

}  // namespace
}  // namespace coppice::collectives
