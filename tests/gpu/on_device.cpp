// What tests/gpu/on_device runs where a GPU is: every operator, training and speed on cuda:0, in each precision; what a
// reduction does there, and one over all GPUs where there are several.
//
// Prints one JSON document. Exit 0: all agree with the reference; 1: something does not, or failed. Also takes another
// device's name, "cpu", to check itself; then parts that it lacks count as failed.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "gpu/device.hpp"
#include "gpu/training.hpp"
#include "tests/gpu/cuda_nets.hpp"
#include "tests/gpu/on_device_peers.hpp"
#include "tests/gpu/training_reference.hpp"

namespace coppice::gpu {
namespace {

// The largest difference to the reference in double precision, over the largest number there (or 1). TF32 keeps 10 bits
// of what it multiplies, float16 keeps 10 bits of every value between layers too. A gradient changes at once where such
// rounding takes a value to the other side of a ReLU's zero, or makes another pixel a maximum.
struct Precise {
  std::string suffix;
  double error_max, gradient_error_max;
};
const std::vector<Precise> kPrecisions{{"", 1e-3, 5e-3}, {":tf32", 1e-2, 0.2}, {":fp16", 3e-2, 0.2}};

constexpr int kWarmUps = 100, kRuns = 2'000;
constexpr double kPartSecondsMax = 1;  // of each measurement

// ---- numbers -------------------------------------------------------------------------------------------------------

Expected<double> largest_error(CompiledNet& compiled, const Network& net, int batch) {
  double worst = 0;
  for (const std::uint64_t seed : {1U, 2U, 3U}) {  // fresh inputs, so that nothing left over from an earlier run passes
    const auto input = random_input(net, batch, seed);
    std::vector<float> output(static_cast<std::size_t>(compiled.output_elements()),
                              std::numeric_limits<float>::quiet_NaN());
    if (const auto ran = compiled.run(input, output); !ran) return unexpected(ran.error());
    worst = std::max(worst, reference::error(output, reference::forward(net, input)));
  }
  return worst;
}

void check_operators(Report& report, Device& device, const Precise& precise) {
  std::vector<Network> nets = operator_nets();
  nets.push_back(arithmetic_net());
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    nets.push_back(random_net(seed * 1'000, 3 + static_cast<int>(seed % 5)));
    nets.back().name = "random " + std::to_string(seed * 1'000);
  }
  auto wide = vgg({1, 28, 28}, {32, 32, 64, 64, 128, 128}, 10, 1);
  wide.name = "vgg";
  nets.push_back(wide);
  nets.push_back(residual_net(3, 16, 10));
  for (const auto& net : nets)
    for (const int batch : {1, 5, 12}) {  // one; few (dense layers read row by row) and many (multiplied)
      if (multiply_adds(net) > 1'000'000 && batch == 12) continue;  // the reference is slow
      auto compiled = device.compile(net, {batch});
      const auto error = compiled ? largest_error(**compiled, net, batch) : unexpected(compiled.error());
      if (error)
        report.add(*error <= precise.error_max,
                   row("net", net.name, "device", device.name(), "batch", batch, "error", *error, "allowed",
                       precise.error_max, "how", (*compiled)->description()));
      else
        report.add(false, row("net", net.name, "device", device.name(), "batch", batch, "failed", error.error().what));
    }
}

// Nets of one device, one on each of two threads that did not compile them, give what they give alone.
bool same_on_threads(Device& device) {
  const auto nets = operator_nets();
  const auto a = device.compile(nets[0], {2}), b = device.compile(nets[1], {2});
  if (!a || !b) return false;
  const auto answer = [](CompiledNet& net) {
    std::vector<float> out(static_cast<std::size_t>(net.output_elements()));
    return net.run(NetSampler(99).floats(net.input_elements()), out) ? out : std::vector<float>{};
  };
  const auto alone_a = answer(**a), alone_b = answer(**b);
  bool same_a = !alone_a.empty(), same_b = !alone_b.empty();
  const auto repeat = [&](CompiledNet& net, const std::vector<float>& alone, bool& same) {
    for (int i = 0; i < 200 && same; ++i) same = answer(net) == alone;
  };
  std::thread other([&] { repeat(**b, alone_b, same_b); });
  std::thread one([&] { repeat(**a, alone_a, same_a); });
  other.join();
  one.join();
  return same_a && same_b;
}

// ---- training ------------------------------------------------------------------------------------------------------

// The largest difference between a net's gradients and differences of the reference, over the largest of these in the
// same array; kinks are left out.
Expected<double> gradient_error(Device& device, const reference::Case& c, int batch) {
  auto net = device.compile_training(c.net, {batch});
  if (!net) return unexpected(net.error());
  std::vector<float> scores(c.score_gradients.size()),
      gradients(static_cast<std::size_t>((*net)->parameter_elements()));
  if (const auto done = (*net)->forward(c.input, scores, c.mode); !done) return unexpected(done.error());
  if (const auto done = (*net)->backward(c.score_gradients); !done) return unexpected(done.error());
  if (const auto done = (*net)->read_gradients(gradients); !done) return unexpected(done.error());
  double worst = reference::error(scores, reference::flattened(reference::all_values(c.net, c.input, c.mode).back()));
  const auto compare = [&](std::span<const float> had, const auto& wanted_at) {
    double scale = 1e-2, difference = 0;
    for (std::size_t i = 0; i < had.size(); i += had.size() / 16 + 1)
      if (const std::optional<double> wanted = wanted_at(i)) {
        scale = std::max(scale, std::abs(*wanted));
        difference = std::max(difference, std::abs(had[i] - *wanted));
      }
    worst = std::max(worst, difference / scale);
  };
  Network moved = c.net;
  std::span<const float> rest(gradients);
  reference::each_parameter(moved, [&](std::vector<float>& array, bool learned) {
    compare(rest.first(array.size()),
            [&](std::size_t i) { return learned ? reference::slope(c, moved, array[i]) : std::optional(0.0); });
    rest = rest.subspan(array.size());
  });
  std::vector<float> of_input(c.input.size());
  if (const auto done = (*net)->read_value_gradient(0, of_input); !done) return unexpected(done.error());
  const auto item = c.input.size() / static_cast<std::size_t>(batch);
  compare(of_input, [&](std::size_t i) { return reference::slope(c, {0, i / item, i % item}); });
  return worst;
}

void check_gradients(Report& report, Device& device, const Precise& precise) {
  constexpr int kBatch = 3;
  for (const auto& net : operator_nets())
    for (const auto mode : {Mode::train, Mode::evaluate}) {
      const auto outputs = kBatch * elements(infer_shapes(net)->back());
      const auto error =
          gradient_error(device, {net, random_input(net, kBatch, 7), NetSampler(8).floats(outputs), mode}, kBatch);
      const std::string in = mode == Mode::train ? "train" : "evaluate";
      if (error)
        report.add(*error <= precise.gradient_error_max, row("net", net.name, "device", device.name(), "mode", in,
                                                             "error", *error, "allowed", precise.gradient_error_max));
      else
        report.add(false, row("net", net.name, "device", device.name(), "mode", in, "failed", error.error().what));
    }
}

// Cross-entropy of a batch and its gradients.
double cross_entropy(const std::vector<float>& scores, const std::vector<int>& labels, std::vector<float>& gradients) {
  const auto batch = labels.size(), classes = scores.size() / batch;
  double loss = 0;
  for (std::size_t n = 0; n < batch; ++n) {
    const auto* row_of = &scores[n * classes];
    const double largest = *std::max_element(row_of, row_of + classes);
    double sum = 0;
    for (std::size_t c = 0; c < classes; ++c) sum += std::exp(row_of[c] - largest);
    for (std::size_t c = 0; c < classes; ++c) {
      const double probability = std::exp(row_of[c] - largest) / sum;
      const bool right = static_cast<int>(c) == labels[n];
      if (right) loss -= std::log(probability) / static_cast<double>(batch);
      gradients[n * classes + c] = static_cast<float>((probability - (right ? 1 : 0)) / static_cast<double>(batch));
    }
  }
  return loss;
}

// Images that are their class's pattern under noise.
struct Patterns {
  explicit Patterns(std::int64_t item) : item_size(item), patterns(NetSampler(5).floats(10 * item)) {}
  void draw(std::vector<float>& input, std::vector<int>& labels) {
    std::normal_distribution<float> noise(0.0F, 1.0F);
    for (std::size_t n = 0; n < labels.size(); ++n) {
      labels[n] = static_cast<int>(random() % 10);
      for (std::int64_t i = 0; i < item_size; ++i)
        input[n * static_cast<std::size_t>(item_size) + static_cast<std::size_t>(i)] =
            patterns[static_cast<std::size_t>(labels[n] * item_size + i)] + noise(random);
    }
  }
  std::int64_t item_size;
  std::vector<float> patterns;
  std::mt19937_64 random{6};
};

struct Learning {
  double first = 0, last = 0, images_per_second = 0;
};

// Some steps at batch 128; losses of the first and last ten, and the speed of the second half.
Expected<Learning> learn(Device& device, const Network& given, int steps) {
  constexpr int kBatch = 128;
  auto net = device.compile_training(given, {kBatch});
  if (!net) return unexpected(net.error());
  std::vector<float> input(static_cast<std::size_t>((*net)->input_elements())), scores(kBatch * 10),
      gradients(kBatch * 10);
  std::vector<int> labels(kBatch);
  Patterns patterns(elements(given.input));
  Learning out;
  auto begin = Clock::now();
  for (int i = 0; i < steps; ++i) {
    if (i < steps / 2) patterns.draw(input, labels);  // then the same batch again: drawing would be what is measured
    if (i == steps / 2) begin = Clock::now();
    if (const auto done = (*net)->forward(input, scores, Mode::train); !done) return unexpected(done.error());
    const double loss = cross_entropy(scores, labels, gradients);
    if (i < 10) out.first += loss / 10;
    if (i >= steps / 2 - 10 && i < steps / 2) out.last += loss / 10;
    if (const auto done = (*net)->backward(gradients); !done) return unexpected(done.error());
    if (const auto done = (*net)->update({0.02F, 0.9F, 5e-4F, true, 0.99F}); !done) return unexpected(done.error());
  }
  if (const auto waited = (*net)->state(); !waited) return unexpected(waited.error());
  out.images_per_second = kBatch * (steps - steps / 2) / seconds_since(begin);
  return out;
}

// ---- speed ---------------------------------------------------------------------------------------------------------

struct Times {
  double p50_us = 0, p99_us = 0;
};

Times percentiles(std::vector<double> times) {
  std::ranges::sort(times);
  return {times[times.size() / 2] * 1e6, times[times.size() * 99 / 100] * 1e6};
}

Expected<Times> latency(CompiledNet& net) {
  const auto input = NetSampler(1).floats(net.input_elements());
  std::vector<float> output(static_cast<std::size_t>(net.output_elements()));
  std::vector<double> times;
  const auto start = Clock::now();
  for (int i = 0; i < kWarmUps + kRuns && (i < kWarmUps + 10 || seconds_since(start) < kPartSecondsMax); ++i) {
    const auto begin = Clock::now();
    if (const auto ran = net.run(input, output); !ran) return unexpected(ran.error());
    if (i >= kWarmUps) times.push_back(seconds_since(begin));
  }
  return percentiles(std::move(times));
}

struct Timed {
  std::string name;  // as tests/gpu/on_device.py calls its peer
  Network net;
};

std::vector<Timed> timed_nets() {
  return {{"vgg", vgg({1, 28, 28}, {32, 32, 64, 64, 128, 128}, 10, 1)},
          {"vgg half", vgg({1, 28, 28}, {16, 16, 32, 32, 64, 64}, 10, 2)},
          {"vgg quarter", vgg({1, 28, 28}, {8, 8, 16, 16, 32, 32}, 10, 3)},
          {"resnet-20", residual_net(3, 16, 10)}};
}

void measure_latency(Report& report, Device& device) {
  for (const auto& [name, net] : timed_nets())
    for (const auto& [batch, timed] : {std::pair(1, false), std::pair(1, true), std::pair(16, false)}) {
      if (report.late()) return;
      auto compiled = device.compile(net, {batch, timed});
      const auto times = compiled ? latency(**compiled) : unexpected(compiled.error());
      if (times)
        report.add(row("net", name, "device", device.name(), "batch", batch, "choice", timed ? "timed" : "advised",
                       "p50_us", times->p50_us, "p99_us", times->p99_us, "how", (*compiled)->description()));
      else
        report.add(false, row("net", name, "device", device.name(), "batch", batch, "failed", times.error().what));
    }
}

// k nets, each on a thread of its own, all given one request at a time: the time until the last has answered.
Expected<Times> side_by_side(const std::vector<std::unique_ptr<CompiledNet>>& nets) {
  constexpr int kRounds = 1'000;
  std::atomic<int> round{0}, answered{0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (const auto& net : nets)
    threads.emplace_back([&, &mine = *net] {
      const auto input = NetSampler(1).floats(mine.input_elements());
      std::vector<float> output(static_cast<std::size_t>(mine.output_elements()));
      for (int done = 0; done < kWarmUps + kRounds; ++done) {
        while (round.load() <= done) {  // spinning: waking a thread would take as long as the net
        }
        if (!mine.run(input, output)) failed = true;
        ++answered;
      }
    });
  std::vector<double> times;
  for (int i = 1; i <= kWarmUps + kRounds; ++i) {
    const auto begin = Clock::now();
    round = i;
    while (answered.load() < i * static_cast<int>(nets.size())) {
    }
    if (i > kWarmUps) times.push_back(seconds_since(begin));
  }
  for (auto& thread : threads) thread.join();
  if (failed) return unexpected(Error{ErrorCode::device_failed, "a net failed beside others"});
  return percentiles(std::move(times));
}

void measure_side_by_side(Report& report, Device& device) {
  const auto nets = timed_nets();
  struct Group {
    std::size_t which;
    int count;
  };
  for (const auto& [which, count] : {Group{0, 1}, Group{1, 2}, Group{2, 1}, Group{2, 2}, Group{2, 4}, Group{2, 8}}) {
    if (report.late()) return;
    if (std::thread::hardware_concurrency() <= static_cast<unsigned>(count)) continue;  // they would wait for a core
    std::vector<std::unique_ptr<CompiledNet>> compiled;
    for (int i = 0; i < count; ++i)
      if (auto made = device.compile(nets[which].net, {1})) compiled.push_back(std::move(*made));
    const auto times =
        std::ssize(compiled) == count ? side_by_side(compiled) : unexpected(Error{ErrorCode::device_failed, "no net"});
    if (times)
      report.add(row("net", nets[which].name, "device", device.name(), "nets", count, "p50_us", times->p50_us, "p99_us",
                     times->p99_us));
    else
      report.add(false, row("net", nets[which].name, "nets", count, "failed", times.error().what));
  }
}

void check_learning(Report& report, Device& device) {
  for (const auto& [name, net] : timed_nets()) {
    if (name != "vgg" && name != "resnet-20") continue;
    const auto learned = learn(device, net, 400);
    if (learned)
      report.add(learned->last < 0.5 * learned->first,
                 row("net", name, "device", device.name(), "batch", 128, "first_loss", learned->first, "last_loss",
                     learned->last, "images_per_second", learned->images_per_second));
    else
      report.add(false, row("net", name, "device", device.name(), "failed", learned.error().what));
  }
}

// ---- all of it -----------------------------------------------------------------------------------------------------

int run(const std::string& spec, const std::string& card) {
  std::vector<std::unique_ptr<Device>> devices;
  std::vector<Precise> precisions;
  for (const auto& precise : kPrecisions) {
    if (spec == "cpu" && !precise.suffix.empty()) continue;
    auto device = make_device(spec + precise.suffix, CpuOptions{});
    if (!device) {
      std::fprintf(stderr, "on_device: %s\n", device.error().what.c_str());
      return 1;
    }
    devices.push_back(std::move(*device));
    precisions.push_back(precise);
  }
  Report report;
  std::printf("{\"device\":%s", quoted(card.empty() ? spec : card).c_str());
  const auto section = [&](const std::string& name, const auto& each) {
    report.begin(name);
    for (std::size_t i = 0; i < devices.size(); ++i) each(*devices[i], precisions[i]);
    report.end();
    std::fprintf(stderr, "on_device: %s after %.0f s\n", name.c_str(), report.seconds());
  };
  section("operators", [&](Device& device, const Precise& precise) { check_operators(report, device, precise); });
  section("gradients", [&](Device& device, const Precise& precise) {
    if (precise.suffix != ":fp16") check_gradients(report, device, precise);  // it trains as tf32 does
  });
  section("training", [&](Device& device, const Precise& precise) {
    if (precise.suffix != ":fp16") check_learning(report, device);
  });
  section("latency", [&](Device& device, const Precise&) { measure_latency(report, device); });
  section("side_by_side", [&](Device& device, const Precise&) { measure_side_by_side(report, device); });
  if (spec != "cpu") check_peers(report);
  const bool threads = same_on_threads(*devices.front());
  std::printf(",\n\"same_on_threads\":%s,\"complete\":%s,\"good\":%s}\n", threads ? "true" : "false",
              report.late() ? "false" : "true", threads && report.good() ? "true" : "false");
  return threads && report.good() ? 0 : 1;
}

}  // namespace
}  // namespace coppice::gpu

int main(int count, char** arguments) {
  return coppice::gpu::run(count > 1 ? arguments[1] : "cuda:0", count > 2 ? arguments[2] : "");
}
