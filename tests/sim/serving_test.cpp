// Whole runs of a cluster under faults; seeds: seeds.hpp.
#include <gtest/gtest.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "tests/sim/cluster_sim.hpp"
#include "tests/sim/seeds.hpp"

using namespace sim;
using namespace std::chrono_literals;

namespace {

struct Run {
  std::uint64_t trace = 0;
  std::vector<std::string> broken;
  std::map<ReplyStatus, int> statuses;
  int probes = 0, probes_ok = 0;
  bool ready = false;
  std::string told;  // the faults, for a person
};

ClusterOptions options_of(std::uint64_t seed) {
  Random random(seed ^ 0xc0ffee);
  ClusterOptions options;
  options.seed = seed;
  options.shape.workers = 3 + static_cast<int>(random.below(6));
  options.shape.needed = 2 + static_cast<int>(random.below(static_cast<std::size_t>(options.shape.workers - 2)));
  options.grouped = random.chance(0.5);
  if (random.chance(0.1)) {  // as many as one block of the code holds; large harmonic codes are too ill-conditioned
    options.shape.workers = 16 + static_cast<int>(random.below(17));
    options.shape.needed = options.shape.workers - 1 - static_cast<int>(random.below(6));
    options.grouped = true;
  }
  options.in_flight_max = random.chance(0.2) ? 6 : 1'024;
  options.bundle_bytes = 1 + random.below(4'000);
  options.chunk_bytes = 1 + static_cast<std::uint32_t>(random.below(700));
  if (options.bundle_bytes / options.chunk_bytes > 200) options.chunk_bytes = 64;
  return options;
}

// A start, three seconds of requests with faults, then peace: after it every request must be answered as if nothing
// had been.
Run run(ClusterOptions options) {
  constexpr Duration kStorm = 3s;
  Run result;
  Cluster cluster(options);
  const auto faults = draw_faults(cluster.random(), options.shape.workers, kStorm, cluster.random().below(25));
  for (const auto& fault : faults) result.told += "\n  " + to_string(fault);
  cluster.schedule(faults);
  cluster.start();
  cluster.ask_until(cluster.now() + kStorm, 6ms);
  cluster.run_for(kStorm);
  cluster.heal();
  cluster.run_for(3 * options.patience + options.settle);
  result.ready = nlohmann::json::parse(cluster.status())["ready"].get<bool>();
  const auto before = cluster.asked().size();
  for (int i = 0; i < 20; ++i) {
    cluster.ask();
    cluster.run_for(10ms);
  }
  cluster.run_for(2 * options.deadline);
  for (auto i = before; i < cluster.asked().size(); ++i) {
    ++result.probes;
    const auto& answers = cluster.asked()[i].answers;
    result.probes_ok += answers.size() == 1 && answers[0].reply.status == ReplyStatus::ok;
  }
  result.broken = cluster.broken_promises();
  result.statuses = cluster.statuses();
  result.trace = cluster.trace();
  return result;
}

std::string lines(const std::vector<std::string>& all) {
  std::string out;
  for (std::size_t i = 0; i < all.size() && i < 10; ++i) out += "\n  " + all[i];
  return out + (all.size() > 10 ? "\n  and " + std::to_string(all.size() - 10) + " more" : "");
}

TEST(Serving, AnswersEveryRequestOnceAndRightlyThroughFaultsAndIsWholeAfterThem) {
  std::map<ReplyStatus, int> statuses;
  for (const auto seed : seeds(50)) {
    SCOPED_TRACE("COPPICE_SIM_SEED=" + std::to_string(seed));
    const auto result = run(options_of(seed));
    EXPECT_TRUE(result.broken.empty()) << lines(result.broken) << "\nfaults:" << result.told;
    EXPECT_TRUE(result.ready) << "after the faults all workers have their weights again; faults:" << result.told;
    EXPECT_EQ(result.probes_ok, result.probes) << "after the faults all is ok again; faults:" << result.told;
    for (const auto& [status, count] : result.statuses) statuses[status] += count;
    if (::testing::Test::HasFailure()) return;
  }
  if (only_some_seeds(50)) return;
  // The storms are neither calm nor deadly, so all kinds of answers are met.
  for (const auto status : {ReplyStatus::ok, ReplyStatus::degraded, ReplyStatus::no_response, ReplyStatus::not_ready,
                            ReplyStatus::no_workers, ReplyStatus::overloaded, ReplyStatus::bad_request}) {
    EXPECT_GT(statuses[status], 0) << "status " << static_cast<int>(status);
    std::cout << "status " << static_cast<int>(status) << ": " << statuses[status] << " answers\n";
  }
}

TEST(Serving, OneSeedIsOneRun) {
  std::set<std::uint64_t> traces;
  const auto some = seeds(5);
  for (std::size_t i = 0; i < some.size() && i < 5; ++i) {
    SCOPED_TRACE("COPPICE_SIM_SEED=" + std::to_string(some[i]));
    const auto first = run(options_of(some[i]));
    EXPECT_EQ(first.trace, run(options_of(some[i])).trace);
    EXPECT_TRUE(traces.insert(first.trace).second) << "another seed gave the very same run";
  }
}

TEST(Serving, TheInvariantsFindEveryPlantedBug) {
  for (const auto planted : {Planted::answers_twice, Planted::never_answers, Planted::hides_degraded,
                             Planted::answers_late, Planted::wrong_label}) {
    bool found = false;
    for (std::uint64_t seed = 1; seed <= 5 && !found; ++seed) {
      auto options = options_of(seed);
      options.planted = planted;
      found = !run(options).broken.empty();
    }
    EXPECT_TRUE(found) << "planted bug " << static_cast<int>(planted);
  }
}

// ---- single stories ------------------------------------------------------------------------------------------------

nlohmann::json status_of(Cluster& cluster) { return nlohmann::json::parse(cluster.status()); }

ReplyStatus last_status(const Cluster& cluster) { return cluster.asked().back().answers.at(0).reply.status; }

TEST(Serving, IsNotReadyBeforeEnoughWorkersHaveTheirWeights) {
  Cluster cluster({});
  cluster.ask();
  cluster.run_for(1ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::not_ready);
  for (int worker : {0, 1, 2}) cluster.start(worker);
  cluster.run_for(500ms);
  cluster.ask();
  cluster.run_for(1ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::not_ready) << "three of the four that are needed";
  cluster.start(4);
  cluster.run_for(500ms);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::ok);
  EXPECT_EQ(cluster.broken_promises(), std::vector<std::string>{});
}

TEST(Serving, LosesNoRequestWhileAnyKOfNAreAlive) {
  Cluster cluster({});  // (6, 4)
  cluster.start();
  cluster.run_for(500ms);
  cluster.ask_until(cluster.now() + 1s, 2ms);
  cluster.schedule({{100ms, LoseWorker{1, 50ms, 1h}}, {300ms, LoseWorker{5, 200ms, 1h}}});
  cluster.run_for(1s + 100ms);
  for (const auto& [status, count] : cluster.statuses())
    EXPECT_TRUE(status == ReplyStatus::ok || status == ReplyStatus::bad_request) << count;
  EXPECT_EQ(cluster.broken_promises(), std::vector<std::string>{});
}

TEST(Serving, MarksEveryAnswerDegradedWhenFewerThanKAreLeft) {
  Cluster cluster({});
  cluster.start();
  cluster.run_for(500ms);
  for (int worker : {0, 2, 4}) cluster.strike(LoseWorker{worker, 10ms, 1h});
  cluster.run_for(20ms);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::degraded);
  EXPECT_LT(cluster.asked().back().answers.at(0).reply.gateway_us, 20'000U) << "nobody is left to wait for";
  for (int worker : {1, 3, 5}) cluster.strike(LoseWorker{worker, 10ms, 1h});
  cluster.run_for(20ms);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::no_workers);
  EXPECT_EQ(cluster.broken_promises(), std::vector<std::string>{});
}

