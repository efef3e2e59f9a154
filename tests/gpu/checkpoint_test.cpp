// Trainings that are interrupted, killed and resumed; checkpoints that are damaged or another's.
#include "gpu/checkpoint.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <numeric>

#include "tests/gpu/scratch.hpp"
#include "tests/gpu/shapes_data.hpp"

namespace coppice::gpu {
namespace {

Expected<Trained> trained(const TrainerOptions& options, const Dataset& data, int nets = 1) {
  auto device = make_cpu_device({1});
  EXPECT_TRUE(device);
  std::vector<std::int64_t> items(static_cast<std::size_t>(data.count()));
  std::iota(items.begin(), items.end(), 0);
  std::vector<Network> starting;
  for (int i = 0; i < nets; ++i) starting.push_back(shapes_net(static_cast<std::uint64_t>(i)));
  return train(**device, starting, data, items, sum_of_cross_entropies(starting.size()), options);
}

TrainerOptions with_checkpoint(const std::filesystem::path& file) {
  auto options = shapes_options();
  options.epochs = 3;
  options.sgd.average_decay = 0.9F;
  options.checkpoint = file;
  options.checkpoint_every_seconds = 0;
  return options;
}

std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Checkpoints, AStoppedTrainingGoesOnToTheSameBits) {
  const Scratch scratch;
  const auto data = shapes_data(100, 3);
  auto options = with_checkpoint(scratch / "whole");
  const auto whole = trained(options, data, 2);
  ASSERT_TRUE(whole);
  options.checkpoint = scratch / "parts";
  for (const int stop_after : {4, 1, 7}) {  // the five batches of an epoch are cut in the middle and at its end
    int left = stop_after;
    options.stop = [&] { return --left == 0; };
    const auto stopped = trained(options, data, 2);
    ASSERT_FALSE(stopped);
    ASSERT_EQ(stopped.error().code, ErrorCode::stopped) << stopped.error().what;
  }
  options.stop = nullptr;
  const auto resumed = trained(options, data, 2);
  ASSERT_TRUE(resumed) << resumed.error().what;
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(weights_of(resumed->nets[i]), weights_of(whole->nets[i]));
  EXPECT_EQ(bytes_of(scratch / "parts"), bytes_of(scratch / "whole"));
}

TEST(Checkpoints, AKilledTrainingGoesOnToTheSameBits) {
  const Scratch scratch;
  const auto data = shapes_data(100, 3);
  auto options = with_checkpoint(scratch / "whole");
  ASSERT_TRUE(trained(options, data));
  options.checkpoint = scratch / "killed";
  for (const int kill_at : {3, 8}) {
    const auto child = ::fork();
    if (child == 0) {
      options.progress = nullptr;
      options.stop = [&, left = kill_at]() mutable {
        if (--left == 0) std::raise(SIGKILL);
        return false;
      };
      (void)trained(options, data);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  // What a kill in the middle of a write leaves beside the file does no harm.
  scratch.write("killed.part", "half");
  ASSERT_TRUE(trained(options, data));
  EXPECT_EQ(bytes_of(scratch / "killed"), bytes_of(scratch / "whole"));
}

TEST(Checkpoints, AFinishedTrainingIsReadBackWithoutAStep) {
  const Scratch scratch;
  const auto data = shapes_data(100, 3);
  auto options = with_checkpoint(scratch / "done");
  const auto first = trained(options, data);
  ASSERT_TRUE(first);
  options.stop = [] {
    ADD_FAILURE() << "a step was taken";
    return false;
  };
  const auto second = trained(options, data);
  ASSERT_TRUE(second);
  EXPECT_EQ(weights_of(second->nets[0]), weights_of(first->nets[0]));
}

TEST(Checkpoints, AnotherTrainingsIsRefusedAndSaysWhatDiffers) {
  const Scratch scratch;
  const auto data = shapes_data(100, 3);
  const auto file = scratch / "c";
  auto options = with_checkpoint(file);
  ASSERT_TRUE(trained(options, data));
  const auto before = bytes_of(file);
  const auto refusal = [&](const TrainerOptions& changed, const Dataset& with, int nets = 1) {
    const auto refused = trained(changed, with, nets);
    EXPECT_FALSE(refused);
    EXPECT_EQ(bytes_of(file), before);
    return refused ? std::string() : refused.error().what;
  };
  const std::string begin = file.string() + ": is the checkpoint of a training with other ",
                    end = ": remove it to begin anew, or name another file";
  EXPECT_EQ(refusal(options, shapes_data(100, 4)), begin + "data" + end);
  EXPECT_EQ(refusal(options, data, 2), begin + "net" + end);
  for (const auto& change : std::vector<std::function<void(TrainerOptions&)>>{
           [](auto& o) { o.seed = 99; }, [](auto& o) { o.epochs = 4; }, [](auto& o) { o.augmentation.flip = true; },
           [](auto& o) { o.sgd.weight_decay = 0; }, [](auto& o) { o.schedule.peak = 1; },
           [](auto& o) { o.normalisation.mean = 0; }}) {
    auto changed = options;
    change(changed);
    EXPECT_EQ(refusal(changed, data), begin + "options" + end);
  }
  auto both = options;
  both.seed = 99;
  EXPECT_EQ(refusal(both, shapes_data(50, 3)), begin + "data and options" + end);
}

TEST(Checkpoints, DamagedOnesAreRefused) {
  const Scratch scratch;
  const auto data = shapes_data(40, 3);
  const auto options = with_checkpoint(scratch / "c");
  ASSERT_TRUE(trained(options, data));
  const auto good = bytes_of(scratch / "c");
  const auto refused = [&](const std::string& bytes) {
    scratch.write("c", bytes);
    const auto result = trained(options, data);
    EXPECT_FALSE(result);
    return result ? std::string() : result.error().what;
  };
  const auto damaged =
      (scratch / "c").string() + ": is damaged or no checkpoint: remove it to begin anew, or name another file";
  EXPECT_EQ(refused(""), damaged);
  EXPECT_EQ(refused("not a checkpoint at all, but long enough to hold a whole header of one, and more"), damaged);
  EXPECT_EQ(refused(good.substr(0, good.size() - 1)), damaged);
  EXPECT_EQ(refused(good.substr(0, good.size() / 2)), damaged);
  for (std::size_t at = 0; at < good.size(); at += 1 + good.size() / 60) {
    auto flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    EXPECT_EQ(refused(flipped), damaged) << at;
  }
  EXPECT_NE(refused(good + good).find("whose checkpoints are smaller"), std::string::npos);
}

TEST(Checkpoints, APlaceThatCannotBeWrittenIsNamed) {
  const Scratch scratch;
  const auto result = trained(with_checkpoint(scratch / "absent/c"), shapes_data(40, 3));
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().what.find("absent/c.part: cannot be written"), std::string::npos) << result.error().what;
}

}  // namespace
}  // namespace coppice::gpu
