// Any bytes as an ONNX model: refused, or a net that can be simplified and written without changing its shape.
#include <google/protobuf/stubs/logging.h>
#include <onnx/onnx_pb.h>

#include <span>

#include "gpu/onnx.hpp"
#include "gpu/onnx_writer.hpp"
#include "tests/fuzz/target.hpp"
#include "tests/gpu/builder.hpp"

namespace {

using namespace coppice::gpu;

// Every operator, in few bytes: most of a model's bytes should be its structure.
Network small_net() {
  Builder b({4, 5, 5}, 1);
  const int conv = b.conv(0, {3, 3, 2, 1, 1, 1, 0, 2, 1, 1}, 4, 2);
  const int norm = b.relu(b.norm(conv));
  const int pool = b.push(MaxPool{{2, 2, 1, 1, 1, 0, 0, 1}}, {b.push(Clip{0, 6}, {norm})});
  const int mean = b.push(AveragePool{{2, 1}, true}, {pool});
  const int shuffle = b.push(ChannelShuffle{2}, {mean});
  const int joined = b.push(Concat{0}, {b.push(Slice{0, 1, 3}, {shuffle}), b.identity(shuffle)});
  const int sum = b.add(joined, b.push(Constant{{6, 1, 1}, b.sample.floats(6)}, {}));
  const int turned = b.push(Transpose{{0, 2, 1}}, {b.push(Reshape{{3, 2, elements(b.shape(sum)) / 6}}, {sum})});
  b.dense(b.flatten(b.push(GlobalAveragePool{}, {turned})), 2);
  return b.net;
}

Network net_of_volumes() {
  Builder b({2, 3, 4, 4}, 1);
  const int conv = b.conv(0, {2, 1, 1, 2, 1, 0, 0, 1, 1, 1, 2, 1, 1, 0}, 2, 2);
  const int pool = b.push(MaxPool{{2, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1}}, {b.relu(conv)});
  b.dense(b.flatten(b.push(AveragePool{{1, 1, 2, 1, 0, 0, 0, 0, 1, 1, 2, 2}, true}, {pool})), 2);
  return b.net;
}

// What is written as other operators than it was read from: norms, arithmetic, what trains.
std::string norms(bool training) {
  onnx::ModelProto model;
  model.set_ir_version(8);
  model.add_opset_import()->set_version(17);
  auto& graph = *model.mutable_graph();
  auto& image = *graph.add_input();
  image.set_name("x");
  auto& type = *image.mutable_type()->mutable_tensor_type();
  type.set_elem_type(onnx::TensorProto::FLOAT);
  for (const int dim : {1, 2, 3, 3}) type.mutable_shape()->add_dim()->set_dim_value(dim);
  const auto weight = [&](const char* name, std::initializer_list<std::int64_t> dims, std::initializer_list<float> values) {
    auto& tensor = *graph.add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::FLOAT);
    for (const auto dim : dims) tensor.add_dims(dim);
    for (const float value : values) tensor.add_float_data(value);
  };
  weight("each", {2}, {1, 2});
  weight("by", {2, 1, 1}, {3, 4});
  weight("row", {3}, {0.5F, 2, 1});
  weight("half", {}, {0.5F});
  auto& train = *graph.add_initializer();
  train.set_name("train");
  train.set_data_type(onnx::TensorProto::INT64);
  train.add_int64_data(1);
  std::string last = "x";
  const auto node = [&](const char* op, std::initializer_list<const char*> others, bool first = false) -> onnx::NodeProto& {
    auto& made = *graph.add_node();
    made.set_op_type(op);
    if (!first) made.add_input(last);
    for (const char* name : others) made.add_input(name);
    if (first) made.add_input(last);
    last = "v" + std::to_string(graph.node_size());
    made.add_output(last);
    return made;
  };
  const auto integer = [](onnx::NodeProto& of, const char* name, std::int64_t value) {
    auto& made = *of.add_attribute();
    made.set_name(name);
    made.set_i(value);
  };
  if (training) {
    integer(node("BatchNormalization", {"each", "each", "each", "each"}), "training_mode", 1);
    integer(node("Dropout", {"half", "train"}), "seed", 3);
  }
  node("InstanceNormalization", {"each", "each"});
  node("LayerNormalization", {"row", "row"});
  node("Mul", {"by"});
  node("Sub", {"row"}, true);
  node("Div", {"by"});
  node("Mul", {"x"});
  node("Div", {"row"}, true);
  node("Sub", {"x"});
  node("Sqrt", {});
  node("Neg", {});
  node("Reciprocal", {});
  graph.add_output()->set_name(last);
  return model.SerializeAsString();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const google::protobuf::LogSilencer kQuiet;
  const auto bytes = std::as_bytes(std::span(data, size));
  for (const bool batched : {true, false}) {
    const auto net = parse_onnx(bytes, "fuzz", {.first_axis_is_batch = batched});
    if (!net) {
      coppice::fuzz::require(net.error().what.find("fuzz") != std::string::npos);
      continue;
    }
    const auto shapes = infer_shapes(*net);
    coppice::fuzz::require(shapes.has_value());
    const auto small = infer_shapes(simplified(*net));
    coppice::fuzz::require(small && small->back() == shapes->back());
    const auto written = to_onnx(*net);
    if (!written) continue;  // constants that an open batch cannot have
    const auto again = parse_onnx(*written, "again");
    coppice::fuzz::require(again && infer_shapes(*again)->back() == shapes->back());
  }
  return 0;
}

std::vector<std::string> coppice::fuzz::seeds() {
  std::vector<Network> nets{small_net(), net_of_volumes()};
  for (std::uint64_t seed = 0; seed < 4; ++seed) nets.push_back(random_net(seed, 3));
  std::vector<std::string> out{norms(false), norms(true)};
  for (const auto& each : out) require(parse_onnx(std::as_bytes(std::span(each)), "seed", {.first_axis_is_batch = &each == &out[0]}).has_value());
  for (const auto& net : nets) {
    const auto bytes = to_onnx(net).value();
    out.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return out;
}
