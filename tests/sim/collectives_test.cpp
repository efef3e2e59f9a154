// Collectives under every order of events that a seed draws: what is complete is right, what is not names who is missing,
// and nothing hangs.
#include <gtest/gtest.h>

#include <set>

#include "tests/sim/group_sim.hpp"
#include "tests/sim/seeds.hpp"

namespace {

using namespace sim;
using namespace std::chrono_literals;
using collectives::kOperations;
using collectives::Operation;
using collectives::Reduction;

constexpr const char* kTopologies[] = {"complete-4", "ring-5", "star-5", "random-7-3"};

GroupOptions seeded(std::uint64_t seed, const char* topology = nullptr) {
  GroupOptions options;
  options.seed = seed;
  options.topology = topology ? topology : kTopologies[seed % std::size(kTopologies)];
  return options;
}

// Several calls at about the same time, of all kinds and sizes.
void call_some(Group& group, int calls, Duration spread) {
  for (int i = 0; i < calls; ++i) {
    const auto operation = kOperations[group.random().below(std::size(kOperations))];
    const auto elements = group.size() * (1 + static_cast<std::int64_t>(group.random().below(group.random().chance(0.5) ? 4 : 20'000)));
    group.call_all(operation, elements, static_cast<int>(group.random().below(static_cast<std::size_t>(group.size()))), spread);
  }
}

std::string gone(const Group& group, int rank) { return "rank " + std::to_string(rank) + " (" + group.name(rank) + ") is gone"; }

TEST(Collectives, ComeOutRightWhateverTheOrder) {
  for (const auto seed : seeds(60)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed));
    call_some(group, 6, 50ms);
    ASSERT_TRUE(group.finish(30s));
    for (int rank = 0; rank < group.size(); ++rank)
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(*outcome.result) << outcome.result->error().what;
        ASSERT_EQ(outcome.wrong, 0);
        ASSERT_EQ((*outcome.result)->attempts, 1);
      }
  }
}

// A rank dies at any moment: every call of every survivor ends soon, with its result or with an error that names it.
TEST(Collectives, ARankThatDiesAtAnyMomentIsNamedByAllAndNothingHangs) {
  int failed = 0;
  Duration longest{};
  for (const auto seed : seeds(400)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed));
    call_some(group, 1, 1ms);  // so that they have heard of one another
    ASSERT_TRUE(group.finish(30s));
    group.run_for(200ms);  // small calls are over before all has been acknowledged
    call_some(group, 1 + static_cast<int>(group.random().below(4)), 20ms);
    const int dead = static_cast<int>(group.random().below(static_cast<std::size_t>(group.size())));
    Instant died;
    group.at(group.random().between(0ms, 100ms), [&] {
      group.kill(dead);
      died = group.now();
    });
    ASSERT_TRUE(group.finish(40s)) << "rank " << dead << " died";
    for (int rank = 0; rank < group.size(); ++rank) {
      if (rank == dead) continue;
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(outcome.result);
        ASSERT_EQ(outcome.wrong, 0);
        if (*outcome.result) continue;
        ++failed;
        longest = std::max(longest, outcome.told - std::max(died, outcome.made));
        ASSERT_EQ(outcome.result->error().gone, std::vector<int>{dead});
        ASSERT_NE(outcome.result->error().what.find(gone(group, dead)), std::string::npos) << "rank " << rank << ": " << outcome.result->error().what;
      }
    }
  }
  EXPECT_GT(failed, 400);
  EXPECT_LT(ms(longest), 4'000);
}

TEST(Collectives, LinksThatAreCutAreGoneRound) {
  int anew = 0;
  for (const auto seed : seeds(150)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed, seed % 2 == 0 ? "complete-4" : "random-7-3"));
    const bool first = group.random().chance(0.5);
    if (!first) {
      call_some(group, 1, 1ms);
      ASSERT_TRUE(group.finish(30s));
    }
    call_some(group, 3, 20ms);
    const auto links = group.links();
    const auto [a, b] = links[group.random().below(links.size())];
    group.at(group.random().between(0ms, 60ms), [&, a = a, b = b] { group.cut(a, b); });
    ASSERT_TRUE(group.finish(40s)) << "cut " << a << "-" << b;
    for (int rank = 0; rank < group.size(); ++rank)
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(*outcome.result) << "cut " << a << "-" << b << ", rank " << rank << ": " << outcome.result->error().what;
        ASSERT_EQ(outcome.wrong, 0);
        anew += (*outcome.result)->attempts > 1 ? 1 : 0;
      }
  }
  EXPECT_GT(anew, 50);
}

