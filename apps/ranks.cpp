#include "apps/ranks.hpp"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>

#include "apps/session.hpp"
#include "runtime/launcher.hpp"

namespace coppice::apps {
namespace {

using runtime::Expected;

constexpr std::string_view kMark = "result of all ranks: ";  // before the document in a rank's log
constexpr auto kNotice = std::chrono::seconds{15};           // for the others, once a rank has failed

// A file that grows, line by line.
class Tail {
 public:
  Tail(std::filesystem::path file, std::streamoff from) : file_(std::move(file)), from_(from) {}
  void show() {
    std::ifstream in(file_);
    in.seekg(from_);
    for (std::string line; std::getline(in, line) && !in.eof();) {
      from_ += static_cast<std::streamoff>(line.size()) + 1;
      if (!line.starts_with(kMark)) std::fprintf(stderr, "%s\n", line.c_str());
    }
  }

 private:
  std::filesystem::path file_;
  std::streamoff from_;
};

Expected<nlohmann::json> result_in(const std::filesystem::path& log, std::streamoff from) {
  std::ifstream in(log);
  in.seekg(from);
  nlohmann::json result(nlohmann::json::value_t::discarded);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(kMark)) result = nlohmann::json::parse(line.substr(kMark.size()), nullptr, false);
  if (result.is_discarded()) return runtime::failed("no result in " + log.string());
  return result;
}

// The first rank that ended, and what the others made of it, each different word once.
runtime::Error in_words(const std::vector<runtime::Exit>& failures) {
  const auto& first = failures.front();
  std::string text = "rank " + first.name + ": " + first.reason;
  std::set<std::string> said{first.reason};
  for (const auto& failure : failures)
    if (said.insert(failure.reason).second) text += "; rank " + failure.name + ": " + failure.reason;
  const bool bad_input = WIFEXITED(first.status) && WEXITSTATUS(first.status) == 2;
  return {bad_input ? runtime::ErrorCode::bad_input : runtime::ErrorCode::failed, text};
}

}  // namespace

Expected<nlohmann::json> run_ranks(const runtime::Cluster& cluster, const std::vector<std::string>& arguments,
                                   const RanksOptions& options) {
  std::error_code fault;
  std::filesystem::create_directories(options.logs, fault);
  if (fault) return runtime::bad_input("cannot make " + options.logs.string() + ": " + fault.message());
  const auto log = options.logs / (cluster.hosts.front().name + ".log");
  const auto grown = std::filesystem::file_size(log, fault);  // outputs are appended to earlier ones
  const auto from = fault ? std::streamoff{0} : static_cast<std::streamoff>(grown);

  watch_signals();
  runtime::Launcher launcher(options.logs, std::chrono::milliseconds{1'500});
  for (const auto& host : cluster.hosts) {
    std::vector<std::string> command{self_path()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    command.insert(command.end(), {"--as", host.name});
    const auto argv = runtime::launch_command(cluster.launcher, host, command);
    if (!argv) return tl::unexpected(argv.error());
    if (auto started = launcher.start(host.name, *argv); !started) return tl::unexpected(started.error());
  }
  Tail tail(log, from);
  std::vector<runtime::Exit> failures;
  std::optional<std::chrono::steady_clock::time_point> until;  // the others notice by themselves, and say what they saw
  for (std::size_t left = cluster.hosts.size(); left > 0;) {
    if (interrupted) return runtime::failed("interrupted");
    for (auto& exit : launcher.reap()) {
      --left;
      if (exit.status == 0) continue;
      failures.push_back(std::move(exit));
      if (!until) until = std::chrono::steady_clock::now() + kNotice;
    }
    if (options.follow) tail.show();
    if (until && std::chrono::steady_clock::now() > *until) break;
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  if (!failures.empty()) return tl::unexpected(in_words(failures));
  return result_in(log, from);
}

void tell_result(const nlohmann::json& document) {
  std::printf("%s%s\n", std::string(kMark).c_str(), document.dump().c_str());
  std::fflush(stdout);
}

}  // namespace coppice::apps
