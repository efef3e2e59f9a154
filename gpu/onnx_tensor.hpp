// gpu/onnx_tensor.hpp: the constants of an ONNX graph. Private to gpu/onnx*.cpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "gpu/network.hpp"

namespace onnx {
class TensorProto;
}

namespace coppice::gpu {

struct Weight {
  Dims dims;                           // may be empty: a scalar
  std::vector<float> values;           // of a float32 tensor
  std::vector<std::int64_t> integers;  // of an int32, int64 or bool tensor: Reshape's target, Dropout's mode
};

// What tensors may read beside their model.
struct ExternalData {
  std::optional<std::filesystem::path> directory;   // the model's own; none: no other file is opened
  std::int64_t bytes_left = std::int64_t{1} << 30;  // of all tensors together: many may name one large file
};

// Errors: malformed (a size that the bytes do not bear out, external data where there may be none or badly described),
// unreadable (external data that is not there or not beneath the directory), unsupported_operator (another type).
// Nothing is allocated before the claimed size has been compared with the bytes that are there.
Expected<Weight> read_tensor(const onnx::TensorProto& tensor, const std::string& file, ExternalData& external);

}  // namespace coppice::gpu
