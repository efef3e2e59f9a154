// apps/accuracy.hpp: how often a net, or a decomposed model with workers missing, is right.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gpu/dataset.hpp"
#include "gpu/network.hpp"
#include "runtime/error.hpp"
#include "runtime/model.hpp"
#include "runtime/offline.hpp"

namespace coppice::apps {

// Every set of n workers with `missing` of them left out, in lexicographic order of the missing; at most 65,537 of them.
std::vector<coding::ArrivalSet> sets_without(int n, int missing);

// Ten-thousandths of a percent: finer than any test set, and readable.
double rounded(double percent);

struct MissingAccuracy {
  int count = 0;  // of workers missing; with blocks, in every block at once
  int patterns = 0;
  double mean = 0, worst = 0;      // percent
  std::vector<int> worst_pattern;  // who was missing; the first of equals
};

struct Accuracy {
  double clean = 0;                      // percent, with every worker present
  std::vector<MissingAccuracy> missing;  // one, two, …
};

// Whether every set of 0 to missing_max missing workers can be decoded. Errors: a set that the decoder has no entry
// for, naming it; missing_max that leaves nobody, or more than 65,536 sets.
runtime::Expected<void> check_missing(const runtime::Manifest& manifest, int missing_max);

// Every set of 0 to missing_max workers left out, decoded offline, with a progress bar. Errors: those of check_missing.
runtime::Expected<Accuracy> measure_accuracy(const runtime::Manifest& manifest,
                                             const runtime::OfflineResponses& responses,
                                             const std::vector<std::uint16_t>& truth, int missing_max);

// {"base","clean","missing":[…]} as manifests and `coppice evaluate` have it.
nlohmann::json to_json(const Accuracy& accuracy, const nlohmann::json& base);

// Percent of the items that a plain net labels rightly, with a progress bar.
runtime::Expected<double> net_accuracy(const gpu::Network& net, const gpu::Dataset& data,
                                       const gpu::Normalisation& normalisation);

// run_offline with a progress bar.
runtime::Expected<runtime::OfflineResponses> answers_of(const runtime::Model& model, const gpu::Dataset& data,
                                                        const std::string& label);

}  // namespace coppice::apps
