// The graph as a whole, and what every operator's reader needs: names, constants, axes.
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

constexpr int kNodesMax = 100'000;         // of the graph
constexpr std::size_t kMadeMax = 500'000;  // of the net: a slice with gaps takes one for each place
// Of all nodes together: one initialiser that many nodes name must not multiply.
constexpr std::size_t kParametersMax = std::size_t{1} << 28;
constexpr std::int64_t kOpsetMax = 18;

}  // namespace

OnnxReader::OnnxReader(const onnx::ModelProto& model, std::string file, const OnnxOptions& options,
                       ExternalData external)
    : model_(model), graph_(model.graph()), options_(options), external_(std::move(external)), file_(std::move(file)) {}

Expected<Network> OnnxReader::read() {
  net_.name = file_;
  if (graph_.node_size() > kNodesMax) return malformed(file_ + ": more than 100,000 nodes");
  for (auto step : {&OnnxReader::opset, &OnnxReader::initialisers, &OnnxReader::input})
    if (auto ok = (this->*step)(); !ok) return unexpected(ok.error());
  for (const auto& node : graph_.node())
    for (const auto& name : node.input()) ++uses_[name];
  for (const auto& output : graph_.output()) ++uses_[output.name()];
  for (int i = 0; i < graph_.node_size(); ++i) {
    auto ok = begin(graph_.node(i), i);
    if (ok) ok = node(graph_.node(i));
    if (!ok) return unexpected(ok.error());
  }
  return finish();
}

OnnxReader::Done OnnxReader::opset() {
  for (const auto& import : model_.opset_import())
    if (import.domain().empty() || import.domain() == "ai.onnx") opset_ = import.version();
  if (opset_ < 1 || opset_ > kOpsetMax)
    return unsupported(file_ + ": opset " + std::to_string(opset_) + " is not one of 1 to 18");
  return {};
}

OnnxReader::Done OnnxReader::initialisers() {
  if (graph_.sparse_initializer_size() > 0) return unsupported(file_ + ": sparse initialisers are not read");
  for (const auto& tensor : graph_.initializer()) {
    auto weight = read_tensor(tensor, file_, external_);
    if (!weight) return unexpected(weight.error());
    weights_[tensor.name()] = std::make_shared<const Weight>(std::move(*weight));
  }
  return {};
}

OnnxReader::Done OnnxReader::input() {
  const onnx::ValueInfoProto* found = nullptr;
  for (const auto& value : graph_.input()) {
    if (weights_.contains(value.name())) continue;  // older exporters list weights among the inputs
    if (found) return malformed(file_ + ": more than one input: " + found->name() + ", " + value.name());
    found = &value;
  }
  if (!found && !options_.first_axis_is_batch) {  // all that is known beforehand
    net_.input = {0};
    shapes_.push_back(net_.input);
    return {};
  }
  if (!found || !found->type().has_tensor_type() || !found->type().tensor_type().has_shape())
    return malformed(file_ + ": no input with a shape");
  const auto& type = found->type().tensor_type();
  if (type.elem_type() != onnx::TensorProto::FLOAT) return unsupported(file_ + ": the input is not float32");
  const int batch_axes = options_.first_axis_is_batch ? 1 : 0, axes = type.shape().dim_size();
  if (axes < batch_axes + 1 || axes > 8 ||
      (batch_axes == 1 && type.shape().dim(0).has_dim_value() && type.shape().dim(0).dim_value() > 1))
    return fault(ErrorCode::shape_mismatch,
                 file_ + ": the input needs a batch axis that is open or 1, and 1 to 7 more");
  for (int i = batch_axes; i < axes; ++i) {
    const auto& dim = type.shape().dim(i);
    // Beside an open batch, exporters have written 0 for other axes that are open.
    if (!dim.has_dim_value() || dim.dim_value() < batch_axes)
      return fault(ErrorCode::shape_mismatch,
                   file_ + ": dimension " + std::to_string(i) + " of the input is not fixed");
    net_.input.push_back(dim.dim_value());
  }
  // Its size is bounded here: what follows multiplies it out.
  if (auto fits = infer_shape({"the input", Identity{}, {0}}, {net_.input}); !fits)
    return fault(ErrorCode::shape_mismatch, file_ + ": the input is too large: " + to_string(net_.input));
  values_[found->name()] = 0;
  shapes_.push_back(net_.input);
  return {};
}

Expected<Network> OnnxReader::finish() {
  if (graph_.output_size() != 1) return malformed(file_ + ": the graph has not one output");
  const auto& name = graph_.output(0).name();
  if (weights_.contains(name))
    if (auto ok = constant_output(name); !ok) return unexpected(ok.error());
  const auto out = values_.find(name);
  if (out == values_.end()) return malformed(file_ + ": no node makes the output " + name);
  // The last node is the output: nodes after it feed nothing that is asked for.
  net_.nodes.resize(static_cast<std::size_t>(out->second));
  if (net_.nodes.empty()) return malformed(file_ + ": the graph computes nothing");
  if (auto shapes = infer_shapes(net_); !shapes) return fault(shapes.error().code, file_ + ": " + shapes.error().what);
  return std::move(net_);
}

