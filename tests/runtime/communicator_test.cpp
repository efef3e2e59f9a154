// Ranks of one process over real sockets: what callers see, with and without faults.
#include "runtime/communicator.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <map>
#include <numeric>
#include <random>
#include <thread>

#include "runtime/keys.hpp"

namespace coppice::runtime {
namespace {

using collectives::Reduction;

class CommunicatorTest : public ::testing::Test {
 protected:
  static constexpr int kRanks = 4;

  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / ("coppice-communicator-" + std::to_string(::getpid()));
    std::filesystem::remove_all(directory_);
    cluster_.name = "ranks";
    cluster_.keys = directory_;
    std::vector<std::string> names;
    // Ports of this process's own, below those of outgoing connections; others than the transport's test has.
    const auto base = static_cast<std::uint16_t>(11'600 + ::getpid() % 300 * kRanks);
    for (int i = 0; i < kRanks; ++i) {
      Host host;
      host.name = "h" + std::to_string(i);
      host.address = "127.0.0.1";
      host.port = static_cast<std::uint16_t>(base + i);
      names.push_back(host.name);
      cluster_.hosts.push_back(host);
    }
    ASSERT_TRUE(make_keys(directory_, names, true));
  }
  void TearDown() override {
    group_.clear();
    std::filesystem::remove_all(directory_);
  }

  // One that nobody ever heard has not come yet, and is waited for, not gone.
  void meet() {
    std::vector<std::vector<float>> buffers(kRanks, std::vector<float>(3));
    std::vector<Completion> calls;
    for (std::size_t rank = 0; rank < kRanks; ++rank) calls.push_back(group_[rank]->allreduce(std::span(buffers[rank])));
    for (const auto& call : calls) ASSERT_TRUE(call.wait());
  }
  void join_all(OnLoss on_loss = OnLoss::fail) {
    for (int rank = 0; rank < kRanks; ++rank) join(rank, on_loss);
  }
  // patience: longer than a machine that hardly runs the test stands still, where that is not what is tested.
  void join(int rank, OnLoss on_loss = OnLoss::fail, std::chrono::milliseconds patience = std::chrono::minutes{10}) {
    CommunicatorOptions options;
    options.on_loss = on_loss;
    options.cluster = cluster_;
    options.name = cluster_.hosts[static_cast<std::size_t>(rank)].name;
    options.patience = patience;
    options.hops = hops_;
    options.local = local_;
    auto joined = Communicator::join(std::move(options));
    ASSERT_TRUE(joined) << joined.error().what;
    group_.push_back(std::move(*joined));
  }

