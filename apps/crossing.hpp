// apps/crossing.hpp: at which size of net does distributing start to pay on this machine? Measured with nets of random
// weights, since only the time counts.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/error.hpp"
#include "runtime/model.hpp"

namespace coppice::apps {

struct CrossingRow {
  std::int64_t macs = 0;             // of the whole net
  double subnet_ms = 0;              // one sub-net alone, one thread
  double local1_ms = 0, local2_ms = 0;  // the whole net in one process
  double none_ms = 0, parity_ms = 0;    // answered by the cluster
};

struct NetSize {
  int scale = 1;  // widths as multiples of the reference net's
  int side = 28;  // of the square image, in pixels: more compute for the same weights
};

// Medians of `requests` requests, one at a time.
runtime::Expected<std::vector<CrossingRow>> measure_crossing(const std::filesystem::path& directory,
                                                             const std::vector<NetSize>& sizes, int requests);

std::string crossing_text(const std::vector<CrossingRow>& rows);
nlohmann::json to_json(const std::vector<CrossingRow>& rows);

// p50 of a net in this process, milliseconds.
runtime::Expected<double> local_p50_ms(const gpu::Network& net, int threads, int runs);

}  // namespace coppice::apps
