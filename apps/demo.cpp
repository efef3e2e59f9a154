// coppice demo: the main job in one go. Launches real nodes, asks them real questions, breaks some, and sets beside the
// figures what a user would do without us.
#include <algorithm>
#include <csignal>
#include <fstream>
#include <map>

#include "apps/accuracy.hpp"
#include "apps/command.hpp"
#include "apps/crossing.hpp"
#include "apps/fault_schedule.hpp"
#include "apps/from_scratch.hpp"
#include "apps/inference_bench.hpp"
#include "apps/local_cluster.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "apps/shipped.hpp"
#include "apps/table.hpp"
#include "gpu/device.hpp"
#include "gpu/onnx.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using runtime::Expected;

struct Options {
  std::string data, straggler = "worker=any:1,delay=pareto:2:10ms,p=0.05";
  std::int64_t requests = 2'000;
  bool full = false, no_crossing = false, from_scratch = false;
  int threads = 2;
};

// The schemes of the table, in its order; "replicate" is two copies of the base net, shown as "whole".
const std::vector<std::string> kSchemes{"none", "parity", "control", "replicate"};
const std::vector<std::string> kConditions{"clean", "straggler", "killed"};
constexpr int kRounds = 4;  // clean and straggler take turns, so that a noisy minute strikes both

std::string shown(const std::string& scheme) { return scheme == "replicate" ? "whole" : scheme; }

std::filesystem::path cache_directory() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) return std::filesystem::path(cache) / "coppice/demo";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home && *home ? home : "/tmp") / ".cache/coppice/demo";
}

// ---- what a user would do without us -------------------------------------------------------------------------------

struct LocalNet {
  std::string name;
  std::int64_t macs = 0;
  int threads = 1;
  std::unique_ptr<gpu::Device> device;
  std::unique_ptr<gpu::CompiledNet> net;
  std::vector<double> latency_ms;
  double accuracy = 0;  // on all test items
};

Expected<std::vector<LocalNet>> make_locals(const std::filesystem::path& nets, const gpu::Dataset& data,
                                            const gpu::Normalisation& normalisation) {
  std::vector<LocalNet> locals;
  for (const std::string name : {"base", "control"}) {
    const auto network = gpu::load_onnx(nets / (name + ".onnx"));
    if (!network) return runtime::bad_input(network.error().what);
    const auto accuracy = net_accuracy(*network, data, normalisation);
    if (!accuracy) return tl::unexpected(accuracy.error());
    for (const int threads : {1, 2}) {
      LocalNet local;
      local.name = name;
      local.threads = threads;
      local.macs = gpu::multiply_adds(*network);
      local.accuracy = *accuracy;
      auto device = gpu::make_cpu_device({threads});
      if (!device) return runtime::failed(device.error().what);
      local.device = std::move(*device);
      auto net = local.device->compile(*network, {});
      if (!net) return runtime::failed(net.error().what);
      local.net = std::move(*net);
      locals.push_back(std::move(local));
    }
  }
  return locals;
}

// One round of each local net, in turn; called between the clusters' rounds.
Expected<void> local_round(std::vector<LocalNet>& locals, const gpu::Dataset& data,
                           const gpu::Normalisation& normalisation, std::int64_t requests) {
  std::vector<float> item(static_cast<std::size_t>(gpu::elements(data.item)));
  for (auto& local : locals) {
    std::vector<float> scores(static_cast<std::size_t>(local.net->output_elements()));
    for (std::int64_t i = -50; i < requests; ++i) {  // fifty warm it up
      gpu::item(data, std::max<std::int64_t>(i, 0) % data.count(), normalisation, item);
      const auto begun = Clock::now();
      if (auto ran = local.net->run(item, scores); !ran) return runtime::failed(ran.error().what);
      if (i >= 0) local.latency_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begun).count());
      if (interrupted) return runtime::failed("interrupted");
    }
  }
  return {};
}

// ---- one scheme ----------------------------------------------------------------------------------------------------

struct SchemeResult {
  runtime::Manifest manifest;
  std::map<std::string, InferenceTally> tallies;
  std::map<std::string, double> accuracy;  // offline, all items, over the arrival sets that the cell saw
};