OnnxReader::Done OnnxReader::constant_output(const std::string& name) {
  at_ = file_ + ": the output " + name;
  if (options_.first_axis_is_batch) return malformed(at_ + " is a constant, the same for any number of items");
  const auto& w = *weights_.at(name);
  const auto dims = item(w.dims);
  if (!dims) return unexpected(dims.error());
  name_ = name;
  made_ = 0;
  const auto made = constant_value(w, *dims);
  if (!made) return unexpected(made.error());
  if (fault_) return unexpected(*fault_);
  values_[name] = *made;
  return {};
}

// ---- one node ----

OnnxReader::Done OnnxReader::begin(const onnx::NodeProto& n, int index) {
  name_ = n.name().empty() ? n.op_type() + std::to_string(index) : n.name();
  at_ = file_ + ": node " + name_ + " (" + n.op_type() + ", opset " + std::to_string(opset_) + ")";
  made_ = 0;
  if (!n.domain().empty() && n.domain() != "ai.onnx") return unsupported(at_ + " is of the domain " + n.domain());
  if (n.output_size() < 1 || (n.output(0).empty() && n.op_type() != "Split")) return malformed(at_ + " has no output");
  for (const auto& output : n.output())
    if (!output.empty() && (values_.contains(output) || weights_.contains(output)))
      return malformed(at_ + " makes " + output + ", which is there already");
  for (int i = 1; i < n.output_size(); ++i)
    if (!makes_several(n) && wanted(n, i))
      return unsupported(at_ + ": only its first output can be read");
  return {};
}

OnnxReader::Done OnnxReader::node(const onnx::NodeProto& n) {
  const std::string& type = n.op_type();
  if (type == "Constant") return constant_operator(n);
  if (type == "Shape") return shape_of(n);
  if (computes_sizes(n)) return sizes(n);
  if (type == "Add" || type == "Sub" || type == "Mul" || type == "Div") return pairwise(n);
  if (type == "Concat") return concat(n);
  if (const auto in = value(n, 0)) return node(n, *in);
  constexpr std::array kFolded{"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"};
  const auto constants = weight(n, 0);
  if (constants && std::find(kFolded.begin(), kFolded.end(), type) != kFolded.end()) return move(n, *constants);
  if (constants) return unsupported(at_ + ": its input is a constant");
  return malformed(at_ + ": its input " + (n.input_size() > 0 ? n.input(0) : "") + " is made by no earlier node");
}

OnnxReader::Done OnnxReader::node(const onnx::NodeProto& n, int in) {
  const std::string& type = n.op_type();
  if (type == "Conv") return convolution(n, in);
  if (type == "Gemm") return gemm(n, in);
  if (type == "MatMul") return matmul(n, in);
  if (type == "BatchNormalization") return batch_norm(n, in);
  if (type == "InstanceNormalization") return instance_norm(n, in);
  if (type == "LayerNormalization") return layer_norm(n, in);
  if (type == "Neg") return opposite_of(n, in);
  if (type == "Reciprocal") return inverse_of(n, in);
  if (type == "Sqrt") return give(n, make(SquareRoot{}, {in}));
  if (type == "MaxPool" || type == "AveragePool") return pool(n, in);
  if (type == "ReduceMean" || type == "GlobalAveragePool") return reduce_mean(n, in);
  if (type == "Clip") return clip(n, in);
  if (type == "Dropout") return dropout(n, in);
  if (type == "Relu") return give(n, make(Relu{}, {in}));
  if (type == "Identity") return give(n, make(Identity{}, {in}));
  if (type == "Transpose") return transpose(n, in);
  if (type == "Slice") return slice(n, in);
  if (type == "Split") return split(n, in);
  if (type == "Pad") return pad(n, in);
  if (type == "Reshape" || type == "Flatten" || type == "Squeeze" || type == "Unsqueeze") return move(n, in);
  return unsupported(at_ + " is not an operator that is run here");
}

OnnxReader::Constants OnnxReader::weight(const onnx::NodeProto& n, int i) const {
  if (i >= n.input_size()) return nullptr;
  const auto found = weights_.find(n.input(i));
  return found == weights_.end() ? nullptr : found->second;
}

std::optional<int> OnnxReader::value(const onnx::NodeProto& n, int i) const {
  if (i >= n.input_size()) return std::nullopt;
  const auto found = values_.find(n.input(i));
  return found == values_.end() ? std::nullopt : std::optional(found->second);
}

bool OnnxReader::given(const onnx::NodeProto& n, int i) const { return i < n.input_size() && !n.input(i).empty(); }

bool OnnxReader::read_once(const onnx::NodeProto& n, int i) const {
  const auto found = uses_.find(n.input(i));
  return found != uses_.end() && found->second == 1;
}

bool OnnxReader::wanted(const onnx::NodeProto& n, int output) const {
  return output < n.output_size() && !n.output(output).empty() && uses_.contains(n.output(output));
}

bool OnnxReader::makes_several(const onnx::NodeProto& n) const {
  const std::string& type = n.op_type();
  return type == "Split" || type == "LayerNormalization" || (type == "BatchNormalization" && opset_ >= 14 && in_training(n));
}

