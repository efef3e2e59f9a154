// How long planning takes and how it grows: planner_bench [--benchmark_filter=…]. Each case checks its plan: a plan
// that is not verified, or not exact where it must be, is an error. Counters: trees, depth, and the gap to the bound in
// percent.
#include <benchmark/benchmark.h>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/verify.hpp"

namespace coppice::collectives {
namespace {

void measure(benchmark::State& state, const Topology& topology, Operation operation) {
  PlanRequest request;
  request.operation = operation;
  Plan plan;
  for (auto _ : state) {
    auto made = make_plan(topology, request);
    if (!made) return state.SkipWithError(made.error().what.c_str());
    plan = *std::move(made);
  }
  if (const auto held = verify(plan, topology); !held) return state.SkipWithError(held.error().what.c_str());
  int deepest = 0;
  for (const Tree& tree : plan.trees) deepest = std::max(deepest, depth(tree));
  state.counters["trees"] = static_cast<double>(plan.trees.size());
  state.counters["depth"] = deepest;
  state.counters["gap%"] = Rational((plan.bound - plan.rate) / plan.bound * 100).get_d();
}

// Random links of 1 to 10, six to a host, or of fractions with denominators up to 7.
Topology random_direct(int hosts, bool fractions) {
  RandomShape shape;
  shape.hosts = hosts;
  shape.density = std::min(1.0, 6.0 / hosts);
  shape.denominator_max = fractions ? 7 : 1;
  return random_topology(shape, 1);
}

// A network card, a link and a whole box's links below what they should be: symmetric no more than a real machine is.
Topology worn(const std::string& name) {
  Topology topology = builtin_topology(name).value();
  topology.links[1].capacity *= Rational(1, 2);
  topology.links[topology.links.size() / 2].capacity *= Rational(3, 4);
  topology.links.back().capacity *= Rational(7, 8);
  for (Link& link : topology.links) link.capacity.canonicalize();
  return topology;
}

// Each direction of each link of its own width: no switch is balanced.
Topology lopsided(int hosts, int switches) {
  RandomShape shape;
  shape.hosts = hosts;
  shape.switches = switches;
  shape.symmetric = false;
  shape.density = 5.0 / (hosts + switches);
  return random_topology(shape, 1);
}

void add(const std::string& name, const Topology& topology, const std::vector<Operation>& operations) {
  for (const Operation operation : operations) {
    benchmark::RegisterBenchmark((std::string(collectives::name(operation)) + "/" + name).c_str(), measure, topology,
                                 operation)
        ->Unit(benchmark::kMillisecond);
  }
}

void add_all() {
  const std::vector<Operation> three = {Operation::broadcast, Operation::allgather, Operation::allreduce};
  add("dgx-1p", dgx_1p(), three);
  add("dgx-1v", dgx_1v(), three);
  for (const int hosts : {8, 16, 32, 64, 128}) {
    const std::string count = std::to_string(hosts);
    add("direct-random-" + count, random_direct(hosts, false), three);
    add("direct-fractions-" + count, random_direct(hosts, true), three);
    add("direct-torus-" + count, builtin_topology("torus-4x" + std::to_string(hosts / 4)).value(), three);
    add("direct-complete-" + count, builtin_topology("complete-" + count).value(), three);
  }
  for (const char* name : {"dgx-2", "dgx-a100x2", "h100x2", "mi250", "mi250x2", "dgx-a100x4", "h100x4", "fat-tree-4"}) {
    add(std::string("switched-") + name, builtin_topology(name).value(), three);
    add(std::string("switched-worn-") + name, worn(name), three);
  }
  add("switched-lopsided-16", lopsided(16, 4), three);
  add("switched-lopsided-32", lopsided(32, 6), three);
  for (const char* name : {"h100x8", "h100x16", "h100x32", "h100x128", "dgx-a100x128"}) {
    add(std::string("boxes-") + name, builtin_topology(name).value(), three);
    add(std::string("boxes-worn-") + name, worn(name), three);
  }
}

}  // namespace
}  // namespace coppice::collectives

int main(int argc, char** argv) {
  coppice::collectives::add_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
