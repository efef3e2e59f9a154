// Several replicas in one process, one thread each, train one net as one machine would.
#include "gpu/replicas.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <functional>
#include <numeric>
#include <optional>
#include <thread>

#include "gpu/trainer.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/random_net.hpp"
#include "tests/gpu/scratch.hpp"
#include "tests/gpu/shapes_data.hpp"

namespace coppice::gpu {
namespace {

// What the members of a group see of one another.
struct Table {
  explicit Table(int size) : gate(size), begun(static_cast<std::size_t>(size)) {}
  std::barrier<> gate;
  std::atomic<int> lost{-1};
  struct Begun {
    std::span<std::byte> bytes;
    bool averages;
  };
  std::vector<std::vector<Begun>> begun;  // by rank
};

// Means of floats in the order of ranks, so that all get the same bits.
class Member final : public ReplicaGroup {
 public:
  Member(Table& table, int rank) : table_(table), rank_(rank) {}
  ~Member() override {
    if (!left_) table_.gate.arrive_and_drop();
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(table_.begun.size()); }
  void average(std::span<float> numbers) override { own().push_back({std::as_writable_bytes(numbers), true}); }
  void share(std::span<std::byte> bytes) override { own().push_back({bytes, false}); }

  Expected<void> finish() override {
    if (!meet()) return gone();
    std::vector<std::vector<std::byte>> results;
    for (std::size_t i = 0; i < own().size(); ++i) results.push_back(result(i));
    if (!meet()) return gone();
    for (std::size_t i = 0; i < own().size(); ++i) std::ranges::copy(results[i], own()[i].bytes.begin());
    own().clear();
    return meet() ? Expected<void>() : gone();
  }
  void leave() {
    int none = -1;
    table_.lost.compare_exchange_strong(none, rank_);  // the first
    left_ = true;
    table_.gate.arrive_and_drop();
  }

 private:
  std::vector<Table::Begun>& own() { return table_.begun[static_cast<std::size_t>(rank_)]; }
  bool meet() {
    table_.gate.arrive_and_wait();
    return table_.lost < 0;
  }
  Expected<void> gone() {
    return unexpected(Error{ErrorCode::replica_lost, "replica " + std::to_string(table_.lost) + " is gone"});
  }
  std::vector<std::byte> result(std::size_t call) {
    const auto first = table_.begun.front()[call];
    std::vector<std::byte> out(first.bytes.begin(), first.bytes.end());
    if (!first.averages) return out;
    auto* sum = reinterpret_cast<float*>(out.data());
    const auto count = out.size() / sizeof(float);
    for (std::size_t rank = 1; rank < table_.begun.size(); ++rank) {
      const auto* part = reinterpret_cast<const float*>(table_.begun[rank][call].bytes.data());
      for (std::size_t i = 0; i < count; ++i) sum[i] += part[i];
    }
    for (std::size_t i = 0; i < count; ++i) sum[i] /= static_cast<float>(table_.begun.size());
    return out;
  }

  Table& table_;
  int rank_;
  bool left_ = false;
};

Expected<Trained> train_one(const Network& net, const Dataset& data, const TrainerOptions& options) {
  auto device = make_cpu_device({1});
  EXPECT_TRUE(device);
  std::vector<std::int64_t> items(static_cast<std::size_t>(data.count()));
  std::iota(items.begin(), items.end(), 0);
  return train(**device, {net}, data, items, sum_of_cross_entropies(1), options);
}

// change: what rank r does differently.
std::vector<Expected<Trained>> train_together(int size, const Network& net, const Dataset& data,
                                              const TrainerOptions& options,
                                              const std::function<void(int, TrainerOptions&)>& change = {}) {
  Table table(size);
  std::vector<std::optional<Expected<Trained>>> results(static_cast<std::size_t>(size));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank)
      threads.emplace_back([&, rank] {
        Member member(table, rank);
        auto own = options;
        own.replicas = &member;
        if (change) change(rank, own);
        auto& result = results[static_cast<std::size_t>(rank)];
        result = train_one(net, data, own);
        if (!*result) member.leave();
      });
  }
  std::vector<Expected<Trained>> out;
  for (auto& result : results) out.push_back(std::move(*result));
  return out;
}

// Without batch norms a part of a batch is as good as the whole.
Network plain_net() {
  Builder b({1, 8, 8}, 3);
  b.dense(b.flatten(b.relu(b.conv3x3(b.relu(b.conv3x3(0, 8)), 8))), kQuarters);
  return b.net;
}

TrainerOptions short_training() {
  auto options = shapes_options();
  options.epochs = 2;
  options.bucket_bytes = 1'000;
  return options;
}

