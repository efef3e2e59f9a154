#include "gpu/onnx_writer.hpp"

#include <onnx/onnx_pb.h>

#include <algorithm>
#include <filesystem>
#include <limits>

namespace coppice::gpu {
namespace {

class Writer {
 public:
  explicit Writer(onnx::GraphProto& graph) : graph_(graph) {}

  std::string tensor(const std::string& name, const Dims& dims, const std::vector<float>& values) {
    auto& tensor = *graph_.add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::FLOAT);
    for (const auto dim : dims) tensor.add_dims(dim);
    tensor.set_raw_data(values.data(), values.size() * sizeof(float));
    return name;
  }

  // The node that is being written, and the shape of its output.
  void begin(const std::string& name, const std::vector<std::string>& inputs, const std::vector<Dims>& input_shapes,
             const Dims& shape) {
    name_ = name;
    inputs_ = inputs;
    input_shapes_ = input_shapes;
    shape_ = shape;
  }
  onnx::NodeProto& node(const std::string& type, const std::vector<std::string>& weights = {}) {
    auto& node = *graph_.add_node();
    node.set_op_type(type);
    node.set_name(name_);
    for (const auto& input : inputs_) node.add_input(input);
    for (const auto& weight : weights) node.add_input(weight);
    node.add_output(name_);
    return node;
  }
  static void ints(onnx::NodeProto& node, const std::string& name, const Dims& values) {
    auto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::INTS);
    for (const auto value : values) attribute.add_ints(value);
  }
  static void integer(onnx::NodeProto& node, const std::string& name, std::int64_t value) {
    auto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::INT);
    attribute.set_i(value);
  }
  std::string integers(const std::string& name, const std::vector<std::int64_t>& values) {
    auto& tensor = *graph_.add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::INT64);
    tensor.add_dims(static_cast<std::int64_t>(values.size()));
    for (const auto value : values) tensor.add_int64_data(value);
    return name;
  }
  // A value [N, its sizes] under other sizes, the batch left open.
  onnx::NodeProto& reshape(Dims to) {
    to.insert(to.begin(), -1);
    return node("Reshape", {integers(name_ + ".to", to)});
  }
  void window(onnx::NodeProto& node, const Window& w) const {
    Dims kernel, strides, pads, after, dilations;
    for (const auto& axis : axes(w, shape_)) {
      kernel.push_back(axis.kernel);
      strides.push_back(axis.stride);
      pads.push_back(axis.before);
      after.push_back(axis.after);
      dilations.push_back(axis.dilation);
    }
    pads.insert(pads.end(), after.begin(), after.end());
    ints(node, "kernel_shape", kernel);
    ints(node, "strides", strides);
    ints(node, "pads", pads);
    if (std::any_of(dilations.begin(), dilations.end(), [](auto gap) { return gap > 1; }))
      ints(node, "dilations", dilations);
  }

  void operator()(const Convolution& c) {
    Dims dims{c.out_channels, static_cast<std::int64_t>(c.weight.size()) / (c.out_channels * c.window.taps())};
    for (const auto& axis : axes(c.window, shape_)) dims.push_back(axis.kernel);
    std::vector<std::string> weights{tensor(name_ + ".weight", dims, c.weight)};
    if (!c.bias.empty()) weights.push_back(tensor(name_ + ".bias", {c.out_channels}, c.bias));
    auto& made = node("Conv", weights);
    window(made, c.window);
    integer(made, "group", c.groups);
  }
  void operator()(const BatchNorm& b) {
    const Dims channels{static_cast<std::int64_t>(b.scale.size())};
    auto& made = node("BatchNormalization",
                      {tensor(name_ + ".scale", channels, b.scale), tensor(name_ + ".shift", channels, b.shift),
                       tensor(name_ + ".mean", channels, b.mean), tensor(name_ + ".variance", channels, b.variance)});
    auto& epsilon = *made.add_attribute();
    epsilon.set_name("epsilon");
    epsilon.set_type(onnx::AttributeProto::FLOAT);
    epsilon.set_f(b.epsilon);
  }
  void operator()(const Relu&) { node("Relu"); }
  void operator()(const MaxPool& p) { window(node("MaxPool"), p.window); }
  void operator()(const AveragePool& p) {
    auto& made = node("AveragePool");
    window(made, p.window);
    integer(made, "count_include_pad", p.count_padding ? 1 : 0);
  }
  void operator()(const GlobalAveragePool&) { node("GlobalAveragePool"); }
  void operator()(const Dense& d) {
    const auto in = static_cast<std::int64_t>(d.weight.size()) / d.out_features;
    std::vector<std::string> weights{tensor(name_ + ".weight", {d.out_features, in}, d.weight)};
    if (!d.bias.empty()) weights.push_back(tensor(name_ + ".bias", {d.out_features}, d.bias));
    integer(node("Gemm", weights), "transB", 1);
  }
  void operator()(const Flatten&) { integer(node("Flatten"), "axis", 1); }
  void operator()(const Add&) { aligned("Add"); }
  void operator()(const Arithmetic& a) {
    using Kind = Arithmetic::Kind;
    aligned(a.kind == Kind::subtract ? "Sub" : a.kind == Kind::multiply ? "Mul" : "Div");
  }
  void operator()(const SquareRoot&) { node("Sqrt"); }
  // ONNX aligns the last axes, of the batch too: all items need as many.
  void aligned(const char* type) {
    const std::string name = name_;
    const auto inputs = inputs_;
    auto aligned = inputs;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      Dims to = input_shapes_[i];
      if (to.size() == shape_.size()) continue;
      to.insert(to.begin(), shape_.size() - to.size(), 1);
      aligned[i] = name_ = name + ".aligned" + std::to_string(i);
      inputs_ = {inputs[i]};
      reshape(to);
    }
    name_ = name;
    inputs_ = aligned;
    node(type);
  }
  void operator()(const Identity&) { node("Identity"); }
  void operator()(const Clip& c) {
    const auto low = tensor(name_ + ".low", {}, {c.low}), high = tensor(name_ + ".high", {}, {c.high});
    node("Clip", {low, high});
  }
  void operator()(const Concat& c) { integer(node("Concat"), "axis", c.axis + 1); }
  void operator()(const Slice& s) {
    node("Slice", {integers(name_ + ".begin", {s.begin}), integers(name_ + ".end", {s.end}),
                   integers(name_ + ".axis", {s.axis + 1})});
  }
  void operator()(const Reshape& r) { reshape(r.to); }
  void operator()(const Transpose& t) {
    Dims order{0};
    for (const int axis : t.order) order.push_back(axis + 1);
    ints(node("Transpose"), "perm", order);
  }
  // ONNX has no such operator: apart, swapped, and together again.
  void operator()(const ChannelShuffle& s) {
    const std::string name = name_;
    const Dims& image = shape_;
    name_ = name + ".apart";
    reshape({s.groups, image[0] / s.groups, image[1], image[2]});
    inputs_ = {name_};
    name_ = name + ".swapped";
    ints(node("Transpose"), "perm", {0, 2, 1, 3, 4});
    inputs_ = {name_};
    name_ = name;
    reshape(image);
  }
  // One item, for any batch to be added to.
  void operator()(const Constant& c) {
    auto& made = *node("Constant").add_attribute();
    made.set_name("value");
    made.set_type(onnx::AttributeProto::TENSOR);
    auto& tensor = *made.mutable_t();
    tensor.set_data_type(onnx::TensorProto::FLOAT);
    tensor.add_dims(1);
    for (const auto dim : c.dims) tensor.add_dims(dim);
    tensor.set_raw_data(c.values.data(), c.values.size() * sizeof(float));
  }

 private:
  onnx::GraphProto& graph_;
  std::string name_;
  std::vector<std::string> inputs_;
  std::vector<Dims> input_shapes_;
  Dims shape_;
};

