#include "actors/peer_translation.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "actors/call_layout.hpp"
#include "collectives/builtin.hpp"
#include "tests/actors/relay_network.hpp"

using namespace coppice;
using namespace coppice::actors;
using namespace coppice::actors::testing;
using namespace coppice::collectives;
using gpu::PeerMemory;
using gpu::PeerProgram;
using gpu::PeerStep;

namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// Carries a program out in main memory: which stream goes on is drawn, as far as the steps' orders allow.
class Machine {
 public:
  Machine(const PeerProgram& peers, const Program& program) : peers_(peers), program_(program) {
    for (std::size_t device = 0; device < peers.input.size(); ++device)
      memory_.push_back({Bytes(at(peers.input[device])), Bytes(at(peers.output[device]), std::byte{0x63}),
                         Bytes(at(peers.landing[device]), std::byte{0x55})});
  }
  Bytes& input(int device) { return memory_[at(device)][0]; }
  Bytes& output(int device) { return memory_[at(device)][1]; }
  void in_place() { in_place_ = true; }

  void run(std::mt19937& random) {
    std::vector<std::deque<std::size_t>> streams(peers_.streams.size());
    for (std::size_t step = 0; step < peers_.steps.size(); ++step)
      streams[at(peers_.steps[step].stream)].push_back(step);
    std::vector<bool> over(peers_.steps.size(), false);
    for (std::size_t left = over.size(); left > 0; --left) {
      std::vector<std::size_t> ready;
      for (std::size_t i = 0; i < streams.size(); ++i)
        if (!streams[i].empty() &&
            std::ranges::all_of(peers_.steps[streams[i].front()].after, [&](int s) { return over[at(s)]; }))
          ready.push_back(i);
      ASSERT_FALSE(ready.empty()) << "streams wait for one another";
      auto& stream = streams[ready[random() % ready.size()]];
      carry_out(peers_.steps[stream.front()]);
      over[stream.front()] = true;
      stream.pop_front();
    }
  }

 private:
  std::span<std::byte> place(const gpu::PeerPlace& where, std::int64_t bytes) {
    const auto memory = in_place_ && where.memory == PeerMemory::output ? PeerMemory::input : where.memory;
    return std::span(memory_[at(where.device)][static_cast<std::size_t>(memory)]).subspan(at(where.offset), at(bytes));
  }
  void carry_out(const PeerStep& step) {
    const auto to = place(step.to, step.bytes);
    if (step.kind == PeerStep::Kind::average) return finish(program_.element, program_.reduction, peers_.ranks, to);
    const auto from = place(step.from, step.bytes);
    if (step.kind == PeerStep::Kind::copy) {
      if (to.data() != from.data()) std::ranges::copy(from, to.begin());
      return;
    }
    Bytes sum(from.begin(), from.end());
    collectives::combine(program_.element, program_.reduction, sum, place(step.other, step.bytes));
    std::ranges::copy(sum, to.begin());
  }

  const PeerProgram& peers_;
  const Program& program_;
  bool in_place_ = false;
  std::vector<std::array<Bytes, 3>> memory_;
};

Bytes random_numbers(Element element, std::size_t count, std::mt19937& random) {
  Bytes out(count * size_of(element));
  std::uniform_real_distribution<float> spread(-1, 1);
  for (std::size_t i = 0; i < count; ++i) {
    if (element == Element::float32)
      put(out, i, spread(random) * (i % 3 == 0 ? 1e6F : 1e-3F));
    else
      put_number(element, out, i, static_cast<int>(random() % 200));
  }
  return out;
}

Topology network(const std::string& name) { return builtin_topology(name).value(); }

Program program_of(const Topology& topology, Operation operation, int root, Element element, Reduction reduction,
                   std::int64_t count, std::int64_t chunks) {
  PlanRequest request{.operation = operation};
  if (layout_of(operation).rooted) request.root = hosts(topology)[at(root)];
  const auto plan = make_plan(topology, request);
  EXPECT_TRUE(plan) << plan.error().what;
  const auto bytes =
      count * static_cast<std::int64_t>(size_of(element)) * static_cast<std::int64_t>(hosts(topology).size());
  return make_program(*plan, topology,
                      {.element = element,
                       .reduction = reduction,
                       .bytes = bytes,
                       .root = layout_of(operation).rooted ? root : -1,
                       .chunks = chunks})
      .value();
}

