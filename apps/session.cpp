#include "apps/session.hpp"

#include <signal.h>

#include <thread>

namespace coppice::apps {

std::atomic<bool> interrupted{false};

namespace {

extern "C" void on_signal(int) { interrupted.store(true); }

}  // namespace

void watch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

std::string self_path() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

Session::Session(const std::filesystem::path& logs) : launcher_(logs, std::chrono::milliseconds{1'500}), logs_(logs) {}

runtime::Expected<std::unique_ptr<Session>> Session::start(const runtime::Cluster& cluster,
                                                           const std::filesystem::path& cluster_file,
                                                           const std::filesystem::path& logs,
                                                           std::vector<std::string> node_flags) {
  std::unique_ptr<Session> session(new Session(logs));
  for (const auto& host : cluster.hosts) {
    std::vector<std::string> command{self_path(), "node", "--cluster", std::filesystem::absolute(cluster_file).string(),
                                     "--name", host.name};
    command.insert(command.end(), node_flags.begin(), node_flags.end());
    const auto argv = runtime::launch_command(cluster.launcher, host, command);
    if (!argv) return tl::unexpected(argv.error());
    if (auto started = session->launcher_.start(host.name, *argv); !started) return tl::unexpected(started.error());
  }
  auto client = runtime::Client::connect(cluster, {});
  if (!client) return tl::unexpected(client.error());
  session->client_ = std::move(*client);
  return session;
}

runtime::Expected<void> Session::wait_ready(std::chrono::milliseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  for (;;) {
    for (const auto& exit : launcher_.reap())
      return runtime::failed("node " + exit.name + " ended before the cluster was ready: " + exit.reason +
                             " (its log is " + (logs_ / (exit.name + ".log")).string() + ")");
    if (interrupted) return runtime::failed("interrupted");
    const auto ready = client_->wait_ready(std::chrono::milliseconds{200});
    if (ready) return {};
    if (std::chrono::steady_clock::now() >= until)
      return runtime::failed("the cluster is not ready after " + std::to_string(patience.count() / 1000) + " s: " + ready.error().what +
                             " (logs in " + logs_.string() + ")");
  }
}

}  // namespace coppice::apps
