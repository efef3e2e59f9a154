// apps/ranks.hpp: a command that runs as one process a host: the launching side starts them over the cluster's launcher, and
// the first rank's output holds the result.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/launcher.hpp"

namespace coppice::apps {

// What a rank says to whoever launched it, in its log: lines that begin with a mark.
void print_result(const nlohmann::json& result);  // the last one counts
void print_progress(const std::string& line);

struct RanksOptions {
  std::string cluster_file, logs;      // logs: a directory; empty: CLUSTER.logs
  std::vector<std::string> command;    // what follows the program's name; "--as HOST" is added
  // Once a rank has failed: how long the others may go on, to notice by themselves and say what they saw.
  std::chrono::seconds notice{15};
  // Whether a failure of any but the first is left to the first to notice.
  bool first_decides = false;
  std::function<void(const std::string&)> progress;  // a line of the first rank's print_progress
  std::function<void(const std::string&)> output;    // any other line of its output
};

std::filesystem::path logs_of(const RanksOptions& options);  // the directory; a file NAME.log a host

struct RanksOutcome {
  std::optional<nlohmann::json> result;  // the first rank's, where it came so far
  std::vector<runtime::Exit> failures;   // in the order that ranks ended
};

// Errors: a launcher that starts nothing, a directory that cannot be made, an interruption.
runtime::Expected<RanksOutcome> run_ranks(const runtime::Cluster& cluster, const RanksOptions& options);

// The first rank that ended, and what the others made of it, each different word once; bad_input where it ended as
// commands do on that. REQUIRES: failures.
runtime::Error fault_of(const std::vector<runtime::Exit>& failures);

}  // namespace coppice::apps
