// gpu/onnx_writer.hpp: a net as an ONNX file (opset 13) that ONNX Runtime runs as it is.
#pragma once

#include <cstddef>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// Input "image" [N, input dims], output "scores" [N, output dims], weights embedded. Errors: shape_mismatch,
// unsupported_operator (a constant that would have to be repeated for each item: in a Concat, or as the net's output).
Expected<std::vector<std::byte>> to_onnx(const Network& net);

}  // namespace coppice::gpu