// A value that no item changes is one item in the file, which only sums and their like repeat for a batch of any size.
Expected<void> check_constants(const Network& net) {
  const auto refused = [](const Node& node) {
    return unexpected(Error{ErrorCode::unsupported_operator, "node " + node.name + " (" + name(node.op) +
                                                                 "): ONNX cannot repeat a constant for each item"});
  };
  std::vector<bool> same{false};  // for every item
  for (const auto& node : net.nodes) {
    const auto constants = std::count_if(node.inputs.begin(), node.inputs.end(),
                                         [&](int input) { return same[static_cast<std::size_t>(input)]; });
    same.push_back(constants == static_cast<std::ptrdiff_t>(node.inputs.size()));
    if (std::holds_alternative<Concat>(node.op) && constants > 0 && !same.back()) return refused(node);
  }
  if (same.back()) return refused(net.nodes.back());
  return {};
}

void declare(onnx::ValueInfoProto& value, const std::string& name, const Dims& dims) {
  value.set_name(name);
  auto& type = *value.mutable_type()->mutable_tensor_type();
  type.set_elem_type(onnx::TensorProto::FLOAT);
  type.mutable_shape()->add_dim()->set_dim_param("N");
  for (const auto dim : dims) type.mutable_shape()->add_dim()->set_dim_value(dim);
}

}  // namespace

Expected<std::vector<std::byte>> to_onnx(const Network& net) {
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  if (auto ok = check_filled(net, *shapes, "an ONNX file with an open batch"); !ok) return unexpected(ok.error());
  if (auto ok = check_constants(net); !ok) return unexpected(ok.error());
  onnx::ModelProto model;
  model.set_ir_version(7);
  model.set_producer_name("coppice");
  auto& opset = *model.add_opset_import();
  opset.set_domain("");
  opset.set_version(13);
  auto& graph = *model.mutable_graph();
  // A net that was read has its file's path as its name, which is nobody else's business.
  const auto name = std::filesystem::path(net.name).stem().string();
  graph.set_name(name.empty() ? "net" : name);
  declare(*graph.add_input(), "image", net.input);

  Writer writer(graph);
  // Names come from the places, since two nodes may bear one name.
  const auto value = [&](int index) {
    if (index == 0) return std::string("image");
    return index == static_cast<int>(net.nodes.size()) ? std::string("scores") : "v" + std::to_string(index);
  };
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    std::vector<std::string> inputs;
    std::vector<Dims> input_shapes;
    for (const int input : net.nodes[i].inputs) {
      inputs.push_back(value(input));
      input_shapes.push_back((*shapes)[static_cast<std::size_t>(input)]);
    }
    writer.begin(value(static_cast<int>(i) + 1), inputs, input_shapes, (*shapes)[i + 1]);
    std::visit(writer, net.nodes[i].op);
  }
  declare(*graph.add_output(), "scores", shapes->back());
  const std::size_t size = model.ByteSizeLong();
  if (size > std::numeric_limits<int>::max())
    return unexpected(Error{ErrorCode::shape_mismatch, net.name + ": more than 2 GiB do not go into one ONNX file"});
  std::vector<std::byte> bytes(size);
  model.SerializeToArray(bytes.data(), static_cast<int>(size));
  return bytes;
}

}  // namespace coppice::gpu