OnnxReader::Done OnnxReader::constant(const onnx::NodeProto& n, int i, const char* what, std::vector<float>& into) {
  const auto w = weight(n, i);
  if (!w || w->values.empty()) return unsupported(at_ + ": its " + what + " is not a float32 constant");
  if (auto ok = count(w->values.size()); !ok) return ok;
  into = w->values;
  return {};
}

OnnxReader::Done OnnxReader::count(std::size_t more) {
  parameters_ += more;
  if (parameters_ > kParametersMax) return malformed(file_ + ": more than 2^28 parameters");
  return {};
}

OnnxReader::Done OnnxReader::optional_constant(const onnx::NodeProto& n, int i, const char* what,
                                               std::vector<float>& into) {
  if (!given(n, i)) return {};
  return constant(n, i, what, into);
}

Expected<std::optional<Dims>> OnnxReader::numbers(const onnx::NodeProto& n, int i, const char* name,
                                                  int input_since) const {
  if (opset_ < input_since) {
    if (!attribute(n, name)) return std::optional<Dims>();
    return std::optional(integers(n, name, {}));
  }
  if (!given(n, i)) return std::optional<Dims>();
  const auto w = weight(n, i);
  if (!w || !w->values.empty() || w->dims.size() > 1)
    return unsupported(at_ + ": its " + name + " are not constant integers");
  const auto batch = std::count(w->integers.begin(), w->integers.end(), kBatchSize);
  if (batch > 0 && n.op_type() != "Reshape") return unsupported(at_ + ": its " + name + " are those of the batch");
  return std::optional(w->integers);
}

// Shapes are kept as nodes come, so that each is judged by what it really gets.
int OnnxReader::make(Operator op, std::vector<int> inputs) {
  if (fault_) return -1;
  if (net_.nodes.size() >= kMadeMax) {
    fault_ = Error{ErrorCode::malformed, at_ + ": the graph needs more than 500,000 operators"};
    return -1;
  }
  Node made{made_ == 0 ? name_ : name_ + "." + std::to_string(made_), std::move(op), std::move(inputs)};
  ++made_;
  auto shape = infer_shape(made, shapes_);
  if (!shape) {
    fault_ = Error{shape.error().code, file_ + ": " + shape.error().what};
    return -1;
  }
  shapes_.push_back(std::move(*shape));
  net_.nodes.push_back(std::move(made));
  return static_cast<int>(net_.nodes.size());
}

int OnnxReader::refuse(Error why) {
  if (!fault_) fault_ = std::move(why);
  return -1;
}

int OnnxReader::reshape(int in, const Dims& to) {
  return to.size() == 1 && in >= 0 && to[0] == elements(shape(in)) ? make(Flatten{}, {in}) : make(Reshape{to}, {in});
}

int OnnxReader::transpose(int in, std::vector<int> order) {
  return std::is_sorted(order.begin(), order.end()) ? in : make(Transpose{std::move(order)}, {in});
}

OnnxReader::Done OnnxReader::give(const onnx::NodeProto& n, int made, int output) {
  if (fault_) return unexpected(*fault_);
  values_[n.output(output)] = made;
  return {};
}

OnnxReader::Done OnnxReader::give(const onnx::NodeProto& n, Weight constants) {
  weights_[n.output(0)] = std::make_shared<const Weight>(std::move(constants));
  return {};
}

// ---- axes ----

Dims OnnxReader::whole(int v) const {
  Dims out = shape(v);
  if (options_.first_axis_is_batch) out.insert(out.begin(), 1);
  return out;
}

Expected<Dims> OnnxReader::item(Dims whole) const {
  if (options_.first_axis_is_batch) {
    if (whole.empty() || whole.front() != 1)
      return unsupported(at_ + ": makes " + to_string(whole) + " of each item, whose first axis is not the batch");
    whole.erase(whole.begin());
  }
  if (whole.empty()) return unsupported(at_ + ": leaves one number without an axis");
  return whole;
}

Expected<int> OnnxReader::item_axis(std::int64_t axis, std::size_t rank) const {
  const auto axes = static_cast<std::int64_t>(rank);
  if (axis < -axes || axis >= axes)
    return fault(ErrorCode::shape_mismatch, at_ + ": has no axis " + std::to_string(axis));
  const auto from_front = axis < 0 ? axis + axes : axis;
  if (!options_.first_axis_is_batch) return static_cast<int>(from_front);
  if (from_front == 0) return unsupported(at_ + ": works across the items of a batch");
  return static_cast<int>(from_front - 1);
}

Expected<Dims> OnnxReader::item_dims(const Weight& w, std::size_t rank) const {
  Dims dims = w.dims;
  if (options_.first_axis_is_batch && dims.size() > rank) {
    if (dims.size() != rank + 1 || dims.front() != 1)
      return unsupported(at_ + ": its constant of " + to_string(dims) + " is not the same for every item");
    dims.erase(dims.begin());
  }
  if (dims.empty()) dims.push_back(1);
  return dims;
}

}  // namespace coppice::gpu