// Each answer's accuracy depends on who had answered: all items are decoded from every set of workers that made answers
// in this cell, weighted by how often it did.
Expected<double> offline_accuracy(const InferenceTally& tally, const runtime::Manifest& manifest,
                                  const runtime::OfflineResponses& responses, const gpu::Dataset& data,
                                  std::map<coding::ArrivalSet, double>& known) {
  double sum = 0;
  std::int64_t count = 0;
  for (const auto& [set, times] : tally.sets) {
    if (!known.contains(set)) {
      const auto labels = runtime::labels_of(manifest, responses, set);
      if (!labels) return tl::unexpected(labels.error());
      known[set] = runtime::accuracy_percent(*labels, data.labels);
    }
    sum += known[set] * static_cast<double>(times);
    count += times;
  }
  return count ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
}

class SchemeRun {
 public:
  SchemeRun(const Options& options, const gpu::Dataset& data, std::vector<LocalNet>& locals)
      : options_(options), data_(data), locals_(locals) {}

  Expected<SchemeResult> run(const std::string& scheme, const runtime::Model& model, const std::filesystem::path& directory) {
    if (auto saved = runtime::save_model(model, directory); !saved) return tl::unexpected(saved.error());
    const auto responses = answers_of(model, data_, shown(scheme) + ": all items offline");
    if (!responses) return tl::unexpected(responses.error());
    const auto n = model.manifest.workers.size();
    const auto yardstick = make_yardstick(model.manifest, data_, *responses);
    if (!yardstick) return tl::unexpected(yardstick.error());

    auto made = make_local_cluster(directory / "cluster", directory, model.manifest);
    if (!made) return tl::unexpected(made.error());
    auto session = Session::start(made->cluster, made->file, made->logs);
    if (!session) return tl::unexpected(session.error());
    if (auto ready = (*session)->wait_ready(std::chrono::seconds{30}); !ready) return tl::unexpected(ready.error());
    std::fprintf(stderr, "%s: gateway and %zu workers are ready\n", shown(scheme).c_str(), n);

    SchemeResult result{model.manifest, {}, {}};
    if (auto done = conditions(scheme, **session, *yardstick, result); !done) return tl::unexpected(done.error());
    std::map<coding::ArrivalSet, double> known;
    for (auto& [condition, tally] : result.tallies) {
      auto accuracy = offline_accuracy(tally, model.manifest, *responses, data_, known);
      if (!accuracy) return tl::unexpected(accuracy.error());
      result.accuracy[condition] = *accuracy;
    }
    return result;
  }

 private:
  Expected<void> conditions(const std::string& scheme, Session& session, const Yardstick& yardstick, SchemeResult& result) {
    Progress bar(shown(scheme) + ": requests", options_.requests * static_cast<std::int64_t>(kConditions.size()));
    std::int64_t done = 0;
    const auto load = [&](std::int64_t requests, std::int64_t first) {
      InferenceLoad l;
      l.requests = requests;
      l.first_item = first;
      l.progress = [&bar, base = done](std::int64_t at) { bar.at(base + at); };
      return l;
    };
    const auto add = [&](const std::string& condition, const InferenceLoad& l) -> Expected<void> {
      const auto tally = run_load(session.client(), yardstick, l);
      if (!tally) return tl::unexpected(tally.error());
      result.tallies[condition].add(*tally);
      done += l.requests;
      return {};
    };
    auto warm = load(200, 0);
    warm.progress = nullptr;
    if (const auto warmed = run_load(session.client(), yardstick, warm); !warmed) return tl::unexpected(warmed.error());

    auto faults = actors::parse_faults(options_.straggler);
    if (!faults) return runtime::bad_input(faults.error());
    const auto share = options_.requests / kRounds;
    for (int round = 0; round < kRounds; ++round) {
      if (auto ok = local_round(locals_, data_, yardstick.manifest.normalisation, share / static_cast<std::int64_t>(kSchemes.size())); !ok) return ok;
      const auto first = round * share;
      const auto count = round + 1 == kRounds ? options_.requests - first : share;
      if (auto ok = add("clean", load(count, first)); !ok) return ok;
      faults->seed = static_cast<std::uint64_t>(round) + 1;
      FaultSchedule schedule(session.client(), *faults, count);
      if (auto ok = schedule.begin(); !ok) return ok;
      if (auto ok = add("straggler", load(count, first)); !ok) return ok;
      if (auto ok = schedule.end(); !ok) return ok;
    }
    auto killed = load(options_.requests, 0);
    killed.before = [&](std::int64_t i) {
      if (i == options_.requests / 2) session.launcher().signal("w1", SIGKILL);
    };
    return add("killed", killed);
  }

