// coppice bench collective: the launching side starts one process a host, each of which runs the same load; the first
// rank's document is the result.
#include <fstream>
#include <optional>
#include <set>
#include <thread>

#include "apps/collective_bench.hpp"
#include "apps/command.hpp"
#include "apps/session.hpp"
#include "runtime/launcher.hpp"

namespace coppice::apps {
namespace {

constexpr const char* kMark = "collective-result ";  // before the document in a rank's log
constexpr auto kNotice = std::chrono::seconds{15};   // for the others, once a rank has failed

struct Options {
  std::string cluster, operation = "allreduce", element = "float32", reduction = "sum", planner = "exact", root, as, logs;
  std::vector<std::string> bytes{"64M"};
  int repeat = 5, warm_up = 1, patience_s = 60;
  std::int64_t chunks = 0;
  bool no_tune = false, survivors = false;
};

struct Settings {
  runtime::Cluster cluster;
  CollectiveLoad load;
  collectives::Planner planner = collectives::Planner::exact;
};

runtime::Expected<Settings> settings_of(const Options& options) {
  auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return tl::unexpected(cluster.error());
  const auto no_such = [](const char* flag, const std::string& word, const char* known) {
    return runtime::bad_input(runtime::one_line(std::string(flag) + " " + word + ": not known; there are " + known));
  };
  const auto operation = collectives::operation_of(options.operation);
  if (!operation)
    return no_such("--op", options.operation, "broadcast, reduce, allreduce, allgather, reduce_scatter, gather and scatter");
  const auto element = collectives::element_of(options.element);
  if (!element) return no_such("--element", options.element, "float32, float16, bfloat16, int32, int64 and bytes");
  const auto reduction = collectives::reduction_of(options.reduction);
  if (!reduction) return no_such("--reduction", options.reduction, "sum, min, max and avg");
  const auto planner = collectives::planner_of(options.planner);
  if (!planner) return no_such("--planner", options.planner, "exact, mwu, rs_ag, rings and best_ring");
  if (!options.root.empty() && !cluster->find(options.root))
    return runtime::bad_input(runtime::one_line("--root " + options.root + ": " + options.cluster + " has no such host"));
  Settings settings{std::move(*cluster), {}, *planner};
  settings.load = {*operation, *element, *reduction, options.root, {}, options.repeat, options.warm_up};
  const auto ranks = static_cast<std::int64_t>(settings.cluster.hosts.size());
  const auto granule = static_cast<std::int64_t>(collectives::size_of(*element)) * (collectives::has_parts(*operation) ? ranks : 1);
  for (const auto& text : options.bytes) {
    const auto bytes = byte_count("--bytes", text);
    if (!bytes) return tl::unexpected(bytes.error());
    // Sizes are people's round numbers; each rank's part must hold whole elements.
    settings.load.bytes.push_back(std::max<std::int64_t>(*bytes / granule, 1) * granule);
  }
  return settings;
}

runtime::Expected<void> run_rank(const Options& options, const Settings& settings) {
  auto group = runtime::Communicator::join({settings.cluster, options.as, settings.planner, options.chunks, !options.no_tune,
                                            std::chrono::milliseconds(options.patience_s * 1'000),
                                            options.survivors ? runtime::OnLoss::complete_among_survivors : runtime::OnLoss::fail});
  if (!group) return tl::unexpected(group.error());
  const auto runs = run_collective(**group, settings.cluster, settings.load);
  if (!runs) return tl::unexpected(runs.error());
  std::printf("%s%s\n", kMark, runs->dump().c_str());
  std::fflush(stdout);
  return {};
}

runtime::Expected<nlohmann::json> result_in(const std::filesystem::path& log) {
  std::ifstream in(log);
  nlohmann::json result;
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(kMark)) result = nlohmann::json::parse(line.substr(std::strlen(kMark)), nullptr, false);
  if (!result.is_array()) return runtime::failed("no result in " + log.string());
  return result;
}

// The first rank that ended, and what the others made of it, each different word once.
std::string in_words(const std::vector<runtime::Exit>& failures) {
  std::string text = "rank " + failures.front().name + ": " + failures.front().reason;
  std::set<std::string> said{failures.front().reason};
  for (const auto& failure : failures)
    if (said.insert(failure.reason).second) text += "; rank " + failure.name + ": " + failure.reason;
  return text;
}

runtime::Expected<nlohmann::json> run_all(const Options& options, const Settings& settings) {
  const std::filesystem::path logs = options.logs.empty() ? options.cluster + ".logs" : options.logs;
  std::error_code fault;
  std::filesystem::create_directories(logs, fault);
  if (fault) return runtime::bad_input("cannot make " + logs.string() + ": " + fault.message());
  for (const auto& host : settings.cluster.hosts) std::filesystem::remove(logs / (host.name + ".log"), fault);

  std::vector<std::string> command{self_path(), "bench", "collective",
                                   "--cluster", std::filesystem::absolute(options.cluster).string(),
                                   "--op", options.operation, "--element", options.element,
                                   "--reduction", options.reduction, "--planner", options.planner,
                                   "--repeat", std::to_string(options.repeat), "--warm-up", std::to_string(options.warm_up),
                                   "--chunks", std::to_string(options.chunks),
                                   "--patience-s", std::to_string(options.patience_s)};
  if (options.no_tune) command.push_back("--no-tune");
  if (options.survivors) command.push_back("--survivors");
  if (!options.root.empty()) command.insert(command.end(), {"--root", options.root});
  command.push_back("--bytes");
  command.insert(command.end(), options.bytes.begin(), options.bytes.end());

  watch_signals();
  runtime::Launcher launcher(logs, std::chrono::milliseconds{1'500});
  for (const auto& host : settings.cluster.hosts) {
    auto own = command;
    own.insert(own.end(), {"--as", host.name});
    const auto argv = runtime::launch_command(settings.cluster.launcher, host, own);
    if (!argv) return tl::unexpected(argv.error());
    if (auto started = launcher.start(host.name, *argv); !started) return tl::unexpected(started.error());
  }
  std::vector<runtime::Exit> failures;
  std::set<std::string> finished;
  std::optional<std::chrono::steady_clock::time_point> until;  // the others notice by themselves, and say what they saw
  for (std::size_t left = settings.cluster.hosts.size(); left > 0;) {
    if (interrupted) return runtime::failed("interrupted");
    for (auto& exit : launcher.reap()) {
      --left;
      if (exit.status == 0) {
        finished.insert(exit.name);
        continue;
      }
      failures.push_back(std::move(exit));
      if (!until && !options.survivors) until = std::chrono::steady_clock::now() + kNotice;
    }
    if (until && std::chrono::steady_clock::now() > *until) break;
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  const bool go_on = options.survivors && !finished.empty();
  if (!failures.empty() && !go_on) return runtime::failed(in_words(failures));
  const auto first = std::ranges::find_if(settings.cluster.hosts, [&](const auto& host) { return finished.contains(host.name); });
  auto result = result_in(logs / (first->name + ".log"));
  for (std::size_t i = 0; result && !failures.empty() && i < result->size(); ++i) (*result)[i]["lost"] = in_words(failures);
  return result;
}

runtime::Expected<void> bench_collective(const Options& options, const Shell& shell) {
  const auto settings = settings_of(options);
  if (!settings) return tl::unexpected(settings.error());
  if (!options.as.empty()) return run_rank(options, *settings);
  const auto runs = run_all(options, *settings);
  if (!runs) return tl::unexpected(runs.error());
  if (shell.json)
    shell.print(runs->size() == 1 ? runs->front() : nlohmann::json{{"runs", *runs}});
  else
    std::fputs(collective_table(*runs).c_str(), stdout);
  for (const auto& run : *runs)
    if (!run["verified"].get<bool>()) return runtime::failed("wrong contents: see #wrong");
  return {};
}

}  // namespace

void add_bench_collective(CLI::App& bench, Shell& shell) {
  auto options = std::make_shared<Options>();
  auto* command = add_command(bench, shell, "collective", "Run a collective operation over a cluster's links and check every element",
                              "coppice bench collective --cluster lab.toml --op allreduce --bytes 64M --repeat 5",
                              [options, &shell] { return bench_collective(*options, shell); });
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--op", options->operation, "broadcast, reduce, allreduce, allgather, reduce_scatter, gather or scatter")->capture_default_str();
  command->add_option("--bytes", options->bytes, "of the whole buffer: 4K, 64M; several: one after another")->capture_default_str();
  command->add_option("--repeat", options->repeat, "measured repetitions of each size")->check(CLI::Range(1, 1'000'000))->capture_default_str();
  command->add_option("--warm-up", options->warm_up, "repetitions before them, at least; 0: none")->check(CLI::Range(0, 1'000'000))->capture_default_str();
  command->add_option("--element", options->element, "float32, float16, bfloat16, int32, int64 or bytes")->capture_default_str();
  command->add_option("--reduction", options->reduction, "sum, min, max or avg")->capture_default_str();
  command->add_option("--root", options->root, "the host that sends or collects; the first by default");
  command->add_option("--planner", options->planner, "exact, mwu, rs_ag, rings or best_ring, over the same transport")->capture_default_str();
  command->add_option("--chunks", options->chunks, "that a tree's share is cut into; 0: as a model says")->check(CLI::Range(0, 1'000'000))->capture_default_str();
  command->add_flag("--no-tune", options->no_tune, "as the model says, without trying; otherwise warming up lasts until it is settled");
  command->add_flag("--survivors", options->survivors, "complete calls among the survivors when a rank is gone for good, and go on");
  command->add_option("--patience-s", options->patience_s, "how long a call may stand still")->check(CLI::Range(1, 3'600))->capture_default_str();
  command->add_option("--logs", options->logs, "where each rank's output goes (default: CLUSTER.logs)");
  command->add_option("--as", options->as, "be the rank of this host; without it, all are launched");
}

}  // namespace coppice::apps
