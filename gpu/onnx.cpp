#include "gpu/onnx.hpp"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <onnx/onnx_pb.h>

#include <cstring>
#include <limits>
#include <optional>
#include <unordered_map>

#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr int kNodesMax = 100'000;
constexpr std::int64_t kTensorElementsMax = std::int64_t{1} << 28;

tl::unexpected<Error> fault(ErrorCode code, const std::string& what) { return tl::unexpected(Error{code, what}); }

struct Weight {
  Dims dims;
  std::vector<float> values;
  std::vector<std::int64_t> integers;  // of an int64 tensor: Reshape's target
};

std::optional<std::int64_t> checked_product(const Dims& dims) {
  std::int64_t product = 1;
  for (const auto dim : dims) {
    if (dim < 0 || (dim > 0 && product > kTensorElementsMax / dim)) return std::nullopt;
    product *= dim;
  }
  return product;
}

class Reader {
 public:
  Reader(const onnx::ModelProto& model, std::string name) : model_(model), graph_(model.graph()), file_(std::move(name)) {}

  Expected<Network> read() {
    for (const auto& import : model_.opset_import())
      if (import.domain().empty() || import.domain() == "ai.onnx") opset_ = import.version();
    if (opset_ < 9 || opset_ > 18)
      return fault(ErrorCode::unsupported_operator, file_ + ": opset " + std::to_string(opset_) + " is not one of 9 to 18");
    if (graph_.node_size() > kNodesMax) return fault(ErrorCode::malformed, file_ + ": more than 100,000 nodes");
    net_.name = file_;
    if (auto ok = weights(); !ok) return tl::unexpected(ok.error());
    if (auto ok = input(); !ok) return tl::unexpected(ok.error());
    for (int i = 0; i < graph_.node_size(); ++i) {
      auto ok = node(graph_.node(i), i);
      if (ok) ok = check_last();
      if (!ok) return tl::unexpected(ok.error());
    }
    if (graph_.output_size() != 1) return fault(ErrorCode::malformed, file_ + ": the graph has not one output");
    const auto out = values_.find(graph_.output(0).name());
    if (out == values_.end()) return fault(ErrorCode::malformed, file_ + ": no node makes the output " + graph_.output(0).name());
    // The last node is the output: nodes after it feed nothing that is asked for.
    net_.nodes.resize(static_cast<std::size_t>(out->second));
    if (net_.nodes.empty()) return fault(ErrorCode::malformed, file_ + ": the graph computes nothing");
    if (auto shapes = infer_shapes(net_); !shapes)
      return fault(shapes.error().code, file_ + ": " + shapes.error().what);
    return std::move(net_);
  }

 private:
  std::string where(const onnx::NodeProto& node, int index) const {
    return file_ + ": node " + (node.name().empty() ? "number " + std::to_string(index) : node.name()) + " (" +
           node.op_type() + ", opset " + std::to_string(opset_) + ")";
  }

  Expected<Weight> tensor(const onnx::TensorProto& t) const {
    const std::string where = file_ + ": tensor " + t.name();
    if (t.data_location() == onnx::TensorProto::EXTERNAL || t.external_data_size() > 0)
      return fault(ErrorCode::malformed, where + " lies in another file; export the model with its weights inside");
    Weight w;
    w.dims.assign(t.dims().begin(), t.dims().end());
    const auto count = w.dims.size() > 8 ? std::nullopt : checked_product(w.dims);
    if (!count) return fault(ErrorCode::malformed, where + " claims a size of " + to_string(w.dims));
    const auto n = static_cast<std::size_t>(*count);
    const auto copy = [&](auto& into, const auto& repeated) -> bool {
      using Value = typename std::remove_reference_t<decltype(into)>::value_type;
      if (t.has_raw_data()) {
        if (t.raw_data().size() != n * sizeof(Value)) return false;
        into.resize(n);
        if (n > 0) std::memcpy(into.data(), t.raw_data().data(), n * sizeof(Value));
        return true;
      }
      if (static_cast<std::size_t>(repeated.size()) != n) return false;
      into.assign(repeated.begin(), repeated.end());
      return true;
    };
    bool fits = false;
    if (t.data_type() == onnx::TensorProto::FLOAT) fits = copy(w.values, t.float_data());
    else if (t.data_type() == onnx::TensorProto::INT64) fits = copy(w.integers, t.int64_data());
    else return fault(ErrorCode::unsupported_operator, where + " is of a type other than float32 and int64");
    if (!fits) return fault(ErrorCode::malformed, where + " has not the bytes that its size " + to_string(w.dims) + " needs");
    return w;
  }

