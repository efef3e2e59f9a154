// gpu/network.hpp: a trained net as a value: a list of operators over named float32 tensors.
//
// The one representation that readers produce (gpu/onnx.hpp), that builders make from code (vgg below) and that
// devices compile (gpu/device.hpp). Layout is NCHW; the batch axis is not part of a shape here.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

// Per item: {channels, height, width} for images, {features} for vectors. Rank 1 to 8.
using Dims = std::vector<std::int64_t>;

std::int64_t elements(const Dims& dims);      // checked product; REQUIRES: validated dims
std::string to_string(const Dims& dims);      // "1x28x28"

struct Window {  // of a convolution or a pool, in pixels
  std::int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  std::int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  bool operator==(const Window&) const = default;
};

struct Convolution {            // weight [out, in / groups, kernel_h, kernel_w], bias [out] or empty
  Window window;
  std::int64_t out_channels = 0, groups = 1;
  std::vector<float> weight, bias;
};
struct BatchNorm { std::vector<float> scale, shift, mean, variance; float epsilon = 1e-5F; };  // each [channels]
struct Relu {};
struct MaxPool { Window window; };
struct AveragePool { Window window; bool count_padding = false; };
struct GlobalAveragePool {};
struct Dense { std::int64_t out_features = 0; std::vector<float> weight, bias; };  // weight [out, in]
struct Flatten {};              // to {features}
struct Add {};                  // two inputs of one shape
struct Identity {};

using Operator = std::variant<Convolution, BatchNorm, Relu, MaxPool, AveragePool, GlobalAveragePool, Dense, Flatten,
                              Add, Identity>;

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

// Every value's shape: [0] the input, [i + 1] node i's output. Errors: shape_mismatch naming the node.
Expected<std::vector<Dims>> infer_shapes(const Network& net);

std::int64_t multiply_adds(const Network& net);  // of one item: convolutions and dense layers. REQUIRES: shapes infer
std::int64_t parameters(const Network& net);

// Equal function with fewer nodes: batch norms folded into the convolution before them, identities dropped.
Network simplified(Network net);

// conv3x3-bn-relu pairs of the given widths with a 2x2 max pool after every second, then one dense layer; weights
// drawn from a seeded He-normal distribution. For benchmarks of nets that nobody has trained.
Network vgg(Dims input, const std::vector<int>& widths, int classes, std::uint64_t seed);

}  // namespace coppice::gpu
