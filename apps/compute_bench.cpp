#include "apps/compute_bench.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "apps/inference_bench.hpp"
#include "apps/peer_engine.hpp"
#include "apps/table.hpp"
#include "apps/training_bench.hpp"
#include "gpu/device.hpp"
#include "gpu/families.hpp"
#include "gpu/onnx_writer.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using runtime::Expected;
using runtime::failed;
constexpr int kWarmUps = 50;
constexpr double kWarmUp_us = 2e6, kBurst_us = 15e3;  // at most so long warming up; about so long a burst
constexpr int kBurstMin = 3, kBurstMax = 50;
constexpr double kTolerance = 1e-4;  // of the largest score
constexpr std::size_t kWhole = 8;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

gpu::Expected<gpu::Network> net_called(const std::string& name) {
  const std::vector<int> widths{32, 32, 64, 64, 128, 128};
  const auto vgg = [&](int divisor) {
    auto narrow = widths;
    for (int& width : narrow) width /= divisor;
    return gpu::vgg({1, 28, 28}, narrow, 10, 1);
  };
  if (name == "vgg") return vgg(1);
  if (name == "vgg/2") return vgg(2);
  if (name == "vgg/4") return vgg(4);
  if (name == "vgg/8") return vgg(8);
  if (name == "resnet-50") return gpu::family(name, {3, 224, 224}, 1'000, 1);
  return gpu::family(name, {3, 32, 32}, 10, 1);
}

class Ours final : public PeerEngine {
 public:
  explicit Ours(std::unique_ptr<gpu::CompiledNet> net)
      : net_(std::move(net)), output_(static_cast<std::size_t>(net_->output_elements())) {}
  Expected<std::span<const float>> run(std::span<const float> input) override {
    if (auto ran = net_->run(input, output_); !ran) return failed(ran.error().what);
    return std::span<const float>(output_);
  }

 private:
  std::unique_ptr<gpu::CompiledNet> net_;
  std::vector<float> output_;
};

struct Contender {
  std::string key;  // in JSON
  std::unique_ptr<PeerEngine> engine;
  int burst = kBurstMin;
  std::vector<double> medians, all;  // µs: of each burst; of each run
};

Expected<double> timed(PeerEngine& engine, std::span<const float> input) {
  const auto begun = Clock::now();
  if (auto ran = engine.run(input); !ran) return tl::unexpected(ran.error());
  return std::chrono::duration<double, std::micro>(Clock::now() - begun).count();
}

// Warms the engine up and finds how many runs make a burst.
Expected<void> warm_up(Contender& contender, std::span<const float> input) {
  double total = 0, best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kWarmUps && (i < kBurstMin || total < kWarmUp_us); ++i) {
    const auto took = timed(*contender.engine, input);
    if (!took) return tl::unexpected(took.error());
    total += *took;
    best = std::min(best, *took);
  }
  contender.burst = std::clamp(static_cast<int>(kBurst_us / best), kBurstMin, kBurstMax);
  return {};
}

Expected<void> burst(Contender& contender, std::span<const float> input) {
  std::vector<double> times;
  for (int i = 0; i < contender.burst; ++i) {
    const auto took = timed(*contender.engine, input);
    if (!took) return tl::unexpected(took.error());
    times.push_back(*took);
  }
  contender.medians.push_back(quantile(times, 0.5));
  contender.all.insert(contender.all.end(), times.begin(), times.end());
  return {};
}

Expected<void> agree(const std::string& net, std::vector<Contender>& contenders, std::span<const float> input) {
  std::vector<float> expected;
  for (auto& contender : contenders) {
    const auto got = contender.engine->run(input);
    if (!got) return tl::unexpected(got.error());
    if (expected.empty()) expected.assign(got->begin(), got->end());
    float largest = 0, worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      largest = std::max(largest, std::abs(expected[i]));
      worst = std::max(worst, std::abs(expected[i] - (*got)[i]));
    }
    if (!(worst <= kTolerance * largest))
      return failed(net + ": " + contender.key + " answers otherwise, by " + std::to_string(worst) + " of " +
                    std::to_string(largest));
  }
  return {};
}

Expected<std::vector<Contender>> contenders_for(const gpu::Network& net, const ComputeLoad& load) {
  const auto onnx = gpu::to_onnx(net);
  const auto shapes = gpu::infer_shapes(net);
  if (!onnx || !shapes) return failed(net.name + ": cannot be written as ONNX");
  auto device = gpu::make_cpu_device({load.threads});
  if (!device) return failed(device.error().what);
  auto compiled = (*device)->compile(net, {1});
  if (!compiled) return failed(compiled.error().what);
  std::vector<Contender> all;
  all.push_back({"coppice_us", std::make_unique<Ours>(std::move(*compiled)), kBurstMin, {}, {}});
  const PeerModel model{*onnx, net.input, gpu::elements(shapes->back()), load.threads};
  const auto add = [&](const char* key, Expected<std::unique_ptr<PeerEngine>> engine) -> Expected<void> {
    if (!engine) return tl::unexpected(engine.error());
    all.push_back({key, std::move(*engine), kBurstMin, {}, {}});
    return {};
  };
  if (!load.onnxruntime.empty())
    if (auto added = add("onnxruntime_us", onnxruntime_engine(load.onnxruntime, model)); !added)
      return tl::unexpected(added.error());
  if (!load.openvino.empty())
    if (auto added = add("openvino_us", openvino_engine(load.openvino, model)); !added)
      return tl::unexpected(added.error());
  return all;
}