  Expected<void> weights() {
    for (const auto& t : graph_.initializer()) {
      auto w = tensor(t);
      if (!w) return tl::unexpected(w.error());
      weights_[t.name()] = std::move(*w);
    }
    return {};
  }

  Expected<void> input() {
    const onnx::ValueInfoProto* found = nullptr;
    for (const auto& value : graph_.input()) {
      if (weights_.contains(value.name())) continue;  // older exporters list weights among the inputs
      if (found) return fault(ErrorCode::malformed, file_ + ": more than one input: " + found->name() + ", " + value.name());
      found = &value;
    }
    if (!found || !found->type().has_tensor_type() || !found->type().tensor_type().has_shape())
      return fault(ErrorCode::malformed, file_ + ": no input with a shape");
    const auto& type = found->type().tensor_type();
    if (type.elem_type() != onnx::TensorProto::FLOAT) return fault(ErrorCode::unsupported_operator, file_ + ": the input is not float32");
    for (int i = 1; i < type.shape().dim_size(); ++i) {
      const auto& dim = type.shape().dim(i);
      if (!dim.has_dim_value() || dim.dim_value() < 1)
        return fault(ErrorCode::shape_mismatch, file_ + ": dimension " + std::to_string(i) + " of the input is not fixed");
      net_.input.push_back(dim.dim_value());
    }
    const auto& batch = type.shape().dim_size() > 0 ? type.shape().dim(0) : onnx::TensorShapeProto::Dimension();
    if (net_.input.empty() || net_.input.size() > 7 || (batch.has_dim_value() && batch.dim_value() > 1))
      return fault(ErrorCode::shape_mismatch, file_ + ": the input needs a batch axis that is open or 1, and 1 to 7 more");
    values_[found->name()] = 0;
    shapes_.push_back(net_.input);
    return {};
  }

  // ---- attributes ----

  static const onnx::AttributeProto* attribute(const onnx::NodeProto& node, const std::string& name) {
    for (const auto& a : node.attribute())
      if (a.name() == name) return &a;
    return nullptr;
  }
  static std::int64_t integer(const onnx::NodeProto& node, const std::string& name, std::int64_t otherwise) {
    const auto* a = attribute(node, name);
    return a ? a->i() : otherwise;
  }
  static float real(const onnx::NodeProto& node, const std::string& name, float otherwise) {
    const auto* a = attribute(node, name);
    return a ? a->f() : otherwise;
  }

