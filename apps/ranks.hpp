// apps/ranks.hpp: one process of this program on every host of a cluster, for work that they do together as ranks of a
// group.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "runtime/cluster.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

struct RanksOptions {
  std::filesystem::path logs;  // directory: each rank's output
  bool follow = false;         // the first rank's output goes to standard error too, as it comes
};

// Runs this program with `arguments` and "--as HOST" on each host, over the cluster's launcher, until all have ended.
// Gives what the first rank handed to tell_result. Errors: the first rank that ended badly and what the others made of
// it; bad_input where that was its fault.
runtime::Expected<nlohmann::json> run_ranks(const runtime::Cluster& cluster, const std::vector<std::string>& arguments,
                                            const RanksOptions& options);

// In a rank: the document for who launched it.
void tell_result(const nlohmann::json& document);

}  // namespace coppice::apps