// A connection breaks and is made again: ZeroMQ says nothing, and what was on its way is lost.
TEST(Collectives, FramesThatAreLostWithAConnectionAreNotWaitedForForEver) {
  for (const auto seed : seeds(150)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed, seed % 2 == 0 ? "complete-4" : "random-7-3"));
    call_some(group, 1, 1ms);
    ASSERT_TRUE(group.finish(30s));
    call_some(group, 3, 10ms);
    const auto links = group.links();
    const auto [a, b] = links[group.random().below(links.size())];
    group.at(group.random().between(0ms, 40ms), [&, a = a, b = b] { group.reset(a, b); });
    ASSERT_TRUE(group.finish(40s)) << "reset " << a << " to " << b;
    for (int rank = 0; rank < group.size(); ++rank)
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(*outcome.result) << "rank " << rank << ": " << outcome.result->error().what;
        ASSERT_EQ(outcome.wrong, 0);
      }
  }
}

TEST(Collectives, RelaysThatEndAtAnyMomentChangeNothing) {
  for (const auto seed : seeds(150)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed));
    for (int round = 0; round < 3; ++round) {
      call_some(group, 3, 20ms);
      for (int i = 0; i < 2; ++i)
        group.at(group.random().between(0ms, 60ms), [&] { group.end_a_relay(static_cast<int>(group.random().below(static_cast<std::size_t>(group.size())))); });
    }
    ASSERT_TRUE(group.finish(40s));
    for (int rank = 0; rank < group.size(); ++rank)
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(*outcome.result) << "rank " << rank << ": " << outcome.result->error().what;
        ASSERT_EQ(outcome.wrong, 0);
      }
  }
}

