// apps/compute_bench.hpp: how long one item takes in whole nets and sub-nets, beside ONNX Runtime and OpenVINO.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/error.hpp"

namespace coppice::apps {

struct ComputeLoad {
  int threads = 1, rounds = 15;
  std::vector<std::string> nets;      // empty: all
  std::string onnxruntime, openvino;  // libraries; empty: not here
  bool training = false;              // also how fast nets learn, beside PyTorch
  std::string python;                 // that has it
  std::function<void(std::int64_t done)> progress;
};

const std::vector<std::string>& compute_nets();  // eight whole nets, then sub-nets of the first

// Runs the load: every engine in turn in each round, a burst each. A ratio is our burst's median over that of the
// better peer in the same round, and of the rounds' ratios the median, with the quartiles beside it. The shape is that
// of `bench compute` in interfaces.md. Errors: an engine that fails, outputs that do not agree.
runtime::Expected<nlohmann::json> run_compute(const ComputeLoad& load);

std::string compute_table(const nlohmann::json& result);

}  // namespace coppice::apps
