// apps/training_bench.hpp: how fast nets train, beside PyTorch on the same threads.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/error.hpp"

namespace coppice::apps {

struct TrainingBenchOptions {
  // With torch; empty: COPPICE_PYTHON, else python3. Where it has none, ours is measured alone and the rows say why.
  std::string python;
  std::vector<int> threads{1, 2};
  int batch = 128;
  int rounds = 9;              // each a burst of ours, one of PyTorch's nchw and one of its channels-last
  double burst_seconds = 0.5;  // of ours; PyTorch takes as many steps
};

// The VGG and the ResNet-20 of reference at 1x28x28, float32, without loading data: rows of {"name", "batch",
// "threads", "coppice_images_s", "pytorch_images_s", "ratio", "range"}. Images a second are medians over the rounds;
// the ratio is the median of each round's ours over the better of PyTorch's two, the range its smallest and largest.
runtime::Expected<nlohmann::json> bench_training(const TrainingBenchOptions& options);

}  // namespace coppice::apps
