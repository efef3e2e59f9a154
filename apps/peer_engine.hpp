// apps/peer_engine.hpp: ONNX Runtime and OpenVINO, called through their C interfaces from libraries found while
// running.
//
// Neither is needed to build; only the few entries that a benchmark calls are declared in peer_engine.cpp.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gpu/network.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

// One model, one item at a time, on one thread unless told otherwise.
class PeerEngine {
 public:
  virtual ~PeerEngine() = default;
  // The answer is valid until the next call.
  virtual runtime::Expected<std::span<const float>> run(std::span<const float> input) = 0;
};

struct PeerModel {
  const std::vector<std::byte>& onnx;  // as gpu::to_onnx writes it: "image" in, "scores" out
  gpu::Dims input;                     // of one item
  std::int64_t scores = 0;
  int threads = 1;
};

// `library`: libonnxruntime.so / libopenvino_c.so, whatever the version at the end of its name.
runtime::Expected<std::unique_ptr<PeerEngine>> onnxruntime_engine(const std::string& library, const PeerModel& model);
runtime::Expected<std::unique_ptr<PeerEngine>> openvino_engine(const std::string& library, const PeerModel& model);

// The first of: `given` (a file, or a directory to look in), and the Python environment that `apps/deps --peers` makes.
std::optional<std::string> find_peer(const std::string& given, const std::string& name);

}  // namespace coppice::apps
