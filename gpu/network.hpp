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

// Per item: {channels, height, width} for images, {channels, depth, height, width} for volumes, {features} for vectors.
// Rank 1 to 8. An axis may be 0: the value has then no numbers, and takes no memory and no time.
using Dims = std::vector<std::int64_t>;

std::int64_t elements(const Dims& dims);  // REQUIRES: validated dims, as infer_shapes gives them
std::string to_string(const Dims& dims);  // "1x28x28"

struct Window {  // of a convolution or a pool, in pixels
  std::int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  std::int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  std::int64_t dilation_h = 1, dilation_w = 1;  // pixels from one tap of the kernel to the next
  // Of a volume; an image is one plane deep.
  std::int64_t kernel_d = 1, stride_d = 1, pad_front = 0, pad_back = 0, dilation_d = 1;

  std::int64_t taps() const { return kernel_d * kernel_h * kernel_w; }  // REQUIRES: a validated window
  bool operator==(const Window&) const = default;
};

struct WindowAxis {
  std::int64_t kernel = 1, stride = 1, before = 0, after = 0, dilation = 1;  // before and after: the padding

  std::int64_t span() const { return (kernel - 1) * dilation + 1; }  // pixels from the first tap to the last
  bool in_bounds() const;  // no number is larger than a window may have; the span is at most 2^32 then
  bool operator==(const WindowAxis&) const = default;
};
// The window's axes over a value: height and width over an image, depth before them over a volume.
std::vector<WindowAxis> axes(const Window& window, const Dims& value);

struct Convolution {
  Window window;
  std::int64_t out_channels = 0, groups = 1;
  std::vector<float> weight, bias;  // [out, in / groups, (kernel_d,) kernel_h, kernel_w]; [out] or empty
};
struct BatchNorm {
  std::vector<float> scale, shift, mean, variance;  // each [channels]
  float epsilon = 1e-5F;
};
struct Relu {};
struct Clip {  // to [low, high]; {0, 6} is ReLU6
  float low = 0, high = 6;
};
struct MaxPool {
  Window window;  // pads are smaller than the kernel and dilated taps do not leap over the image: each sees a pixel
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
struct Add {};      // two inputs; sizes are aligned at the last axis, and an axis of 1 or none is repeated
struct Concat {     // one input or more, along an axis of the item: 0 is the channels
  int axis = 0;
};
struct Slice {  // begin <= i < end along an axis of the item
  int axis = 0;
  std::int64_t begin = 0, end = 0;
};
struct Reshape {
  Dims to;  // as many elements as before
};
struct Transpose {
  std::vector<int> order;  // axis i of the output is axis order[i] of the input
};
struct ChannelShuffle {  // channel g * (channels / groups) + i goes to i * groups + g (ShuffleNet, section 3.1)
  std::int64_t groups = 1;
};
struct Constant {  // takes no input; the same for every item
  Dims dims;
  std::vector<float> values;
};
struct Identity {};
// What norms of an item's own statistics come to. These two run only forward.
struct Arithmetic {  // of two inputs, number by number; sizes as of an Add
  enum class Kind : std::uint8_t { subtract, multiply, divide };
  Kind kind = Kind::multiply;
};
struct SquareRoot {};

using Operator = std::variant<Convolution, BatchNorm, Relu, Clip, MaxPool, AveragePool, GlobalAveragePool, Dense, Flatten,
                              Add, Concat, Slice, Reshape, Transpose, ChannelShuffle, Constant, Identity, Arithmetic,
                              SquareRoot>;
std::string name(const Operator& op);  // "Convolution": as the struct is called

struct Node {
  std::string name;
  Operator op;
  std::vector<int> inputs;  // indices of earlier values: 0 is the net's input, i + 1 the output of node i
};

struct Network {
  std::string name;
  Dims input;               // e.g. {1, 28, 28}; {0} of a net that takes nothing
  std::vector<Node> nodes;  // in topological order; the last node's output is the net's output
};

// The shape of one node's output, given those of all values before it. Errors: shape_mismatch naming the node.
Expected<Dims> infer_shape(const Node& node, const std::vector<Dims>& known);

// What only the CPU device runs, and only forward, is refused for `who`, as in "training". REQUIRES: the net's shapes.
// Errors: unsupported_operator naming the node that makes an empty value (filled), or slides over three spatial axes
// (ordinary), or is arithmetic (learnable); each refuses what the one before it does.
Expected<void> check_filled(const Network& net, const std::vector<Dims>& shapes, const std::string& who);
Expected<void> check_ordinary(const Network& net, const std::vector<Dims>& shapes, const std::string& who);
Expected<void> check_learnable(const Network& net, const std::vector<Dims>& shapes, const std::string& who);

// Every value's shape: [0] the input, [i + 1] node i's output. Errors: shape_mismatch naming the node.
// All arithmetic is bounded: no value has more than 2^31 elements, whatever the net says.
Expected<std::vector<Dims>> infer_shapes(const Network& net);

std::int64_t multiply_adds(const Network& net);  // of one item: convolutions and dense layers. REQUIRES: shapes infer
std::int64_t parameters(const Network& net);

// Equal function with fewer nodes: batch norms folded into the convolution or dense layer before them; the three moves
// that ONNX needs to shuffle channels made one ChannelShuffle, reshapes of reshapes one reshape; identities, moves that
// change nothing, what only makes empty values and nodes that the output does not need dropped. Of values that are
// empty the input and the output can be left. REQUIRES: shapes infer.
Network simplified(Network net);

// The nodes that the last one needs, each reading what the identities before it read. REQUIRES: shapes infer.
Network without_idle_nodes(Network net);

// conv3x3-bn-relu pairs of the given widths with a 2x2 max pool after every second, then one dense layer; weights
// drawn from a seeded He-normal distribution. For benchmarks of nets that nobody has trained.
Network vgg(Dims input, const std::vector<int>& widths, int classes, std::uint64_t seed);

}  // namespace coppice::gpu