  std::shared_ptr<actors::HopLog> hops_;  // of all ranks
  bool local_ = true;
  std::filesystem::path directory_;
  Cluster cluster_;
  std::vector<std::unique_ptr<Communicator>> group_;
};

std::vector<std::int64_t> numbers(int rank, std::size_t count) {
  std::vector<std::int64_t> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>(i) * 7 + rank * 1'000'003;
  return out;
}

TEST_F(CommunicatorTest, ReadsLikeAnyCollectiveLibrary) {
  join_all();
  std::vector<std::vector<float>> buffers;
  for (int rank = 0; rank < kRanks; ++rank) buffers.emplace_back(1'000, static_cast<float>(rank + 1));
  std::vector<Completion> calls;
  for (int rank = 0; rank < kRanks; ++rank)
    calls.push_back(group_[static_cast<std::size_t>(rank)]->allreduce(std::span(buffers[static_cast<std::size_t>(rank)])));
  for (const auto& call : calls) {
    const auto done = call.wait();
    ASSERT_TRUE(done) << done.error().what;
    EXPECT_EQ(done->attempts, 1);
  }
  for (const auto& buffer : buffers) EXPECT_EQ(buffer, std::vector<float>(1'000, 10.0F));

  // Parts: each rank's own, to all and back.
  std::vector<std::vector<std::int64_t>> parts, wholes(kRanks, std::vector<std::int64_t>(40)), sums(kRanks, std::vector<std::int64_t>(10));
  for (int rank = 0; rank < kRanks; ++rank) parts.push_back(numbers(rank, 10));
  calls.clear();
  for (std::size_t rank = 0; rank < kRanks; ++rank)
    calls.push_back(group_[rank]->allgather(std::span<const std::int64_t>(parts[rank]), std::span(wholes[rank])));
  for (const auto& call : calls) ASSERT_TRUE(call.wait());
  for (const auto& whole : wholes)
    for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(whole[i], parts[i / 10][i % 10]);
  calls.clear();
  for (std::size_t rank = 0; rank < kRanks; ++rank)
    calls.push_back(group_[rank]->reduce_scatter(std::span<const std::int64_t>(wholes[rank]), std::span(sums[rank])));
  for (const auto& call : calls) ASSERT_TRUE(call.wait());
  for (std::size_t rank = 0; rank < kRanks; ++rank)
    for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(sums[rank][i], kRanks * parts[rank][i]);
}

TEST_F(CommunicatorTest, CallsOverlapAndActionsFollow) {
  join_all();
  constexpr int kCalls = 20;
  std::vector<std::vector<std::vector<std::int32_t>>> buffers(kCalls);
  std::vector<Completion> calls;
  std::atomic<int> acted{0};
  for (int i = 0; i < kCalls; ++i) {
    for (int rank = 0; rank < kRanks; ++rank) buffers[static_cast<std::size_t>(i)].emplace_back(static_cast<std::size_t>(1 + i * 37), rank * i);
    for (std::size_t rank = 0; rank < kRanks; ++rank) {
      calls.push_back(group_[rank]->allreduce(std::span(buffers[static_cast<std::size_t>(i)][rank]), Reduction::max));
      calls.back().then([&](const auto& done) { acted += done.has_value() ? 1 : 0; });
    }
  }
  for (const auto& call : calls) ASSERT_TRUE(call.wait());
  for (int i = 0; i < kCalls; ++i)
    for (const auto& buffer : buffers[static_cast<std::size_t>(i)])
      EXPECT_EQ(buffer, std::vector<std::int32_t>(buffer.size(), (kRanks - 1) * i));
  for (int tries = 0; acted < kCalls * kRanks && tries < 500; ++tries) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  EXPECT_EQ(acted, kCalls * kRanks);
}

TEST_F(CommunicatorTest, ATraceHasEveryChunkOnEveryHopOnceWithTheAddressItCameFrom) {
  for (const bool local : {false, true}) {
    local_ = local;
    hops_ = std::make_shared<actors::HopLog>();
    group_.clear();
    join_all();
    std::vector<std::vector<std::byte>> buffers(kRanks, std::vector<std::byte>(std::size_t{3} << 20));
    std::vector<Completion> calls;
    for (std::size_t rank = 0; rank < kRanks; ++rank) calls.push_back(group_[rank]->broadcast(std::span(buffers[rank]), 0));
    for (const auto& call : calls) ASSERT_TRUE(call.wait());
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint64_t> bytes;  // by tree and chunk
    std::uint64_t all = 0;
    for (const auto& hop : hops_->take()) {
      EXPECT_TRUE(hop.address == "127.0.0.1" || (local && hop.address.empty())) << hop.address;
      EXPECT_EQ(hop.way, actors::Way::down);
      EXPECT_TRUE(cluster_.find(hop.from));
      bytes[{hop.tree, hop.chunk}] += hop.bytes;
      all += hop.bytes;
    }
    EXPECT_EQ(all, (kRanks - 1) * (std::uint64_t{3} << 20)) << "every other rank has every byte once";
    EXPECT_GT(bytes.size(), 1U);
  }
}

TEST_F(CommunicatorTest, RefusesBuffersThatDoNotFitAtOnce) {
  join(0);
  std::vector<float> in(10), out(10);
  const auto refused = group_[0]->allgather(std::span<const float>(in), std::span(out)).wait();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::bad_input);
  EXPECT_NE(refused.error().what.find("160"), std::string::npos) << refused.error().what;
  EXPECT_FALSE(group_[0]->broadcast(std::span(in), 4).wait());
}

TEST_F(CommunicatorTest, RanksThatCallDifferentlyAreTold) {
  join_all();
  std::vector<std::vector<float>> buffers(kRanks, std::vector<float>(100, 1.0F));
  buffers[2].resize(50);
  std::vector<Completion> calls;
  for (std::size_t rank = 0; rank < kRanks; ++rank) calls.push_back(group_[rank]->allreduce(std::span(buffers[rank])));
  for (const auto& call : calls) {
    const auto done = call.wait();
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().what.find("same calls"), std::string::npos) << done.error().what;
  }
}

TEST_F(CommunicatorTest, ARankThatNeverComesIsNamed) {
  for (int rank = 0; rank < kRanks - 1; ++rank) join(rank, OnLoss::fail, std::chrono::seconds{2});
  std::vector<std::vector<float>> buffers(kRanks, std::vector<float>(100'000, 1.0F));
  std::vector<Completion> calls;
  for (std::size_t rank = 0; rank + 1 < kRanks; ++rank) calls.push_back(group_[rank]->allreduce(std::span(buffers[rank])));
  for (const auto& call : calls) {
    const auto done = call.wait();
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().what.find("h3"), std::string::npos) << done.error().what;
  }
  // The group is broken for good, and says so at once.
  const auto again = group_[0]->allreduce(std::span(buffers[0])).wait();
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().what.find("join again"), std::string::npos);
}

TEST_F(CommunicatorTest, ARankThatCallsLateIsWaitedFor) {
  join_all();
  std::vector<std::vector<float>> buffers(kRanks, std::vector<float>(100'000, 1.0F));
  std::vector<Completion> calls;
  for (std::size_t rank = 0; rank + 1 < kRanks; ++rank) calls.push_back(group_[rank]->allreduce(std::span(buffers[rank])));
  std::this_thread::sleep_for(std::chrono::milliseconds{2'500});  // longer than a dead link is given
  calls.push_back(group_[3]->allreduce(std::span(buffers[3])));
  for (const auto& call : calls) {
    const auto done = call.wait();
    ASSERT_TRUE(done) << done.error().what;
    EXPECT_EQ(done->attempts, 1);
  }
}

TEST_F(CommunicatorTest, ARankThatDiesInTheMiddleIsNamedToAllOthers) {
  join_all();
  constexpr std::size_t kCount = std::size_t{8} << 20;
  std::vector<std::vector<std::int64_t>> buffers;
  for (int rank = 0; rank < kRanks; ++rank) buffers.push_back(numbers(rank, kCount));
  std::vector<Completion> calls;
  for (std::size_t rank = 0; rank < kRanks; ++rank) calls.push_back(group_[rank]->allreduce(std::span(buffers[rank])));
  std::this_thread::sleep_for(std::chrono::milliseconds{60});
  ASSERT_FALSE(calls[0].ready()) << "the machine is too fast for this test";
  group_.pop_back();  // h3 closes its sockets and is gone
  for (std::size_t rank = 0; rank + 1 < kRanks; ++rank) {
    const auto done = calls[rank].wait();
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().what.find("rank 3 (h3) is gone"), std::string::npos) << done.error().what;
    EXPECT_EQ(done.error().code, ErrorCode::rank_gone);
    EXPECT_EQ(done.error().ranks, std::vector<int>{3});
  }
}

// As when a training step hands over every tensor of a large model: nothing may be dropped because much waits.
TEST_F(CommunicatorTest, ThousandsOfCallsAtOnce) {
  join_all();
  constexpr std::size_t kCalls = 6'000;
  std::vector<std::vector<std::int32_t>> values(kRanks, std::vector<std::int32_t>(kCalls));
  std::vector<Completion> calls;
  for (std::size_t rank = 0; rank < kRanks; ++rank)
    for (std::size_t i = 0; i < kCalls; ++i) {
      values[rank][i] = static_cast<std::int32_t>(i + rank);
      calls.push_back(group_[rank]->allreduce(std::span(values[rank]).subspan(i, 1)));
    }
  for (const auto& call : calls) {
    const auto done = call.wait();
    ASSERT_TRUE(done) << done.error().what;
  }
  for (const auto& own : values)
    for (std::size_t i = 0; i < kCalls; ++i) ASSERT_EQ(own[i], static_cast<std::int32_t>(4 * i + 6));
}

TEST_F(CommunicatorTest, WhoeverLeavesInTheMiddleOfACallIsTold) {
  join(0);
  join(1);
  std::vector<float> buffer(1'000, 1.0F);
  const auto call = group_[0]->allreduce(std::span(buffer));
  std::atomic<bool> told{false};
  call.then([&](const auto& done) { told = !done.has_value(); });
  group_.clear();
  ASSERT_TRUE(call.ready());
  EXPECT_NE(call.wait().error().what.find("left"), std::string::npos);
  EXPECT_TRUE(told);
}

TEST_F(CommunicatorTest, AGroupOfOneHasEverythingAlready) {
  cluster_.hosts.resize(1);
  join(0);
  auto& alone = *group_[0];
  const std::vector<std::int64_t> in{1, 2, 3};
  const auto given = std::span(in);
  for (int operation = 0; operation < 7; ++operation) {
    std::vector<std::int64_t> out(operation == 0 || operation == 1 ? in : std::vector<std::int64_t>(3));
    const std::span result(out);
    const std::vector<std::function<Completion()>> calls{
        [&] { return alone.broadcast(result, 0); },
        [&] { return alone.allreduce(result, Reduction::avg); },
        [&] { return alone.reduce(given, result, Reduction::sum, 0); },
        [&] { return alone.allgather(given, result); },
        [&] { return alone.reduce_scatter(given, result); },
        [&] { return alone.gather(given, result, 0); },
        [&] { return alone.scatter(given, result, 0); }};
    const auto done = calls[static_cast<std::size_t>(operation)]().wait();
    ASSERT_TRUE(done) << operation << ": " << done.error().what;
    EXPECT_EQ(out, in) << operation;
  }
}

// Every call that is under way ends with the same error, not only the first to notice.
TEST_F(CommunicatorTest, ARankThatDiesWithSeveralCallsUnderWayIsNamedByEach) {
  join_all();
  constexpr std::size_t kCount = std::size_t{4} << 20, kCalls = 3;
  std::vector<std::vector<std::int64_t>> buffers;
  for (int i = 0; i < kRanks * static_cast<int>(kCalls); ++i) buffers.push_back(numbers(i, kCount));
  std::vector<std::vector<Completion>> calls(kRanks);
  for (std::size_t i = 0; i < kCalls; ++i)
    for (std::size_t rank = 0; rank < kRanks; ++rank) calls[rank].push_back(group_[rank]->allreduce(std::span(buffers[i * kRanks + rank])));
  std::this_thread::sleep_for(std::chrono::milliseconds{60});
  ASSERT_FALSE(calls[0][kCalls - 1].ready()) << "the machine is too fast for this test";
  group_.pop_back();
  for (std::size_t rank = 0; rank + 1 < kRanks; ++rank)
    for (const auto& call : calls[rank])
      if (const auto done = call.wait(); !done) {
        EXPECT_NE(done.error().what.find("rank 3 (h3) is gone"), std::string::npos) << done.error().what;
        EXPECT_EQ(done.error().code, ErrorCode::rank_gone);
      }
  for (const auto& call : calls[3]) EXPECT_TRUE(call.ready());
}

// A rank, rank 0 among them, is gone in the middle of calls: the others have the same sums, of the same ranks, and go on.
TEST_F(CommunicatorTest, SurvivorsHaveTheSameSumsAndGoOn) {
  constexpr std::size_t kCount = std::size_t{1} << 21, kCalls = 2;
  for (const std::size_t victim : {std::size_t{0}, std::size_t{2}}) {
    group_.clear();
    join_all(OnLoss::complete_among_survivors);
    meet();
    std::vector<std::vector<std::vector<std::int64_t>>> buffers(kCalls + 1);
    std::vector<std::vector<Completion>> calls(kRanks);
    const auto call_all = [&](std::size_t which, std::size_t without) {
      for (int rank = 0; rank < kRanks; ++rank) buffers[which].push_back(numbers(rank, kCount));
      for (std::size_t rank = 0; rank < kRanks; ++rank)
        if (rank != without) calls[rank].push_back(group_[rank]->allreduce(std::span(buffers[which][rank])));
    };
    for (std::size_t i = 0; i < kCalls; ++i) call_all(i, kRanks);
    std::this_thread::sleep_for(std::chrono::milliseconds{40});
    ASSERT_FALSE(calls[victim].back().ready()) << "the machine is too fast for this test";
    group_[victim].reset();
    const auto gone = std::chrono::steady_clock::now();
    call_all(kCalls, victim);
    for (std::size_t i = 0; i <= kCalls; ++i) {
      std::optional<std::vector<int>> ranks;
      for (std::size_t rank = 0; rank < kRanks; ++rank) {
        if (rank == victim) continue;
        const auto done = calls[rank][i].wait();
        ASSERT_TRUE(done) << done.error().what;
        if (!ranks) ranks = done->ranks;
        ASSERT_EQ(done->ranks, *ranks);
        if (i == kCalls) {
          ASSERT_EQ(ranks->size(), 3U);
        }
        for (std::size_t at = 0; at < kCount; at += 997) {
          std::int64_t sum = 0;
          for (const int each : *ranks) sum += static_cast<std::int64_t>(at) * 7 + each * 1'000'003;
          ASSERT_EQ(buffers[i][rank][at], sum) << "call " << i << ", rank " << rank << ", element " << at;
        }
      }
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - gone;
    RecordProperty("rank_" + std::to_string(victim) + "_s", std::to_string(took.count()));
    std::printf("rank %zu gone: the last of three calls was over %.2f s later\n", victim, took.count());
  }
}

TEST_F(CommunicatorTest, RelaysThatEndAtAnyMomentChangeNothing) {
  join_all();
  std::mt19937 random(3);
  constexpr std::size_t kCount = std::size_t{1} << 20;  // 8 MiB
  int anew = 0;
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<std::int64_t>> buffers, outs(kRanks);
    for (int rank = 0; rank < kRanks; ++rank) buffers.push_back(numbers(rank, kCount));
    std::vector<Completion> calls;
    const int which = round % 3;
    for (std::size_t rank = 0; rank < kRanks; ++rank) {
      auto& group = *group_[rank];
      if (which == 0) calls.push_back(group.allreduce(std::span(buffers[rank])));
      if (which == 1) calls.push_back(group.broadcast(std::span(buffers[rank]), 1));
      if (which == 2) {
        outs[rank].resize(rank == 2 ? kCount : 0);
        calls.push_back(group.reduce(std::span<const std::int64_t>(buffers[rank]), std::span(outs[rank]), Reduction::sum, 2));
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds{random() % 60'000});
    group_[random() % kRanks]->end_a_relay();
    for (const auto& call : calls) {
      const auto done = call.wait();
      ASSERT_TRUE(done) << done.error().what;
      anew += done->attempts > 1 ? 1 : 0;
    }
    for (int rank = 0; rank < kRanks; ++rank) {
      if (which == 2 && rank != 2) continue;
      const auto& got = which == 2 ? outs[2] : buffers[static_cast<std::size_t>(rank)];
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto own = static_cast<std::int64_t>(i) * 7;
        const std::int64_t right = which == 1 ? own + 1'000'003 : kRanks * own + 6 * 1'000'003;
        ASSERT_EQ(got[i], right) << "round " << round << ", rank " << rank << ", element " << i;
      }
    }
  }
  EXPECT_GT(anew, 10) << "hardly a relay was hit";
}

}  // namespace
}  // namespace coppice::runtime
