#include "runtime/node.hpp"

#include "apps/command.hpp"

namespace coppice::apps {

void add_node(CLI::App& app, Shell& shell) {
  struct Options {
    std::string cluster;
    runtime::NodeOptions node;
  };
  auto options = std::make_shared<Options>();
  const auto run = [options]() -> runtime::Expected<void> {
    auto cluster = runtime::load_cluster(options->cluster);
    if (!cluster) return tl::unexpected(cluster.error());
    options->node.cluster = std::move(*cluster);
    return runtime::run_node(options->node);
  };
  auto* command = add_command(app, shell, "node", "Run one node of a cluster until it is told to stop",
                              "coppice node --cluster lab.toml --name h1", run);
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--name", options->node.name, "which host of the file this is")->required()->envname("COPPICE_NAME");
  command
      ->add_option("--scheduler", options->node.control.scheduler, "how actors share threads (measured: ARCHITECTURE.md)")
      ->check(CLI::IsMember({"sharing", "stealing"}))
      ->capture_default_str();
  command->add_option("--threads", options->node.control.threads, "actor threads beside the net's own")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
}

}  // namespace coppice::apps