  const Options& options_;
  const gpu::Dataset& data_;
  std::vector<LocalNet>& locals_;
};

// ---- the table -----------------------------------------------------------------------------------------------------

struct Compute {
  double worker = 0, total = 0;  // relative to the base net
};

Compute compute_of(const runtime::Manifest& manifest) {
  Compute c;
  for (const auto& worker : manifest.workers) {
    const double share = static_cast<double>(worker.multiply_adds) / static_cast<double>(manifest.source_multiply_adds);
    c.worker = std::max(c.worker, share);
    c.total += share;
  }
  return c;
}

std::string p999(const std::vector<double>& sample) {
  return sample.size() >= 10'000 ? fixed(quantile(sample, 0.999), 2) : "-";
}

std::string result_table(const std::vector<LocalNet>& locals, const std::map<std::string, SchemeResult>& schemes) {
  std::vector<std::vector<std::string>> rows{{"scheme", "condition", "accuracy %", "p50 ms", "p99 ms", "p99.9 ms", "degraded",
                                              "changed", "wrong", "lost", "compute/worker", "in total", "bytes up/down"}};
  const double base_macs = static_cast<double>(locals.front().macs);
  for (const auto& local : locals)
    rows.push_back({"local " + local.name + ", " + std::to_string(local.threads) + " thread" + (local.threads > 1 ? "s" : ""), "",
                    fixed(local.accuracy, 2), fixed(quantile(local.latency_ms, 0.5), 2), fixed(quantile(local.latency_ms, 0.99), 2),
                    p999(local.latency_ms), "", "", "", "", fixed(static_cast<double>(local.macs) / base_macs, 2),
                    fixed(static_cast<double>(local.macs) / base_macs, 2), ""});
  for (const auto& scheme : kSchemes) {
    const auto found = schemes.find(scheme);
    if (found == schemes.end()) continue;
    const auto& result = found->second;
    const auto compute = compute_of(result.manifest);
    const auto bytes = frame_bytes(result.manifest);
    const auto label = shown(scheme) + " (" + (result.manifest.shape.workers == result.manifest.shape.needed
                                                  ? "all " + std::to_string(result.manifest.shape.workers)
                                                  : std::to_string(result.manifest.shape.needed) + " of " + std::to_string(result.manifest.shape.workers)) + ")";
    for (const auto& condition : kConditions) {
      const auto& t = result.tallies.at(condition);
      rows.push_back({label, condition, fixed(result.accuracy.at(condition), 2), fixed(quantile(t.latency_ms, 0.5), 2),
                      fixed(quantile(t.latency_ms, 0.99), 2), p999(t.latency_ms), std::to_string(t.degraded),
                      std::to_string(t.changed), std::to_string(t.wrong), std::to_string(t.lost + t.failed),
                      fixed(compute.worker, 2), fixed(compute.total, 2),
                      fixed(bytes.up, 0) + "/" + fixed(bytes.down, 0)});
    }
  }
  return table(rows);
}

nlohmann::json result_json(const std::vector<LocalNet>& locals, const std::map<std::string, SchemeResult>& schemes) {
  nlohmann::json json = {{"base", locals.front().accuracy}, {"macs", locals.front().macs}, {"local", nlohmann::json::object()},
                         {"schemes", nlohmann::json::object()}};
  for (const auto& local : locals)
    json["local"][local.name + "_" + std::to_string(local.threads)] = {
        {"accuracy", local.accuracy},
        {"macs", local.macs},
        {"threads", local.threads},
        {"p50_ms", quantile(local.latency_ms, 0.5)},
        {"p99_ms", quantile(local.latency_ms, 0.99)}};
  for (const auto& [scheme, result] : schemes) {
    auto& entry = json["schemes"][shown(scheme)];
    std::int64_t most = 0, total = 0;
    for (const auto& worker : result.manifest.workers) {
      most = std::max(most, worker.multiply_adds);
      total += worker.multiply_adds;
    }
    entry["macs_per_worker"] = most;
    entry["macs_total"] = total;
    for (const auto& [condition, tally] : result.tallies) {
      entry[condition] = to_json(tally, result.manifest);
      entry[condition]["accuracy_offline"] = result.accuracy.at(condition);
    }
  }
  return json;
}