// The same bits as relays give that are told the same program, whatever the order of the streams; in place too.
void expect_as_relays(const Program& program, std::int64_t window, std::mt19937& random) {
  const auto peers = peer_program(program, window);
  const auto sound = gpu::check(peers);
  ASSERT_TRUE(sound) << sound.error().what;
  const auto layout = layout_of(program.operation);
  const bool alike = !layout.in_is_part && !layout.out_is_part;
  Machine apart(peers, program), in_place(peers, program);
  in_place.in_place();
  std::vector<Bytes> in, out;
  std::vector<CollectiveBuffer> buffers;
  for (int rank = 0; rank < program.ranks; ++rank) {
    in.push_back(random_numbers(program.element, at(program.bytes) / size_of(program.element), random));
    out.emplace_back(at(program.bytes), std::byte{0x63});
  }
  const auto part = [&](int rank, bool is_part) {
    return is_part ? part_of(program, rank) : Stretch{0, program.bytes};
  };
  for (int rank = 0; rank < program.ranks; ++rank) {
    buffers.push_back({nullptr, in[at(rank)].data(), 0, out[at(rank)].data(), 0});
    const auto whole = std::span(in[at(rank)]).subspan(at(part(rank, layout.in_is_part).offset));
    std::ranges::copy(whole.first(apart.input(rank).size()), apart.input(rank).begin());
    if (alike) {
      in_place.input(rank) = in[at(rank)];
    }
  }
  // What no tree carries.
  if (program.operation == Operation::gather || program.operation == Operation::scatter) {
    const auto own = part_of(program, program.root);
    std::copy_n(in[at(program.root)].begin() + own.offset, own.bytes, out[at(program.root)].begin() + own.offset);
  }
  Network network(program, buffers, static_cast<unsigned>(random()));
  network.run();
  ASSERT_TRUE(network.done());
  apart.run(random);
  if (alike) in_place.run(random);
  for (int rank = 0; rank < program.ranks; ++rank) {
    const auto& had = apart.output(rank);
    const auto offset = part(rank, layout.out_is_part).offset;
    const auto wanted = std::span(out[at(rank)]).subspan(at(offset), had.size());
    ASSERT_TRUE(std::ranges::equal(had, wanted)) << name(program.operation) << " of " << name(program.element) << " by "
                                                 << name(program.reduction) << ", rank " << rank;
    const bool has_result = !layout.out_at_root_only || rank == program.root;
    if (has_result && program.bytes > 0) {
      ASSERT_EQ(had.size(), at(part(rank, layout.out_is_part).bytes));
    }
    if (alike && has_result) {
      ASSERT_EQ(in_place.input(rank), out[at(rank)]) << "in place";
    }
  }
}

TEST(PeerTranslation, GivesTheBitsThatRelaysGive) {
  std::mt19937 random(3);
  for (const Operation operation : kOperations)
    for (const Element element : kElements)
      for (const Reduction reduction : kReductions) {
        if (!combines(operation) && reduction != Reduction::sum) continue;
        expect_as_relays(program_of(dgx_1v(), operation, 2, element, reduction, 61, 7), 0, random);
        if (HasFatalFailure()) return;
      }
}

TEST(PeerTranslation, OnOddNetworksWithAnyWindow) {
  std::mt19937 random(4);
  for (const char* topology :
       {"star-5", "ring-6", "torus-2x3", "random-7-3", "two-racks", "complete-4", "star-1", "star-2"})
    for (const Operation operation : kOperations)
      for (const std::int64_t window : {2, 3, 6}) {
        SCOPED_TRACE(topology);
        const auto links = network(topology);
        const int root = static_cast<int>(hosts(links).size()) - 1;
        expect_as_relays(program_of(links, operation, root, Element::float32, Reduction::sum, 37, 9), window, random);
        if (HasFatalFailure()) return;
      }
}