  Expected<Window> window(const onnx::NodeProto& node, const std::string& at, Dims kernel) const {
    const auto ints = [&](const std::string& name, Dims otherwise) {
      const auto* a = attribute(node, name);
      return a ? Dims(a->ints().begin(), a->ints().end()) : otherwise;
    };
    kernel = ints("kernel_shape", kernel);
    const Dims strides = ints("strides", {1, 1}), pads = ints("pads", {0, 0, 0, 0}), dilations = ints("dilations", {1, 1});
    const auto* automatic = attribute(node, "auto_pad");
    if (automatic && automatic->s() != "NOTSET" && automatic->s() != "VALID")
      return fault(ErrorCode::unsupported_operator, at + ": auto_pad " + automatic->s());
    if (kernel.size() != 2 || strides.size() != 2 || pads.size() != 4 || dilations != Dims{1, 1} || integer(node, "ceil_mode", 0) != 0)
      return fault(ErrorCode::unsupported_operator, at + ": only two-dimensional windows without dilation and ceil_mode");
    for (const Dims* list : std::initializer_list<const Dims*>{&kernel, &strides, &pads})
      for (const auto value : *list)
        if (value < 0 || value > 65'536) return fault(ErrorCode::malformed, at + ": a window of " + std::to_string(value));
    return Window{kernel[0], kernel[1], strides[0], strides[1], pads[0], pads[1], pads[2], pads[3]};
  }

  // ---- nodes ----

  const Weight* weight(const onnx::NodeProto& node, int i) const {
    if (i >= node.input_size()) return nullptr;
    const auto found = weights_.find(node.input(i));
    return found == weights_.end() ? nullptr : &found->second;
  }
  std::optional<int> value(const onnx::NodeProto& node, int i) const {
    if (i >= node.input_size()) return std::nullopt;
    const auto found = values_.find(node.input(i));
    return found == values_.end() ? std::nullopt : std::optional(found->second);
  }

  void push(const onnx::NodeProto& node, int index, Operator op, std::vector<int> inputs) {
    net_.nodes.push_back({node.name().empty() ? node.op_type() + std::to_string(index) : node.name(), std::move(op), std::move(inputs)});
    values_[node.output(0)] = static_cast<int>(net_.nodes.size());
  }

  // Shapes are kept as nodes come, so that each is judged by what it really gets.
  Expected<void> check_last() {
    if (shapes_.size() == net_.nodes.size() + 1) return {};
    Network last{file_, {}, {}};
    const auto& node = net_.nodes.back();
    // One node on its own: its inputs become values of the shapes they have.
    for (const int input : node.inputs) {
      if (input < 0 || input >= static_cast<int>(shapes_.size())) return fault(ErrorCode::malformed, file_ + ": node " + node.name + " reads what is not there");
    }
    last.input = shapes_[static_cast<std::size_t>(node.inputs.front())];
    Node alone = node;
    alone.inputs.assign(node.inputs.size(), 0);
    if (std::holds_alternative<Add>(node.op) &&
        shapes_[static_cast<std::size_t>(node.inputs[0])] != shapes_[static_cast<std::size_t>(node.inputs[1])])
      return fault(ErrorCode::shape_mismatch, file_ + ": node " + node.name + " adds " + to_string(shapes_[static_cast<std::size_t>(node.inputs[0])]) +
                                                  " and " + to_string(shapes_[static_cast<std::size_t>(node.inputs[1])]));
    last.nodes.push_back(std::move(alone));
    auto shapes = infer_shapes(last);
    if (!shapes) return fault(shapes.error().code, file_ + ": " + shapes.error().what);
    shapes_.push_back(shapes->back());
    return {};
  }

  Expected<void> node(const onnx::NodeProto& n, int index) {
    const std::string at = where(n, index);
    if (n.output_size() < 1) return fault(ErrorCode::malformed, at + " has no output");
    const std::string& type = n.op_type();
    if (type == "Constant") {
      const auto* a = attribute(n, "value");
      if (!a || !a->has_t()) return fault(ErrorCode::unsupported_operator, at + ": only a tensor value is read");
      auto w = tensor(a->t());
      if (!w) return tl::unexpected(w.error());
      weights_[n.output(0)] = std::move(*w);
      return {};
    }
    if (type == "Identity" && weight(n, 0)) {
      Weight copy = *weight(n, 0);
      weights_[n.output(0)] = std::move(copy);
      return {};
    }
    const auto in = value(n, 0);
    if (!in) return fault(ErrorCode::malformed, at + ": its input " + (n.input_size() > 0 ? n.input(0) : "") + " is made by no earlier node");
    if (type == "Conv") return convolution(n, index, at, *in);
    if (type == "Gemm" || type == "MatMul") return dense(n, index, at, *in);
    if (type == "BatchNormalization") return batch_norm(n, index, at, *in);
    if (type == "MaxPool" || type == "AveragePool") return pool(n, index, at, *in);
    if (type == "Reshape") return reshape(n, index, at, *in);
    if (type == "Add") return add(n, index, at, *in);
    if (type == "Relu") push(n, index, Relu{}, {*in});
    else if (type == "GlobalAveragePool") push(n, index, GlobalAveragePool{}, {*in});
    else if (type == "Identity" || type == "Dropout") push(n, index, Identity{}, {*in});
    else if (type == "Flatten") {
      if (integer(n, "axis", 1) != 1) return fault(ErrorCode::unsupported_operator, at + ": only axis 1");
      push(n, index, Flatten{}, {*in});
    } else return fault(ErrorCode::unsupported_operator, at + " is not one that is run here");
    return {};
  }

  Expected<void> convolution(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    const auto* w = weight(n, 1);
    if (!w || w->dims.size() != 4 || w->values.empty()) return fault(ErrorCode::unsupported_operator, at + ": its weight is not a constant of four axes");
    auto win = window(n, at, {w->dims[2], w->dims[3]});
    if (!win) return tl::unexpected(win.error());
    if (win->kernel_h != w->dims[2] || win->kernel_w != w->dims[3]) return fault(ErrorCode::shape_mismatch, at + ": kernel_shape is not its weight's");
    Convolution c{*win, w->dims[0], integer(n, "group", 1), w->values, {}};
    if (n.input_size() > 2 && !n.input(2).empty()) {
      const auto* b = weight(n, 2);
      if (!b || b->values.empty()) return fault(ErrorCode::unsupported_operator, at + ": its bias is not a constant");
      c.bias = b->values;
    }
    push(n, index, std::move(c), {in});
    return {};
  }

  Expected<void> dense(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    const auto* w = weight(n, 1);
    if (!w || w->dims.size() != 2 || w->values.empty()) return fault(ErrorCode::unsupported_operator, at + ": its weight is not a constant matrix");
    if (integer(n, "transA", 0) != 0 || real(n, "alpha", 1) != 1.0F || real(n, "beta", 1) != 1.0F)
      return fault(ErrorCode::unsupported_operator, at + ": transA, alpha and beta are not read");
    Dense d;
    const bool transposed = integer(n, "transB", 0) != 0;
    const auto rows = w->dims[0], columns = w->dims[1];
    d.out_features = transposed ? rows : columns;
    if (transposed) {
      d.weight = w->values;
    } else {
      d.weight.resize(w->values.size());
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c)
          d.weight[static_cast<std::size_t>(c * rows + r)] = w->values[static_cast<std::size_t>(r * columns + c)];
    }
    if (n.input_size() > 2 && !n.input(2).empty()) {
      const auto* b = weight(n, 2);
      if (!b || b->values.empty()) return fault(ErrorCode::unsupported_operator, at + ": its bias is not a constant");
      d.bias = b->values;
    }
    push(n, index, std::move(d), {in});
    return {};
  }

