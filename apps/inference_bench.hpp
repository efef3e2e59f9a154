// apps/inference_bench.hpp: requests to a running cluster, each answer held against an offline decode.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "actors/faults.hpp"
#include "gpu/dataset.hpp"
#include "runtime/client.hpp"
#include "runtime/model.hpp"
#include "runtime/offline.hpp"

namespace coppice::apps {

// What answers are judged by.
struct Yardstick {
  const runtime::Manifest& manifest;
  const gpu::Dataset& data;
  std::vector<int> labels_all_present;  // of every item, decoded from all workers
};

// `responses`: what all workers answer to `data`. The result refers to `manifest` and `data`.
runtime::Expected<Yardstick> make_yardstick(const runtime::Manifest& manifest, const gpu::Dataset& data,
                                            const runtime::OfflineResponses& responses);

struct InferenceLoad {
  std::int64_t requests = 1'000;
  std::int64_t first_item = 0;  // items follow one another, round and round
  double rate = 0;              // requests a second, Poisson arrivals; 0: one at a time
  std::uint64_t seed = 1;       // of the arrivals
  std::chrono::milliseconds patience{2'000};  // a reply that is later is lost
  // Called before request i is sent: faults that have their time.
  std::function<void(std::int64_t i)> before;
  std::function<void(std::int64_t done)> progress;
  std::ofstream* record = nullptr;
};

// What one worker sent and did.
struct WorkerTally {
  std::int64_t arrivals = 0;  // responses that were in the answers
  std::vector<float> at_us;   // when they came
};

struct InferenceTally {
  std::int64_t requests = 0, answered = 0, degraded = 0, changed = 0, wrong = 0, right = 0, failed = 0, lost = 0;
  std::vector<double> latency_ms;
  std::vector<WorkerTally> workers;
  std::map<coding::ArrivalSet, std::int64_t> sets;  // how often each set of workers made an answer; not with blocks
  std::string first_fault;  // of a request that was not answered

  void add(const InferenceTally& other);
};

// Runs the load. Errors: only those that end the run; a request that fails or is lost is counted.
runtime::Expected<InferenceTally> run_load(runtime::Client& client, const Yardstick& yardstick,
                                           const InferenceLoad& load);

// The shape of `bench inference` in JSON. p999_ms is null below 10,000 requests.
nlohmann::json to_json(const InferenceTally& tally, const runtime::Manifest& manifest);

// q-th quantile (nearest rank); NaN of nothing.
double quantile(std::vector<double> values, double q);

// Mean bytes of one frame to a worker and of one response back, as they leave: head and floats.
struct FrameBytes {
  double up = 0, down = 0;
};
FrameBytes frame_bytes(const runtime::Manifest& manifest);

}  // namespace coppice::apps
