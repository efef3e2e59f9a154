#include "apps/ranks.hpp"

#include <sys/wait.h>

#include <cstring>
#include <fstream>
#include <set>
#include <thread>

#include "apps/session.hpp"

namespace coppice::apps {
namespace {

constexpr const char* kResult = "rank-result ";
constexpr const char* kProgress = "rank-progress ";

// The lines that a log gets while it grows.
class Tail {
 public:
  explicit Tail(std::filesystem::path log) : log_(std::move(log)) {
    std::error_code none;  // outputs are appended to those of earlier runs
    const auto grown = std::filesystem::file_size(log_, none);
    if (!none) from_ = static_cast<std::streamoff>(grown);
  }
  void read(const RanksOptions& options, std::optional<nlohmann::json>& result) {
    std::ifstream in(log_);
    in.seekg(from_);
    for (std::string line; std::getline(in, line) && !in.eof();) {  // the last may still be written
      from_ += static_cast<std::streamoff>(line.size()) + 1;
      if (line.starts_with(kResult)) {
        auto document = nlohmann::json::parse(line.substr(std::strlen(kResult)), nullptr, false);
        if (!document.is_discarded()) result = std::move(document);
      } else if (line.starts_with(kProgress)) {
        if (options.progress) options.progress(runtime::one_line(line.substr(std::strlen(kProgress))));
      } else if (options.output) {
        options.output(line);
      }
    }
  }

 private:
  std::filesystem::path log_;
  std::streamoff from_ = 0;
};

void print_line(const char* mark, const std::string& text) {
  std::printf("%s%s\n", mark, text.c_str());
  std::fflush(stdout);
}

runtime::Expected<void> start(runtime::Launcher& launcher, const runtime::Cluster& cluster, const RanksOptions& options) {
  for (const auto& host : cluster.hosts) {
    std::vector<std::string> command{self_path()};
    command.insert(command.end(), options.command.begin(), options.command.end());
    command.insert(command.end(), {"--as", host.name});
    const auto argv = runtime::launch_command(cluster.launcher, host, command);
    if (!argv) return tl::unexpected(argv.error());
    if (auto started = launcher.start(host.name, *argv); !started) return started;
  }
  return {};
}

}  // namespace

void print_result(const nlohmann::json& result) { print_line(kResult, result.dump()); }
void print_progress(const std::string& line) { print_line(kProgress, line); }

std::filesystem::path logs_of(const RanksOptions& options) {
  return options.logs.empty() ? options.cluster_file + ".logs" : options.logs;
}

runtime::Error fault_of(const std::vector<runtime::Exit>& failures) {
  std::string text = "rank " + failures.front().name + ": " + failures.front().reason;
  std::set<std::string> said{failures.front().reason};
  for (const auto& failure : failures)
    if (said.insert(failure.reason).second) text += "; rank " + failure.name + ": " + failure.reason;
  const int status = failures.front().status;
  const bool bad_input = WIFEXITED(status) && WEXITSTATUS(status) == 2;
  return {bad_input ? runtime::ErrorCode::bad_input : runtime::ErrorCode::failed, text};
}

runtime::Expected<RanksOutcome> run_ranks(const runtime::Cluster& cluster, const RanksOptions& options) {
  const auto logs = logs_of(options);
  std::error_code fault;
  std::filesystem::create_directories(logs, fault);
  if (fault) return runtime::bad_input("cannot make " + logs.string() + ": " + fault.message());
  const auto first = cluster.hosts.front().name;

  watch_signals();
  Tail tail(logs / (first + ".log"));
  runtime::Launcher launcher(logs, std::chrono::milliseconds{1'500});
  if (auto started = start(launcher, cluster, options); !started) return tl::unexpected(started.error());
  RanksOutcome outcome;
  std::optional<std::chrono::steady_clock::time_point> until;
  for (std::size_t left = cluster.hosts.size(); left > 0;) {
    if (interrupted) return runtime::failed("interrupted");
    for (auto& exit : launcher.reap()) {
      --left;
      const bool decides = exit.name == first || !options.first_decides;
      if (!until && decides && (exit.status != 0 || options.first_decides))
        until = std::chrono::steady_clock::now() + options.notice;
      if (exit.status != 0) outcome.failures.push_back(std::move(exit));
    }
    tail.read(options, outcome.result);
    if (until && std::chrono::steady_clock::now() > *until) break;
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  return outcome;
}

}  // namespace coppice::apps
