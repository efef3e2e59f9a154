#include "apps/command.hpp"
#include "apps/table.hpp"
#include "runtime/client.hpp"

namespace coppice::apps {
namespace {

std::string blocks_of(const nlohmann::json& blocks) {
  std::vector<std::vector<std::string>> rows{{"block", "head", "heads replaced", "scores", "degraded", "p50 ms", "p99 ms"}};
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto& block = blocks[b];
    rows.push_back({std::to_string(b), block["head"].is_string() ? block["head"].get<std::string>() : "-",
                    std::to_string(block.value("replaced", 0)), std::to_string(block.value("responses", 0)),
                    std::to_string(block.value("degraded", 0)), fixed(block.value("p50_us", 0.0) / 1e3, 2),
                    fixed(block.value("p99_us", 0.0) / 1e3, 2)});
  }
  return table(rows) + "\n";
}

std::string screen(const nlohmann::json& status) {
  std::string out = "cluster " + status.value("cluster", "?") + ": " +
                    (status.value("ready", false) ? "ready" : "not ready") + ", epoch " +
                    std::to_string(status.value("epoch", 0)) + ", any " + std::to_string(status.value("k", 0)) + " of " +
                    std::to_string(status.value("n", 0)) +
                    (status.contains("b") ? " in each of " + std::to_string(status.value("b", 0)) + " blocks" : "") + "\n\n";
  std::vector<std::vector<std::string>> rows{{"worker", "state", "process", "responses", "p50 ms", "p99 ms", "losses", "last lost"}};
  for (const auto& w : status["workers"])
    rows.push_back({w.value("name", "?"), w.value("state", "?"), std::to_string(w.value("pid", 0)),
                    std::to_string(w.value("responses", 0)), fixed(w.value("p50_us", 0.0) / 1e3, 2),
                    fixed(w.value("p99_us", 0.0) / 1e3, 2), std::to_string(w.value("losses", 0)),
                    w.value("reason", "")});
  out += table(rows) + "\n";
  if (status.contains("blocks")) out += blocks_of(status["blocks"]);
  const auto& r = status["requests"];
  const auto& s = status["responses"];
  out += "requests: " + std::to_string(r.value("completed", 0)) + " answered, " + std::to_string(r.value("degraded", 0)) +
         " degraded, " + std::to_string(r.value("no_response", 0)) + " without response, " +
         std::to_string(r.value("in_flight", 0)) + " in flight\n";
  out += "responses set aside: " + std::to_string(s.value("late", 0)) + " late, " + std::to_string(s.value("duplicate", 0)) +
         " duplicate, " + std::to_string(s.value("stale_epoch", 0)) + " of an older plan, " +
         std::to_string(s.value("bad_shape", 0) + s.value("not_finite", 0) + s.value("impostors", 0)) + " wrong\n";
  return out;
}

}  // namespace

void add_status(CLI::App& app, Shell& shell) {
  struct Options {
    std::string cluster;
    int timeout_ms = 3'000;
  };
  auto options = std::make_shared<Options>();
  const auto run = [options, &shell]() -> runtime::Expected<void> {
    const auto cluster = runtime::load_cluster(options->cluster);
    if (!cluster) return tl::unexpected(cluster.error());
    auto client = runtime::Client::connect(*cluster, {});
    if (!client) return tl::unexpected(client.error());
    const auto text = (*client)->status(std::chrono::milliseconds(options->timeout_ms));
    if (!text) return tl::unexpected(text.error());
    const auto status = nlohmann::json::parse(*text);
    if (shell.json) {
      shell.print(status);
    } else {
      std::fputs(screen(status).c_str(), stdout);
    }
    return {};
  };
  auto* command = add_command(app, shell, "status", "One screen of a running cluster", "coppice status --cluster lab.toml", run);
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--timeout-ms", options->timeout_ms, "how long to wait for the gateway")->check(CLI::Range(1, 86'400'000))->capture_default_str();
}

}  // namespace coppice::apps
