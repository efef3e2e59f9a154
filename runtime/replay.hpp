// runtime/replay.hpp: a net's recorded answers in place of the net: device = "replay:FILE".
//
// A recording holds, for so many items, the net's scores and how long each took. Whoever replays it waits as long and
// computes nothing, so that one machine can stand for many. Items are told apart by the SHA-256 of their floats.
//
//   {"schema": 1, "net": "subnet0.onnx", "input": 784, "outputs": 2, "items": ["16 hex digits", …],
//    "scores": {"shape": [items, outputs], "float32": base64}, "service_us": [whole numbers]}
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "actors/ports.hpp"
#include "gpu/dataset.hpp"
#include "runtime/error.hpp"
#include "runtime/model.hpp"

namespace coppice::runtime {

inline constexpr std::string_view kReplay = "replay:";  // what such a device begins with

class ReplayNet final : public actors::NetPort {
 public:
  // Errors name `origin` and the field.
  static Expected<std::unique_ptr<ReplayNet>> parse(std::string_view text, const std::string& origin);
  static Expected<std::unique_ptr<ReplayNet>> load(const std::filesystem::path& file);

  // An item that was not recorded has no scores.
  std::optional<std::string> run(std::span<const float> item, actors::Floats& scores) override;
  std::size_t input_elements() const override { return input_; }
  std::size_t outputs() const { return outputs_; }

 private:
  ReplayNet() = default;
  std::size_t input_ = 0, outputs_ = 0;
  std::unordered_map<std::string, std::size_t> rows_;  // by item
  std::vector<float> scores_;                          // [items, outputs]
  std::vector<std::uint32_t> service_us_;              // [items]
};

// What the worker's net answers to the first `items` of the data and how long that takes, alone on this machine.
// Errors: those of running the net.
Expected<nlohmann::json> record_replay(const Model& model, std::size_t worker, const gpu::Dataset& data,
                                       std::int64_t items);

}  // namespace coppice::runtime