// Our median over the better peer's, round by round.
std::vector<double> ratios(const std::vector<Contender>& contenders) {
  std::vector<double> out;
  for (std::size_t round = 0; contenders.size() > 1 && round < contenders.front().medians.size(); ++round) {
    double better = std::numeric_limits<double>::infinity();
    for (std::size_t i = 1; i < contenders.size(); ++i) better = std::min(better, contenders[i].medians[round]);
    out.push_back(contenders.front().medians[round] / better);
  }
  return out;
}

nlohmann::json number(double value) { return std::isnan(value) ? nlohmann::json() : nlohmann::json(value); }

Expected<nlohmann::json> row(const std::string& name, const ComputeLoad& load) {
  const auto net = net_called(name);
  if (!net) return runtime::bad_input(net.error().what);
  auto contenders = contenders_for(*net, load);
  if (!contenders) return tl::unexpected(contenders.error());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> input(static_cast<std::size_t>(gpu::elements(net->input)));
  for (float& value : input) value = normal(random);
  if (auto same = agree(name, *contenders, input); !same) return tl::unexpected(same.error());
  for (auto& contender : *contenders)
    if (auto warm = warm_up(contender, input); !warm) return tl::unexpected(warm.error());
  for (int round = 0; round < load.rounds; ++round)
    for (auto& contender : *contenders)
      if (auto ran = burst(contender, input); !ran) return tl::unexpected(ran.error());

  const auto all = ratios(*contenders);
  nlohmann::json out{{"name", name},
                     {"macs", gpu::multiply_adds(*net)},
                     {"onnxruntime_us", nullptr},
                     {"openvino_us", nullptr},
                     {"ratio", number(quantile(all, 0.5))},
                     {"ratio_range", {number(quantile(all, 0.25)), number(quantile(all, 0.75))}},
                     {"p99_us", number(quantile(contenders->front().all, 0.99))}};
  for (const auto& contender : *contenders) out[contender.key] = quantile(contender.medians, 0.5);
  return out;
}

double or_nan(const nlohmann::json& value) { return value.is_null() ? kNaN : value.get<double>(); }

}  // namespace

const std::vector<std::string>& compute_nets() {
  static const std::vector<std::string> kNets{"vgg",       "resnet-20",    "resnet-110",    "vgg19-bn",
                                              "resnet-18", "mobilenet-v2", "shufflenet-v2", "resnet-50",
                                              "vgg/2",     "vgg/4",        "vgg/8"};
  return kNets;
}

Expected<nlohmann::json> run_compute(const ComputeLoad& load) {
  nlohmann::json rows = nlohmann::json::array();
  double logs = 0;
  int whole = 0;
  const auto& known = compute_nets();
  for (const auto& name : load.nets.empty() ? known : load.nets) {
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end()) return runtime::bad_input("no net is called " + name);
    auto made = row(name, load);
    if (!made) return tl::unexpected(made.error());
    if (found - known.begin() < static_cast<std::ptrdiff_t>(kWhole)) {
      logs += std::log(or_nan((*made)["ratio"]));
      ++whole;
    }
    rows.push_back(std::move(*made));
    if (load.progress) load.progress(static_cast<std::int64_t>(rows.size()));
  }
  auto training = nlohmann::json::array();
  if (load.training) {
    TrainingBenchOptions how;
    how.python = load.python;
    how.threads = {load.threads};
    auto measured = bench_training(how);
    if (!measured) return tl::unexpected(measured.error());
    training = std::move(*measured);
  }
  return nlohmann::json{{"threads", load.threads},
                        {"nets", std::move(rows)},
                        {"geomean", number(whole > 0 ? std::exp(logs / whole) : kNaN)},
                        {"training", std::move(training)}};
}

std::string compute_table(const nlohmann::json& result) {
  std::vector<std::vector<std::string>> rows{
      {"net", "MMAC", "ours us", "p99 us", "ONNX Runtime us", "OpenVINO us", "ratio", "quartiles"}};
  for (const auto& net : result["nets"]) {
    const auto us = [&](const char* key) { return fixed(or_nan(net[key]), 1); };
    rows.push_back({net["name"].get<std::string>(), fixed(net["macs"].get<double>() / 1e6, 2), us("coppice_us"),
                    us("p99_us"), us("onnxruntime_us"), us("openvino_us"), fixed(or_nan(net["ratio"]), 3),
                    fixed(or_nan(net["ratio_range"][0]), 3) + "-" + fixed(or_nan(net["ratio_range"][1]), 3)});
  }
  auto text = table(rows) + "geometric mean of the whole nets: " + fixed(or_nan(result["geomean"]), 3) + "\n";
  if (result["training"].empty()) return text;
  std::vector<std::vector<std::string>> learning{{"training", "batch", "threads", "ours images/s", "PyTorch images/s", "ratio"}};
  for (const auto& net : result["training"]) {
    const auto figure = [&](const char* key, int digits) {
      return fixed(net.contains(key) ? or_nan(net[key]) : kNaN, digits);
    };
    learning.push_back({net["name"].get<std::string>(), std::to_string(net["batch"].get<int>()),
                        std::to_string(net["threads"].get<int>()), figure("coppice_images_s", 0),
                        figure("pytorch_images_s", 0), figure("ratio", 3)});
  }
  return text + "\n" + table(learning);
}

}  // namespace coppice::apps
