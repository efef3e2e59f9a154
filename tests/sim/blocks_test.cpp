// Many workers in blocks: what the gateway hears, and what happens when workers, heads and whole blocks are lost.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/cluster_sim.hpp"
#include "tests/sim/seeds.hpp"

using namespace sim;
using namespace std::chrono_literals;

namespace {

const std::vector<std::string> kNothing;

ClusterOptions options_of(int blocks, coding::CodeShape shape, std::uint64_t seed = 1) {
  ClusterOptions options;
  options.seed = seed;
  options.blocks = blocks;
  options.shape = shape;
  return options;
}

nlohmann::json status_of(Cluster& cluster) { return nlohmann::json::parse(cluster.status()); }

// Requests one after another; returns how many were answered, not degraded.
int ask(Cluster& cluster, int count, Duration gap = 20ms) {
  const auto before = cluster.asked().size();
  for (int i = 0; i < count; ++i) {
    cluster.ask();
    cluster.run_for(gap);
  }
  cluster.run_for(60ms);
  int ok = 0;
  for (auto i = before; i < cluster.asked().size(); ++i) {
    const auto& answers = cluster.asked()[i].answers;
    ok += answers.size() == 1 && answers[0].reply.status == ReplyStatus::ok;
  }
  return ok;
}

void start(Cluster& cluster) {
  cluster.start();
  cluster.run_for(2s);
  ASSERT_TRUE(status_of(cluster)["ready"].get<bool>());
}

TEST(Blocks, ElevenHundredWorkersCostTheGatewayAMessageABlock) {
  for (const auto seed : seeds(2)) {
    SCOPED_TRACE("COPPICE_SIM_SEED=" + std::to_string(seed));
    Cluster cluster(options_of(100, {11, 10}, seed));
    start(cluster);
    const auto before = cluster.gateway_traffic();
    EXPECT_EQ(ask(cluster, 5), 5);
    EXPECT_EQ(cluster.gateway_traffic().in - before.in, 5U * 100U);
    EXPECT_EQ(cluster.gateway_traffic().out - before.out, 5U * 100U);

    // Any one worker missing in every block at once: another one in each, heads among them.
    for (int block = 0; block < 100; ++block)
      cluster.strike(LoseWorker{block * 11 + static_cast<int>(cluster.random().below(11)), 10ms, 1h});
    EXPECT_EQ(ask(cluster, 10), 10) << "the first of them before their loss was noticed";
    EXPECT_EQ(cluster.broken_promises(), kNothing);
    if (HasFailure()) return;
  }
}

TEST(Blocks, TheFlatGatherOfTheSameWorkersHearsEveryWorker) {
  auto options = options_of(10, {11, 10});
  options.gateway_heads = true;
  Cluster cluster(options);
  start(cluster);
  const auto before = cluster.gateway_traffic();
  EXPECT_EQ(ask(cluster, 5), 5);
  EXPECT_EQ(cluster.gateway_traffic().in - before.in, 5U * 110U);
  EXPECT_EQ(cluster.broken_promises(), kNothing);
}

TEST(Blocks, StragglersAreNotWaitedForWhoeverTheyAre) {
  for (const auto seed : seeds(5)) {
    SCOPED_TRACE("COPPICE_SIM_SEED=" + std::to_string(seed));
    Cluster cluster(options_of(6, {11, 10}, seed));
    start(cluster);
    for (int block = 0; block < 6; ++block)
      cluster.strike(Straggle{"worker=w" + std::to_string(block * 11 + static_cast<int>(cluster.random().below(11))) +
                              ",delay=1000ms"});
    cluster.run_for(10ms);
    EXPECT_EQ(ask(cluster, 10), 10);
    EXPECT_EQ(cluster.broken_promises(), kNothing);
  }
}

TEST(Blocks, ASilentHeadIsPassedOverWithinTheRequest) {
  Cluster cluster(options_of(3, {5, 4}));
  start(cluster);
  EXPECT_EQ(ask(cluster, 1), 1);
  const auto head = status_of(cluster)["blocks"][1]["head"].get<std::string>();
  // Nothing reaches it or leaves it, and nobody is told.
  cluster.strike(CutOffWorker{std::stoi(head.substr(1)), 1h, 1h});
  cluster.ask();
  cluster.run_for(60ms);
  const auto& reply = cluster.asked().back().answers.at(0).reply;
  EXPECT_EQ(reply.status, ReplyStatus::ok) << "any four of five are enough, though the head was the fifth";
  EXPECT_GT(reply.gateway_us, 35'000U);
  const auto status = status_of(cluster);
  EXPECT_NE(status["blocks"][1]["head"], head);
  EXPECT_EQ(status["blocks"][1]["replaced"], 1);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_LT(cluster.asked().back().answers.at(0).reply.gateway_us, 10'000U) << "the next request goes to the new head at once";
  EXPECT_EQ(cluster.broken_promises(), kNothing);
}

TEST(Blocks, AHeadThatDiesIsReplacedAsSoonAsItIsNoticed) {
  Cluster cluster(options_of(3, {5, 4}));
  start(cluster);
  EXPECT_EQ(ask(cluster, 1), 1);
  const auto head = status_of(cluster)["blocks"][0]["head"].get<std::string>();
  cluster.ask();
  cluster.run_for(130us);  // admitted; the item is on its way to the head
  cluster.strike(LoseWorker{std::stoi(head.substr(1)), 2ms, 1h});
  cluster.run_for(60ms);
  const auto& reply = cluster.asked().back().answers.at(0).reply;
  EXPECT_EQ(reply.status, ReplyStatus::ok);
  EXPECT_LT(reply.gateway_us, 10'000U);
  EXPECT_EQ(cluster.broken_promises(), kNothing);
}

TEST(Blocks, ABlockWithTooFewWorkersIsAnEstimateAndALostOneIsMissing) {
  Cluster cluster(options_of(3, {5, 4}));
  start(cluster);
  for (int worker : {5, 7}) cluster.strike(LoseWorker{worker, 10ms, 1h});
  cluster.run_for(20ms);
  EXPECT_EQ(ask(cluster, 1), 0);
  EXPECT_EQ(cluster.asked().back().answers.at(0).reply.status, ReplyStatus::degraded);
  EXPECT_LT(cluster.asked().back().answers.at(0).reply.gateway_us, 10'000U) << "nobody is left to wait for";
  for (int worker : {6, 8, 9}) cluster.strike(LoseWorker{worker, 10ms, 1h});
  cluster.run_for(20ms);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(cluster.asked().back().answers.at(0).reply.status, ReplyStatus::degraded);
  EXPECT_LT(cluster.asked().back().answers.at(0).reply.gateway_us, 10'000U);
  for (int worker = 0; worker < 15; ++worker) cluster.strike(LoseWorker{worker, 10ms, 1h});
  cluster.run_for(20ms);
  cluster.ask();
  cluster.run_for(60ms);
  EXPECT_EQ(cluster.asked().back().answers.at(0).reply.status, ReplyStatus::no_workers);
  EXPECT_EQ(cluster.broken_promises(), kNothing);
}

// Storms as in serving_test.cpp: nothing hangs, nothing is answered twice or better than it is, and all is well afterwards.
TEST(Blocks, AnswersEveryRequestOnceThroughFaultsAndIsWholeAfterThem) {
  std::map<ReplyStatus, int> statuses;
  for (const auto seed : seeds(30)) {
    SCOPED_TRACE("COPPICE_SIM_SEED=" + std::to_string(seed));
    Random random(seed ^ 0xb10c);
    auto options = options_of(2 + static_cast<int>(random.below(4)), {}, seed);
    options.shape.workers = 3 + static_cast<int>(random.below(4));
    options.shape.needed = options.shape.workers - 1 - static_cast<int>(random.below(2));
    options.gateway_heads = random.chance(0.2);
    Cluster cluster(options);
    std::string told;
    const auto faults = draw_faults(cluster.random(), cluster.workers(), 3s, cluster.random().below(40));
    for (const auto& fault : faults) told += "\n  " + to_string(fault);
    cluster.schedule(faults);
    cluster.start();
    cluster.ask_until(cluster.now() + 3s, 6ms);
    cluster.run_for(3s);
    cluster.heal();
    cluster.run_for(8s);  // the roster's patience, and what heads are suspected for
    EXPECT_TRUE(status_of(cluster)["ready"].get<bool>()) << told;
    EXPECT_EQ(ask(cluster, 20, 10ms), 20) << told;
    EXPECT_EQ(cluster.broken_promises(), kNothing) << told;
    for (const auto& [status, count] : cluster.statuses()) statuses[status] += count;
    if (HasFailure()) return;
  }
  if (only_some_seeds(30)) return;
  for (const auto status : {ReplyStatus::ok, ReplyStatus::degraded, ReplyStatus::not_ready, ReplyStatus::bad_request})
    EXPECT_GT(statuses[status], 0) << "status " << static_cast<int>(status);
}

TEST(Blocks, OneSeedIsOneRun) {
  const auto run = [](std::uint64_t seed) {
    Cluster cluster(options_of(4, {5, 4}, seed));
    cluster.start();
    cluster.schedule(draw_faults(cluster.random(), cluster.workers(), 1s, 10));
    cluster.ask_until(cluster.now() + 1s, 6ms);
    cluster.run_for(2s);
    return cluster.trace();
  };
  EXPECT_EQ(run(3), run(3));
  EXPECT_NE(run(3), run(4));
}

}  // namespace
