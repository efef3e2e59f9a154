#include "actors/collective_relay_state.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "collectives/builtin.hpp"
#include "collectives/verify.hpp"
#include "tests/actors/relay_network.hpp"

using namespace coppice::actors;
using namespace coppice::actors::testing;
using namespace coppice::collectives;

namespace {

// ---- the tests -------------------------------------------------------------------------------------------------------

TEST(CollectiveRelay, EveryOperationOnEveryTypeComesOutRight) {
  const Topology box = dgx_1v();
  unsigned seed = 1;
  for (const Operation operation : kOperations) {
    const PlanRequest request{.operation = operation, .root = 2};
    for (const Element element : kElements) {
      for (const Reduction reduction : {Reduction::sum, Reduction::min, Reduction::max}) {
        if (!combines(operation) && reduction != Reduction::sum) continue;
        auto made = make_case(box, request, element, reduction, 8 * 61, 7);
        Network network(made.program, made.buffers, seed++);
        network.run();
        ASSERT_TRUE(network.done());
        expect_right(made, 2, reduction);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CollectiveRelay, SwitchesRingsAndOddNetworksToo) {
  unsigned seed = 100;
  for (const char* topology : {"star-5", "ring-6", "torus-2x3", "random-7-3", "two-racks", "complete-4"}) {
    const auto network_topology = builtin_topology(topology);
    ASSERT_TRUE(network_topology) << topology;
    for (const Operation operation : kOperations) {
      for (const Planner planner : {Planner::exact, Planner::best_ring, Planner::rs_ag}) {
        if (planner != Planner::exact && operation != Operation::allreduce) continue;
        const PlanRequest request{.operation = operation, .root = hosts(*network_topology)[1], .planner = planner};
        if (const auto plan = make_plan(*network_topology, request); !plan) continue;  // no ring here
        const auto ranks = hosts(*network_topology).size();
        auto made = make_case(*network_topology, request, Element::int32, Reduction::sum, ranks * 37, 5);
        Network network(made.program, made.buffers, seed++);
        network.run();
        ASSERT_TRUE(network.done()) << topology << " " << name(operation);
        expect_right(made, 1, Reduction::sum);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CollectiveRelay, MeansAreDividedOnce) {
  const PlanRequest request{.operation = Operation::allreduce};
  for (const Element element : {Element::float32, Element::int64}) {
    auto made = make_case(dgx_1p(), request, element, Reduction::avg, 100, 3);
    Network network(made.program, made.buffers, 5);
    network.run();
    for (std::size_t at = 0; at < 100; ++at) {
      const int sum = expected_number(Reduction::sum, 8, at);
      if (element == Element::float32) {
        float got;
        std::memcpy(&got, made.out[3].data() + at * 4, 4);
        EXPECT_EQ(got, static_cast<float>(sum) / 8.0F);
      } else {
        std::int64_t got;
        std::memcpy(&got, made.out[3].data() + at * 8, 8);
        EXPECT_EQ(got, sum / 8);
      }
    }
  }
}

TEST(CollectiveRelay, TheSameBitsWhateverTheOrderOfArrival) {
  const PlanRequest request{.operation = Operation::allreduce};
  std::vector<Bytes> first;
  for (unsigned seed = 0; seed < 12; ++seed) {
    auto made = make_case(dgx_1v(), request, Element::float32, Reduction::sum, 999, 20);
    std::mt19937 random(7);
    std::uniform_real_distribution<float> spread(-1, 1);
    for (auto& in : made.in)
      for (std::size_t i = 0; i < made.count; ++i) put(in, i, spread(random) * (i % 3 == 0 ? 1e6F : 1e-3F));
    Network network(made.program, made.buffers, seed);
    network.run();
    ASSERT_TRUE(network.done());
    if (seed == 0) first = made.out;
    EXPECT_EQ(made.out, first) << "seed " << seed;
  }
  for (const auto& out : first) EXPECT_EQ(out, first.front()) << "ranks differ";
}

TEST(CollectiveRelay, InPlaceAndWithinItsWindow) {
  for (const std::int64_t window : {1, 2, 6}) {
    auto made = make_case(dgx_1v(), {.operation = Operation::allreduce}, Element::int64, Reduction::sum, 2'000, 40);
    for (std::size_t rank = 0; rank < made.buffers.size(); ++rank) made.buffers[rank].output = made.buffers[rank].input;
    Network network(made.program, made.buffers, 3, window);
    network.run();
    ASSERT_TRUE(network.done());
    EXPECT_LE(network.widest(), window);
    made.out = made.in;
    expect_right(made, 0, Reduction::sum);
  }
}

TEST(CollectiveRelay, NoChildRunsFarAheadOfAnother) {
  Program program;
  program.operation = Operation::broadcast;
  program.ranks = 3;
  program.root = 0;
  program.bytes = 800;
  program.trees.push_back({0, {}, {{0, 1}, {0, 2}}, {{0, 800}}, 8});
  Bytes bytes(800);
  CollectiveBuffer buffer;
  buffer.input = buffer.output = bytes.data();
  CollectiveRelayState root(program, 0, 0, buffer);
  std::int64_t sent = 0;  // to rank 1
  const auto count = [&](const CollectiveRelayState::Step& step) {
    for (const auto& out : step) sent += out.edge.to == 1 ? 1 : 0;
  };
  count(root.begin());
  EXPECT_EQ(sent, kWindowMax);
  while (true) {
    const auto before = sent;
    count(root.on_ack(1, Way::down, sent, sent));
    if (sent == before) break;
  }
  EXPECT_EQ(sent, kLeadMax * kWindowMax);
  EXPECT_EQ(root.waits_for(), 2) << "not rank 1, which is held back";
  count(root.on_ack(2, Way::down, 1, 1));
  EXPECT_EQ(sent, kLeadMax * kWindowMax + 1);
}

TEST(CollectiveRelay, TreesThatShareALinkShareItsWindow) {
  Program program;
  program.ranks = 3;
  const auto tree = [&](int root, std::vector<RankEdge> up, std::vector<RankEdge> down, std::int64_t bytes = 4'000) {
    program.trees.push_back({root, std::move(up), std::move(down), {{0, bytes}}, 8});
  };
  tree(0, {}, {{0, 1, "a", "b"}, {0, 2}});
  EXPECT_EQ(window_of(program, {0, 1, "a", "b"}), kWindowMax);
  for (int i = 0; i < 3; ++i) tree(0, {{0, 1, "a", "b"}}, {});
  EXPECT_EQ(window_of(program, {0, 1, "a", "b"}), 3);
  for (int i = 0; i < 20; ++i) tree(0, {}, {{0, 1, "a", "b"}}, 8);
  EXPECT_EQ(window_of(program, {0, 1, "a", "b"}), 3) << "trees of a few bytes are no company";
  EXPECT_EQ(window_of(program, {0, 1, "a", "c"}), kWindowMax) << "a link beside it";
  EXPECT_EQ(window_of(program, {1, 0, "b", "a"}), kWindowMax) << "the other way";
  for (int i = 0; i < 50; ++i) tree(0, {}, {{0, 1, "a", "b"}});
  EXPECT_EQ(window_of(program, {0, 1, "a", "b"}), kWindowMin);
}

// Trees are given up at a random moment, several times over, and what is left takes new trees on links that have changed.
// Callers that have their result are told, and use their buffers for something else at once.
TEST(CollectiveRelay, BreaksOffAnywhereAndGoesOnOverOtherTrees) {
  std::mt19937 random(11);
  int resumed = 0, over_early = 0;
  for (int round = 0; round < 400; ++round) {
    const Operation operation = kOperations[static_cast<std::size_t>(round) % std::size(kOperations)];
    const bool commits = operation == Operation::reduce || operation == Operation::reduce_scatter;
    Topology box = dgx_1v();
    const int root = static_cast<int>(random() % 8);
    auto made = make_case(box, {.operation = operation, .root = root}, Element::int64, Reduction::sum, 8 * 50, 6);
    if (operation == Operation::allreduce && round % 2 == 0) {  // in place, as most callers do
      for (std::size_t rank = 0; rank < 8; ++rank) {
        std::ranges::copy(made.in[rank], made.out[rank].begin());
        made.buffers[rank].input = made.buffers[rank].output;
      }
    }
    auto results = made.out;  // of callers that were told early
    std::vector<bool> over(8, false);
    auto program = made.program;
    for (int attempt = 0;; ++attempt) {
      ASSERT_LT(attempt, 60) << name(operation);
      Network network(program, made.buffers, static_cast<unsigned>(random()));
      network.run(static_cast<std::int64_t>(random() % 200) * (attempt + 1));
      const bool all_done = network.done();
      std::vector<RankProgress> progress;
      for (int rank = 0; rank < 8; ++rank) {
        const auto at = static_cast<std::size_t>(rank);
        if (!over[at] && (all_done || (!commits && network.done(rank) && random() % 2 == 0))) {
          over[at] = true;
          over_early += all_done ? 0 : 1;
          results[at] = made.out[at];
          std::ranges::fill(made.out[at], std::byte{0xee});
          std::ranges::fill(made.in[at], std::byte{0xee});
          made.buffers[at].input = made.buffers[at].output = nullptr;
        }
        progress.push_back({over[at], network.known(rank)});
      }
      if (all_done) break;
      // A link fails or comes back.
      box = dgx_1v();
      box.links.erase(box.links.begin() + static_cast<std::ptrdiff_t>(random() % box.links.size()));
      const auto next = resume(
          program, progress, root,
          [&](Operation what, int from) { return make_plan(box, {.operation = what, .root = from}); }, hosts(box), box, 6);
      ASSERT_TRUE(next) << name(operation) << ": " << next.error().what;
      ASSERT_TRUE(check(*next)) << check(*next).error().what;
      program = *next;
      ++resumed;
    }
    made.out = results;
    expect_right(made, root, Reduction::sum);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(resumed, 400);
  EXPECT_GT(over_early, 50);
}

TEST(CollectiveRelay, TakesNothingFromStrangersNothingTwiceAndNothingOfAWrongSize) {
  auto made = make_case(dgx_1p(), {.operation = Operation::broadcast, .root = 0}, Element::bytes, Reduction::sum, 800, 4);
  const auto& tree = made.program.trees.front();
  const RankEdge edge = tree.down.front();  // root -> its first child
  CollectiveRelayState relay(made.program, 0, edge.to, made.buffers[static_cast<std::size_t>(edge.to)]);
  relay.begin();
  const auto chunk = [&](std::int64_t index) {
    return SharedBytes::copy_of(Bytes(static_cast<std::size_t>(chunk_at(tree, index).bytes)));
  };
  EXPECT_TRUE(relay.on_chunk((edge.to + 1) % 8 == edge.from ? 7 : (edge.to + 1) % 8, Way::down, 0, chunk(0)).empty());
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::up, 0, chunk(0)).empty());
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::down, 1, chunk(1)).empty());
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::down, -1, chunk(0)).empty());
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::down, 1 << 20, chunk(0)).empty());
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::down, 0, SharedBytes::copy_of(Bytes(3))).empty());
  EXPECT_EQ(relay.known(), 0);
  EXPECT_FALSE(relay.on_chunk(edge.from, Way::down, 0, chunk(0)).empty());
  EXPECT_EQ(relay.known(), 1);
  EXPECT_TRUE(relay.on_chunk(edge.from, Way::down, 0, chunk(0)).empty());
  EXPECT_EQ(relay.waits_for(), edge.from);
}

}  // namespace
