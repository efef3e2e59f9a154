#include "apps/accuracy.hpp"
#include "apps/command.hpp"
#include "apps/fault_schedule.hpp"
#include "apps/inference_bench.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string cluster, data, straggler, record;
  InferenceLoad load;
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

}  // namespace

void add_bench(CLI::App& app, Shell& shell) {
  auto* bench = app.add_subcommand("bench", "Measure against limits and peers");
  bench->require_subcommand(1);
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
}

}  // namespace coppice::apps