TEST(Serving, RefusesWhatIsBeyondItsLimitAndTakesMoreWhenThereIsRoom) {
  ClusterOptions options;
  options.in_flight_max = 8;
  Cluster cluster(options);
  cluster.start();
  cluster.run_for(500ms);
  for (int worker = 0; worker < 6; ++worker) cluster.strike(LoseFrames{worker, 1, 100ms});
  for (int i = 0; i < 30; ++i) cluster.ask();
  cluster.run_for(101ms);
  EXPECT_EQ(cluster.statuses()[ReplyStatus::no_response], 8);
  EXPECT_EQ(cluster.statuses()[ReplyStatus::overloaded], 22);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(last_status(cluster), ReplyStatus::ok);
  EXPECT_EQ(cluster.broken_promises(), std::vector<std::string>{});
}

TEST(Serving, AReturningWorkerHasItsWeightsSoonThoughABroadcastIsBeingWatched) {
  ClusterOptions options;
  options.patience = 10s;
  Cluster cluster(options);
  cluster.start();
  cluster.strike(LoseFrames{0, 1, 1h});
  cluster.run_for(500ms);
  ASSERT_EQ(status_of(cluster)["workers"][0]["state"], "loading");
  cluster.strike(LoseWorker{2, 5ms, 100ms});
  cluster.strike(LoseWorker{3, 5ms, 1h});
  cluster.run_for(100ms + options.settle + 100ms);
  EXPECT_EQ(status_of(cluster)["workers"][2]["state"], "ready") << "it waits to settle, not for another's patience to end";
}

TEST(Serving, TriesAgainWhenNoTreeCouldBePlanned) {
  ClusterOptions options;
  options.failing_plans = 2;
  Cluster cluster(options);
  cluster.start();
  cluster.run_for(options.patience);
  EXPECT_FALSE(status_of(cluster)["serving"].get<bool>());
  cluster.run_for(2 * options.patience);
  EXPECT_TRUE(status_of(cluster)["ready"].get<bool>());
}

TEST(Serving, ABroadcastThatBreaksOffIsPlannedAnew) {
  ClusterOptions options;
  options.bundle_bytes = 100'000;
  options.chunk_bytes = 100;
  Cluster cluster(options);
  cluster.start();
  cluster.run_for(60ms);
  for (int worker = 0; worker < 6; ++worker) cluster.strike(LoseFrames{worker, 0.02, 60ms});
  cluster.run_for(70ms);
  EXPECT_FALSE(status_of(cluster)["ready"].get<bool>());
  cluster.run_for(2 * options.patience);
  EXPECT_TRUE(status_of(cluster)["ready"].get<bool>());
  EXPECT_TRUE(cluster.refusals().empty());
}

}  // namespace
