// gpu/onnx_reader.hpp: one pass over an ONNX graph, in its order. Private to gpu/onnx*.cpp.
//
// What ONNX says in one node may take several here: a product of matrices goes through a 1x1 convolution, a mean of any
// axes through a global pool. Every operator that is read ends in operators that devices run.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "gpu/network.hpp"
#include "gpu/onnx.hpp"
#include "gpu/onnx_tensor.hpp"

namespace onnx {
class GraphProto;
class ModelProto;
class NodeProto;
}  // namespace onnx

namespace coppice::gpu {

// In the shape of a value, as a constant that a graph may read: how many items there are, which is not known.
inline constexpr std::int64_t kBatchSize = std::numeric_limits<std::int64_t>::min() + 1;

// Every name must be known by the time it is read, so cycles cannot be.
class OnnxReader {
 public:
  OnnxReader(const onnx::ModelProto& model, std::string file, const OnnxOptions& options, ExternalData external);
  Expected<Network> read();

 private:
  using Done = Expected<void>;
  using Constants = std::shared_ptr<const Weight>;

  // ---- the graph: onnx_graph.cpp ----
  Done opset();
  Done initialisers();
  Done input();
  Expected<Network> finish();
  Done constant_output(const std::string& name);
  Done begin(const onnx::NodeProto& n, int index);
  Done node(const onnx::NodeProto& n);
  Done node(const onnx::NodeProto& n, int in);

  // An input of the node: a constant, or a value of the net; neither where it is not given or not known.
  Constants weight(const onnx::NodeProto& n, int i) const;
  std::optional<int> value(const onnx::NodeProto& n, int i) const;
  bool given(const onnx::NodeProto& n, int i) const;
  bool read_once(const onnx::NodeProto& n, int i) const;
  bool wanted(const onnx::NodeProto& n, int output) const;  // something reads it
  bool makes_several(const onnx::NodeProto& n) const;       // outputs that can be read
  // The floats of the node's constant input, copied; the integers, which may also be an attribute before an opset.
  Done constant(const onnx::NodeProto& n, int i, const char* what, std::vector<float>& into);
  Done optional_constant(const onnx::NodeProto& n, int i, const char* what, std::vector<float>& into);
  Done count(std::size_t more);  // numbers that are copied, of all nodes together
  Expected<std::optional<Dims>> numbers(const onnx::NodeProto& n, int i, const char* name, int input_since) const;

  // Appends a node and gives its value. After a fault it does nothing, and give says what the fault was.
  int make(Operator op, std::vector<int> inputs);
  int refuse(Error why);  // the fault, where there is none yet
  int reshape(int in, const Dims& to);
  int transpose(int in, std::vector<int> order);  // nothing where the order is the axes' own
  Done give(const onnx::NodeProto& n, int made, int output = 0);
  Done give(const onnx::NodeProto& n, Weight constants);

  // ---- axes ----
  const Dims& shape(int v) const { return shapes_[static_cast<std::size_t>(v)]; }  // REQUIRES: no fault
  // The tensor's sizes as ONNX counts them; where the first axis is the batch, it stands as 1.
  Dims whole(int v) const;
  // The item's part of a tensor's sizes. Error: unsupported_operator where the first axis is no longer the batch.
  Expected<Dims> item(Dims whole) const;
  // The item's axis, of `rank` axes as ONNX counts them, from the front or from the back.
  Expected<int> item_axis(std::int64_t axis, std::size_t rank) const;
  // Those of a constant that meets a value of `rank` item axes: its batch axis is 1 and goes.
  Expected<Dims> item_dims(const Weight& w, std::size_t rank) const;

  // ---- layers: onnx_layers.cpp ----
  Done convolution(const onnx::NodeProto& n, int in);
  Done gemm(const onnx::NodeProto& n, int in);
  Done matmul(const onnx::NodeProto& n, int in);
  Done pool(const onnx::NodeProto& n, int in);
  Done clip(const onnx::NodeProto& n, int in);
  Done dropout(const onnx::NodeProto& n, int in);
  // in: [.., rows, inner] or [inner]; matrices: [outer, inner], or one for each of the input's leading axes.
  int product(int in, std::vector<float> matrices, std::int64_t count, std::int64_t outer, std::int64_t inner);
  Done windowed(const onnx::NodeProto& n, Operator op, int in);  // of an image or a volume, or of a row as an image
  Done needs_batch() const;