TEST(GradientBuckets, CoverTheNetFromItsEndWithoutCuttingNodes) {
  const auto net = shapes_net(1);
  auto device = make_cpu_device({1});
  const auto trainable = (*device)->compile_training(net, {.batch = 4});
  ASSERT_TRUE(trainable);
  const auto all = (*trainable)->parameter_elements();
  for (const std::int64_t bytes : {1, 200, 1'000, 1'000'000}) {
    const GradientBuckets buckets(net, bytes);
    std::int64_t end = all;
    for (const auto& range : buckets.ranges()) {
      EXPECT_EQ(range.first + range.count, end);
      EXPECT_GT(range.count, 0);
      end = range.first;
      std::vector<float> numbers(static_cast<std::size_t>(range.count));
      EXPECT_TRUE((*trainable)->read_shared(range.first, numbers));
    }
    EXPECT_EQ(end, 0);
  }
  EXPECT_EQ(GradientBuckets(net, 1'000'000).ranges().size(), 1U);
  EXPECT_GT(GradientBuckets(net, 1).ranges().size(), 3U);
  std::vector<float> cut(3);
  EXPECT_EQ((*trainable)->read_shared(1, cut).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ((*trainable)->write_shared(all - 1, cut).error().code, ErrorCode::shape_mismatch);
}

// Gradients told of during a backward are those that it ends with.
TEST(GradientBuckets, AreWholeWhenTheBackwardSaysSo) {
  Builder b({2, 8, 8}, 15);
  const int first = b.relu(b.norm(b.conv3x3(0, 8)));
  b.dense(b.flatten(b.relu(b.add(b.norm(b.conv3x3(first, 8)), first))), 3);
  auto device = make_cpu_device({1});
  const auto net = *(*device)->compile_training(b.net, {.batch = 4});
  const auto input = NetSampler(1).floats(net->input_elements(), -1, 1), gradients = NetSampler(2).floats(net->output_elements(), -1, 1);
  std::vector<float> scores(static_cast<std::size_t>(net->output_elements()));
  ASSERT_TRUE(net->forward(input, scores, Mode::train));
  const auto all = net->parameter_elements();
  std::vector<float> told(static_cast<std::size_t>(all));
  std::int64_t from = all;
  int times = 0;
  ASSERT_TRUE(net->backward(gradients, [&](std::int64_t ready) {
    ASSERT_LT(ready, from);
    EXPECT_TRUE(net->read_shared(ready, std::span(told).subspan(static_cast<std::size_t>(ready),
                                                                static_cast<std::size_t>(from - ready))));
    from = ready;
    ++times;
  }));
  EXPECT_EQ(from, 0);
  EXPECT_EQ(times, 5);  // two convolutions, two norms, one dense
  std::vector<float> after(told.size());
  ASSERT_TRUE(net->read_shared(0, after));
  EXPECT_EQ(told, after);
  // The statistics themselves stand in their places: here they have moved with the batch.
  const auto weights = net->state()->weights;
  int statistics = 0;
  for (std::size_t i = 0; i < after.size(); ++i) statistics += after[i] == weights[i];
  EXPECT_EQ(statistics, 2 * 2 * 8);
  // What adds to earlier gradients is not told of.
  ASSERT_TRUE(net->backward(gradients, [](std::int64_t) { ADD_FAILURE(); }));
}

TEST(Replicas, ComeToWhatOneMachineWithTheWholeBatchComesTo) {
  const auto data = shapes_data(200, 3);
  const auto alone = train_one(plain_net(), data, short_training());
  ASSERT_TRUE(alone);
  for (const int size : {2, 4}) {
    const auto together = train_together(size, plain_net(), data, short_training());
    for (const auto& replica : together) {
      ASSERT_TRUE(replica) << replica.error().what;
      EXPECT_EQ(weights_of(replica->nets[0]), weights_of(together[0]->nets[0]));
      EXPECT_NEAR(replica->loss, alone->loss, 1e-4);
    }
    EXPECT_LT(reference::error(weights_of(together[0]->nets[0]), weights_of(alone->nets[0])), 1e-4) << size;
  }
}

TEST(Replicas, HaveTheSameBitsWithBatchNormsToo) {
  const auto data = shapes_data(200, 3);
  auto options = short_training();
  options.sgd.average_decay = 0.9F;
  options.epochs = 6;
  const auto together = train_together(4, shapes_net(1), data, options);
  for (const auto& replica : together) {
    ASSERT_TRUE(replica) << replica.error().what;
    EXPECT_EQ(weights_of(replica->nets[0]), weights_of(together[0]->nets[0]));
  }
  EXPECT_GT(shapes_accuracy(together[0]->nets[0], shapes_data(300, 4)), 0.9);
}

TEST(Replicas, AreResumedToTheSameBitsAfterOneIsLost) {
  const auto data = shapes_data(200, 3);
  auto options = short_training();
  options.sgd.average_decay = 0.9F;
  const auto straight = train_together(4, shapes_net(1), data, options);
  ASSERT_TRUE(straight[0]);
  const Scratch scratch;
  const auto keep = [&](int rank, TrainerOptions& own) {
    own.checkpoint = scratch / ("rank" + std::to_string(rank));  // only rank 0's counts
    own.checkpoint_every_seconds = 0;
  };
  int step = 0;
  const auto broken = train_together(4, shapes_net(1), data, options, [&](int rank, TrainerOptions& own) {
    keep(rank, own);
    if (rank == 2) own.stop = [&] { return ++step == 13; };
  });
  for (int rank = 0; rank < 4; ++rank) {
    const auto& result = broken[static_cast<std::size_t>(rank)];
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, rank == 2 ? ErrorCode::stopped : ErrorCode::replica_lost);
  }
  EXPECT_FALSE(std::filesystem::exists(scratch / "rank1"));
  const auto resumed = train_together(4, shapes_net(1), data, options, keep);
  for (const auto& replica : resumed) {
    ASSERT_TRUE(replica) << replica.error().what;
    EXPECT_EQ(weights_of(replica->nets[0]), weights_of(straight[0]->nets[0]));
  }
}

TEST(Replicas, ThatTrainAnotherThingAreFound) {
  const auto data = shapes_data(40, 3);
  const auto results = train_together(2, shapes_net(1), data, short_training(), [](int rank, TrainerOptions& own) {
    if (rank == 1) own.schedule.peak = 0.5F;
  });
  ASSERT_FALSE(results[1]);
  EXPECT_EQ(results[1].error().what, "replica 1 and replica 0 do not train the same: other options");
}

TEST(Replicas, NeedEqualParts) {
  const auto results = train_together(3, shapes_net(1), shapes_data(40, 3), short_training());
  for (const auto& result : results) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().what, "train: a batch of 20 has no 3 equal parts, one for each replica");
  }
}

}  // namespace
}  // namespace coppice::gpu
