#include "apps/training_bench.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "gpu/families.hpp"
#include "gpu/trainer.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using runtime::Expected;

constexpr int kClasses = 10;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// ---- ours ----------------------------------------------------------------------------------------------------------

// A net that trains on one random batch, step after step.
class Ours {
 public:
  static Expected<std::unique_ptr<Ours>> make(const gpu::Network& net, int batch, int threads) {
    auto device = gpu::make_cpu_device({threads});
    if (!device) return tl::unexpected(reported(device.error()));
    auto trainable = (*device)->compile_training(net, {.batch = batch});
    if (!trainable) return tl::unexpected(reported(trainable.error()));
    auto made = std::unique_ptr<Ours>(new Ours(*std::move(trainable), batch));
    if (auto warm = made->train(3); !warm) return tl::unexpected(warm.error());
    return made;
  }

  Expected<double> train(int steps) {  // seconds
    const auto begun = Clock::now();
    for (int i = 0; i < steps; ++i)
      if (auto done = step(); !done) return tl::unexpected(reported(done.error()));
    return std::chrono::duration<double>(Clock::now() - begun).count();
  }

 private:
  Ours(std::unique_ptr<gpu::TrainableNet> net, int batch)
      : net_(std::move(net)),
        images_(static_cast<std::size_t>(net_->input_elements())),
        scores_(static_cast<std::size_t>(net_->output_elements())),
        gradients_(scores_.size()),
        labels_(static_cast<std::size_t>(batch)) {
    for (std::size_t i = 0; i < images_.size(); ++i) images_[i] = std::sin(static_cast<float>(i * i % 1'009));
    for (std::size_t i = 0; i < labels_.size(); ++i) labels_[i] = static_cast<std::uint16_t>(i % kClasses);
  }
  gpu::Expected<void> step() {
    if (auto done = net_->forward(images_, scores_, gpu::Mode::train); !done) return done;
    std::fill(gradients_.begin(), gradients_.end(), 0.0F);
    gpu::cross_entropy(scores_, labels_, kClasses, gradients_);
    if (auto done = net_->backward(gradients_); !done) return done;
    return net_->update({.rate = 0.01F});
  }

  std::unique_ptr<gpu::TrainableNet> net_;
  std::vector<float> images_, scores_, gradients_;
  std::vector<std::uint16_t> labels_;
};

// ---- PyTorch's -----------------------------------------------------------------------------------------------------

// apps/peers/pytorch_training.py as a process that waits for its next burst. Ends with this object.
class Peer {
 public:
  Peer(const std::string& python, const std::vector<std::string>& arguments) {
    std::array<int, 2> in{}, out{};
    if (::pipe2(in.data(), O_CLOEXEC) != 0) return;
    if (::pipe2(out.data(), O_CLOEXEC) != 0) {
      ::close(in[0]);
      ::close(in[1]);
      return;
    }
    std::vector<char*> words{const_cast<char*>(python.c_str())};
    for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    // What Python says of a missing torch is told by the rows.
    ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (::posix_spawnp(&pid_, python.c_str(), &actions, nullptr, words.data(), environ) != 0) pid_ = -1;
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    to_ = in[1];
    from_ = ::fdopen(out[0], "r");
  }
  ~Peer() {
    if (to_ >= 0) ::close(to_);  // the end of its input ends it
    if (from_) std::fclose(from_);
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  bool ready() { return line().value_or("").starts_with("ready"); }
  std::optional<double> train(int steps) {  // seconds
    const auto ask = std::to_string(steps) + "\n";
    if (::write(to_, ask.data(), ask.size()) != static_cast<ssize_t>(ask.size())) return std::nullopt;
    const auto answer = line();
    if (!answer) return std::nullopt;
    const double seconds = std::strtod(answer->c_str(), nullptr);
    return seconds > 0 ? std::optional(seconds) : std::nullopt;
  }

 private:
  std::optional<std::string> line() {
    std::array<char, 256> text{};
    if (!from_ || !std::fgets(text.data(), text.size(), from_)) return std::nullopt;
    return std::string(text.data());
  }

  pid_t pid_ = -1;
  int to_ = -1;
  std::FILE* from_ = nullptr;
};

std::string python_of(const TrainingBenchOptions& options) {
  if (!options.python.empty()) return options.python;
  const char* named = std::getenv("COPPICE_PYTHON");
  return named && *named ? named : "python3";
}

std::filesystem::path script() {
  const auto installed = std::filesystem::path(self_path()).parent_path() / "../share/coppice/peers";
  const auto source = std::filesystem::path(COPPICE_SOURCE) / "apps/peers";
  return (std::filesystem::exists(installed) ? installed : source) / "pytorch_training.py";
}

std::vector<std::unique_ptr<Peer>> peers_of(const std::string& net, const TrainingBenchOptions& options, int threads) {
  std::vector<std::unique_ptr<Peer>> peers;
  for (const auto* layout : {"nchw", "channels_last"}) {
    auto peer = std::make_unique<Peer>(python_of(options),
                                       std::vector<std::string>{script().string(), net, std::to_string(options.batch),
                                                                std::to_string(threads), layout});
    if (!peer->ready()) return {};
    peers.push_back(std::move(peer));
  }
  return peers;
}

// ---- beside one another --------------------------------------------------------------------------------------------

struct Rounds {
  std::vector<double> ours, theirs;  // images a second; theirs: the better layout of each round
};

Expected<Rounds> measured(Ours& ours, const std::vector<std::unique_ptr<Peer>>& peers,
                          const TrainingBenchOptions& options, Progress& bar, std::int64_t& done) {
  const auto one = ours.train(1);
  if (!one) return tl::unexpected(one.error());
  const int steps = std::clamp(static_cast<int>(options.burst_seconds / *one), 1, 1'000);
  const double images = static_cast<double>(steps) * options.batch;
  Rounds rounds;
  for (int round = 0; round < options.rounds && !interrupted; ++round) {
    const auto own = ours.train(steps);
    if (!own) return tl::unexpected(own.error());
    rounds.ours.push_back(images / *own);
    double best = 0;
    for (const auto& peer : peers)
      if (const auto seconds = peer->train(steps)) best = std::max(best, images / *seconds);
    if (best > 0) rounds.theirs.push_back(best);
    bar.at(++done);
  }
  return rounds;
}

nlohmann::json row_of(const std::string& name, int threads, const Rounds& rounds, const TrainingBenchOptions& options) {
  nlohmann::json row{{"name", name},
                     {"batch", options.batch},
                     {"threads", threads},
                     {"coppice_images_s", median(rounds.ours)},
                     {"pytorch_images_s", nullptr},
                     {"ratio", nullptr},
                     {"range", nullptr}};
  if (rounds.theirs.size() != rounds.ours.size()) {
    row["missing"] = "PyTorch: " + python_of(options) + " has no torch that trains; name one with --python";
    return row;
  }
  std::vector<double> ratios;
  for (std::size_t i = 0; i < rounds.ours.size(); ++i) ratios.push_back(rounds.ours[i] / rounds.theirs[i]);
  row["pytorch_images_s"] = median(rounds.theirs);
  row["ratio"] = median(ratios);
  row["range"] = {*std::min_element(ratios.begin(), ratios.end()), *std::max_element(ratios.begin(), ratios.end())};
  return row;
}

}  // namespace

Expected<nlohmann::json> bench_training(const TrainingBenchOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a peer that ends early is a row that says so
  const std::vector<std::pair<std::string, gpu::Network>> nets{
      {"vgg:32,32,64,64,128,128", gpu::vgg({1, 28, 28}, {32, 32, 64, 64, 128, 128}, kClasses, 1)},
      {"resnet-20", gpu::family("resnet-20", {1, 28, 28}, kClasses, 1).value()}};
  Progress bar("training beside PyTorch",
               static_cast<std::int64_t>(nets.size() * options.threads.size()) * options.rounds);
  std::int64_t done = 0;
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& [name, net] : nets)
    for (const int threads : options.threads) {
      const auto peers = peers_of(name, options, threads);
      const auto ours = Ours::make(net, options.batch, threads);
      if (!ours) return tl::unexpected(ours.error());
      const auto rounds = measured(**ours, peers, options, bar, done);
      if (!rounds) return tl::unexpected(rounds.error());
      if (rounds->ours.empty()) return runtime::failed("interrupted");
      rows.push_back(row_of(name, threads, *rounds, options));
    }
  return rows;
}

}  // namespace coppice::apps
