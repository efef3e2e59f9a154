#include "actors/roster.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <set>

using namespace coppice;
using namespace coppice::actors;
using namespace std::chrono_literals;

namespace {

constexpr RosterOptions kOptions{500ms, 10s};

Instant at(Duration since_start) { return Instant{} + since_start; }

struct Three : Roster {
  Three() : Roster({"a", "b", "c"}, kOptions) {}
  void all_join(Duration now) {
    for (const auto* name : {"a", "b", "c"}) on_join(name, 1, at(now));
  }
  // Joined, handed a transfer and ready, all of them.
  void all_get_ready(Duration now) {
    all_join(now);
    const auto broadcast = on_time(at(now));
    for (const auto* name : {"a", "b", "c"}) on_ready(name, broadcast->transfer);
  }
  WorkerState state(int worker) const { return workers()[static_cast<std::size_t>(worker)].state; }
};

TEST(Roster, BroadcastsAtOnceWhenNobodyIsMissing) {
  Three roster;
  roster.all_join(20ms);
  const auto broadcast = roster.on_time(at(20ms));
  ASSERT_TRUE(broadcast);
  EXPECT_EQ(broadcast->members, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_FALSE(roster.on_time(at(20ms)));
}

TEST(Roster, WaitsToSettleAfterTheLastJoinWhenSomebodyIsMissing) {
  Three roster;
  roster.on_join("a", 1, at(0ms));
  roster.on_join("c", 1, at(300ms));
  EXPECT_EQ(roster.next_wake(), at(800ms));
  EXPECT_FALSE(roster.on_time(at(800ms) - 1ns));
  const auto broadcast = roster.on_time(at(800ms));
  ASSERT_TRUE(broadcast);
  EXPECT_EQ(broadcast->members, (std::vector<std::string>{"a", "c"}));
}

TEST(Roster, TellsWhyAWorkerCannotUseItsWeights) {
  Three roster;
  roster.all_join(0ms);
  roster.on_time(at(0ms));
  roster.on_refused("b", "its recording is broken");
  roster.on_refused("nobody", "");
  EXPECT_EQ(roster.workers()[1].reason, "cannot use its weights: its recording is broken");
  EXPECT_EQ(roster.state(1), WorkerState::loading);
}

TEST(Roster, OffersANewTreeToWhoeverHasNotTakenUpTheWeightsInTime) {
  Three roster;
  roster.all_join(0ms);
  const auto first = roster.on_time(at(0ms));
  roster.on_ready("a", first->transfer);
  EXPECT_EQ(roster.next_wake(), at(10s));
  EXPECT_FALSE(roster.on_time(at(10s) - 1ns));
  const auto second = roster.on_time(at(10s));
  ASSERT_TRUE(second);
  EXPECT_NE(second->transfer, first->transfer);
  EXPECT_EQ(second->members, (std::vector<std::string>{"b", "c"}));
  EXPECT_FALSE(roster.on_ready("b", first->transfer)) << "the first transfer was given up";
  EXPECT_EQ(roster.on_ready("b", second->transfer), 1);
}

TEST(Roster, IsReadyOnlyForTheTransferThatTheWorkerWaitsFor) {
  Three roster;
  EXPECT_FALSE(roster.on_ready("a", TransferId{0}));
  roster.all_join(0ms);
  EXPECT_FALSE(roster.on_ready("a", TransferId{1})) << "before its broadcast began";
  const auto broadcast = roster.on_time(at(0ms));
  EXPECT_FALSE(roster.on_ready("a", TransferId{99}));
  EXPECT_EQ(roster.ready(), 0U);
  EXPECT_EQ(roster.on_ready("a", broadcast->transfer), 0);
  EXPECT_FALSE(roster.on_ready("a", broadcast->transfer)) << "it is ready already";
  EXPECT_EQ(roster.ready(), 0b001U);
}

TEST(Roster, TakesBackAWorkerThatReturns) {
  Three roster;
  roster.all_get_ready(0ms);
  EXPECT_TRUE(roster.all_ready());
  EXPECT_EQ(roster.on_lost("b", "its power went", at(1s)), 1);
  EXPECT_EQ(roster.workers()[1].reason, "its power went");
  EXPECT_EQ(roster.workers()[1].losses, 1U);
  EXPECT_EQ(roster.ready(), 0b101U);
  roster.on_join("b", 77, at(2s));
  EXPECT_EQ(roster.workers()[1].pid, 77U);
  EXPECT_EQ(roster.workers()[1].reason, "");
  const auto broadcast = roster.on_time(at(2s));
  ASSERT_TRUE(broadcast);
  EXPECT_EQ(broadcast->members, std::vector<std::string>{"b"});
  roster.on_ready("b", broadcast->transfer);
  EXPECT_TRUE(roster.all_ready());
}

TEST(Roster, TakesAJoinOfAReadyWorkerAsItsLossAndReturn) {
  Three roster;
  roster.all_get_ready(0ms);
  const auto before = roster.epoch();
  roster.on_join("c", 2, at(1s));
  EXPECT_EQ(roster.ready(), 0b011U);
  EXPECT_GT(roster.epoch(), before);
  EXPECT_TRUE(roster.on_time(at(1s)));
}

TEST(Roster, ForgetsTheBroadcastOfAWorkerThatWasLostMeanwhile) {
  Three roster;
  roster.all_join(0ms);
  const auto first = roster.on_time(at(0ms));
  roster.on_lost("a", "", at(1ms));
  EXPECT_FALSE(roster.on_ready("a", first->transfer));
  roster.on_join("a", 2, at(2ms));
  EXPECT_FALSE(roster.on_ready("a", first->transfer)) << "the word of its former life";
  EXPECT_EQ(roster.state(0), WorkerState::joined);
}

TEST(Roster, KnowsNobodyButItsWorkers) {
  Three roster;
  EXPECT_FALSE(roster.on_join("d", 1, at(0ms)));
  EXPECT_FALSE(roster.on_lost("d", "", at(0ms)));
  EXPECT_FALSE(roster.on_ready("d", TransferId{1}));
  EXPECT_FALSE(roster.index_of(""));
  EXPECT_FALSE(roster.on_time(at(1h)));
  EXPECT_FALSE(roster.next_wake());
}

TEST(Roster, CountsALossOnce) {
  Three roster;
  roster.all_get_ready(0ms);
  roster.on_lost("a", "first", at(1s));
  roster.on_lost("a", "second", at(2s));
  EXPECT_EQ(roster.workers()[0].losses, 1U);
  EXPECT_EQ(roster.workers()[0].reason, "first");
}

TEST(Roster, MovesTheEpochExactlyWhenTheReadySetChangesUnderAnyHistory) {
  EXPECT_TRUE(rc::check([] {
    const int workers = *rc::gen::inRange(1, 6);
    std::vector<std::string> names;
    for (int i = 0; i < workers; ++i) names.push_back("w" + std::to_string(i));
    Roster roster(names, kOptions);
    std::set<std::uint64_t> transfers;
    std::vector<TransferId> waiting(names.size());  // of each, as far as the broadcasts say
    Duration now{};
    const int steps = *rc::gen::inRange(0, 100);
    for (int step = 0; step < steps; ++step) {
      now += std::chrono::milliseconds(*rc::gen::weightedElement<int>({{5, 1}, {3, 200}, {1, 6'000}}));
      const auto worker = static_cast<std::size_t>(*rc::gen::inRange(0, workers));
      const auto epoch = roster.epoch();
      const auto ready = roster.ready();
      switch (*rc::gen::inRange(0, 4)) {
        case 0: roster.on_join(names[worker], 1, at(now)); break;
        case 1: roster.on_lost(names[worker], "", at(now)); break;
        case 2: {
          const bool waits = roster.workers()[worker].state == WorkerState::loading;
          const auto transfer = *rc::gen::element(waiting[worker], TransferId{1}, TransferId{1'000'000});
          const bool taken = roster.on_ready(names[worker], transfer).has_value();
          RC_ASSERT(taken == (waits && transfer == waiting[worker]));
          break;
        }
        default: {
          // Nothing is due before the moment that next_wake names.
          if (const auto wake = roster.next_wake(); wake && *wake > at(now)) {
            Roster copy = roster;
            RC_ASSERT(!copy.on_time(*wake - 1ns));
          }
          const auto broadcast = roster.on_time(at(now));
          if (const auto wake = roster.next_wake()) RC_ASSERT(*wake > at(now));
          if (!broadcast) break;
          RC_ASSERT(transfers.insert(static_cast<std::uint64_t>(broadcast->transfer)).second);
          RC_ASSERT(!broadcast->members.empty());
          for (const auto& member : broadcast->members) {
            const auto index = static_cast<std::size_t>(*roster.index_of(member));
            RC_ASSERT(roster.workers()[index].state == WorkerState::loading);
            waiting[index] = broadcast->transfer;
          }
          for (const auto& entry : roster.workers()) RC_ASSERT(entry.state != WorkerState::joined);
        }
      }
      RC_ASSERT((roster.epoch() != epoch) == (roster.ready() != ready));
      RC_ASSERT(roster.epoch() >= epoch);
      RC_ASSERT(roster.all_ready() == (roster.ready() == (coding::ArrivalSet{1} << workers) - 1));
    }
  }));
}

}  // namespace
