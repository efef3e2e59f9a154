// gpu/network.hpp: a trained net as a value: a list of operators over named float32 tensors.
//
// The one representation that readers produce (gpu/onnx.hpp), that builders make from code (vgg below) and that
// devices compile (gpu/device.hpp). Layout is NCHW; the batch axis is not part of a shape here.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

// Per item: {channels, height, width} for images, {features} for vectors. Rank 1 to 8.
using Dims = std::vector<std::int64_t>;

std::int64_t elements(const Dims& dims);  // REQUIRES: validated dims, as infer_shapes gives them
std::string to_string(const Dims& dims);  // "1x28x28"

struct Window {  // of a convolution or a pool, in pixels
  std::int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  std::int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  bool operator==(const Window&) const = default;
};

struct Convolution {
  Window window;
  std::int64_t out_channels = 0, groups = 1;
  std::vector<float> weight, bias;  // [out, in / groups, kernel_h, kernel_w]; [out] or empty
};
struct BatchNorm {
  std::vector<float> scale, shift, mean, variance;  // each [channels]
  float epsilon = 1e-5F;
};
struct Relu {};
struct MaxPool {
  Window window;  // pads are smaller than the kernel: no window lies in padding alone
};
struct AveragePool {
  Window window;  // pads are smaller than the kernel
  bool count_padding = false;
};
struct GlobalAveragePool {};
struct Dense {
  std::int64_t out_features = 0;
  std::vector<float> weight, bias;  // [out, in]; [out] or empty
};
struct Flatten {};  // to {features}
struct Add {};      // two inputs of one shape
struct Identity {};

using Operator =
    std::variant<Convolution, BatchNorm, Relu, MaxPool, AveragePool, GlobalAveragePool, Dense, Flatten, Add, Identity>;

struct Node {
  std::string name;
  Operator op;
  std::vector<int> inputs;  // indices of earlier values: 0 is the net's input, i + 1 the output of node i
};

struct Network {
  std::string name;
  Dims input;               // e.g. {1, 28, 28}
  std::vector<Node> nodes;  // in topological order; the last node's output is the net's output
};

// The shape of one node's output, given those of all values before it. Errors: shape_mismatch naming the node.
Expected<Dims> infer_shape(const Node& node, const std::vector<Dims>& known);

// Every value's shape: [0] the input, [i + 1] node i's output. Errors: shape_mismatch naming the node.
// All arithmetic is bounded: no value has more than 2^31 elements, whatever the net says.
Expected<std::vector<Dims>> infer_shapes(const Network& net);

std::int64_t multiply_adds(const Network& net);  // of one item: convolutions and dense layers. REQUIRES: shapes infer
std::int64_t parameters(const Network& net);

// Equal function with fewer nodes: batch norms folded into the convolution or dense layer before them, identities and
// nodes that the output does not need dropped. REQUIRES: shapes infer.
Network simplified(Network net);

// conv3x3-bn-relu pairs of the given widths with a 2x2 max pool after every second, then one dense layer; weights
// drawn from a seeded He-normal distribution. For benchmarks of nets that nobody has trained.
Network vgg(Dims input, const std::vector<int>& widths, int classes, std::uint64_t seed);

}  // namespace coppice::gpu
