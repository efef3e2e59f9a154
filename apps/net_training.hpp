// apps/net_training.hpp: what the commands that train nets share: parts of the data, a bar, files of the nets.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/trainer.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

std::vector<int> all_classes(int classes);  // 0 .. classes - 1

// The last training images are for choices, the others to train on. Errors name the data.
struct HeldOut {
  std::vector<std::int64_t> fit, held;
};
runtime::Expected<HeldOut> hold_out(const gpu::Dataset& data, std::int64_t held_out, const std::string& name);

// TrainerOptions::progress as a bar, which begins with the first step.
std::function<void(const gpu::TrainingProgress&)> training_bar(std::string label);

// Said before the work rather than after it. Errors: bad_input, naming the flag, for a place where no file can be.
runtime::Expected<void> check_writable(const std::filesystem::path& file, const std::string& flag);

// The parts one after another, whole or not at all: what is being written has another name. Errors name the file.
runtime::Expected<void> write_whole(const std::filesystem::path& file, std::initializer_list<std::string_view> parts);
runtime::Expected<void> write_onnx(const gpu::Network& net, const std::filesystem::path& file);

}  // namespace coppice::apps
