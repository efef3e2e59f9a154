// gpu/onnx_tensor.hpp: the constants of an ONNX graph. Private to gpu/onnx.cpp.
#pragma once

#include <cstdint>
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
  std::vector<std::int64_t> integers;  // of an int64 or bool tensor: Reshape's target, Dropout's mode
};

// Errors: malformed (external data, a size that the bytes do not bear out), unsupported_operator (another type).
// Nothing is allocated before the claimed size has been compared with the bytes that are there.
Expected<Weight> read_tensor(const onnx::TensorProto& tensor, const std::string& file);

}  // namespace coppice::gpu