TEST(PeerTranslation, OnRandomNetworks) {
  EXPECT_TRUE(rc::check("a random program is carried out as relays carry it out", [] {
    const auto below = [](int end) {
      return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, end));
    };  // all alike
    const auto seed = below(1 << 20);
    const int count = 2 + below(6);
    const auto operation = *rc::gen::elementOf(std::vector(std::begin(kOperations), std::end(kOperations)));
    const auto element = *rc::gen::elementOf(std::vector(std::begin(kElements), std::end(kElements)));
    const auto reduction = *rc::gen::elementOf(std::vector(std::begin(kReductions), std::end(kReductions)));
    const auto links = random_topology({.hosts = count, .switches = seed % 3}, static_cast<std::uint32_t>(seed));
    const auto elements = below(60);
    std::mt19937 random(static_cast<unsigned>(seed));
    expect_as_relays(program_of(links, operation, seed % count, element, reduction, elements, 1 + below(11)),
                     2 + below(4), random);
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

// A root that does not keep what it makes known, and a rank that only passes it on.
TEST(PeerTranslation, WhatIsOnlyPassedOnIsHeldUntilAllHaveIt) {
  Program program{.operation = Operation::allreduce, .element = Element::int32, .ranks = 4, .bytes = 400, .trees = {}};
  program.trees.push_back({.root = 0,
                           .up = {{3, 2}, {2, 1}, {1, 0}},
                           .down = {{0, 1}, {1, 2}, {0, 3}},
                           .share = {{0, 400}},
                           .chunk_bytes = 40,
                           .keeper = 2});
  ASSERT_TRUE(check(program));
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    const auto peers = peer_program(program, 2);
    ASSERT_TRUE(gpu::check(peers));
    Machine machine(peers, program);
    for (int rank = 0; rank < 4; ++rank) machine.input(rank) = Bytes(400, std::byte{1});
    machine.run(random);
    EXPECT_EQ(machine.output(2), Bytes(400, std::byte{4}));
  }
}

// The time that a program takes where a copy takes its bytes over its link's capacity, and nothing else takes any.
double seconds(const PeerProgram& peers, const Topology& topology) {
  std::vector<double> free(peers.streams.size(), 0), over;
  for (const PeerStep& step : peers.steps) {
    double begin = free[at(step.stream)];
    for (const int other : step.after) begin = std::max(begin, over[at(other)]);
    Rational capacity;
    for (const int link : links_between(topology, step.from.device, step.to.device))
      capacity += topology.links[at(link)].capacity;
    const bool moves = step.kind == PeerStep::Kind::copy && step.from.device != step.to.device;
    over.push_back(begin + (moves ? static_cast<double>(step.bytes) / capacity.get_d() : 0));
    free[at(step.stream)] = over.back();
  }
  return std::ranges::max(over);
}

TEST(PeerTranslation, IsPipelinedOverAllTrees) {
  for (const auto& links : {dgx_1v(), dgx_1p(), network("ring-6"), network("torus-2x3")})
    for (const Operation operation : kOperations) {
      if (operation == Operation::gather || operation == Operation::scatter) continue;  // paths of unlike lengths
      const auto plan = make_plan(
          links, {.operation = operation, .root = layout_of(operation).rooted ? std::optional(0) : std::nullopt});
      const auto program = program_of(links, operation, 0, Element::float32, Reduction::sum, 1 << 16, 128);
      const double least = static_cast<double>(program.bytes) / plan->rate.get_d();
      const double had = seconds(peer_program(program), links);
      EXPECT_GE(had, 0.99 * least);
      EXPECT_LE(had, 1.06 * least) << links.name << ' ' << name(operation);
    }
}

TEST(PeerTranslation, TreesThatShareALinkShareItsStream) {
  const auto peers =
      peer_program(program_of(dgx_1v(), Operation::allreduce, 0, Element::float32, Reduction::sum, 1024, 8));
  std::map<std::pair<int, int>, int> streams;
  for (const PeerStep& step : peers.steps)
    if (step.kind == PeerStep::Kind::copy && step.from.device != step.to.device) {
      const auto [known, fresh] = streams.emplace(std::pair(step.from.device, step.to.device), step.stream);
      EXPECT_EQ(known->second, step.stream);
      EXPECT_EQ(peers.streams[at(step.stream)], step.from.device);
    }
  EXPECT_EQ(streams.size(), 32U);  // all 16 pairs that have links, both ways
}

}  // namespace
