#include "gpu/onnx.hpp"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "gpu/file.hpp"
#include "gpu/onnx_tensor.hpp"

namespace coppice::gpu {
namespace {

constexpr int kNodesMax = 100'000;
// Of all nodes together: one initialiser that many nodes name must not multiply.
constexpr std::size_t kParametersMax = std::size_t{1} << 28;

unexpected<Error> fault(ErrorCode code, const std::string& what) { return unexpected(Error{code, what}); }
unexpected<Error> unsupported(const std::string& what) { return fault(ErrorCode::unsupported_operator, what); }
unexpected<Error> malformed(const std::string& what) { return fault(ErrorCode::malformed, what); }

const onnx::AttributeProto* attribute(const onnx::NodeProto& node, const std::string& name) {
  for (const auto& a : node.attribute())
    if (a.name() == name) return &a;
  return nullptr;
}
std::int64_t integer(const onnx::NodeProto& node, const std::string& name, std::int64_t otherwise) {
  const auto* a = attribute(node, name);
  return a ? a->i() : otherwise;
}
float real(const onnx::NodeProto& node, const std::string& name, float otherwise) {
  const auto* a = attribute(node, name);
  return a ? a->f() : otherwise;
}
Dims integers(const onnx::NodeProto& node, const std::string& name, Dims otherwise) {
  const auto* a = attribute(node, name);
  return a ? Dims(a->ints().begin(), a->ints().end()) : std::move(otherwise);
}

// Its range is judged by infer_shape.
Expected<Window> window(const onnx::NodeProto& node, const std::string& at, const Dims& weight_kernel) {
  const Dims kernel = integers(node, "kernel_shape", weight_kernel), strides = integers(node, "strides", {1, 1});
  Dims pads = integers(node, "pads", {0, 0, 0, 0});
  if (const auto* automatic = attribute(node, "auto_pad"); automatic && automatic->s() != "NOTSET") {
    if (automatic->s() != "VALID") return unsupported(at + ": auto_pad " + automatic->s() + "; export explicit pads");
    pads = {0, 0, 0, 0};
  }
  if (kernel.size() != 2 || strides.size() != 2 || pads.size() != 4 ||
      integers(node, "dilations", {1, 1}) != Dims{1, 1} || integer(node, "ceil_mode", 0) != 0)
    return unsupported(at + ": only two-dimensional windows without dilation and ceil_mode");
  return Window{kernel[0], kernel[1], strides[0], strides[1], pads[0], pads[1], pads[2], pads[3]};
}

// [rows, columns] to [columns, rows].
std::vector<float> transposed(const std::vector<float>& from, std::size_t rows, std::size_t columns) {
  std::vector<float> to(from.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
  return to;
}

// Goes through the graph once, in its order; every name must be known by the time it is read, so cycles cannot be.
class Reader {
 public:
  Reader(const onnx::ModelProto& model, std::string name)
      : model_(model), graph_(model.graph()), file_(std::move(name)) {}

  Expected<Network> read() {
    for (const auto& import : model_.opset_import())
      if (import.domain().empty() || import.domain() == "ai.onnx") opset_ = import.version();
    if (opset_ < 9 || opset_ > 18)
      return unsupported(file_ + ": opset " + std::to_string(opset_) + " is not one of 9 to 18");
    if (graph_.node_size() > kNodesMax) return malformed(file_ + ": more than 100,000 nodes");
    net_.name = file_;
    if (auto ok = initialisers(); !ok) return unexpected(ok.error());
    if (auto ok = input(); !ok) return unexpected(ok.error());
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

 private:
  using Done = Expected<void>;

  Done initialisers() {
    if (graph_.sparse_initializer_size() > 0) return unsupported(file_ + ": sparse initialisers are not read");
    for (const auto& tensor : graph_.initializer()) {
      auto weight = read_tensor(tensor, file_);
      if (!weight) return unexpected(weight.error());
      weights_[tensor.name()] = std::make_shared<const Weight>(std::move(*weight));
    }
    return {};
  }

  Done input() {
    const onnx::ValueInfoProto* found = nullptr;
    for (const auto& value : graph_.input()) {
      if (weights_.contains(value.name())) continue;  // older exporters list weights among the inputs
      if (found) return malformed(file_ + ": more than one input: " + found->name() + ", " + value.name());
      found = &value;
    }
    if (!found || !found->type().has_tensor_type() || !found->type().tensor_type().has_shape())
      return malformed(file_ + ": no input with a shape");
    const auto& type = found->type().tensor_type();
    if (type.elem_type() != onnx::TensorProto::FLOAT) return unsupported(file_ + ": the input is not float32");
    const int axes = type.shape().dim_size();
    if (axes < 2 || axes > 8 || (type.shape().dim(0).has_dim_value() && type.shape().dim(0).dim_value() > 1))
      return fault(ErrorCode::shape_mismatch,
                   file_ + ": the input needs a batch axis that is open or 1, and 1 to 7 more");
    for (int i = 1; i < axes; ++i) {
      const auto& dim = type.shape().dim(i);
      if (!dim.has_dim_value() || dim.dim_value() < 1)
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

  Expected<Network> finish() {
    if (graph_.output_size() != 1) return malformed(file_ + ": the graph has not one output");
    const auto out = values_.find(graph_.output(0).name());
    if (out == values_.end()) return malformed(file_ + ": no node makes the output " + graph_.output(0).name());
    // The last node is the output: nodes after it feed nothing that is asked for.
    net_.nodes.resize(static_cast<std::size_t>(out->second));
    if (net_.nodes.empty()) return malformed(file_ + ": the graph computes nothing");
    if (auto shapes = infer_shapes(net_); !shapes)
      return fault(shapes.error().code, file_ + ": " + shapes.error().what);
    return std::move(net_);
  }

  // ---- one node ----

  Done begin(const onnx::NodeProto& n, int index) {
    name_ = n.name().empty() ? n.op_type() + std::to_string(index) : n.name();
    at_ = file_ + ": node " + name_ + " (" + n.op_type() + ", opset " + std::to_string(opset_) + ")";
    if (!n.domain().empty() && n.domain() != "ai.onnx") return unsupported(at_ + " is of the domain " + n.domain());
    if (n.output_size() < 1 || n.output(0).empty()) return malformed(at_ + " has no output");
    if (values_.contains(n.output(0)) || weights_.contains(n.output(0)))
      return malformed(at_ + " makes " + n.output(0) + ", which is there already");
    for (int i = 1; i < n.output_size(); ++i)
      if (uses_.contains(n.output(i)) && !n.output(i).empty())
        return unsupported(at_ + ": only its first output can be read");
    return {};
  }

  std::shared_ptr<const Weight> weight(const onnx::NodeProto& n, int i) const {
    if (i >= n.input_size()) return nullptr;
    const auto found = weights_.find(n.input(i));
    return found == weights_.end() ? nullptr : found->second;
  }
  std::optional<int> value(const onnx::NodeProto& n, int i) const {
    if (i >= n.input_size()) return std::nullopt;
    const auto found = values_.find(n.input(i));
    return found == values_.end() ? std::nullopt : std::optional(found->second);
  }

  // Shapes are kept as nodes come, so that each is judged by what it really gets.
  Done push(const onnx::NodeProto& n, Operator op, std::vector<int> inputs) {
    Node made{name_, std::move(op), std::move(inputs)};
    auto shape = infer_shape(made, shapes_);
    if (!shape) return fault(shape.error().code, file_ + ": " + shape.error().what);
    shapes_.push_back(std::move(*shape));
    net_.nodes.push_back(std::move(made));
    values_[n.output(0)] = static_cast<int>(net_.nodes.size());
    return {};
  }

  // The floats of the node's constant input, copied.
  Done constant(const onnx::NodeProto& n, int i, const char* what, std::vector<float>& into) {
    const auto w = weight(n, i);
    if (!w || w->values.empty()) return unsupported(at_ + ": its " + what + " is not a float32 constant");
    parameters_ += w->values.size();
    if (parameters_ > kParametersMax) return malformed(file_ + ": more than 2^28 parameters");
    into = w->values;
    return {};
  }
  Done optional_constant(const onnx::NodeProto& n, int i, const char* what, std::vector<float>& into) {
    if (i >= n.input_size() || n.input(i).empty()) return {};
    return constant(n, i, what, into);
  }

  Done node(const onnx::NodeProto& n) {
    const std::string& type = n.op_type();
    if (type == "Constant") return constant_node(n);
    if (type == "Identity" && weight(n, 0)) {
      weights_[n.output(0)] = weight(n, 0);
      return {};
    }
    if (type == "Add") return add(n);
    const auto in = value(n, 0);
    if (!in) {
      if (weight(n, 0)) return unsupported(at_ + ": its input is a constant");
      return malformed(at_ + ": its input " + (n.input_size() > 0 ? n.input(0) : "") + " is made by no earlier node");
    }
    if (type == "Conv") return convolution(n, *in);
    if (type == "Gemm" || type == "MatMul") return dense(n, *in);
    if (type == "BatchNormalization") return batch_norm(n, *in);
    if (type == "MaxPool" || type == "AveragePool") return pool(n, *in);
    if (type == "Reshape") return reshape(n, *in);
    if (type == "Flatten") return flatten(n, *in);
    if (type == "Dropout") return dropout(n, *in);
    if (type == "Relu") return push(n, Relu{}, {*in});
    if (type == "GlobalAveragePool") return push(n, GlobalAveragePool{}, {*in});
    if (type == "Identity") return push(n, Identity{}, {*in});
    return unsupported(at_ + " is not an operator that is run here");
  }

  Done constant_node(const onnx::NodeProto& n) {
    const auto* a = attribute(n, "value");
    if (!a || !a->has_t()) return unsupported(at_ + ": only a tensor value is read");
    auto w = read_tensor(a->t(), file_);
    if (!w) return unexpected(w.error());
    weights_[n.output(0)] = std::make_shared<const Weight>(std::move(*w));
    return {};
  }

  Done convolution(const onnx::NodeProto& n, int in) {
    const auto w = weight(n, 1);
    if (!w || w->dims.size() != 4) return unsupported(at_ + ": its weight is not a constant of four axes");
    auto win = window(n, at_, {w->dims[2], w->dims[3]});
    if (!win) return unexpected(win.error());
    if (win->kernel_h != w->dims[2] || win->kernel_w != w->dims[3])
      return fault(ErrorCode::shape_mismatch, at_ + ": kernel_shape is not its weight's");
    Convolution c{*win, w->dims[0], integer(n, "group", 1), {}, {}};
    if (auto ok = constant(n, 1, "weight", c.weight); !ok) return ok;
    if (auto ok = optional_constant(n, 2, "bias", c.bias); !ok) return ok;
    return push(n, std::move(c), {in});
  }

  Done dense(const onnx::NodeProto& n, int in) {
    const auto w = weight(n, 1);
    if (!w || w->dims.size() != 2) return unsupported(at_ + ": its weight is not a constant matrix");
    Dense d;
    if (auto ok = constant(n, 1, "weight", d.weight); !ok) return ok;
    bool output_first = false;
    if (n.op_type() == "Gemm") {
      if (integer(n, "transA", 0) != 0 || real(n, "alpha", 1) != 1.0F || real(n, "beta", 1) != 1.0F)
        return unsupported(at_ + ": only alpha = beta = 1 and transA = 0");
      output_first = integer(n, "transB", 0) != 0;
      if (auto ok = optional_constant(n, 2, "bias", d.bias); !ok) return ok;
    }
    const auto rows = static_cast<std::size_t>(w->dims[0]), columns = static_cast<std::size_t>(w->dims[1]);
    if (!output_first) d.weight = transposed(d.weight, rows, columns);
    d.out_features = w->dims[output_first ? 0 : 1];
    return push(n, std::move(d), {in});
  }

  Done batch_norm(const onnx::NodeProto& n, int in) {
    if (integer(n, "training_mode", 0) != 0) return unsupported(at_ + " is in training mode; export for inference");
    BatchNorm b;
    b.epsilon = real(n, "epsilon", 1e-5F);
    int i = 1;
    for (auto* into : {&b.scale, &b.shift, &b.mean, &b.variance})
      if (auto ok = constant(n, i++, "statistic", *into); !ok) return ok;
    return push(n, std::move(b), {in});
  }

  Done pool(const onnx::NodeProto& n, int in) {
    auto win = window(n, at_, {});
    if (!win) return unexpected(win.error());
    if (n.op_type() == "MaxPool") return push(n, MaxPool{*win}, {in});
    return push(n, AveragePool{*win, integer(n, "count_include_pad", 0) != 0}, {in});
  }

  Done reshape(const onnx::NodeProto& n, int in) {
    const auto target = weight(n, 1);
    const auto flat = elements(shapes_[static_cast<std::size_t>(in)]);
    const auto leads = [](std::int64_t batch) { return batch == -1 || batch == 0 || batch == 1; };
    if (!target || target->integers.size() != 2 || integer(n, "allowzero", 0) != 0 || !leads(target->integers[0]) ||
        !(target->integers[1] == flat || (target->integers[1] == -1 && target->integers[0] != -1)))
      return unsupported(at_ + ": only a reshape to [batch, all the rest] is run here");
    return push(n, Flatten{}, {in});
  }

  Done flatten(const onnx::NodeProto& n, int in) {
    const auto rank = static_cast<std::int64_t>(shapes_[static_cast<std::size_t>(in)].size()) + 1;
    const auto axis = integer(n, "axis", 1);
    if (axis != 1 && axis != 1 - rank) return unsupported(at_ + ": only axis 1");
    return push(n, Flatten{}, {in});
  }

  Done dropout(const onnx::NodeProto& n, int in) {
    if (n.input_size() > 2 && !n.input(2).empty()) {
      const auto training = weight(n, 2);
      if (!training || training->integers.size() != 1 || training->integers[0] != 0)
        return unsupported(at_ + " is in training mode; export for inference");
    }
    return push(n, Identity{}, {in});
  }

  Done add(const onnx::NodeProto& n) {
    if (n.input_size() != 2) return malformed(at_ + " has not two inputs");
    const auto a = value(n, 0), b = value(n, 1);
    if (a && b) return push(n, Add{}, {*a, *b});
    for (int i : {0, 1})
      if (!value(n, i) && !weight(n, i))
        return malformed(at_ + ": its input " + n.input(i) + " is made by no earlier node");
    // A constant: the bias after a MatMul, in either order.
    const int of_value = a ? 0 : 1;
    const int source = a.value_or(b.value_or(0));
    auto* before = source > 0 ? std::get_if<Dense>(&net_.nodes[static_cast<std::size_t>(source) - 1].op) : nullptr;
    const auto bias = weight(n, 1 - of_value);
    if (!before || !before->bias.empty() || uses_[n.input(of_value)] != 1 || !bias ||
        static_cast<std::int64_t>(bias->values.size()) != before->out_features || bias->dims.empty() ||
        bias->dims.back() != before->out_features)
      return unsupported(at_ + ": adds a constant that is no bias of a dense layer");
    if (auto ok = constant(n, 1 - of_value, "bias", before->bias); !ok) return ok;
    values_[n.output(0)] = source;
    return {};
  }

  const onnx::ModelProto& model_;
  const onnx::GraphProto& graph_;
  std::string file_, name_, at_;  // the model's; the current node's, and how errors begin there
  std::int64_t opset_ = 0;
  std::size_t parameters_ = 0;
  Network net_;
  std::vector<Dims> shapes_;  // of the net's values so far
  std::unordered_map<std::string, std::shared_ptr<const Weight>> weights_;
  std::unordered_map<std::string, int> values_;
  std::unordered_map<std::string, int> uses_;  // how often the graph reads a name
};

}  // namespace

Expected<Network> parse_onnx(std::span<const std::byte> bytes, const std::string& name) {
  if (static_cast<std::int64_t>(bytes.size()) > kOnnxBytesMax) return malformed(name + ": larger than 512 MiB");
  onnx::ModelProto model;
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  google::protobuf::io::CodedInputStream coded(&stream);
  coded.SetTotalBytesLimit(static_cast<int>(bytes.size()) + 1);
  coded.SetRecursionLimit(64);
  if (bytes.empty() || !model.ParseFromCodedStream(&coded) || !coded.ConsumedEntireMessage() || !model.has_graph())
    return malformed(name + ": not an ONNX model, or cut short");
  return Reader(model, name).read();
}

Expected<Network> load_onnx(const std::filesystem::path& file) {
  const auto bytes = read_file(file, kOnnxBytesMax);
  if (!bytes) return unexpected(bytes.error());
  return parse_onnx(*bytes, file.string());
}

}  // namespace coppice::gpu
