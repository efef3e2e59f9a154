#include "actors/block_table.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace coppice::actors {
namespace {

using namespace std::chrono_literals;

const Instant kStart{};
constexpr BlockTiming kTiming{100ms};

// Three blocks of two classes each; every block asked of worker 10 + its number.
BlockTable table_with(std::uint64_t requests) {
  BlockTable table(3, {0, 0, 1, 1, 2, 2}, kTiming);
  for (std::uint64_t id = 1; id <= requests; ++id)
    table.open(RequestId{id}, Epoch{7}, {10, 11, 12}, {{"client"}, id, false}, nullptr, kStart);
  return table;
}

BlockScore score(std::uint64_t request, std::uint32_t block, float best, ReplyStatus status = ReplyStatus::ok) {
  BlockScore out;
  out.request = RequestId{request};
  out.epoch = Epoch{7};
  out.block = block;
  out.status = status;
  out.label = status == ReplyStatus::no_response ? -1 : static_cast<int>(2 * block + 1);
  out.score = best;
  out.runner_up = best - 1;
  out.log_sum_exp = best + 0.31326F;
  return out;
}

TEST(BlockTable, AnswersWhenTheLastBlockHasSpoken) {
  auto table = table_with(1);
  EXPECT_EQ(table.on_score(score(1, 2, 0.5F), kStart + 1ms).receipt, Receipt::taken);
  EXPECT_EQ(table.on_score(score(1, 0, 2), kStart + 2ms).receipt, Receipt::taken);
  const auto last = table.on_score(score(1, 1, 1), kStart + 3ms);
  ASSERT_EQ(last.receipt, Receipt::completes);
  EXPECT_EQ(last.latency, 3ms);
  const auto reply = answer_of(*last.completion);
  EXPECT_EQ(reply.status, ReplyStatus::ok);
  EXPECT_EQ(reply.label, 1);
  EXPECT_FLOAT_EQ(reply.margin, 1) << "its own runner-up and another block's best are equally near";
  EXPECT_NEAR(reply.probability, 1 / ((1 + std::exp(-1)) * (1 + std::exp(-1) + std::exp(-1.5))), 1e-3);
  EXPECT_EQ(table.in_flight(), 0U);
  EXPECT_EQ(table.on_score(score(1, 1, 1), kStart + 4ms).receipt, Receipt::late);
}

TEST(BlockTable, CountsWhatItCannotUse) {
  auto table = table_with(1);
  EXPECT_EQ(table.on_score(score(2, 0, 1), kStart).receipt, Receipt::unknown_request);
  auto stale = score(1, 0, 1);
  stale.epoch = Epoch{6};
  EXPECT_EQ(table.on_score(stale, kStart).receipt, Receipt::stale_epoch);
  auto foreign = score(1, 0, 1);
  foreign.label = 3;
  EXPECT_EQ(table.on_score(foreign, kStart).receipt, Receipt::bad_shape) << "class 3 is of block 1";
  auto endless = score(1, 0, std::numeric_limits<float>::infinity());
  EXPECT_EQ(table.on_score(endless, kStart).receipt, Receipt::bad_shape);
  auto beyond = score(1, 0, 1);
  beyond.block = 3;
  EXPECT_EQ(table.on_score(beyond, kStart).receipt, Receipt::bad_shape);
  auto refusal = score(1, 0, 1);
  refusal.status = ReplyStatus::overloaded;
  EXPECT_EQ(table.on_score(refusal, kStart).receipt, Receipt::bad_shape);
  EXPECT_EQ(table.on_score(score(1, 0, 1), kStart).receipt, Receipt::taken);
  EXPECT_EQ(table.on_score(score(1, 0, 1), kStart).receipt, Receipt::duplicate);
}

TEST(BlockTable, OneBlockThatIsWorseMakesTheAnswerSo) {
  auto table = table_with(1);
  table.on_score(score(1, 0, 1), kStart);
  table.on_score(score(1, 1, 1, ReplyStatus::degraded), kStart);
  const auto last = table.on_score(score(1, 2, 0, ReplyStatus::no_response), kStart);
  ASSERT_TRUE(last.completion);
  const auto reply = answer_of(*last.completion);
  EXPECT_EQ(reply.status, ReplyStatus::degraded);
  EXPECT_EQ(reply.label, 1) << "of equals the first class";
}

TEST(BlockTable, AtTheDeadlineTheMissingAreLeftOut) {
  auto table = table_with(2);
  table.on_score(score(1, 0, 1), kStart);
  EXPECT_TRUE(table.on_time(kStart + 99ms).empty());
  const auto due = table.on_time(kStart + 100ms);
  ASSERT_EQ(due.size(), 2U);
  EXPECT_EQ(answer_of(due[0]).status, ReplyStatus::degraded);
  const auto nothing = answer_of(due[1]);
  EXPECT_EQ(nothing.status, ReplyStatus::no_response);
  EXPECT_FALSE(nothing.error.empty());
}

TEST(BlockTable, ABlockThatIsLostIsNotWaitedFor) {
  auto table = table_with(2);
  table.on_score(score(1, 0, 1), kStart);
  table.on_score(score(1, 2, 1), kStart);
  const auto done = table.on_block_lost(1, kStart + 1ms);
  ASSERT_EQ(done.size(), 1U);
  EXPECT_TRUE(done[0].degraded);
  EXPECT_EQ(table.in_flight(), 1U);
}

TEST(BlockTable, ASilentHeadIsToldOfOnceAndOnlyOfWhatItWasAskedFirst) {
  auto table = table_with(2);
  table.on_score(score(1, 0, 1), kStart);
  EXPECT_EQ(table.wanted(1, 11).size(), 2U);
  EXPECT_TRUE(table.wanted(1, 10).empty());
  table.asked_anew(table.wanted(1, 11)[1], 9);  // request 2 was handed to another already
  EXPECT_EQ(table.next_wake(), kStart + 70ms);
  EXPECT_TRUE(table.on_silence(kStart + 69ms).empty());
  const auto silent = table.on_silence(kStart + 70ms);
  ASSERT_EQ(silent.size(), 4U);  // of request 1: blocks 1 and 2; of request 2: blocks 0 and 2
  for (const auto& wanted : silent)
    EXPECT_FALSE(static_cast<std::uint64_t>(wanted.request) == 2 && wanted.block == 1);
  EXPECT_TRUE(table.on_silence(kStart + 80ms).empty());
  EXPECT_EQ(table.next_wake(), kStart + 100ms);
}

TEST(BlockTiming, LeavesTimeForAnotherHead) {
  EXPECT_EQ(kTiming.patience(kStart, kStart), 60ms);
  EXPECT_EQ(kTiming.patience(kStart, kStart + 70ms), 20ms);
  EXPECT_EQ(kTiming.patience(kStart, kStart + 90ms), std::nullopt);
  EXPECT_LT(kTiming.head_patience(), kTiming.silence());
}

}  // namespace
}  // namespace coppice::actors