  // ---- number by number, and norms: onnx_arithmetic.cpp ----
  Done pairwise(const onnx::NodeProto& n);  // Add, Sub, Mul, Div
  Done pairwise(const onnx::NodeProto& n, int a, int b);
  Done pairwise(const onnx::NodeProto& n, int in, Weight constant);
  Done pairwise(const onnx::NodeProto& n, Weight constant, int in);
  Done align(const onnx::NodeProto& n, int in, Weight& second) const;
  int plus(int in, const Weight& addend, bool may_move);  // may_move: into the layer that makes `in`
  int times(int in, const Weight& factors, bool may_move);
  int with_constant(Arithmetic::Kind kind, int in, const Weight& constant, bool constant_first = false);
  struct Layer {
    std::vector<float>*weight, *bias;
    std::vector<float> each;  // a number for each output
  };
  std::optional<Layer> layer_of(int in, const Dims& dims, const std::vector<float>& values);
  bool taken_as_bias(int in, const Dims& dims, const std::vector<float>& values);
  bool taken_as_factor(int in, const Dims& dims, const std::vector<float>& values);
  Expected<int> constant_value(const Weight& w, const Dims& dims);
  Done opposite_of(const onnx::NodeProto& n, int in);
  Done inverse_of(const onnx::NodeProto& n, int in);
  Done reduce_mean(const onnx::NodeProto& n, int in);
  int mean(int in, const std::vector<bool>& gone, bool keep);
  struct Standardised {
    int value = -1, mean = -1, variance = -1, deviation = -1;
  };
  Standardised standardise(int in, const std::vector<bool>& gone, float epsilon);
  Expected<Weight> channel_constant(const onnx::NodeProto& n, int i, std::int64_t channels, std::size_t spatial);
  int scaled_and_shifted(const onnx::NodeProto& n, int in, std::int64_t channels, std::size_t spatial);
  Done instance_norm(const onnx::NodeProto& n, int in);
  Done layer_norm(const onnx::NodeProto& n, int in);
  bool in_training(const onnx::NodeProto& n) const;
  Done batch_norm(const onnx::NodeProto& n, int in);
  Done batch_norm_in_training(const onnx::NodeProto& n, int in);

  // ---- what only moves numbers: onnx_moves.cpp ----
  Done constant_operator(const onnx::NodeProto& n);
  Done move(const onnx::NodeProto& n, int in);
  Done move(const onnx::NodeProto& n, const Weight& constants);
  Expected<Dims> moved(const onnx::NodeProto& n, const Dims& whole, bool batched) const;  // sizes made of these
  Expected<Dims> reshaped(const onnx::NodeProto& n, const Dims& whole) const;
  Expected<Dims> flattened(const onnx::NodeProto& n, const Dims& whole, bool batched) const;
  Expected<Dims> squeezed(const onnx::NodeProto& n, const Dims& whole, bool batched) const;
  Expected<Dims> unsqueezed(const onnx::NodeProto& n, const Dims& whole, bool batched) const;
  Expected<std::vector<bool>> chosen(const Dims& axes, std::size_t rank, bool batched) const;
  Expected<std::vector<int>> order(const onnx::NodeProto& n, std::size_t rank) const;
  Done transpose(const onnx::NodeProto& n, int in);
  Done concat(const onnx::NodeProto& n);
  Done slice(const onnx::NodeProto& n, int in);
  Expected<int> sliced(int in, std::int64_t at, std::int64_t begin, std::int64_t end, std::int64_t step);
  int stepped(int in, int axis, std::int64_t begin, std::int64_t step, std::int64_t count);
  Done split(const onnx::NodeProto& n, int in);
  Done pad(const onnx::NodeProto& n, int in);

  // ---- sizes of shapes: onnx_sizes.cpp ----
  bool computes_sizes(const onnx::NodeProto& n) const;
  Done sizes(const onnx::NodeProto& n);
  Done shape_of(const onnx::NodeProto& n);
  Expected<Weight> gathered(const onnx::NodeProto& n) const;
  Expected<Weight> joined(const onnx::NodeProto& n) const;
  Expected<Weight> cut_sizes(const onnx::NodeProto& n) const;
  Expected<Weight> cast(const onnx::NodeProto& n) const;
  Expected<Weight> arithmetic(const onnx::NodeProto& n) const;

  const onnx::ModelProto& model_;
  const onnx::GraphProto& graph_;
  OnnxOptions options_;
  ExternalData external_;
  std::string file_, name_, at_;  // the model's; the current node's, and how errors begin there
  std::int64_t opset_ = 0;
  std::size_t parameters_ = 0;
  int made_ = 0;                // nodes made of the current one
  std::optional<Error> fault_;  // of make
  Network net_;
  std::vector<Dims> shapes_;  // of the net's values so far
  std::unordered_map<std::string, Constants> weights_;
  std::unordered_map<std::string, int> values_;
  std::unordered_map<std::string, int> uses_;  // how often the graph reads a name
};

}  // namespace coppice::gpu