// Rank 0 plans, and makes its call last of all: trouble before that must wait for it, not be laid at its door.
TEST(Collectives, APlannerThatCallsLateIsNotTakenForGone) {
  for (const auto seed : seeds(20)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed, "complete-4"));
    group.call_all(Operation::allreduce, 40'000);
    ASSERT_TRUE(group.finish(30s));
    for (int rank = 1; rank < group.size(); ++rank) group.call(rank, Operation::allreduce, 40'000);  // settled: it begins
    group.at(10ms, [&] { group.end_a_relay(2); });
    group.at(6s, [&] { group.call(0, Operation::allreduce, 40'000); });
    group.run_for(6s);
    ASSERT_TRUE(group.finish(30s));
    for (int rank = 0; rank < group.size(); ++rank) {
      const auto outcome = group.outcomes(rank).back();
      ASSERT_TRUE(*outcome.result) << "rank " << rank << ": " << outcome.result->error().what;
      ASSERT_EQ(outcome.wrong, 0);
    }
  }
}

// The name comes back, the data does not.
TEST(Collectives, ARankThatIsStartedAgainDoesNotPassForTheOneThatDied) {
  for (const auto seed : seeds(60)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(seeded(seed, "complete-4"));
    call_some(group, 2, 1ms);
    ASSERT_TRUE(group.finish(30s));
    group.call_all(Operation::allreduce, 40'000);
    const int again = static_cast<int>(group.random().below(4));
    group.at(group.random().between(0ms, 40ms), [&] {
      group.restart(again);
      group.call(again, Operation::allreduce, 40'000);
    });
    group.finish(40s);
    for (int rank = 0; rank < group.size(); ++rank) {
      if (rank == again) continue;
      const auto outcome = group.outcomes(rank).back();
      ASSERT_TRUE(outcome.result) << "rank " << rank << " waits for ever";
      ASSERT_EQ(outcome.wrong, 0);
      if (!*outcome.result) {
        ASSERT_NE(outcome.result->error().what.find(gone(group, again)), std::string::npos) << outcome.result->error().what;
      }
    }
  }
}

TEST(Collectives, RanksThatNameDifferentRootsAreTold) {
  for (const bool settled : {false, true}) {
    Group group(seeded(3, "complete-4"));
    if (settled) {
      for (const int root : {1, 2}) group.call_all(Operation::scatter, 400, root);
      ASSERT_TRUE(group.finish(30s));
    }
    for (int rank = 0; rank < 4; ++rank) group.call(rank, Operation::scatter, 400, rank == 2 ? 2 : 1);
    ASSERT_TRUE(group.finish(10s));
    for (int rank = 0; rank < 4; ++rank) {
      const auto outcome = group.outcomes(rank).back();
      if (settled && rank != 2 && *outcome.result) {  // it had what it wanted before anyone noticed
        EXPECT_EQ(outcome.wrong, 0);
        continue;
      }
      ASSERT_FALSE(*outcome.result) << "rank " << rank;
      EXPECT_NE(outcome.result->error().what.find("same calls"), std::string::npos) << outcome.result->error().what;
    }
  }
}

TEST(Collectives, SettledCallsThatDifferAreNotMixed) {
  Group group(seeded(4, "complete-4"));
  for (const auto reduction : {Reduction::sum, Reduction::max}) group.call_all(Operation::allreduce, 4'000, 0, {}, reduction);
  ASSERT_TRUE(group.finish(30s));
  for (int rank = 0; rank < 4; ++rank) group.call(rank, Operation::allreduce, 4'000, 0, rank == 2 ? Reduction::max : Reduction::sum);
  ASSERT_TRUE(group.finish(20s));
  for (int rank = 0; rank < 4; ++rank) {
    const auto outcome = group.outcomes(rank).back();
    ASSERT_FALSE(*outcome.result) << "rank " << rank;
    EXPECT_NE(outcome.result->error().what.find("same calls"), std::string::npos) << outcome.result->error().what;
  }
}

// ---- going on without those that are gone ------------------------------------------------------------------------------

// Of one call: every living rank has the result over the same ranks, or none has one and all say the same.
void expect_agreement(const Group& group, std::size_t call, const std::set<int>& dead) {
  std::optional<Outcome> first;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (dead.contains(rank)) continue;
    const auto outcome = group.outcomes(rank).at(call);
    ASSERT_TRUE(outcome.result) << "rank " << rank << ", call " << call;
    ASSERT_EQ(outcome.wrong, 0) << "rank " << rank << ", call " << call;
    if (!first) first = outcome;
    ASSERT_EQ(outcome.result->has_value(), first->result->has_value()) << "rank " << rank << ", call " << call;
    if (*outcome.result) {
      ASSERT_EQ((*outcome.result)->ranks, (*first->result)->ranks) << "rank " << rank << ", call " << call;
    } else {
      ASSERT_EQ(outcome.result->error().what, first->result->error().what) << "rank " << rank << ", call " << call;
      bool named = false;
      for (const int rank_gone : dead) named = named || outcome.result->error().what.find(gone(group, rank_gone)) != std::string::npos;
      ASSERT_TRUE(named) << outcome.result->error().what;
    }
  }
}

GroupOptions surviving(std::uint64_t seed, const char* topology = nullptr) {
  GroupOptions options = seeded(seed, topology);
  if (!topology && options.topology == "complete-4") options.topology = "complete-5";
  options.on_loss = OnLoss::complete_among_survivors;
  return options;
}

TEST(Survivors, AreNotSlowedDownByTheChoice) {
  for (const auto seed : seeds(40)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(surviving(seed));
    call_some(group, 6, 50ms);
    ASSERT_TRUE(group.finish(30s));
    for (int rank = 0; rank < group.size(); ++rank)
      for (const auto& outcome : group.outcomes(rank)) {
        ASSERT_TRUE(*outcome.result) << outcome.result->error().what;
        ASSERT_EQ(outcome.wrong, 0);
        ASSERT_EQ((*outcome.result)->attempts, 1);
      }
  }
}

// One rank dies at any moment of several calls under way; the rest have the same results, and the group goes on.
TEST(Survivors, HaveTheSameResultWhoeverDiesAndWhenever) {
  int without = 0, with_all = 0, refused = 0;
  Duration longest{};
  for (const auto seed : seeds(400)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(surviving(seed));
    call_some(group, 1, 1ms);
    ASSERT_TRUE(group.finish(30s));
    call_some(group, 1 + static_cast<int>(group.random().below(4)), 20ms);
    const int dead = group.random().chance(0.4) ? 0 : static_cast<int>(group.random().below(static_cast<std::size_t>(group.size())));
    Instant died;
    group.at(group.random().between(0ms, 100ms), [&] {
      group.kill(dead);
      died = group.now();
    });
    ASSERT_TRUE(group.finish(60s)) << "rank " << dead << " died";
    call_some(group, 2, 5ms);
    ASSERT_TRUE(group.finish(60s)) << "rank " << dead << " died, and then";
    const int survivor = dead == 0 ? 1 : 0;
    const auto calls = group.outcomes(survivor).size();
    for (std::size_t call = 0; call < calls; ++call) {
      expect_agreement(group, call, {dead});
      if (HasFatalFailure()) return;
      const auto outcome = group.outcomes(survivor)[call];
      if (!*outcome.result)
        ++refused;
      else
        ++(std::ssize((*outcome.result)->ranks) < group.size() ? without : with_all);
      if (outcome.told > died) longest = std::max(longest, outcome.told - std::max(died, outcome.made));
    }
  }
  EXPECT_GT(without, 400);
  EXPECT_GT(with_all, 400);
  EXPECT_GT(refused, 20) << "of calls whose root died";
  EXPECT_LT(ms(longest), 5'000);
}

// One that dies at the first call, before it could do anything, and perhaps before whoever plans has heard of it: first
// frames take as long as handshakes do.
TEST(Survivors, GoOnWithoutOneThatHasHardlyCome) {
  for (const auto seed : seeds(60)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(surviving(seed, "complete-4"));
    group.call_all(Operation::allreduce, 2'000'000);
    if (seed % 2 == 0) group.at(group.random().between(0us, 1500us), [&] { group.cut(0, 2); });
    group.at(group.random().between(2ms, 30ms), [&] { group.kill(2); });
    ASSERT_TRUE(group.finish(40s));
    expect_agreement(group, 0, {2});
    if (HasFatalFailure()) return;
    const auto outcome = group.outcomes(0).front();
    ASSERT_TRUE(*outcome.result) << outcome.result->error().what;
    EXPECT_EQ((*outcome.result)->ranks, (std::vector{0, 1, 3}));
  }
}

TEST(Survivors, GoOnWhenOneAfterAnotherDies) {
  for (const auto seed : seeds(200)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(surviving(seed, "random-7-3"));
    call_some(group, 1, 1ms);
    ASSERT_TRUE(group.finish(30s));
    std::set<int> dead;
    for (int round = 0; round < 2; ++round) {
      call_some(group, 2, 20ms);
      for (int i = 0; i < 2; ++i) {  // at most four of seven, never more than half of who is left at a time
        const int who = static_cast<int>(group.random().below(7));
        if (!dead.insert(who).second) continue;
        group.at(group.random().between(0ms, group.random().chance(0.5) ? Duration{100ms} : Duration{6s}), [&group, who] { group.kill(who); });
      }
      ASSERT_TRUE(group.finish(90s));
    }
    group.run_for(10s);
    int survivor = 0;
    while (dead.contains(survivor)) ++survivor;
    for (std::size_t call = 0; call < group.outcomes(survivor).size(); ++call) {
      expect_agreement(group, call, dead);
      if (HasFatalFailure()) return;
    }
  }
}

// Two halves that cannot hear each other must not both go on.
TEST(Survivors, OnlyOneHalfGoesOn) {
  for (const auto seed : seeds(30)) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Group group(surviving(seed, "complete-5"));
    group.call_all(Operation::allreduce, 5'000);
    ASSERT_TRUE(group.finish(30s));
    group.call_all(Operation::allreduce, 100'000);
    const bool three_with_planner = seed % 2 == 0;
    const std::set<int> few = three_with_planner ? std::set{3, 4} : std::set{0, 2};
    group.at(20ms, [&] {
      for (const int a : few)
        for (int b = 0; b < 5; ++b)
          if (!few.contains(b)) group.cut(a, b);
    });
    ASSERT_TRUE(group.finish(60s));
    for (int rank = 0; rank < 5; ++rank) {
      const auto outcome = group.outcomes(rank).back();
      ASSERT_EQ(outcome.result->has_value(), !few.contains(rank)) << "rank " << rank << (outcome.result->has_value() ? "" : ": " + outcome.result->error().what);
      ASSERT_EQ(outcome.wrong, 0);
    }
  }
}

// It was only slow to answer, and finds that the others have gone on: its calls end, and say why.
TEST(Survivors, OneThatWasTakenForGoneIsTold) {
  Group group(surviving(4, "complete-5"));
  group.call_all(Operation::allreduce, 5'000);
  ASSERT_TRUE(group.finish(30s));
  group.call_all(Operation::allreduce, 100'000);
  group.at(20ms, [&] {
    for (int other = 0; other < 4; ++other) group.cut(4, other);
  });
  group.at(20s, [&] {
    for (int other = 0; other < 4; ++other) group.heal(4, other);
  });
  ASSERT_TRUE(group.finish(60s));
  for (int rank = 0; rank < 4; ++rank) ASSERT_TRUE(*group.outcomes(rank).back().result);
  ASSERT_FALSE(*group.outcomes(4).back().result);
}

// ---- what a peer with a key may say ----------------------------------------------------------------------------------

GroupNote note(int origin, std::uint64_t number, bool flood, NoteBody body) {
  return {static_cast<std::uint32_t>(origin), 1, number, -1, flood, std::move(body)};
}

collectives::Program one_tree(int ranks, int root, std::vector<collectives::RankEdge> down) {
  collectives::Program program;
  program.operation = Operation::broadcast;
  program.ranks = ranks;
  program.root = root;
  program.bytes = 8;
  program.trees.push_back({root, {}, std::move(down), {{0, 8}}, 8});
  return program;
}

TEST(Collectives, AProgramOfAnotherGroupIsNotCarriedOut) {
  Group group(seeded(5, "complete-4"));
  group.call_all(Operation::allreduce, 400);
  ASSERT_TRUE(group.finish(30s));
  // Of a call that is over here: this rank would only pass it on, to a rank that there is not.
  group.forge(0, 1, note(0, 1'000, false, ProgramOffer{{0, 1}, false, one_tree(4'000, 0, {{0, 1}, {1, 3'999}})}));
  // So too, from a buffer that is no longer there.
  group.forge(0, 1, note(0, 1'001, false, ProgramOffer{{0, 2}, false, one_tree(4, 1, {{1, 2}})}));
  group.run_for(1s);
  group.forge(0, 1, CollectiveChunk{{0, 1}, 0, 1, 0, Way::down, 0, SharedBytes::copy_of(std::vector<std::byte>(8))});
  group.run_for(1s);
  group.call_all(Operation::allreduce, 400);
  ASSERT_TRUE(group.finish(30s));
  for (int rank = 0; rank < 4; ++rank) ASSERT_TRUE(*group.outcomes(rank).back().result);
}

TEST(Collectives, ANoteThatDoesNotComeFromWhoItSaysIsNotBelieved) {
  Group group(seeded(6, "complete-4"));
  group.call_all(Operation::allreduce, 400);
  ASSERT_TRUE(group.finish(30s));
  group.call_all(Operation::allreduce, 400'000);
  group.at(1ms, [&] { group.forge(3, 1, note(0, 5'000, false, PauseCall{{1, 0}})); });
  group.at(2ms, [&] { group.forge(3, 1, note(0, 5'001, false, CallOver{1})); });
  ASSERT_TRUE(group.finish(30s));
  for (int rank = 0; rank < 4; ++rank) {
    ASSERT_TRUE(*group.outcomes(rank).back().result);
    EXPECT_EQ((*group.outcomes(rank).back().result)->attempts, 1);
    EXPECT_EQ(group.outcomes(rank).back().wrong, 0);
  }
}

// A rate beyond all measure must not spoil every later plan.
TEST(Collectives, ALinkIsNotFoundToCarryAnythingAtAll) {
  Group group(seeded(7, "complete-4"));
  group.call_all(Operation::allreduce, 400'000);
  group.at(5ms, [&] {
    group.forge(1, 0, note(1, 5'000, false, TroubleReport{{0, 0}, {1, 2, "", ""}, UINT64_MAX, "fast"}));
  });
  ASSERT_TRUE(group.finish(30s));
  group.call_all(Operation::allreduce, 800'000);
  ASSERT_TRUE(group.finish(30s));
  for (int rank = 0; rank < 4; ++rank)
    for (const auto& outcome : group.outcomes(rank)) ASSERT_TRUE(*outcome.result) << outcome.result->error().what;
}

}  // namespace
