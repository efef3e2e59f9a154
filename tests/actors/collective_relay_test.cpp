#include "actors/collective_relay_state.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <numeric>
#include <random>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/verify.hpp"

using namespace coppice::actors;
using namespace coppice::collectives;

namespace {

// ---- a network in memory ---------------------------------------------------------------------------------------------

// All relays of a program. Each edge keeps its order; which edge delivers next is drawn from a seed.
class Network {
 public:
  Network(const Program& program, std::vector<CollectiveBuffer> buffers, unsigned seed, std::int64_t window = 0)
      : program_(program), window_(window), random_(seed) {
    for (std::size_t tree = 0; tree < program.trees.size(); ++tree)
      for (int rank = 0; rank < program.ranks; ++rank)
        if (takes_part(program.trees[tree], rank))
          relays_.emplace(std::pair{tree, rank},
                          CollectiveRelayState(program, tree, rank, buffers[static_cast<std::size_t>(rank)], window));
  }

  // Until nothing is on its way, or so many frames have been delivered.
  void run(std::int64_t frames = std::int64_t{1} << 40) {
    for (auto& [key, relay] : relays_) send(key.first, relay.begin());
    for (; !edges_.empty() && frames > 0; --frames) {
      auto edge = edges_.begin();
      std::advance(edge, static_cast<std::ptrdiff_t>(random_() % edges_.size()));
      const auto [tree, from, to] = edge->first;
      auto out = std::move(edge->second.front());
      edge->second.pop_front();
      if (edge->second.empty()) edges_.erase(edge);
      auto& relay = relays_.at({tree, to});
      if (!out.bytes) {
        send(tree, relay.on_ack(from, out.way, out.index, out.arrived));
      } else {
        --on_their_way_[{tree, from, to, out.way}];
        send(tree, relay.on_chunk(from, out.way, out.index, std::move(out.bytes)));
      }
    }
  }

  bool done() const {
    return std::ranges::all_of(relays_, [](const auto& each) { return each.second.done(); });
  }
  std::int64_t widest() const { return widest_; }

  bool done(int rank) const {
    return std::ranges::all_of(relays_, [&](const auto& each) { return each.first.second != rank || each.second.done(); });
  }
  std::vector<std::int64_t> known(int rank) const {
    std::vector<std::int64_t> out(program_.trees.size(), 0);
    for (const auto& [key, relay] : relays_)
      if (key.second == rank) out[key.first] = relay.known();
    return out;
  }

 private:
  void send(std::size_t tree, CollectiveRelayState::Step step) {
    for (auto& out : step) {
      if (out.bytes) {  // a frame of its own, as a socket makes it
        out.bytes = SharedBytes::copy_of(out.bytes.view());
        widest_ = std::max(widest_, ++on_their_way_[{tree, out.edge.from, out.edge.to, out.way}]);
      }
      edges_[{tree, out.edge.from, out.edge.to}].push_back(std::move(out));
    }
  }

  const Program& program_;
  std::int64_t window_, widest_ = 0;
  std::mt19937 random_;
  std::map<std::pair<std::size_t, int>, CollectiveRelayState> relays_;
  std::map<std::tuple<std::size_t, int, int>, std::deque<CollectiveRelayState::Outgoing>> edges_;
  std::map<std::tuple<std::size_t, int, int, Way>, std::int64_t> on_their_way_;
};

// ---- what comes in and what should come out --------------------------------------------------------------------------

using Bytes = std::vector<std::byte>;

template <class T>
void put(Bytes& into, std::size_t at, T value) {
  std::memcpy(into.data() + at * sizeof(T), &value, sizeof(T));
}

// A small whole number as the element has it: sums of a few are exact in every type.
void put_number(Element element, Bytes& into, std::size_t at, int value) {
  std::ranges::copy(elements_of(element, std::span(&value, 1)), into.begin() + static_cast<std::ptrdiff_t>(at * size_of(element)));
}

int input_number(int rank, std::size_t at) { return static_cast<int>((at * 5 + static_cast<std::size_t>(rank) * 3) % 13); }

int expected_number(Reduction reduction, int ranks, std::size_t at) {
  int sum = 0, least = 1 << 20, most = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const int value = input_number(rank, at);
    sum += value;
    least = std::min(least, value);
    most = std::max(most, value);
  }
  return reduction == Reduction::min ? least : reduction == Reduction::max ? most : sum;
}