std::string verdict(const std::map<std::string, SchemeResult>& schemes) {
  const auto ratio = [&](const std::string& scheme, double q) {
    const auto& t = schemes.at(scheme).tallies;
    return quantile(t.at("straggler").latency_ms, q) / quantile(t.at("clean").latency_ms, q);
  };
  const bool tail = schemes.at("parity").tallies.at("clean").latency_ms.size() >= 10'000;
  const double q = tail ? 0.999 : 0.99;
  return std::string("With a straggler, ") + (tail ? "p99.9" : "p99") + " grows " + fixed(ratio("none", q), 1) +
         " times under none and " + fixed(ratio("parity", q), 1) + " times under parity.\n" +
         "accuracy: offline on all test items, decoded from the sets of workers that made the cell's answers.\n"
         "changed: answers that differ from the one with every worker present. wrong: answers that differ from an offline\n"
         "decode of the very responses that arrived. bytes: of one frame to a worker and of one response, head included.\n";
}

Expected<void> demo(const Options& given, const Shell& shell) {
  Options options = given;
  if (auto faults = actors::parse_faults(options.straggler); !faults) return runtime::bad_input(faults.error());
  watch_signals();
  const auto data = gpu::load_dataset(options.data, gpu::Split::test);
  if (!data) return runtime::bad_input(data.error().what);
  if (options.full) options.requests = data->count();
  const auto cache = cache_directory();
  if (options.from_scratch) {
    FromScratchOptions how;
    how.data = options.data;
    how.threads = options.threads;
    if (auto made = make_nets_from_scratch(how, cache / "nets", kSchemes); !made) return made;
  }
  const auto nets = options.from_scratch ? Expected<std::filesystem::path>(cache / "nets") : shipped_nets();
  if (!nets) return tl::unexpected(nets.error());

  std::map<std::string, runtime::Model> models;
  for (const auto& scheme : kSchemes) {
    auto model = load_shipped(*nets, scheme);
    if (!model) return tl::unexpected(model.error());
    models.emplace(scheme, std::move(*model));
  }
  auto locals = make_locals(*nets, *data, models.at("parity").manifest.normalisation);
  if (!locals) return tl::unexpected(locals.error());
  std::map<std::string, SchemeResult> results;
  for (const auto& scheme : kSchemes) {
    if (interrupted) return runtime::failed("interrupted; everything that was started is stopped");
    SchemeRun run(options, *data, *locals);
    auto result = run.run(scheme, models.at(scheme), cache / shown(scheme));
    if (!result) return tl::unexpected(result.error());
    results.emplace(scheme, std::move(*result));
  }

  std::string text = result_table(*locals, results) + "\n" + verdict(results);
  auto json = result_json(*locals, results);
  if (!options.no_crossing) {
    const auto crossing = measure_crossing(cache / "crossing", {{2, 28}, {4, 28}, {8, 28}, {8, 56}}, 60);
    if (!crossing) return tl::unexpected(crossing.error());
    text += "\n" + crossing_text(*crossing);
    json["crossing"] = to_json(*crossing);
  }
  const auto report = cache / "report.txt";
  std::ofstream(report) << text;
  json["report"] = report.string();
  if (shell.json) {
    shell.print(json);
  } else {
    std::fputs(text.c_str(), stdout);
  }
  for (const auto& [scheme, result] : results)
    for (const auto& [condition, tally] : result.tallies)
      if (tally.wrong > 0) return runtime::failed(shown(scheme) + ", " + condition + ": " + std::to_string(tally.wrong) + " wrong answers");
  return {};
}

}  // namespace

void add_demo(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto* command = add_command(app, shell, "demo", "The main job in one go, on real data", "coppice demo --requests 500",
                              [options, &shell] { return demo(*options, shell); });
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")->envname("COPPICE_DATA")->capture_default_str();
  command->add_option("--requests", options->requests, "a cell of the table")->check(CLI::Range(100, 10'000'000))->capture_default_str();
  command->add_flag("--full", options->full, "every test item in each cell; p99.9 is shown then");
  command->add_option("--straggler", options->straggler, "the straggler condition")->capture_default_str();
  command->add_flag("--from-scratch", options->from_scratch, "train the base and decompose it first: 10 to 25 minutes on two cores");
  command->add_option("--threads", options->threads, "of --from-scratch")->check(CLI::Range(1, 1'024))->capture_default_str();
  command->add_flag("--no-crossing", options->no_crossing, "leave out the larger nets of random weights");
}

}  // namespace coppice::apps
