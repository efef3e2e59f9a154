// coppice bench collective: the launching side starts one process a host, each of which runs the same load; the first
// rank's document is the result.
#include <fstream>
#include <map>

#include "apps/collective_bench.hpp"
#include "apps/command.hpp"
#include "apps/ranks.hpp"

namespace coppice::apps {
namespace {

constexpr const char* kHopMark = "collective-hop ";
constexpr std::size_t kHopsMax = std::size_t{1} << 18;  // of a rank

struct Options {
  std::string cluster, operation = "allreduce", element = "float32", reduction = "sum", planner = "exact", root, as, logs;
  std::string kind, hybrid, trace;
  std::vector<std::string> bytes{"64M"};
  int repeat = 5, warm_up = 1, patience_s = 60;
  std::int64_t chunks = 0;
  double second_share = -1, probe_s = 1.2;
  bool no_tune = false, no_local = false, emulate_switching = false, survivors = false;
};

struct Settings {
  runtime::Cluster cluster;
  CollectiveLoad load;
  collectives::Planner planner = collectives::Planner::exact;
  std::optional<collectives::HybridRequest> hybrid = {};
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
  if (!planner) return no_such("--planner", options.planner, "exact, mwu, rs_ag, rings, best_ring and three_phase");
  if (!options.root.empty() && !cluster->find(options.root))
    return runtime::bad_input(runtime::one_line("--root " + options.root + ": " + options.cluster + " has no such host"));
  Settings settings{std::move(*cluster), {}, *planner};
  if (!options.hybrid.empty()) {
    settings.hybrid = collectives::hybrid_of(options.kind, options.hybrid);
    if (!settings.hybrid)
      return runtime::bad_input(runtime::one_line("--hybrid " + options.hybrid + ": give KIND:MILLISECONDS here, and the first kind as --kind"));
    if (options.second_share >= 0) settings.hybrid->second_share = options.second_share;
    settings.hybrid->emulate = options.emulate_switching;
  } else if (!options.kind.empty()) {
    return runtime::bad_input("--kind is for --hybrid: leave other links out of the topology instead");
  }
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

// What arrived here, one line of the log each, for the launching side to gather.
void print_hops(const std::shared_ptr<actors::HopLog>& hops, const std::string& own) {
  for (const auto& hop : hops->take()) {
    const nlohmann::json line{{"call", hop.run.call}, {"attempt", hop.run.attempt}, {"tree", hop.tree},
                              {"way", hop.way == actors::Way::up ? "up" : "down"}, {"chunk", hop.chunk},
                              {"bytes", hop.bytes}, {"from", hop.from}, {"to", own},
                              {"from_address", hop.address}, {"time_us", hop.at.count()}};
    std::printf("%s%s\n", kHopMark, line.dump().c_str());
  }
  if (hops->lost() > 0) std::fprintf(stderr, "trace: %llu hops more than are kept\n", static_cast<unsigned long long>(hops->lost()));
}

runtime::Expected<void> run_rank(const Options& options, const Settings& settings) {
  runtime::CommunicatorOptions join;
  join.cluster = settings.cluster;
  join.name = options.as;
  join.planner = settings.planner;
  join.chunks = options.chunks;
  join.tune = !options.no_tune;
  join.local = !options.no_local;
  join.probe = std::chrono::milliseconds(static_cast<std::int64_t>(options.probe_s * 1e3));
  join.probe_progress = print_progress;
  join.notice = [](const std::string& what) { std::fprintf(stderr, "%s\n", what.c_str()); };
  join.patience = std::chrono::milliseconds(options.patience_s * 1'000);
  if (options.survivors) join.on_loss = runtime::OnLoss::complete_among_survivors;
  join.hybrid = settings.hybrid;
  const auto hops = options.trace.empty() ? nullptr : std::make_shared<actors::HopLog>(kHopsMax);
  if (hops) hops->record(false);
  join.hops = hops;
  auto group = runtime::Communicator::join(std::move(join));
  if (!group) return tl::unexpected(group.error());
  const auto topology = (*group)->topology();  // before links are seen to fail
  const auto runs = run_collective(**group, settings.cluster, settings.load, hops.get());
  if (!runs) return tl::unexpected(runs.error());
  if (hops) print_hops(hops, options.as);
  nlohmann::json result{{"runs", *runs}};
  if (settings.cluster.topology.empty() && options.probe_s > 0) result["topology"] = to_json(topology);
  if ((*group)->rank() == 0 || options.survivors) print_result(result);
  return {};
}

// How long each host's log was before this run: outputs are appended to those of earlier ones.
using LogSizes = std::map<std::string, std::streamoff>;
LogSizes log_sizes(const std::filesystem::path& logs, const runtime::Cluster& cluster) {
  LogSizes sizes;
  for (const auto& host : cluster.hosts) {
    std::error_code none;
    const auto size = std::filesystem::file_size(logs / (host.name + ".log"), none);
    sizes[host.name] = none ? 0 : static_cast<std::streamoff>(size);
  }
  return sizes;
}

// The hops in all logs into one file, in the order of their times.
runtime::Expected<void> gather_trace(const std::string& file, const std::filesystem::path& logs, const runtime::Cluster& cluster,
                                     const LogSizes& before) {
  std::vector<std::pair<std::int64_t, std::string>> hops;
  for (const auto& host : cluster.hosts) {
    std::ifstream in(logs / (host.name + ".log"));
    in.seekg(before.at(host.name));
    for (std::string line; std::getline(in, line);) {
      if (!line.starts_with(kHopMark)) continue;
      line.erase(0, std::strlen(kHopMark));
      const auto hop = nlohmann::json::parse(line, nullptr, false);
      if (hop.is_object() && hop.contains("time_us")) hops.emplace_back(hop["time_us"].get<std::int64_t>(), line);
    }
  }
  std::ranges::sort(hops);
  std::ofstream out(file);
  for (const auto& [time, line] : hops) out << line << '\n';
  if (!out.flush()) return runtime::failed("cannot write " + file);
  return {};
}

// What was probed is kept, to be named in the cluster file: probing takes its time.
void keep_topology(const std::string& cluster, const nlohmann::json& topology) {
  const auto file = cluster + ".topology.json";
  std::ofstream out(file);
  out << topology.dump(1) << "\n";
  if (out.flush())
    std::fprintf(stderr, "probed: %s; topology = \"%s\" in %s saves doing it again\n", file.c_str(),
                 std::filesystem::path(file).filename().c_str(), cluster.c_str());
}

runtime::Expected<nlohmann::json> run_all(const Options& options, const Settings& settings) {
  RanksOptions ranks;
  ranks.cluster_file = options.cluster;
  ranks.logs = options.logs;
  ranks.command = {"bench", "collective",
                   "--cluster", std::filesystem::absolute(options.cluster).string(),
                   "--op", options.operation, "--element", options.element,
                   "--reduction", options.reduction, "--planner", options.planner,
                   "--repeat", std::to_string(options.repeat), "--warm-up", std::to_string(options.warm_up),
                   "--chunks", std::to_string(options.chunks),
                   "--patience-s", std::to_string(options.patience_s), "--probe-s", std::to_string(options.probe_s)};
  ranks.survivors = options.survivors;
  if (options.no_tune) ranks.command.push_back("--no-tune");
  if (options.no_local) ranks.command.push_back("--no-local");
  if (options.survivors) ranks.command.push_back("--survivors");
  if (!options.hybrid.empty()) ranks.command.insert(ranks.command.end(), {"--kind", options.kind, "--hybrid", options.hybrid});
  if (options.second_share >= 0) ranks.command.insert(ranks.command.end(), {"--second-share", std::to_string(options.second_share)});
  if (options.emulate_switching) ranks.command.push_back("--emulate-switching");
  if (!options.trace.empty()) ranks.command.insert(ranks.command.end(), {"--trace", "on"});
  if (!options.root.empty()) ranks.command.insert(ranks.command.end(), {"--root", options.root});
  ranks.command.push_back("--bytes");
  ranks.command.insert(ranks.command.end(), options.bytes.begin(), options.bytes.end());
  ranks.progress = [](const std::string& line) { std::fprintf(stderr, "probing: %s\n", line.c_str()); };

  const auto logs = logs_of(ranks);
  const auto before = log_sizes(logs, settings.cluster);
  auto outcome = run_ranks(settings.cluster, ranks);
  if (!outcome) return tl::unexpected(outcome.error());
  const bool lost_some = options.survivors && outcome->result && !outcome->failures.empty();
  if (!outcome->failures.empty() && !lost_some) return tl::unexpected(fault_of(outcome->failures));
  if (!options.trace.empty())
    if (auto gathered = gather_trace(options.trace, logs, settings.cluster, before); !gathered) return tl::unexpected(gathered.error());
  if (!outcome->result || !outcome->result->contains("runs")) return runtime::failed("the first rank gave no result; see its log");
  if (outcome->result->contains("topology")) keep_topology(options.cluster, (*outcome->result)["topology"]);
  auto runs = std::move((*outcome->result)["runs"]);
  for (auto& run : runs)
    if (lost_some) run["lost"] = fault_of(outcome->failures).what;
  return runs;
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
  command->add_option("--planner", options->planner, "exact, mwu, rs_ag, rings, best_ring or three_phase, over the same transport")->capture_default_str();
  command->add_option("--chunks", options->chunks, "that a tree's share is cut into; 0: as a model says")->check(CLI::Range(0, 1'000'000))->capture_default_str();
  command->add_flag("--no-tune", options->no_tune, "as the model says, without trying; otherwise warming up lasts until it is settled");
  command->add_flag("--no-local", options->no_local, "TCP between ranks of one machine, too");
  command->add_flag("--survivors", options->survivors, "complete calls among the survivors when a rank is gone for good, and go on");
  command->add_option("--probe-s", options->probe_s, "where the cluster file names no topology: so long for each rate of its links; 0: one switch is assumed")->check(CLI::Range(0.0, 60.0))->capture_default_str();
  command->add_option("--patience-s", options->patience_s, "how long a call may stand still")->check(CLI::Range(1, 3'600))->capture_default_str();
  command->add_option("--logs", options->logs, "where each rank's output goes (default: CLUSTER.logs)");
  command->add_option("--kind", options->kind, "with --hybrid: the first kind of links");
  command->add_option("--hybrid", options->hybrid, "KIND:MILLISECONDS: a part over links of KIND, planned apart, as coppice plan --hybrid divides it");
  command->add_option("--second-share", options->second_share, "with --hybrid: so much over the second kind instead, 0 to 1")->check(CLI::Range(0.0, 1.0));
  command->add_flag("--emulate-switching", options->emulate_switching, "with --hybrid: begin on the second kind so many milliseconds late");
  command->add_option("--trace", options->trace, "write every chunk's hops to this file, as JSON lines");
  command->add_option("--as", options->as, "be the rank of this host; without it, all are launched");
}

}  // namespace coppice::apps