struct Case {
  Program program;
  std::size_t count = 0;         // elements of the whole buffer
  std::vector<Bytes> in, out;    // of each rank
  std::vector<CollectiveBuffer> buffers;
};

// Every rank has a whole buffer for input and another for output; what it does not hold at first is 99s.
Case make_case(const Topology& topology, const PlanRequest& request, Element element, Reduction reduction,
               std::size_t count, std::int64_t chunks) {
  Case made;
  const auto plan = make_plan(topology, request);
  EXPECT_TRUE(plan) << plan.error().what;
  const auto size = size_of(element);
  const auto program = make_program(
      *plan, topology,
      {.element = element, .reduction = reduction, .bytes = static_cast<std::int64_t>(count * size), .chunks = chunks});
  EXPECT_TRUE(program) << program.error().what;
  const auto checked = check(*program);
  EXPECT_TRUE(checked) << checked.error().what;
  made.program = *program;
  made.count = count;
  for (int rank = 0; rank < program->ranks; ++rank) {
    Bytes in(count * size), out(count * size, std::byte{0x63});
    for (std::size_t i = 0; i < count; ++i) put_number(element, in, i, input_number(rank, i));
    made.in.push_back(std::move(in));
    made.out.push_back(std::move(out));
  }
  for (std::size_t rank = 0; rank < made.in.size(); ++rank)
    made.buffers.push_back({nullptr, made.in[rank].data(), 0, made.out[rank].data(), 0});
  return made;
}

// The number that rank should hold at `at`; nothing: whatever was there.
std::optional<int> wanted(const Case& made, int root, int rank, std::size_t at, Reduction reduction) {
  const auto& program = made.program;
  const auto offset = static_cast<std::int64_t>(at * size_of(program.element));
  const auto owner = [&] {
    for (int r = 0; r < program.ranks; ++r) {
      const auto part = part_of(program, r);
      if (offset >= part.offset && offset < part.offset + part.bytes) return r;
    }
    return -1;
  };
  switch (program.operation) {
    case Operation::broadcast: return input_number(root, at);
    case Operation::reduce: return rank == root ? std::optional(expected_number(reduction, program.ranks, at)) : std::nullopt;
    case Operation::allreduce: return expected_number(reduction, program.ranks, at);
    case Operation::allgather: return input_number(owner(), at);
    case Operation::reduce_scatter:
      return rank == owner() ? std::optional(expected_number(reduction, program.ranks, at)) : std::nullopt;
    case Operation::gather: return rank == root && owner() != root ? std::optional(input_number(owner(), at)) : std::nullopt;
    case Operation::scatter: return rank == owner() && rank != root ? std::optional(input_number(root, at)) : std::nullopt;
  }
  return std::nullopt;
}

void expect_right(const Case& made, int root, Reduction reduction) {
  const auto size = size_of(made.program.element);
  for (int rank = 0; rank < made.program.ranks; ++rank) {
    Bytes right(size);
    for (std::size_t at = 0; at < made.count; ++at) {
      const auto value = wanted(made, root, rank, at, reduction);
      if (value) put_number(made.program.element, right, 0, *value);
      const std::byte* got = made.out[static_cast<std::size_t>(rank)].data() + at * size;
      const Bytes untouched(size, std::byte{0x63});
      ASSERT_EQ(std::memcmp(got, value ? right.data() : untouched.data(), size), 0)
          << name(made.program.operation) << " of " << name(made.program.element) << " by " << name(reduction) << ", rank "
          << rank << ", element " << at;
    }
  }
}

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
