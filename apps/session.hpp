// apps/session.hpp: a cluster of processes on this machine or over its launcher, held by this process.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "runtime/client.hpp"
#include "runtime/cluster.hpp"
#include "runtime/launcher.hpp"

namespace coppice::apps {

// Set by SIGINT and SIGTERM after watch_signals(); long work looks at it and returns, so that destructors stop what was
// started.
extern std::atomic<bool> interrupted;
void watch_signals();

// The path of the running program, to start nodes with.
std::string self_path();

// Every host of the cluster as a process of its own. Stops them all in the destructor.
class Session {
 public:
  static runtime::Expected<std::unique_ptr<Session>> start(const runtime::Cluster& cluster,
                                                           const std::filesystem::path& cluster_file,
                                                           const std::filesystem::path& logs,
                                                           std::vector<std::string> node_flags = {});

  // Waits until all workers are ready. Error: which node ended or is missing, and why.
  runtime::Expected<void> wait_ready(std::chrono::milliseconds patience);
  runtime::Client& client() { return *client_; }
  runtime::Launcher& launcher() { return launcher_; }

 private:
  Session(const std::filesystem::path& logs);
  runtime::Launcher launcher_;
  std::filesystem::path logs_;
  std::unique_ptr<runtime::Client> client_;
};

}  // namespace coppice::apps
