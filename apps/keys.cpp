#include "runtime/keys.hpp"

#include "apps/command.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {

void add_keys(CLI::App& app, Shell& shell) {
  struct Options {
    std::string cluster;
    bool replace = false;
  };
  auto options = std::make_shared<Options>();
  const auto run = [options, &shell]() -> runtime::Expected<void> {
    const auto cluster = runtime::load_cluster(options->cluster);
    if (!cluster) return tl::unexpected(cluster.error());
    std::vector<std::string> names;
    for (const auto& host : cluster->hosts) names.push_back(host.name);
    if (auto made = runtime::make_keys(cluster->keys, names, options->replace); !made) return made;
    std::fprintf(stderr, "keys for %zu hosts and \"%s\" in %s\n", names.size(), runtime::kClientName,
                 cluster->keys.c_str());
    if (shell.json) shell.print({{"keys", cluster->keys.string()}, {"members", names}});
    return {};
  };
  auto* command = add_command(app, shell, "keys", "Make the key material of a cluster", "coppice keys --cluster lab.toml", run);
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_flag("--replace", options->replace, "replace keys that are there; nodes must be given the new ones");
}

}  // namespace coppice::apps
