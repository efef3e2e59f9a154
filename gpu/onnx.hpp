// gpu/onnx.hpp: ONNX files in.
//
// Opsets 1 to 18, each operator in the form that its opset has: Add, AveragePool, BatchNormalization, Clip, Concat,
// Constant, Conv, Div, Dropout, Flatten, Gemm, GlobalAveragePool, Identity, InstanceNormalization, LayerNormalization,
// MatMul, MaxPool, Mul, Neg, ReduceMean, Reciprocal, Relu, Reshape, Slice, Split, Sqrt, Squeeze, Sub, Transpose,
// Unsqueeze; float32, one to three spatial axes, for inference. Weights, bounds, axes and sizes are constants; a matrix
// product has one constant factor. Sizes may be computed from shapes
// (Shape, Gather, Cast, Concat, Slice, Add, Sub, Mul, Div of integers), but not from how many items there are. A Pad is
// read where it adds nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "gpu/network.hpp"

namespace coppice::gpu {

inline constexpr std::int64_t kOnnxBytesMax = std::int64_t{512} << 20;

struct OnnxOptions {
  // Whether the first axis counts items: it is then open, or 1, and no operator may touch it. Where it does not, every
  // axis belongs to the one item, and operators that need a batch (convolutions, pools, batch norms for inference) are
  // refused, while a batch norm in training mode is read, and a dropout whose seed is given. An axis may then be 0, and a
  // graph may have no input at all, with a constant as its output.
  bool first_axis_is_batch = true;
};

// Errors: unreadable, malformed, unsupported_operator (naming node, operator and opset), shape_mismatch.
// All sizes are checked in 64 bits before anything is allocated. External tensor data is read only beneath the model's
// own directory, through no symbolic link, at most 1 GiB of it.
Expected<Network> load_onnx(const std::filesystem::path& file, const OnnxOptions& options = {});
// The same of bytes, whose tensors must all be inside.
Expected<Network> parse_onnx(std::span<const std::byte> bytes, const std::string& name,
                             const OnnxOptions& options = {});

}  // namespace coppice::gpu