  Expected<void> batch_norm(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    BatchNorm b;
    b.epsilon = real(n, "epsilon", 1e-5F);
    int i = 1;
    for (auto* into : {&b.scale, &b.shift, &b.mean, &b.variance}) {
      const auto* w = weight(n, i++);
      if (!w || w->values.empty()) return fault(ErrorCode::unsupported_operator, at + ": its statistics are not constants");
      *into = w->values;
    }
    push(n, index, std::move(b), {in});
    return {};
  }

  Expected<void> pool(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    auto win = window(n, at, {});
    if (!win) return tl::unexpected(win.error());
    if (n.op_type() == "MaxPool") push(n, index, MaxPool{*win}, {in});
    else push(n, index, AveragePool{*win, integer(n, "count_include_pad", 0) != 0}, {in});
    return {};
  }

  Expected<void> reshape(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    const auto* target = weight(n, 1);
    const auto flat = elements(shapes_[static_cast<std::size_t>(in)]);
    if (!target || target->integers.size() != 2 || (target->integers[1] != -1 && target->integers[1] != flat))
      return fault(ErrorCode::unsupported_operator, at + ": only a reshape to [batch, all the rest] is run here");
    push(n, index, Flatten{}, {in});
    return {};
  }

  Expected<void> add(const onnx::NodeProto& n, int index, const std::string& at, int in) {
    if (const auto other = value(n, 1)) {
      push(n, index, Add{}, {in, *other});
      return {};
    }
    // A bias after a MatMul.
    const auto* bias = weight(n, 1);
    auto* before = in > 0 ? std::get_if<Dense>(&net_.nodes[static_cast<std::size_t>(in) - 1].op) : nullptr;
    if (!bias || !before || !before->bias.empty() || static_cast<std::int64_t>(bias->values.size()) != before->out_features)
      return fault(ErrorCode::unsupported_operator, at + ": adds a constant that is no bias of a dense layer");
    before->bias = bias->values;
    values_[n.output(0)] = in;
    return {};
  }

  const onnx::ModelProto& model_;
  const onnx::GraphProto& graph_;
  std::string file_;
  std::int64_t opset_ = 0;
  Network net_;
  std::vector<Dims> shapes_;
  std::unordered_map<std::string, Weight> weights_;
  std::unordered_map<std::string, int> values_;
};

}  // namespace

Expected<Network> parse_onnx(std::span<const std::byte> bytes, const std::string& name) {
  if (static_cast<std::int64_t>(bytes.size()) > kOnnxBytesMax) return fault(ErrorCode::malformed, name + ": larger than 512 MiB");
  onnx::ModelProto model;
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  google::protobuf::io::CodedInputStream coded(&stream);
  coded.SetTotalBytesLimit(static_cast<int>(bytes.size()) + 1);
  coded.SetRecursionLimit(64);
  if (bytes.empty() || !model.ParseFromCodedStream(&coded) || !coded.ConsumedEntireMessage() || !model.has_graph())
    return fault(ErrorCode::malformed, name + ": not an ONNX model, or cut short");
  return Reader(model, name).read();
}

Expected<Network> load_onnx(const std::filesystem::path& file) {
  const auto bytes = read_file(file, kOnnxBytesMax);
  if (!bytes) return tl::unexpected(bytes.error());
  return parse_onnx(*bytes, file.string());
}

}  // namespace coppice::gpu
