// apps/study.hpp: class parallelism against what a user would do instead, at equal compute a worker: the experiment.
//
// For each seed a base net is trained; for each budget its sub-nets and every control. Choices are made on the held-out
// part of the training images; the test images are scored once for each net that comes out. Each cell is a line of
// JSON in a file, so that a run that was cut off goes on where it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gpu/trainer.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

struct StudyOptions {
  std::string data;
  std::vector<int> widths{32, 32, 64, 64, 128, 128};  // of the base, a VGG
  int groups = 5;
  std::vector<double> budgets{0.1, 0.05, 0.03};  // multiply-adds of a sub-net, of the base's
  int seeds = 5, first_seed = 0;  // as many from that one on: several runs may share the work
  int base_epochs = 8, epochs = 6;
  float base_peak = 0.1F, peak = 0.15F;
  std::int64_t held_out = 5'000;
  std::int64_t most = 0;  // train on so many images only; 0: on all
  gpu::Augmentation augmentation{2, false};
  int threads = 2;
  // class_parallel, whole, ensemble, random, scratch, sensai
  std::vector<std::string> cells{"class_parallel", "whole", "ensemble", "random", "scratch", "sensai"};
  std::filesystem::path out;
};

// Runs what `out` does not have yet. Errors as those of training and decomposing.
runtime::Expected<void> run_study(const StudyOptions& options);

// The table of a file of results: means over seeds and paired 95 % intervals, against the base and of the lead that class
// parallelism has.
runtime::Expected<nlohmann::json> study_summary(const std::filesystem::path& results);

}  // namespace coppice::apps
