// coppice topology: what is inside this machine, or what a cluster's links carry, as a topology file.
#include <fstream>

#include "apps/command.hpp"
#include "apps/ranks.hpp"
#include "apps/topology_table.hpp"
#include "runtime/prober.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string cluster, out, as, logs;
  bool alone = false;
  int start_s = 20, port_shift = 0;
  double measure_s = 1.2;
};

runtime::Expected<void> write(const std::string& file, const nlohmann::json& document) {
  if (file.empty()) return {};
  std::ofstream out(file);
  out << document.dump(1) << "\n";
  if (!out.flush()) return runtime::bad_input("--out " + file + ": cannot be written");
  return {};
}

runtime::Expected<void> show_machine(const Options& options, const Shell& shell) {
  auto facts = runtime::this_machine();
  if (!facts) return tl::unexpected(facts.error());
  const auto topology = runtime::topology_of(*facts, facts->unseen);
  auto document = to_json(topology);
  document["machine"] = {{"packages", facts->packages},
                         {"numa_nodes", facts->numa_nodes},
                         {"cores", facts->cores},
                         {"threads", facts->threads},
                         {"memory_bytes", facts->memory_bytes}};
  document["not_seen"] = facts->unseen;
  if (shell.json)
    shell.print(document);
  else
    std::fputs(machine_table(*facts, topology).c_str(), stdout);
  return write(options.out, document);
}

runtime::Expected<runtime::Cluster> cluster_of(const Options& options) {
  auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return cluster;
  for (auto& host : cluster->hosts) {
    const int port = host.port + options.port_shift;
    if (port < 1 || port > 65'535)
      return runtime::bad_input("--port-shift " + std::to_string(options.port_shift) + ": puts host " + host.name + " on port " +
                                std::to_string(port));
    host.port = static_cast<std::uint16_t>(port);
  }
  return cluster;
}

runtime::Expected<void> run_rank(const Options& options, const runtime::Cluster& cluster) {
  runtime::ProbeOptions probe;
  probe.cluster = cluster;
  probe.name = options.as;
  probe.alone = options.alone;
  probe.measure = std::chrono::milliseconds(static_cast<std::int64_t>(options.measure_s * 1e3));
  probe.start_patience = std::chrono::seconds(options.start_s);
  probe.progress = print_progress;
  const auto outcome = runtime::probe(std::move(probe));
  if (!outcome) return tl::unexpected(outcome.error());
  if (!outcome->report) return {};
  std::vector<collectives::SurveyHost> hosts;
  for (const auto& host : cluster.hosts) hosts.push_back({host.name, host.address});
  print_result(to_json(*outcome->report, hosts));
  return {};
}

runtime::Expected<void> probe_cluster(const Options& options, const Shell& shell) {
  const auto cluster = cluster_of(options);
  if (!cluster) return tl::unexpected(cluster.error());
  if (!options.as.empty()) return run_rank(options, *cluster);

  RanksOptions ranks;
  ranks.cluster_file = options.cluster;
  ranks.logs = options.logs;
  ranks.command = {"topology", "--cluster", std::filesystem::absolute(options.cluster).string(), "--start-s",
                   std::to_string(options.start_s), "--port-shift", std::to_string(options.port_shift),
                   "--measure-s", std::to_string(options.measure_s)};
  if (options.alone) ranks.command.push_back("--alone");
  ranks.first_decides = true;  // the others' figures are not lost with one that fails
  ranks.notice = std::chrono::seconds{5};
  ranks.progress = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  const auto outcome = run_ranks(*cluster, ranks);
  if (!outcome) return tl::unexpected(outcome.error());
  if (!outcome->result) {
    if (outcome->failures.empty()) return runtime::failed("rank " + cluster->hosts.front().name + " gave no result; see its log");
    return tl::unexpected(fault_of(outcome->failures));
  }
  const auto& survey = *outcome->result;
  if (shell.json)
    shell.print(survey);
  else
    std::fputs(survey_table(survey).c_str(), stdout);
  if (auto written = write(options.out, survey); !written) return written;
  const auto faults = survey["probe"]["faults"].get<std::vector<std::string>>();
  std::string what = faults.empty() ? "" : collectives::in_words(faults);
  if (!outcome->failures.empty()) what += (what.empty() ? "" : "; ") + fault_of(outcome->failures).what;
  if (!what.empty()) return runtime::failed(what);
  return {};
}

}  // namespace

void add_topology(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  auto* command = add_command(app, shell, "topology", "What is inside this machine; or, with --cluster, what its hosts' links carry, measured",
                              "coppice topology --cluster lab.toml --out lab.topology.json", [options, &shell] {
                                return options->cluster.empty() ? show_machine(*options, shell) : probe_cluster(*options, shell);
                              });
  command->add_option("--cluster", options->cluster, "the cluster file: its topology's links are measured, or every pair where it names none");
  command->add_option("--out", options->out, "write the topology file here, for coppice plan and the cluster file");
  command->add_flag("--alone", options->alone, "measure one rate at a time: slower, and nothing can disturb it");
  command->add_option("--measure-s", options->measure_s, "for a rate where nothing is in the way; it takes longer until it is steady")->check(CLI::Range(0.1, 60.0))->capture_default_str();
  command->add_option("--start-s", options->start_s, "how long all hosts may take to be there")->check(CLI::Range(1, 3'600))->capture_default_str();
  command->add_option("--port-shift", options->port_shift, "added to every host's port, to measure beside a cluster that runs")->capture_default_str();
  command->add_option("--logs", options->logs, "where each rank's output goes (default: CLUSTER.logs)");
  command->add_option("--as", options->as, "be the rank of this host; without it, all are launched");
}

}  // namespace coppice::apps
