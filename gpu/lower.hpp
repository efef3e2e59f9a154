// gpu/lower.hpp: a net as the few fused steps that an accelerator's library has kernels for.
#pragma once

#include <variant>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// target = relu?(op(source) + addend?). An Add has both; else only a convolution has an addend.
struct LoweredStep {
  std::variant<Convolution, MaxPool, AveragePool, Relu, Add> op;
  Dims from, to;  // always images: a vector of n features is {n, 1, 1}
  int source = 0, target = 0;  // buffers
  int addend = -1;             // a buffer, or none
  bool relu = false;
};

struct Lowered {
  std::vector<LoweredStep> steps;
  std::vector<std::int64_t> buffers;  // elements of each, one item; buffer 0 is the net's input
  int output = 0;                     // buffer
  Dims output_dims;
};

// Simplified; dense layers and lone norms are 1x1 convolutions, flattens are free, a ReLU goes into the step before it,
// an addition and its ReLU into the convolution that makes one of its operands.
// Errors: shape_mismatch, also for values that are neither images nor vectors.
Expected<Lowered> lower(const Network& net);

}  // namespace coppice::gpu
