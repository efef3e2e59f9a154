// apps/subnets.hpp: from one trained net to a directory of retrained sub-nets, companions and a control, with nets.json
// (apps/assembly.hpp reads it); and what is told about them.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "gpu/decompose.hpp"
#include "gpu/trainer.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

enum class Retrain : std::uint8_t { joint, alone, none };

struct SubnetsOptions {
  std::filesystem::path model;  // ONNX
  std::string data;
  int groups = 5;
  std::string grouping = "similar";  // or contiguous, or a JSON file: [[0, 6], [1, 3], ...]
  double flops = 0.1;                // multiply-adds of each sub-net, of the base's
  double latency = 1;                // the same of estimated time
  std::optional<double> accuracy_drop;  // in points, held out: the smallest budget that keeps it is searched
  gpu::Ranking ranking = gpu::Ranking::taylor;
  Retrain retrain = Retrain::joint;
  int companions = 2;   // with blocks: in each
  int blocks = 0;       // 0: none; else each has an equal run of the groups, and companions that score its classes
  int epochs = 6;
  float peak = 0.15F;
  int batch = 128;
  gpu::Augmentation augmentation{2, false};
  std::int64_t held_out = 5'000;
  std::uint64_t seed = 0;
  int threads = 1;
};

struct SubnetsReport {
  std::string model, data;
  gpu::ClassGroups groups;
  std::vector<std::string> class_names;
  double flops = 0;               // the budget that was kept to
  double base_held_out = 0, combined_held_out = 0, control_held_out = 0;  // percent
  std::int64_t base_multiply_adds = 0, base_parameters = 0;
  double base_latency_us = 0;
  struct Row {
    std::string name;
    std::vector<int> classes;
    std::int64_t multiply_adds = 0, parameters = 0;
    double latency_us = 0;  // p50 of one item, one thread, alone
    double accuracy = 0;    // percent: its own pick among its classes, held-out items of these
  };
  std::vector<Row> rows;
  // What each sub-net kept of the base: for each set of channels a row a sub-net, a bit a channel.
  struct Layer {
    std::string name;
    std::vector<std::vector<bool>> kept;
  };
  std::vector<Layer> layers;
  double seconds = 0;
};

// Writes base.onnx, subnetI.onnx, companionI.onnx, control.onnx and nets.json to `out`, which is made. The last
// `held_out` training images are not trained on; the test images are not touched.
runtime::Expected<SubnetsReport> make_subnets(const SubnetsOptions& options, const std::filesystem::path& out);

nlohmann::json to_json(const SubnetsReport& report);
std::string to_text(const SubnetsReport& report);
std::string to_html(const SubnetsReport& report);  // one self-contained page, with the groups' channel overlap

// Median time of one item on one thread, in microseconds.
runtime::Expected<double> latency_us(const gpu::Network& net);

// The same as a share of another net's: rounds of both in turn, the median of their ratios; what else the machine does
// falls on both.
runtime::Expected<double> latency_ratio(const gpu::Network& net, const gpu::Network& base);

}  // namespace coppice::apps
