// All relays of a program in one process, and what should come out of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "actors/collective_relay_state.hpp"
#include "collectives/planner.hpp"

namespace coppice::actors::testing {

using namespace coppice::collectives;

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
inline void put_number(Element element, Bytes& into, std::size_t at, int value) {
  std::ranges::copy(elements_of(element, std::span(&value, 1)), into.begin() + static_cast<std::ptrdiff_t>(at * size_of(element)));
}

inline int input_number(int rank, std::size_t at) { return static_cast<int>((at * 5 + static_cast<std::size_t>(rank) * 3) % 13); }

inline int expected_number(Reduction reduction, int ranks, std::size_t at) {
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
inline Case make_case(const Topology& topology, const PlanRequest& request, Element element, Reduction reduction,
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
inline std::optional<int> wanted(const Case& made, int root, int rank, std::size_t at, Reduction reduction) {
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

inline void expect_right(const Case& made, int root, Reduction reduction) {
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

}  // namespace coppice::actors::testing
