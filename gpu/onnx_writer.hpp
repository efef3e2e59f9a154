// gpu/onnx_writer.hpp: a net as an ONNX file (opset 13) that ONNX Runtime runs as it is.
#pragma once

#include <cstddef>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// Input "image" [N, input dims], output "scores" [N, output dims], weights embedded. Errors: shape_mismatch.
Expected<std::vector<std::byte>> to_onnx(const Network& net);

}  // namespace coppice::gpu
