// runtime/offline.hpp: a decomposed model run over a data set in this process: what every worker would answer, and what
// any set of them decodes to. The yardstick for accuracy, and the oracle for every answer a cluster gives.
#pragma once

#include <functional>
#include <vector>

#include "coding/decoder.hpp"
#include "gpu/dataset.hpp"
#include "runtime/error.hpp"
#include "runtime/model.hpp"

namespace coppice::runtime {

// Called now and then with (items done, items in all).
using OfflineProgress = std::function<void(std::int64_t done, std::int64_t total)>;

// Coded responses of all workers: [items, total_floats] row-major; row s is worker 0's floats, then worker 1's …
struct OfflineResponses {
  std::int64_t items = 0;
  std::vector<float> values;
};

Expected<OfflineResponses> run_offline(const Model& model, const gpu::Dataset& data, const OfflineProgress& progress);

// What one worker's net scores and how long each item takes it, alone on one thread.
struct TimedScores {
  std::vector<float> scores;              // [items, outputs]
  std::vector<std::uint32_t> service_us;  // [items]
};

// Of the first `items` of the data, or all there are; each is run twice and the second run timed.
Expected<TimedScores> time_net(const Model& model, std::size_t worker, const gpu::Dataset& data, std::int64_t items);

// The scores of one plain net: [items, classes].
Expected<std::vector<float>> run_net(const gpu::Network& net, const gpu::Dataset& data,
                                     const gpu::Normalisation& normalisation, const OfflineProgress& progress);

// Row `item` as if only the workers of `present` had answered.
coding::Arrivals arrivals_of(const coding::Generator& generator, const OfflineResponses& responses, std::int64_t item,
                             coding::ArrivalSet present);

// The decoded label of every item when only `present` answer.
Expected<std::vector<int>> labels_of(const Manifest& manifest, const OfflineResponses& responses,
                                     coding::ArrivalSet present);

// What one block says of row `item`. Errors: those of decode.
tl::expected<coding::BlockBest, coding::DecodeError> block_best_of(const Manifest& manifest,
                                                                   const OfflineResponses& responses, std::int64_t item,
                                                                   int block, coding::ArrivalSet present);

// The decoded label of every item with every worker present, whether or not there are blocks.
Expected<std::vector<int>> labels_of_all(const Manifest& manifest, const OfflineResponses& responses);

// Percent of labels that are right. REQUIRES: equal lengths.
double accuracy_percent(const std::vector<int>& labels, const std::vector<std::uint16_t>& truth);

// Index of the largest, the first among equals.
int argmax(std::span<const float> scores);

}  // namespace coppice::runtime
