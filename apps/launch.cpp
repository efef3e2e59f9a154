#include <thread>

#include "apps/command.hpp"
#include "apps/session.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string cluster, logs;
  int ready_s = 30;
};

// Runs until a signal; a worker that ends is told of, a gateway that ends takes everything with it.
runtime::Expected<void> supervise(Session& session, const runtime::Cluster& cluster) {
  while (!interrupted) {
    for (const auto& exit : session.launcher().reap()) {
      std::fprintf(stderr, "node %s ended: %s\n", exit.name.c_str(), exit.reason.c_str());
      if (exit.name == cluster.gateway().name)
        return runtime::failed("the gateway " + exit.name + " ended: " + exit.reason + "; all nodes are stopped");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  return {};
}

}  // namespace

void add_launch(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  const auto run = [options, &shell]() -> runtime::Expected<void> {
    auto cluster = runtime::load_cluster(options->cluster);
    if (!cluster) return tl::unexpected(cluster.error());
    const std::filesystem::path logs =
        options->logs.empty() ? std::filesystem::path(options->cluster + ".logs") : std::filesystem::path(options->logs);
    std::error_code fault;
    std::filesystem::create_directories(logs, fault);
    if (fault) return runtime::bad_input("cannot make " + logs.string() + ": " + fault.message());
    watch_signals();
    auto session = Session::start(*cluster, options->cluster, logs);
    if (!session) return tl::unexpected(session.error());
    if (auto ready = (*session)->wait_ready(std::chrono::seconds(options->ready_s)); !ready) return ready;
    std::fprintf(stderr, "cluster %s is ready: %zu nodes; Ctrl-C stops them all\n", cluster->name.c_str(),
                 cluster->hosts.size());
    if (shell.json) {
      nlohmann::json nodes = nlohmann::json::object();
      for (const auto& host : cluster->hosts) nodes[host.name] = (*session)->launcher().pid(host.name).value_or(0);
      shell.print({{"cluster", cluster->name}, {"ready", true}, {"nodes", nodes}});
    }
    return supervise(**session, *cluster);
  };
  auto* command = add_command(app, shell, "launch", "Start the nodes of a cluster and stop them together",
                              "coppice launch --cluster lab.toml", run);
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--logs", options->logs, "where each node's output goes (default: CLUSTER.logs)");
  command->add_option("--ready-s", options->ready_s, "how long the start may take")->check(CLI::Range(1, 86'400))->capture_default_str();
}

}  // namespace coppice::apps
