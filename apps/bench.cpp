#include "apps/accuracy.hpp"
#include "apps/command.hpp"
#include "apps/compute_bench.hpp"
#include "apps/fault_schedule.hpp"
#include "apps/inference_bench.hpp"
#include "apps/peer_engine.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string cluster, data, straggler, record;
  InferenceLoad load;
};

struct ComputeOptions {
  ComputeLoad load;
  std::string onnxruntime, openvino;
};

std::string summary(const nlohmann::json& r) {
  const auto ms = [&](const char* key) { return r[key].is_null() ? std::string("-") : fixed(r[key].get<double>(), 2); };
  const auto count = [&](const char* key) { return std::to_string(r[key].get<std::int64_t>()); };
  return table({{"requests", "answered", "degraded", "changed", "wrong", "lost", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "accuracy %"},
                {count("requests"), count("answered"), count("degraded"), count("changed"), count("wrong"), count("lost"),
                 ms("p50_ms"), ms("p99_ms"), ms("p999_ms"), ms("max_ms"), ms("accuracy")}});
}

runtime::Expected<void> bench_inference(const Options& options, const Shell& shell) {
  const auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return tl::unexpected(cluster.error());
  const auto faults = actors::parse_faults(options.straggler);
  if (!faults) return runtime::bad_input(faults.error());
  const auto model = runtime::load_model(cluster->model);
  if (!model) return tl::unexpected(model.error());
  const auto data = gpu::load_dataset(options.data, gpu::Split::test);
  if (!data) return runtime::bad_input(data.error().what);
  std::ofstream record;
  if (!options.record.empty()) {
    record.open(options.record, std::ios::trunc);
    if (!record) return runtime::bad_input("cannot write " + options.record);
  }
  watch_signals();
  auto client = runtime::Client::connect(*cluster, {});
  if (!client) return tl::unexpected(client.error());
  if (auto status = (*client)->status(std::chrono::seconds{3}); !status) return tl::unexpected(status.error());

  const auto responses = answers_of(*model, *data, "offline answers");
  if (!responses) return tl::unexpected(responses.error());
  const auto yardstick = make_yardstick(model->manifest, *data, *responses);
  if (!yardstick) return tl::unexpected(yardstick.error());

  FaultSchedule schedule(**client, *faults, options.load.requests);
  if (auto begun = schedule.begin(); !begun) return begun;
  Progress bar("requests", options.load.requests);
  InferenceLoad load = options.load;
  load.before = [&](std::int64_t i) { schedule.before(i); };
  load.progress = [&](std::int64_t done) { bar.at(done); };
  load.record = options.record.empty() ? nullptr : &record;
  const auto tally = run_load(**client, *yardstick, load);
  const auto ended = schedule.end();
  if (!tally) return tl::unexpected(tally.error());
  if (schedule.fault()) return tl::unexpected(*schedule.fault());
  if (!ended) return ended;

  const auto result = to_json(*tally, model->manifest);
  if (shell.json) {
    shell.print(result);
  } else {
    std::fputs(summary(result).c_str(), stdout);
  }
  if (record.is_open() && !record.flush()) return runtime::failed("writing " + options.record + " failed");
  if (tally->answered == 0) return runtime::failed("no request was answered: " + tally->first_fault);
  return {};
}

runtime::Expected<void> bench_compute(const ComputeOptions& options, const Shell& shell) {
  ComputeLoad load = options.load;
  const auto found = [](const std::string& given, const char* library, const char* peer) {
    auto path = find_peer(given, library);
    if (!path) std::fprintf(stderr, "%s is not here (apps/deps --peers): going on without it\n", peer);
    return path.value_or("");
  };
  load.onnxruntime = found(options.onnxruntime, "libonnxruntime", "ONNX Runtime");
  load.openvino = found(options.openvino, "libopenvino_c", "OpenVINO");
  Progress bar("nets", static_cast<std::int64_t>(load.nets.empty() ? compute_nets().size() : load.nets.size()));
  load.progress = [&](std::int64_t done) { bar.at(done); };
  const auto result = run_compute(load);
  if (!result) return tl::unexpected(result.error());
  if (shell.json) {
    shell.print(*result);
  } else {
    std::fputs(compute_table(*result).c_str(), stdout);
  }
  return {};
}

void add_compute(CLI::App& bench, Shell& shell) {
  auto options = std::make_shared<ComputeOptions>();
  auto* command = add_command(bench, shell, "compute", "Time one item in whole nets and sub-nets beside other engines",
                              "coppice bench compute --threads 1 --nets vgg,resnet-20 --json",
                              [options, &shell] { return bench_compute(*options, shell); });
  command->add_option("--threads", options->load.threads, "of every engine")->check(CLI::Range(1, 1'024))->capture_default_str();
  command->add_option("--rounds", options->load.rounds, "in each, every engine runs once for a while")->check(CLI::Range(1, 10'000))->capture_default_str();
  command->add_option("--nets", options->load.nets, "which; all by default")->delimiter(',');
  command->add_flag("--training", options->load.training, "also how fast nets learn, beside PyTorch");
  command->add_option("--python", options->load.python, "one that has PyTorch")->envname("COPPICE_PYTHON");
  command->add_option("--onnxruntime", options->onnxruntime, "its library, or a directory that holds it")->envname("COPPICE_ONNXRUNTIME");
  command->add_option("--openvino", options->openvino, "its C library, or a directory that holds it")->envname("COPPICE_OPENVINO");
}

}  // namespace

void add_bench(CLI::App& app, Shell& shell) {
  auto* bench = app.add_subcommand("bench", "Measure against limits and peers");
  bench->require_subcommand(1);
  add_compute(*bench, shell);
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto* command = add_command(*bench, shell, "inference", "Answer items through a running cluster and judge every answer",
                              "coppice bench inference --cluster lab.toml --requests 10000 "
                              "--straggler worker=any:1,delay=pareto:2:10ms,p=0.05 --json",
                              [options, &shell] { return bench_inference(*options, shell); });
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")->envname("COPPICE_DATA")->capture_default_str();
  command->add_option("--requests", options->load.requests, "how many")->check(CLI::Range(1, 100'000'000))->capture_default_str();
  command->add_option("--rate", options->load.rate, "requests a second, Poisson; 0: one at a time")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--straggler", options->straggler, "faults: worker=any:1,delay=pareto:2:10ms,p=0.05,kill@50%…");
  command->add_option("--record", options->record, "write one JSON line a request, raw floats included");
  command->add_option("--seed", options->load.seed, "of the arrivals")->capture_default_str();
  add_bench_class_parallel(*bench, shell);
  add_bench_collective(*bench, shell);
}

}  // namespace coppice::apps
