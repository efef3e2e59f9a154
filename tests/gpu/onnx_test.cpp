#include "gpu/onnx.hpp"

#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>

#include "gpu/device.hpp"
#include "gpu/onnx_writer.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

using Numbers = std::vector<float>;

std::vector<std::byte> bytes_of(const onnx::ModelProto& model) {
  std::vector<std::byte> bytes(model.ByteSizeLong());
  EXPECT_TRUE(model.SerializeToArray(bytes.data(), static_cast<int>(bytes.size())));
  return bytes;
}

bool mentions(const Error& error, const std::string& part) { return error.what.find(part) != std::string::npos; }

// A model by hand, from "x" [N, input] to "y".
struct Model {
  onnx::ModelProto proto;
  onnx::GraphProto& graph = *proto.mutable_graph();

  explicit Model(const Dims& input, std::int64_t opset = 13) {
    proto.set_ir_version(7);
    proto.add_opset_import()->set_version(opset);
    this->input("x", input);
    graph.add_output()->set_name("y");
  }
  onnx::TensorShapeProto& input(const std::string& name, const Dims& dims) {
    auto& value = *graph.add_input();
    value.set_name(name);
    auto& type = *value.mutable_type()->mutable_tensor_type();
    type.set_elem_type(onnx::TensorProto::FLOAT);
    type.mutable_shape()->add_dim()->set_dim_param("N");
    for (const auto dim : dims) type.mutable_shape()->add_dim()->set_dim_value(dim);
    return *type.mutable_shape();
  }
  static void fill(onnx::TensorProto& tensor, const Dims& dims, const Numbers& values, bool raw = true) {
    tensor.set_data_type(onnx::TensorProto::FLOAT);
    for (const auto dim : dims) tensor.add_dims(dim);
    if (raw) {
      tensor.set_raw_data(values.data(), values.size() * sizeof(float));
      return;
    }
    for (const float value : values) tensor.add_float_data(value);
  }
  onnx::TensorProto& weight(const std::string& name, const Dims& dims, const Numbers& values, bool raw = true) {
    auto& tensor = *graph.add_initializer();
    tensor.set_name(name);
    fill(tensor, dims, values, raw);
    return tensor;
  }
  void target(const std::string& name, const Dims& values) {
    auto& tensor = *graph.add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::INT64);
    tensor.add_dims(static_cast<std::int64_t>(values.size()));
    for (const auto value : values) tensor.add_int64_data(value);
  }
  onnx::NodeProto& node(const std::string& type, const std::vector<std::string>& inputs,
                        const std::string& output = "y") {
    auto& made = *graph.add_node();
    made.set_op_type(type);
    made.set_name("the_" + output);
    for (const auto& name : inputs) made.add_input(name);
    made.add_output(output);
    return made;
  }
  static onnx::AttributeProto& attribute(onnx::NodeProto& node, const std::string& name) {
    auto& made = *node.add_attribute();
    made.set_name(name);
    return made;
  }
  static void integer(onnx::NodeProto& node, const std::string& name, std::int64_t value) {
    attribute(node, name).set_i(value);
  }
  static void integers(onnx::NodeProto& node, const std::string& name, const Dims& values) {
    auto& made = attribute(node, name);
    for (const auto value : values) made.add_ints(value);
  }

  Expected<Network> parse() const { return parse_onnx(bytes_of(proto), "hand.onnx"); }

  // Accepted, and the same function as the net built by `build`.
  void equals(const std::function<void(Builder&)>& build) const {
    const auto net = parse();
    ASSERT_TRUE(net) << net.error().what;
    Builder b(net->input, 1);
    build(b);
    const auto input = random_input(b.net, 2, 7);
    EXPECT_LT(reference::error(reference::forward(*net, input), reference::forward(b.net, input)), 1e-6);
  }
  // Refused in one line that names the file and the part.
  void refused(ErrorCode code, const std::string& part = "") const {
    const auto net = parse();
    ASSERT_FALSE(net) << part;
    EXPECT_EQ(net.error().code, code) << net.error().what;
    EXPECT_TRUE(mentions(net.error(), "hand.onnx") && mentions(net.error(), part)) << net.error().what;
    EXPECT_EQ(net.error().what.find('\n'), std::string::npos);
  }
};

Numbers ramp(std::int64_t count) {
  Numbers out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(0.1F * static_cast<float>((i * 7) % 11 - 5));
  return out;
}

// ---- what is written is read ----

RC_GTEST_PROP(Onnx, ReadsWhatItWrote, ()) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  const Network net = random_net(seed, static_cast<int>(seed % 8) + 1);
  const auto bytes = to_onnx(net);
  RC_ASSERT(bytes.has_value());
  const auto again = parse_onnx(*bytes, "again");
  RC_ASSERT(again.has_value());
  RC_ASSERT(again->input == net.input);
  const auto input = random_input(net, 2, seed + 1);
  RC_ASSERT(reference::forward(*again, input) == reference::forward(net, input));
}

TEST(Onnx, WritesNodesOfEqualNames) {
  Builder b({2, 4, 4}, 1);
  b.add(b.conv(0, {1, 1, 1, 1, 0, 0, 0, 0}, 2), b.conv(0, {1, 1, 1, 1, 0, 0, 0, 0}, 2));
  for (auto& node : b.net.nodes) node.name = "image";
  const auto again = parse_onnx(to_onnx(b.net).value(), "again");
  ASSERT_TRUE(again) << again.error().what;
  const auto input = random_input(b.net, 1, 1);
  EXPECT_EQ(reference::forward(*again, input), reference::forward(b.net, input));
}

TEST(Onnx, WritesNoNetWhoseShapesDoNotFit) {
  const auto bytes = to_onnx({"bad", {2, 2, 2}, {{"a", Dense{1, Numbers(8), {}}, {0}}}});
  ASSERT_FALSE(bytes);
  EXPECT_EQ(bytes.error().code, ErrorCode::shape_mismatch);
}

TEST(Onnx, LoadsTheShippedNets) {
  const std::filesystem::path nets = std::filesystem::path(COPPICE_ROOT) / "apps/nets/fashion-mnist";
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(nets)) {
    if (entry.path().extension() != ".onnx") continue;
    ++found;
    const auto net = load_onnx(entry.path());
    ASSERT_TRUE(net) << net.error().what;
    EXPECT_EQ(net->input, (Dims{1, 28, 28}));
    const bool of_two = entry.path().stem().string().starts_with("subnet");
    EXPECT_EQ(infer_shapes(*net).value().back(), of_two ? Dims{2} : Dims{10}) << entry.path();
  }
  EXPECT_EQ(found, 9);
}

TEST(Onnx, NamesTheFileThatIsNotThere) {
  const auto net = load_onnx("absent/model.onnx");
  ASSERT_FALSE(net);
  EXPECT_EQ(net.error().code, ErrorCode::unreadable);
  EXPECT_TRUE(mentions(net.error(), "absent/model.onnx"));
}

// ---- models by hand ----

TEST(Onnx, ReadsGemmOfEitherOrientation) {
  const Numbers weight = ramp(12), bias = ramp(3);
  Numbers turned(12);  // [4, 3]
  for (std::size_t o = 0; o < 3; ++o)
    for (std::size_t i = 0; i < 4; ++i) turned[i * 3 + o] = weight[o * 4 + i];
  for (const bool raw : {true, false}) {
    Model rows({4});
    rows.weight("w", {3, 4}, weight, raw);
    rows.weight("b", {3}, bias, raw);
    Model::integer(rows.node("Gemm", {"x", "w", "b"}), "transB", 1);
    rows.equals([&](Builder& b) { b.push(Dense{3, weight, bias}, {0}); });
    Model columns({4});
    columns.weight("w", {4, 3}, turned, raw);
    columns.node("Gemm", {"x", "w"});
    columns.equals([&](Builder& b) { b.push(Dense{3, weight, {}}, {0}); });
  }
}

TEST(Onnx, FoldsTheScalesOfGemm) {
  Model m({4});
  m.weight("w", {3, 4}, ramp(12));
  m.weight("b", {1, 3}, ramp(3));
  auto& gemm = m.node("Gemm", {"x", "w", "b"});
  Model::integer(gemm, "transB", 1);
  Model::attribute(gemm, "alpha").set_f(0.5F);
  Model::attribute(gemm, "beta").set_f(-2);
  Numbers weight = ramp(12), bias = ramp(3);
  for (float& value : weight) value *= 0.5F;
  for (float& value : bias) value *= -2;
  m.equals([&](Builder& b) { b.push(Dense{3, weight, bias}, {0}); });
  Model turned({4});
  turned.weight("w", {3, 4}, ramp(12));
  Model::integer(turned.node("Gemm", {"x", "w"}), "transA", 1);
  turned.refused(ErrorCode::unsupported_operator, "the_y");
}

TEST(Onnx, TakesTheBiasAfterAMatMulInEitherOrder) {
  for (const bool bias_first : {false, true}) {
    Model m({4});
    m.weight("w", {4, 1}, ramp(4));
    m.weight("b", {1}, {0.25F});
    m.node("MatMul", {"x", "w"}, "product");
    m.node("Add", bias_first ? std::vector<std::string>{"b", "product"} : std::vector<std::string>{"product", "b"});
    m.equals([&](Builder& b) { b.push(Dense{1, ramp(4), {0.25F}}, {0}); });
  }
}

TEST(Onnx, KeepsAProductThatOthersReadFreeOfTheBias) {
  Model m({4});
  m.weight("w", {4, 1}, ramp(4));
  m.weight("b", {1}, {0.25F});
  m.node("MatMul", {"x", "w"}, "product");
  m.node("Add", {"product", "b"}, "sum");
  m.node("Add", {"product", "sum"});
  m.equals([](Builder& b) {
    const int product = b.push(Dense{1, ramp(4), {}}, {0});
    b.add(product, b.add(product, b.push(Constant{{1}, {0.25F}}, {})));
  });
}

TEST(Onnx, TakesTheBiasAfterAConvolution) {
  for (const Dims& dims : std::vector<Dims>{{3, 1, 1}, {1, 3, 1, 1}}) {
    Model m({2, 4, 4});
    m.weight("w", {3, 2, 3, 3}, ramp(54));
    m.weight("b", dims, ramp(3));
    m.node("Conv", {"x", "w"}, "c");
    m.node("Add", {"b", "c"});
    m.equals([](Builder& b) { b.push(Convolution{{3, 3}, 3, 1, ramp(54), ramp(3)}, {0}); });
    EXPECT_EQ(m.parse().value().nodes.size(), 1U);
  }
}

TEST(Onnx, AddsConstantsThatAreTheSameForEveryItem) {
  for (const Dims& dims : std::vector<Dims>{{}, {1}, {2}, {3, 1}, {2, 3, 2}, {1, 2, 3, 2}, {1, 2, 1, 1}}) {
    Model m({2, 3, 2});
    const Dims item = dims.size() == 4 ? Dims(dims.begin() + 1, dims.end()) : dims.empty() ? Dims{1} : dims;
    m.weight("b", dims, ramp(elements(dims)));
    m.node("Add", {"x", "b"});
    m.equals([&](Builder& b) { b.add(0, b.push(Constant{item, ramp(elements(item))}, {})); });
  }
  for (const Dims& dims : std::vector<Dims>{{2, 2, 3, 2}, {2, 1, 1, 1}, {1, 1, 2, 3, 2}}) {
    Model m({2, 3, 2});
    m.weight("b", dims, ramp(elements(dims)));
    m.node("Add", {"x", "b"});
    m.refused(ErrorCode::unsupported_operator, "the_y");
  }
  Model integers({2});
  integers.target("b", {1, 2});
  integers.node("Add", {"x", "integers"});
  integers.refused(ErrorCode::malformed, "the_y");
}

TEST(Onnx, AddsAValueToItself) {
  Model m({4});
  m.node("Add", {"x", "x"});
  m.equals([](Builder& b) { b.add(0, 0); });
}

TEST(Onnx, NormalisesTheInputItself) {
  Model m({3, 2, 2});
  const Numbers variance{0.5F, 1.0F, 2.0F};
  m.weight("scale", {3}, ramp(3));
  m.weight("shift", {3}, {1, 2, 3});
  m.weight("mean", {3}, {3, 2, 1});
  m.weight("variance", {3}, variance);
  Model::attribute(m.node("BatchNormalization", {"x", "scale", "shift", "mean", "variance"}), "epsilon").set_f(0.01F);
  m.equals([&](Builder& b) { b.push(BatchNorm{ramp(3), {1, 2, 3}, {3, 2, 1}, variance, 0.01F}, {0}); });
}

TEST(Onnx, RefusesNormsInTraining) {
  Model m({1, 2, 2});
  for (const char* name : {"a", "b", "c", "d"}) m.weight(name, {1}, {1});
  Model::integer(m.node("BatchNormalization", {"x", "a", "b", "c", "d"}), "training_mode", 1);
  m.refused(ErrorCode::unsupported_operator, "across the items of a batch; export for inference");
}

// As a layer that learns would have it, and not a norm, which learns from the batch's statistics.
Convolution factors(const Numbers& each) {
  const auto channels = std::ssize(each);
  return {{}, channels, channels, each, {}};
}

TEST(Onnx, ScalesLayersAndChannels) {
  struct Case {
    const char* type;
    Dims dims;
    Numbers by, factor;
  };
  for (const auto& [type, dims, by, factor] : std::vector<Case>{{"Mul", {2, 1, 1}, {3, -0.5F}, {3, -0.5F}},
                                                                {"Mul", {1, 2, 1, 1}, {3, -0.5F}, {3, -0.5F}},
                                                                {"Mul", {}, {3}, {3, 3}},
                                                                {"Div", {2, 1, 1}, {4, -0.5F}, {0.25F, -2}}}) {
    for (const bool first : {false, true}) {
      if (first && std::string(type) == "Div") continue;
      Model m({2, 4, 4}), read_twice({2, 4, 4}), input({2, 4, 4});
      for (auto* each : {&m, &read_twice, &input}) each->weight("by", dims, by);
      const auto inputs = [&](const std::string& of) { return first ? std::vector<std::string>{"by", of} : std::vector<std::string>{of, "by"}; };
      const Convolution layer{{}, 2, 1, ramp(4), {1, 2}};
      for (auto* each : {&m, &read_twice}) {
        each->weight("w", {2, 2, 1, 1}, ramp(4));
        each->weight("b", {2}, {1, 2});
        each->node("Conv", {"x", "w", "b"}, "c");
      }
      m.node(type, inputs("c"));
      m.equals([&](Builder& b) { b.push(factors(factor), {b.push(layer, {0})}); });
      EXPECT_EQ(m.parse().value().nodes.size(), 1U) << type;
      read_twice.node(type, inputs("c"), "scaled");
      read_twice.node("Add", {"c", "scaled"});
      read_twice.equals([&](Builder& b) {
        const int conv = b.push(layer, {0});
        b.add(conv, b.push(factors(factor), {conv}));
      });
      input.node(type, inputs("x"));
      input.equals([&](Builder& b) { b.push(factors(factor), {0}); });
      const auto net = input.parse().value();
      EXPECT_TRUE(check_learnable(net, *infer_shapes(net), "a test"));
    }
  }
  Model opposite({4});
  opposite.weight("w", {4, 3}, ramp(12));
  opposite.node("MatMul", {"x", "w"}, "product");
  opposite.node("Neg", {"product"});
  auto negative = ramp(12);
  for (float& value : negative) value = -value;
  Model other({4});
  other.weight("w", {4, 3}, negative);
  other.node("MatMul", {"x", "w"});
  const auto net = opposite.parse().value();
  EXPECT_EQ(net.nodes.size(), 1U);
  const auto input = random_input(net, 2, 7);
  EXPECT_EQ(reference::forward(net, input), reference::forward(other.parse().value(), input));
}

// Where a product is no number that a weight can be, there is a product.
TEST(Onnx, KeepsFactorsThatAreTooLarge) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Model m({2, 2, 1});
  m.weight("by", {2, 1, 1}, {kInfinity, 2});
  m.node("Mul", {"x", "by"});
  EXPECT_EQ(reference::forward(m.parse().value(), Numbers{1, -2, 3, 4}), (Numbers{kInfinity, -kInfinity, 6, 8}));
  Model layer({1, 1, 1});
  layer.weight("w", {1, 1, 1, 1}, {1e20F});
  layer.weight("by", {}, {1e20F});
  layer.node("Conv", {"x", "w"}, "c");
  layer.node("Mul", {"c", "by"});
  EXPECT_EQ(reference::forward(layer.parse().value(), Numbers{0}), Numbers{0});
}

TEST(Onnx, TakesADifferenceForABias) {
  Model m({4});
  m.weight("w", {4, 3}, ramp(12));
  m.weight("b", {3}, {1, 2, 3});
  m.node("MatMul", {"x", "w"}, "product");
  m.node("Sub", {"product", "b"});
  Model sum({4});
  sum.weight("w", {4, 3}, ramp(12));
  sum.weight("b", {3}, {-1, -2, -3});
  sum.node("MatMul", {"x", "w"}, "product");
  sum.node("Add", {"product", "b"});
  const auto net = m.parse().value();
  EXPECT_EQ(net.nodes.size(), 1U);
  const auto input = random_input(net, 2, 7);
  EXPECT_EQ(reference::forward(net, input), reference::forward(sum.parse().value(), input));
}

TEST(Onnx, CombinesValuesAndConstantsInEitherOrder) {
  using Kind = Arithmetic::Kind;
  for (const auto& [type, kind] : {std::pair{"Sub", Kind::subtract}, {"Mul", Kind::multiply}, {"Div", Kind::divide}}) {
    const Numbers by{2, 3, 0.5F, -1, 4, 5};
    Model first({2, 3}), second({2, 3}), both({2, 3});
    first.weight("k", {1, 2, 3}, by);
    first.node(type, {"k", "x"});
    first.equals([&](Builder& b) { b.push(Arithmetic{kind}, {b.push(Constant{{2, 3}, by}, {}), 0}); });
    second.weight("k", {2, 3}, by);
    second.node(type, {"x", "k"});
    second.equals([&](Builder& b) { b.push(Arithmetic{kind}, {0, b.push(Constant{{2, 3}, by}, {})}); });
    both.node("Relu", {"x"}, "r");
    both.node(type, {"r", "x"});
    both.equals([&](Builder& b) { b.push(Arithmetic{kind}, {b.relu(0), 0}); });
    Model against({2, 3});
    Model::integer(against.node("Flatten", {"x"}, "f"), "axis", 1);
    against.node(type, {"x", "f"});
    against.refused(ErrorCode::unsupported_operator, "sets the batch against another axis");
  }
}

// By zero it is as the processor says, and no norm whose factors are infinite.
TEST(Onnx, DividesByZero) {
  Model m({2});
  m.weight("k", {2}, {0, 2});
  m.node("Div", {"x", "k"});
  const auto made = reference::forward(m.parse().value(), Numbers{3, 3});
  EXPECT_EQ(made, (Numbers{std::numeric_limits<float>::infinity(), 1.5F}));
}

TEST(Onnx, NormalisesEachItemByItsOwnStatistics) {
  // Two channels of four numbers: mean 2.5 and variance 1.25, and ten times that.
  const Numbers item{1, 2, 3, 4, 10, 20, 30, 40};
  const auto normed = [](float value, float mean, float variance) { return (value - mean) / std::sqrt(variance); };
  Model instance({2, 2, 2});
  instance.weight("scale", {2}, {1, 2});
  instance.weight("shift", {2}, {0, 5});
  Model::attribute(instance.node("InstanceNormalization", {"x", "scale", "shift"}), "epsilon").set_f(0);
  Numbers wanted;
  for (std::size_t i = 0; i < 4; ++i) wanted.push_back(normed(item[i], 2.5F, 1.25F));
  for (std::size_t i = 4; i < 8; ++i) wanted.push_back(2 * normed(item[i], 25, 125) + 5);
  EXPECT_LT(reference::error(reference::forward(instance.parse().value(), item), wanted), 1e-6);

  Model layer({2, 4}, 17);
  layer.weight("scale", {4}, {1, 1, 1, 2});
  auto& node = layer.node("LayerNormalization", {"x", "scale"});
  Model::attribute(node, "epsilon").set_f(0);
  for (std::size_t i = 4; i < 8; ++i) wanted[i] = (wanted[i] - 5) / 2;
  for (const std::size_t i : {3U, 7U}) wanted[i] *= 2;
  EXPECT_LT(reference::error(reference::forward(layer.parse().value(), item), wanted), 1e-6);
  Model::integer(node, "axis", 0);
  layer.refused(ErrorCode::unsupported_operator, "across the items of a batch");

  Model wide({4}, 17);
  wide.weight("scale", {1, 3, 4}, ramp(12));
  wide.node("LayerNormalization", {"x", "scale"});
  ASSERT_FALSE(wide.parse());
  Model few({2, 2, 2});
  few.weight("scale", {3}, {1, 2, 3});
  few.weight("shift", {2}, {0, 5});
  few.node("InstanceNormalization", {"x", "scale", "shift"});
  few.refused(ErrorCode::shape_mismatch, "not one for each of 2 channels");
}

std::vector<float> on_cpu(const Network& net, const Numbers& item) {
  const auto device = make_cpu_device({}).value();
  Numbers out(static_cast<std::size_t>(elements(infer_shapes(net)->back())));
  EXPECT_TRUE(device->compile(net, {1}).value()->run(item, out));
  return out;
}

// Many numbers far from zero: what sums of floats lose must not be taken for what differs.
TEST(Onnx, NormalisesLargeImages) {
  for (const std::int64_t side : {3, 64, 257, 1024})
    for (const float level : {0.1F, 100.1F}) {
      const auto pixels = static_cast<std::size_t>(side * side);
      Model instance({1, side, side}), layer({side * side}, 17);
      instance.weight("one", {1}, {1});
      instance.weight("none", {1}, {0});
      instance.node("InstanceNormalization", {"x", "one", "none"});
      layer.weight("ones", {side * side}, Numbers(pixels, 1));
      layer.node("LayerNormalization", {"x", "ones"});
      for (const auto& net : {instance.parse().value(), layer.parse().value()}) {
        EXPECT_LT(reference::error(on_cpu(net, Numbers(pixels, level)), Numbers(pixels, 0)), 1e-3) << side << " " << level;
        if (side > 300) continue;  // the definition takes its time
        auto item = NetSampler(1).floats(side * side);
        for (float& value : item) value += level;
        EXPECT_LT(reference::error(on_cpu(net, item), reference::forward(net, item)), 3e-4) << side << " " << level;
      }
    }
}

TEST(Onnx, AlignsOldAxesOfConstantsOnly) {
  for (const std::int64_t axis : {std::int64_t{0}, std::int64_t{-9}, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
    Model m({3, 2}, 6);
    m.weight("k", {3}, {1, 2, 3});
    auto& node = m.node("Sub", axis == 0 ? std::vector<std::string>{"k", "x"} : std::vector<std::string>{"x", "k"});
    Model::integer(node, "axis", axis);
    Model::integer(node, "broadcast", 1);
    m.refused(axis == 0 ? ErrorCode::unsupported_operator : ErrorCode::shape_mismatch, "the_y");
  }
}

TEST(Onnx, WritesArithmetic) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const Network net = random_net(seed, 6, Palette::all);
    const auto bytes = to_onnx(net);
    if (!bytes) continue;  // a constant by itself
    const auto again = parse_onnx(*bytes, "again");
    ASSERT_TRUE(again) << seed << ": " << again.error().what;
    const auto input = random_input(net, 2, seed + 1);
    EXPECT_LT(reference::error(reference::forward(*again, input), reference::forward(net, input)), 1e-5) << seed;
  }
}

TEST(Onnx, ReadsReshapeAsFlatten) {
  for (const Dims& target : std::vector<Dims>{{-1, 12}, {0, -1}, {1, -1}, {1, 12}, {0, 12}}) {
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"});
    m.equals([](Builder& b) { b.flatten(0); });
  }
  for (const Dims& target : std::vector<Dims>{{-1}, {2, -1}, {12, 1}, {3, 4}}) {  // the batch in another axis
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"});
    m.refused(ErrorCode::unsupported_operator, "the_y");
  }
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  for (const Dims& target : std::vector<Dims>{
           {-1, -1}, {0, 6}, {-5, 12}, {0, 0, 0, 0, 0}, {1, 24}, {0, 5, -1}, {kMost, kMost}, {0, 3, kMost}}) {
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"});
    m.refused(ErrorCode::shape_mismatch, "the_y");
  }
}

TEST(Onnx, ReshapesWithinAnItem) {
  for (const Dims& target : std::vector<Dims>{{-1, 4, 3}, {0, 4, -1}, {1, 4, 3}, {0, -1, 3}}) {
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"}, "r");
    auto& turned = m.node("Transpose", {"r"});
    Model::integers(turned, "perm", {0, 2, 1});
    m.equals([](Builder& b) { b.push(Transpose{{1, 0}}, {b.push(Reshape{{4, 3}}, {0})}); });
  }
}

TEST(Onnx, FollowsIdentitiesOfInitialisersAndConstants) {
  Model m({2});
  m.weight("w", {2, 2}, ramp(4));
  m.node("Identity", {"w"}, "same");
  m.node("Identity", {"same"}, "still");
  auto& constant = m.node("Constant", {}, "b");
  Model::fill(*Model::attribute(constant, "value").mutable_t(), {2}, {1, 2});
  Model::integer(m.node("Gemm", {"x", "still", "b"}), "transB", 1);
  m.equals([](Builder& b) { b.push(Dense{2, ramp(4), {1, 2}}, {0}); });
}

TEST(Onnx, ReadsConvolutionsAndPools) {
  Model m({2, 5, 5});
  m.weight("w", {4, 1, 3, 2}, ramp(24));
  auto& conv = m.node("Conv", {"x", "w", ""}, "c");
  Model::integers(conv, "strides", {2, 1});
  Model::integers(conv, "pads", {1, 0, 2, 1});
  Model::integer(conv, "group", 2);
  auto& pool = m.node("AveragePool", {"c"});
  Model::integers(pool, "kernel_shape", {2, 3});
  Model::integers(pool, "pads", {0, 1, 1, 0});
  Model::integer(pool, "count_include_pad", 1);
  m.equals([](Builder& b) {
    const int c = b.push(Convolution{{3, 2, 2, 1, 1, 0, 2, 1}, 4, 2, ramp(24), {}}, {0});
    b.push(AveragePool{{2, 3, 1, 1, 0, 1, 1, 0}, true}, {c});
  });
}

// The pads that a pool of one axis, `size` pixels wide, ends up with.
Window padded(std::int64_t size, const std::function<void(onnx::NodeProto&)>& change) {
  Model m({1, size});
  auto& node = m.node("MaxPool", {"x"});
  change(node);
  const auto net = m.parse();
  EXPECT_TRUE(net) << net.error().what;
  if (!net) return {};
  for (const auto& made : net->nodes)
    if (const auto* pool = std::get_if<MaxPool>(&made.op)) return pool->window;
  return {};
}

TEST(Onnx, ChoosesPadsByItself) {
  const auto pads = [](std::int64_t size, std::int64_t kernel, std::int64_t stride, const char* mode) {
    const Window w = padded(size, [&](onnx::NodeProto& n) {
      Model::integers(n, "kernel_shape", {kernel});
      Model::integers(n, "strides", {stride});
      Model::attribute(n, "auto_pad").set_s(mode);
    });
    return std::pair(w.pad_left, w.pad_right);
  };
  using Pads = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(pads(5, 2, 1, "SAME_UPPER"), Pads(0, 1));
  EXPECT_EQ(pads(5, 2, 1, "SAME_LOWER"), Pads(1, 0));
  EXPECT_EQ(pads(5, 3, 2, "SAME_UPPER"), Pads(1, 1));
  EXPECT_EQ(pads(6, 3, 2, "SAME_UPPER"), Pads(0, 1));
  EXPECT_EQ(pads(6, 1, 3, "SAME_LOWER"), Pads(0, 0));
  EXPECT_EQ(pads(5, 3, 2, "VALID"), Pads(0, 0));
}

TEST(Onnx, RoundsUpInCeilMode) {
  const auto pad = [](std::int64_t size, std::int64_t kernel, std::int64_t stride, std::int64_t around) {
    return padded(size,
                  [&](onnx::NodeProto& n) {
                    Model::integers(n, "kernel_shape", {kernel});
                    Model::integers(n, "strides", {stride});
                    Model::integers(n, "pads", {around, around});
                    Model::integer(n, "ceil_mode", 1);
                  })
        .pad_right;
  };
  EXPECT_EQ(pad(4, 3, 2, 0), 1);
  EXPECT_EQ(pad(5, 3, 2, 0), 0);
  EXPECT_EQ(pad(5, 2, 3, 1), 1) << "the last window would begin in the padding";
  EXPECT_EQ(pad(6, 3, 2, 1), 2);
  Model counted({1, 4});
  auto& node = counted.node("AveragePool", {"x"});
  Model::integers(node, "kernel_shape", {3});
  Model::integers(node, "strides", {2});
  Model::integers(node, "pads", {1, 0});
  Model::integer(node, "ceil_mode", 1);
  Model::integer(node, "count_include_pad", 1);
  EXPECT_TRUE(counted.parse()) << "no window reaches beyond the padding";
  Model::integers(node, "strides", {3});
  node.mutable_attribute(1)->mutable_ints()->Set(0, 3);
  counted.refused(ErrorCode::unsupported_operator, "the_y");
}

TEST(Onnx, ReadsRowsAsImages) {
  Model m({2, 9});
  m.weight("w", {4, 1, 3}, ramp(12));
  auto& conv = m.node("Conv", {"x", "w"}, "c");
  Model::integers(conv, "dilations", {2});
  Model::integers(conv, "pads", {2, 1});
  Model::integer(conv, "group", 2);
  auto& pool = m.node("MaxPool", {"c"});
  Model::integers(pool, "kernel_shape", {2});
  m.equals([](Builder& b) {
    Window w{1, 3, 1, 1, 0, 2, 0, 1, 1, 2};
    const int c = b.push(Convolution{w, 4, 2, ramp(12), {}}, {b.push(Reshape{{2, 1, 9}}, {0})});
    b.push(Reshape{{4, 7}}, {b.push(MaxPool{{1, 2}}, {c})});
  });
}

TEST(Onnx, ReadsVolumes) {
  Model m({2, 5, 6, 7});
  m.weight("w", {4, 1, 3, 2, 1}, ramp(24));
  auto& conv = m.node("Conv", {"x", "w"}, "c");
  Model::integers(conv, "strides", {2, 1, 3});
  Model::integers(conv, "pads", {1, 0, 2, 0, 3, 1});
  Model::integers(conv, "dilations", {1, 2, 1});
  Model::integer(conv, "group", 2);
  auto& pool = m.node("AveragePool", {"c"}, "p");
  Model::integers(pool, "kernel_shape", {2, 3, 1});
  Model::attribute(pool, "auto_pad").set_s("SAME_UPPER");
  m.node("GlobalAveragePool", {"p"});
  m.equals([](Builder& b) {
    const int c = b.push(Convolution{{2, 1, 1, 3, 0, 2, 3, 1, 2, 1, 3, 2, 1, 0, 1}, 4, 2, ramp(24), {}}, {0});
    const int p = b.push(AveragePool{{3, 1, 1, 1, 1, 0, 1, 0, 1, 1, 2, 1, 0, 1}, false}, {c});
    b.push(GlobalAveragePool{}, {b.push(Reshape{{4, elements(b.shape(p)) / 4, 1}}, {p})});
  });
  Model four({1, 2, 2, 2, 2});
  Model::integers(four.node("MaxPool", {"x"}), "kernel_shape", {1, 1, 1, 1});
  four.refused(ErrorCode::unsupported_operator, "the_y");
  Model another({2, 5, 6, 7});
  another.weight("w", {4, 2, 3, 2, 1}, ramp(48));
  Model::integers(another.node("Conv", {"x", "w"}), "kernel_shape", {2, 2, 1});
  another.refused(ErrorCode::shape_mismatch, "the_y");
  Model flat({2, 5, 6, 7});
  flat.weight("w", {4, 2, 3, 2}, ramp(48));
  flat.node("Conv", {"x", "w"});
  flat.refused(ErrorCode::shape_mismatch, "the_y");
}

TEST(Onnx, WritesVolumes) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    Builder b({4, 5, 6, 7}, seed);
    const int conv = b.relu(b.norm(b.conv(0, b.window(false), 6, 2, b.toss())));
    const int pool = b.push(MaxPool{{1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 2}}, {conv});
    b.push(AveragePool{{1, 1, 2, 1, 0, 0, 0, 0}, b.toss()}, {pool});
    const auto again = parse_onnx(to_onnx(b.net).value(), "again");
    ASSERT_TRUE(again) << again.error().what;
    const auto input = random_input(b.net, 2, seed);
    EXPECT_EQ(reference::forward(*again, input), reference::forward(b.net, input));
  }
}

TEST(Onnx, ReadsSlicesInBothForms) {
  const auto expected = [](Builder& b) { b.push(Slice{1, 1, 3}, {b.push(Slice{0, 2, 4}, {0})}); };
  Model old({4, 4}, 9);
  auto& with_attributes = old.node("Slice", {"x"});
  Model::integers(with_attributes, "starts", {0, -2, 1});
  Model::integers(with_attributes, "ends", {std::numeric_limits<std::int64_t>::max(), 9, -1});
  old.equals(expected);
  Model with_inputs({4, 4}, 13);
  with_inputs.target("starts", {1, -2});
  with_inputs.target("ends", {-1, 9});
  with_inputs.target("axes", {-1, 1});
  with_inputs.node("Slice", {"x", "starts", "ends", "axes"});
  with_inputs.equals(expected);
  const auto refused = [](const Dims& starts, const Dims& ends, const Dims& axes, const Dims& steps, ErrorCode code) {
    Model m({4, 4});
    m.target("starts", starts);
    m.target("ends", ends);
    m.target("axes", axes);
    m.target("steps", steps);
    m.node("Slice", {"x", "starts", "ends", "axes", "steps"});
    m.refused(code, "the_y");
  };
  refused({0}, {1}, {0}, {1}, ErrorCode::unsupported_operator);         // of the batch
  refused({0}, {4}, {1}, {0}, ErrorCode::malformed);                    // no step
  refused({0}, {2}, {3}, {1}, ErrorCode::shape_mismatch);               // no such axis
  refused({0, 1}, {2, 2}, {1, -2}, {1, 1}, ErrorCode::shape_mismatch);  // one axis twice
  refused({0, 1}, {2}, {1}, {1}, ErrorCode::malformed);
  refused({0}, {2}, {1, 2}, {1}, ErrorCode::malformed);
}

TEST(Onnx, SlicesBackwardsAndWithGaps) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max(), kLeast = std::numeric_limits<std::int64_t>::min();
  struct Case {
    std::int64_t start, end, step;
    std::vector<std::int64_t> taken;
  };
  for (const auto& c : std::vector<Case>{{0, 5, 2, {0, 2, 4}},
                                         {1, kMost, 3, {1, 4}},
                                         {kMost, kLeast, -1, {4, 3, 2, 1, 0}},
                                         {-1, -6, -2, {4, 2, 0}},
                                         {3, 0, -1, {3, 2, 1}},
                                         {-2, kLeast, kLeast, {3}},
                                         {2, kMost, kMost, {2}},
                                         {3, 3, 1, {}},
                                         {1'000, kMost, 1, {}},
                                         {2, kMost, -1, {}},
                                         {kMost, 4, kMost, {}}}) {
    Model m({5});
    m.target("starts", {c.start});
    m.target("ends", {c.end});
    m.target("axes", {1});
    m.target("steps", {c.step});
    m.node("Slice", {"x", "starts", "ends", "axes", "steps"});
    m.equals([&](Builder& b) {
      std::vector<int> parts;
      if (c.taken.empty()) parts.push_back(b.push(Slice{0, 0, 0}, {0}));
      for (const auto at : c.taken) parts.push_back(b.push(Slice{0, at, at + 1}, {0}));
      b.push(Concat{0}, parts);
    });
  }
}

TEST(Onnx, SplitsIntoSeveralOutputs) {
  const auto joined = [](Model& m, onnx::NodeProto& split) {
    split.add_output("b");
    Model::integer(split, "axis", 1);
    Model::integer(m.node("Concat", {"b", "a"}), "axis", -2);
  };
  const auto expected = [](std::int64_t at) {
    return [at](Builder& b) {
      const int low = b.push(Slice{0, 0, at}, {0}), high = b.push(Slice{0, at, 4}, {0});
      b.push(Concat{0}, {high, low});
    };
  };
  Model equal({4, 3});
  joined(equal, equal.node("Split", {"x"}, "a"));
  equal.equals(expected(2));
  Model by_attribute({4, 3}, 9);
  auto& old = by_attribute.node("Split", {"x"}, "a");
  Model::integers(old, "split", {1, 3});
  joined(by_attribute, old);
  by_attribute.equals(expected(1));
  Model by_input({4, 3});
  by_input.target("sizes", {3, 1});
  joined(by_input, by_input.node("Split", {"x", "sizes"}, "a"));
  by_input.equals(expected(3));
  Model by_count({4, 3}, 18);
  auto& counted = by_count.node("Split", {"x"}, "a");
  Model::integer(counted, "num_outputs", 2);
  joined(by_count, counted);
  by_count.equals(expected(2));
  for (const Dims& sizes : std::vector<Dims>{{1, 2}, {2, 2, 1}, {-1, 5}, {4}}) {
    Model bad({4, 3});
    bad.target("sizes", sizes);
    joined(bad, bad.node("Split", {"x", "sizes"}, "a"));
    bad.refused(ErrorCode::shape_mismatch, "the_a");
  }
  Model nothing({4, 3});
  nothing.target("sizes", {4, 0});
  joined(nothing, nothing.node("Split", {"x", "sizes"}, "a"));
  nothing.equals([](Builder& b) { b.push(Concat{0}, {b.push(Slice{0, 4, 4}, {0}), 0}); });
}

TEST(Onnx, RefusesToMixTheItemsOfABatch) {
  const auto refused = [](const char* type, const std::function<void(onnx::NodeProto&)>& change) {
    Model m({3, 3}, 12);
    change(m.node(type, {"x"}));
    m.refused(ErrorCode::unsupported_operator, "the_y");
  };
  refused("Transpose", [](auto& n) { Model::integers(n, "perm", {1, 0, 2}); });
  refused("Flatten", [](auto& n) { Model::integer(n, "axis", 2); });
  refused("Concat", [](auto& n) { Model::integer(n, "axis", 0); });
  refused("Split", [](auto& n) { Model::integer(n, "axis", -3); });
  refused("Squeeze", [](auto& n) { Model::integers(n, "axes", {0}); });
  refused("Squeeze", [](auto&) {});
  refused("Unsqueeze", [](auto& n) { Model::integers(n, "axes", {0}); });
  refused("ReduceMean", [](auto&) {});
  refused("ReduceMean", [](auto& n) { Model::integers(n, "axes", {0, 1}); });
  Model ranks({3, 3});  // [N, 3, 3] + [N, 9] sets N against 3
  ranks.node("Flatten", {"x"}, "flat");
  ranks.node("Add", {"x", "flat"});
  ranks.refused(ErrorCode::unsupported_operator, "the_y");
}

TEST(Onnx, TakesTheFirstAxisForAnyOtherWhenTold) {
  Model m({3, 4});  // of x, the open axis is now the item's: it needs a size
  m.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->mutable_dim(0)->set_dim_value(2);
  Model::integers(m.node("Transpose", {"x"}), "perm", {2, 0, 1});
  EXPECT_FALSE(m.parse());
  const auto net = parse_onnx(bytes_of(m.proto), "items", {.first_axis_is_batch = false});
  ASSERT_TRUE(net) << net.error().what;
  EXPECT_EQ(net->input, (Dims{2, 3, 4}));
  EXPECT_EQ(infer_shapes(*net)->back(), (Dims{4, 2, 3}));
}

TEST(Onnx, ReadsAMeanOfBothSpatialAxes) {
  for (const bool keep : {true, false}) {
    Model m({3, 4, 5});
    auto& mean = m.node("ReduceMean", {"x"});
    Model::integers(mean, "axes", {-1, 2});
    Model::integer(mean, "keepdims", keep ? 1 : 0);
    m.equals([&](Builder& b) {
      const int pooled = b.push(GlobalAveragePool{}, {0});
      if (!keep) b.flatten(pooled);
    });
    EXPECT_EQ(infer_shapes(*m.parse())->back(), keep ? (Dims{3, 1, 1}) : (Dims{3}));
  }
}

TEST(Onnx, ReadsClipInBothForms) {
  Model attributes({4}, 6);
  auto& old = attributes.node("Clip", {"x"});
  Model::attribute(old, "max").set_f(0.5F);
  attributes.equals([](Builder& b) { b.push(Clip{-1e30F, 0.5F}, {0}); });
  Model inputs({4}, 13);
  inputs.weight("low", {}, {-0.25F});
  inputs.node("Clip", {"x", "low", ""});
  inputs.equals([](Builder& b) { b.push(Clip{-0.25F, 1e30F}, {0}); });
  Model open({4}, 13);
  open.node("Clip", {"x", "x"});
  open.refused(ErrorCode::unsupported_operator, "the_y");
}

TEST(Onnx, FoldsMovesOfConstants) {
  Model m({4}, 12);
  m.weight("w", {3, 1, 4}, ramp(12));
  Model::integers(m.node("Squeeze", {"w"}, "squeezed"), "axes", {1});
  Model::integers(m.node("Transpose", {"squeezed"}, "turned"), "perm", {1, 0});
  m.node("MatMul", {"x", "turned"});
  m.equals([](Builder& b) { b.push(Dense{3, ramp(12), {}}, {0}); });
}

// x.view(x.size(0), x.size(1) / 2 * 2, -1), as exporters write it.
TEST(Onnx, WorksOutSizesOfShapes) {
  const auto built = [](const Dims& batch_index, const std::string& leading) {
    Model m({4, 2, 3});
    m.target("batch", batch_index);
    m.target("channel", {-3});
    m.target("two", {2});
    m.target("rest", {-1});
    m.node("Shape", {"x"}, "shape");
    m.node("Gather", {"shape", "batch"}, "items");
    m.node("Gather", {"shape", "channel"}, "channels");
    m.node("Div", {"channels", "two"}, "half");
    Model::integer(m.node("Cast", {"half"}, "cast"), "to", onnx::TensorProto::INT64);
    m.node("Mul", {"cast", "two"}, "even");
    m.node("Add", {"items", "two"}, "more");
    Model::integer(m.node("Concat", {leading, "even", "rest"}, "target"), "axis", 0);
    m.node("Reshape", {"x", "target"});
    return m;
  };
  Model whole({4, 2, 3});
  whole.node("Shape", {"x"}, "shape");
  whole.node("Reshape", {"x", "shape"});
  whole.equals([](Builder& b) { b.identity(0); });
  Model good = built({0}, "items");
  good.graph.mutable_node()->DeleteSubrange(6, 1);  // the sum with the batch
  good.equals([](Builder& b) { b.push(Reshape{{4, 6}}, {0}); });
  built({0}, "more").refused(ErrorCode::unsupported_operator, "the_more");
  built({9}, "items").refused(ErrorCode::shape_mismatch, "the_items");
  Model swapped({4});
  swapped.target("order", {1, 0});
  swapped.node("Shape", {"x"}, "shape");
  swapped.node("Gather", {"shape", "order"}, "target");
  swapped.node("Reshape", {"x", "target"});
  swapped.refused(ErrorCode::shape_mismatch, "the_y");
  Model zero({4});
  zero.target("zero", {0});
  zero.node("Div", {"zero", "zero"}, "target");
  zero.node("Reshape", {"x", "target"});
  zero.refused(ErrorCode::unsupported_operator, "the_target");
}

TEST(Onnx, ReadsAPadThatAddsNothing) {
  for (const std::int64_t top : {0, 1}) {
    Model m({1, 4, 4}, 9);
    Model::integers(m.node("Pad", {"x"}, "padded"), "pads", {0, 0, top, 0, 0, 0, 0, 0});
    m.node("Relu", {"padded"});
    if (top == 0) {
      m.equals([](Builder& b) { b.relu(0); });
    } else {
      m.refused(ErrorCode::unsupported_operator, "the_padded");
    }
  }
}

TEST(Onnx, ListsOfSizesDoNotGrowWithoutBound) {
  Model m({4});
  m.target("l0", Dims(64, 1));
  for (int i = 0; i < 60; ++i) {
    const std::string from = "l" + std::to_string(i);
    Model::integer(m.node("Concat", {from, from}, "l" + std::to_string(i + 1)), "axis", 0);
  }
  m.node("Reshape", {"x", "l60"});
  m.refused(ErrorCode::malformed, "sizes");
}

// ---- what simplified() makes of it ----

TEST(Onnx, ShufflesChannelsAgainAfterSimplifying) {
  Builder b({6, 4, 5}, 3);
  b.relu(b.push(ChannelShuffle{3}, {b.conv3x3(0, 6)}));
  const auto read = parse_onnx(to_onnx(b.net).value(), "again");
  ASSERT_TRUE(read) << read.error().what;
  EXPECT_EQ(read->nodes.size(), 5U);
  const Network folded = simplified(*read);
  ASSERT_EQ(folded.nodes.size(), 3U);
  ASSERT_TRUE(std::holds_alternative<ChannelShuffle>(folded.nodes[1].op));
  EXPECT_EQ(std::get<ChannelShuffle>(folded.nodes[1].op).groups, 3);
  const auto input = random_input(b.net, 2, 1);
  EXPECT_EQ(reference::forward(folded, input), reference::forward(b.net, input));
}

// ---- what the writer says in several nodes ----

TEST(Onnx, WritesEveryOperator) {
  Builder b({4, 6, 6}, 9);
  const int conv = b.conv(0, {3, 3, 1, 1, 2, 2, 2, 2, 2, 2}, 4, 2);
  const int clip = b.push(Clip{-0.5F, 0.5F}, {conv});
  const int sum = b.add(b.push(Constant{{6}, ramp(6)}, {}), clip);
  const int aligned = b.add(sum, b.push(Reshape{{6, 1}}, {b.push(Slice{0, 0, 6}, {b.dense(b.flatten(0), 8)})}));
  const int both = b.push(Concat{0}, {aligned, b.push(Slice{0, 1, 3}, {0})});
  const int shuffled =
      b.push(ChannelShuffle{2}, {b.push(BatchNorm{ramp(6), ramp(6), ramp(6), Numbers(6, 1), 1e-3F}, {both})});
  b.push(Transpose{{2, 0, 1}}, {b.push(Reshape{{9, 6, 4}}, {shuffled})});
  const auto again = parse_onnx(to_onnx(b.net).value(), "again");
  ASSERT_TRUE(again) << again.error().what;
  const auto input = random_input(b.net, 3, 2);
  EXPECT_LT(reference::error(reference::forward(*again, input), reference::forward(b.net, input)), 1e-6);
}

TEST(Onnx, WritesNoConstantThatWouldHaveToBeRepeated) {
  Builder joined({2}, 1);
  joined.push(Concat{0}, {0, joined.push(Constant{{1}, {1}}, {})});
  Builder alone({2}, 1);
  alone.relu(alone.push(Constant{{1}, {1}}, {}));
  for (const auto* net : {&joined.net, &alone.net}) {
    const auto bytes = to_onnx(*net);
    ASSERT_FALSE(bytes);
    EXPECT_EQ(bytes.error().code, ErrorCode::unsupported_operator);
    EXPECT_TRUE(mentions(bytes.error(), net->nodes.back().name));
  }
}

TEST(Onnx, CutsOffWhatTheOutputDoesNotNeed) {
  Model m({4});
  m.node("Relu", {"x"});
  m.node("Add", {"y", "x"}, "beyond");
  m.equals([](Builder& b) { b.relu(0); });
}

TEST(Onnx, ReadsWeightsThatAreListedAmongTheInputs) {
  Model m({2});
  m.weight("w", {2, 2}, ramp(4));
  m.input("w", {2});
  Model::integer(m.node("Gemm", {"x", "w"}), "transB", 1);
  m.equals([](Builder& b) { b.push(Dense{2, ramp(4), {}}, {0}); });
}

// ---- what is refused ----

Model small() {
  Model m({1, 6, 6});
  m.weight("w", {2, 1, 3, 3}, ramp(18));
  m.weight("b", {2}, ramp(2));
  m.node("Conv", {"x", "w", "b"}, "c");
  m.node("Relu", {"c"}, "r");
  m.node("Flatten", {"r"}, "f");
  m.weight("v", {32, 3}, ramp(96));
  m.node("Gemm", {"f", "v"});
  return m;
}

TEST(Onnx, NamesTheOperatorThatIsNotRun) {
  Model m({4}, 11);
  m.node("Softplus", {"x"});
  m.refused(ErrorCode::unsupported_operator, "the_y");
  m.refused(ErrorCode::unsupported_operator, "Softplus");
  m.refused(ErrorCode::unsupported_operator, "opset 11");
  Model unnamed({4});
  unnamed.node("Softplus", {"x"}).clear_name();
  unnamed.refused(ErrorCode::unsupported_operator, "0 (Softplus");
  Model foreign({4});
  foreign.node("Relu", {"x"}).set_domain("com.example");
  foreign.refused(ErrorCode::unsupported_operator, "com.example");
}

TEST(Onnx, ReadsOpsets1To18Only) {
  for (const std::int64_t opset : {1, 7, 9, 13, 18}) {
    Model m({4}, opset);
    m.node("Relu", {"x"});
    EXPECT_TRUE(m.parse());
  }
  for (const std::int64_t opset : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{19}, std::int64_t{1} << 40}) {
    Model m({4}, opset);
    m.node("Relu", {"x"});
    m.refused(ErrorCode::unsupported_operator, "opset " + std::to_string(opset));
  }
}

TEST(Onnx, RefusesWindowsItCannotRun) {
  const auto pool = [](const std::function<void(onnx::NodeProto&)>& change, ErrorCode code) {
    Model m({1, 4, 4});
    auto& node = m.node("MaxPool", {"x"});
    Model::integers(node, "kernel_shape", {2, 2});
    change(node);
    m.refused(code, "the_y");
  };
  using onnx::NodeProto;
  constexpr auto kUnsupported = ErrorCode::unsupported_operator;
  pool([](NodeProto& n) { Model::attribute(n, "auto_pad").set_s("SAME"); }, kUnsupported);
  pool([](NodeProto& n) { Model::integers(n, "dilations", {2}); }, kUnsupported);
  pool([](NodeProto& n) { Model::integers(n, "dilations", {0, 1}); }, ErrorCode::shape_mismatch);
  pool([](NodeProto& n) { Model::integers(n, "strides", {1}); }, kUnsupported);
  pool([](NodeProto& n) { Model::integers(n, "pads", {0, 0}); }, kUnsupported);
  pool([](NodeProto& n) { Model::integers(n, "strides", {0, 1}); }, ErrorCode::shape_mismatch);
  pool([](NodeProto& n) { Model::integers(n, "pads", {-1, 0, 0, 0}); }, ErrorCode::shape_mismatch);
  pool(
      [](NodeProto& n) {
        Model::integers(n, "strides", {1, std::numeric_limits<std::int64_t>::max()});
      },
      ErrorCode::shape_mismatch);
}

TEST(Onnx, RefusesDataInAnotherFile) {
  Model located = small();
  located.graph.mutable_initializer(0)->set_data_location(onnx::TensorProto::EXTERNAL);
  located.refused(ErrorCode::malformed, "tensor w");
  Model listed = small();
  auto& entry = *listed.graph.mutable_initializer(0)->add_external_data();
  entry.set_key("location");
  entry.set_value("/etc/passwd");
  listed.refused(ErrorCode::malformed, "another file");
}

TEST(Onnx, RefusesTensorsWithoutTheirBytes) {
  for (const int bytes : {0, 1, 71, 73, 144}) {
    Model m = small();
    m.graph.mutable_initializer(0)->set_raw_data(std::string(static_cast<std::size_t>(bytes), '\0'));
    m.refused(ErrorCode::malformed, "tensor w");
  }
  Model absent = small();
  absent.graph.mutable_initializer(0)->clear_raw_data();
  absent.refused(ErrorCode::malformed, "tensor w");
}

TEST(Onnx, RefusesTensorsOfImpossibleSizes) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max(), kLeast = std::numeric_limits<std::int64_t>::min();
  for (const Dims& dims : std::vector<Dims>{{-2, -1, 3, 3},
                                            {-18},
                                            {kMost},
                                            {kMost, kMost, kMost, kMost},
                                            {kLeast, 2},
                                            {1 << 16, 1 << 16},
                                            {std::int64_t{1} << 62, 4, 1, 1},
                                            {2, 1, 3, 3, 1, 1, 1, 1, 1},
                                            {0, kMost}}) {
    Model m = small();
    m.graph.mutable_initializer(0)->clear_dims();
    for (const auto dim : dims) m.graph.mutable_initializer(0)->add_dims(dim);
    m.refused(ErrorCode::malformed, "tensor w");
  }
}

TEST(Onnx, RefusesTensorsOfOtherTypes) {
  Model m = small();
  m.graph.mutable_initializer(0)->set_data_type(onnx::TensorProto::DOUBLE);
  m.refused(ErrorCode::unsupported_operator, "tensor w");
}

TEST(Onnx, RefusesInputsItCannotFeed) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  for (const char* type : {"Relu", "Flatten", "GlobalAveragePool", "Reshape"}) {
    for (const Dims& dims : std::vector<Dims>{{},
                                              {0},
                                              {-1, 4, 4},
                                              {kMost, kMost},
                                              {kMost, kMost, kMost},
                                              {1, 1 << 20, 1 << 20},
                                              {1, 1, 1, 1, 1, 1, 1, 1}}) {
      Model m(dims);
      m.target("t", {0, -1});
      m.node(type, std::string(type) == "Reshape" ? std::vector<std::string>{"x", "t"} : std::vector<std::string>{"x"});
      m.refused(ErrorCode::shape_mismatch);
    }
  }
  Model batch({4});
  batch.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->mutable_dim(0)->set_dim_value(
      2);
  batch.node("Relu", {"x"});
  batch.refused(ErrorCode::shape_mismatch, "batch");
  Model open({4});
  open.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->mutable_dim(1)->set_dim_param(
      "width");
  open.node("Relu", {"x"});
  open.refused(ErrorCode::shape_mismatch, "dimension 1");
  Model shapeless({4});
  shapeless.graph.mutable_input(0)->clear_type();
  shapeless.node("Relu", {"x"});
  shapeless.refused(ErrorCode::malformed);
  Model wholes({4});
  wholes.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->set_elem_type(onnx::TensorProto::INT64);
  wholes.node("Relu", {"x"});
  wholes.refused(ErrorCode::unsupported_operator);
}

TEST(Onnx, RefusesTwoInputsAndNone) {
  Model two({4});
  two.input("z", {4});
  two.node("Add", {"x", "z"});
  two.refused(ErrorCode::malformed, "more than one input: x, z");
  Model none({4});
  none.graph.clear_input();
  none.node("Relu", {"x"});
  none.refused(ErrorCode::malformed, "no input");
}

// The same as one item, whose first axis is no batch.
Expected<Network> parse_whole(const Model& m) {
  return parse_onnx(bytes_of(m.proto), "hand.onnx", {.first_axis_is_batch = false});
}

TEST(Onnx, ReadsGraphsWithoutAnInput) {
  const auto without_input = [](const Dims& dims) {
    Model m({4});
    m.graph.clear_input();
    auto& constant = m.node("Constant", {}, "c");
    Model::fill(*Model::attribute(constant, "value").mutable_t(), dims, ramp(elements(dims)));
    m.node("Identity", {"c"});
    return m;
  };
  const auto net = parse_whole(without_input({2, 3}));
  ASSERT_TRUE(net) << net.error().what;
  EXPECT_EQ(net->input, Dims{0});
  EXPECT_EQ(infer_shapes(*net)->back(), (Dims{2, 3}));
  EXPECT_EQ(reference::forward(*net, {}), ramp(6));
  without_input({2, 3}).refused(ErrorCode::malformed, "no input");
  const auto scalar = parse_whole(without_input({}));
  ASSERT_FALSE(scalar);
  EXPECT_EQ(scalar.error().code, ErrorCode::unsupported_operator);
  EXPECT_TRUE(mentions(scalar.error(), "output y")) << scalar.error().what;
  const auto integers = [&] {
    Model m = without_input({2});
    m.target("sizes", {1, 2});
    m.graph.mutable_output(0)->set_name("sizes");
    return parse_whole(m);
  }();
  ASSERT_FALSE(integers);
  EXPECT_EQ(integers.error().code, ErrorCode::unsupported_operator);
}

TEST(Onnx, ReadsEmptyTensors) {
  Model m({});
  m.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->clear_dim();
  for (const auto dim : {0, 3, 4})
    m.graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->add_dim()->set_dim_value(dim);
  m.proto.mutable_opset_import(0)->set_version(14);
  m.target("to", {3, 4, 0});
  auto& reshape = m.node("Reshape", {"x", "to"});
  Model::integer(reshape, "allowzero", 1);
  const auto net = parse_whole(m);
  ASSERT_TRUE(net) << net.error().what;
  EXPECT_EQ(infer_shapes(*net)->back(), (Dims{3, 4, 0}));
  const auto written = to_onnx(*net);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::unsupported_operator);

  const auto to = [&m](const Dims& sizes) {
    m.graph.mutable_initializer(0)->clear_int64_data();
    for (const auto size : sizes) m.graph.mutable_initializer(0)->add_int64_data(size);
    m.graph.mutable_initializer(0)->set_dims(0, static_cast<std::int64_t>(sizes.size()));
    return parse_whole(m);
  };
  EXPECT_EQ(infer_shapes(*to({4, -1}))->back(), (Dims{4, 0}));
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  for (const Dims& sizes : std::vector<Dims>{{3, 4}, {0, -1}, {0, kMost}, {0, 1 << 16, 1 << 16}, {kMost, kMost, 0}}) {
    const auto refused = to(sizes);
    ASSERT_FALSE(refused) << to_string(sizes);
    EXPECT_EQ(refused.error().code, ErrorCode::shape_mismatch);
    EXPECT_TRUE(mentions(refused.error(), "the_y")) << refused.error().what;
  }
}

TEST(Onnx, RefusesEmptyTensorsThatCannotBe) {
  Model open({3, 0});  // some exporters' way to leave an axis open
  open.node("Relu", {"x"});
  open.refused(ErrorCode::shape_mismatch, "dimension 2");
  Model huge({4});
  huge.weight("w", {0, std::int64_t{1} << 40, std::int64_t{1} << 40}, {});
  huge.node("Flatten", {"w"}, "f");
  huge.node("Relu", {"x"});
  huge.refused(ErrorCode::malformed, "tensor w");
  for (const char* type : {"ReduceMean", "GlobalAveragePool"}) {
    Model m({2, 3, 3});
    m.target("at", {3});
    m.target("axis", {2});
    m.node("Slice", {"x", "at", "at", "axis"}, "none");
    m.node(type, {"none"});
    m.refused(ErrorCode::unsupported_operator, "the_y");
  }
}

TEST(Onnx, RefusesCyclesAndUnknownNames) {
  Model cycle({4});
  cycle.node("Add", {"x", "y"}, "a");
  cycle.node("Relu", {"a"});
  cycle.refused(ErrorCode::malformed, "the_a");
  Model itself({4});
  itself.node("Relu", {"y"});
  itself.refused(ErrorCode::malformed, "the_y");
  Model unknown({4});
  unknown.node("Relu", {"nobody"});
  unknown.refused(ErrorCode::malformed, "nobody");
  Model nothing({4});
  nothing.node("Relu", {});
  nothing.refused(ErrorCode::malformed, "the_y");
}

TEST(Onnx, RefusesNamesThatAreMadeTwice) {
  Model twice({4});
  twice.node("Relu", {"x"});
  twice.node("Relu", {"y"});
  twice.refused(ErrorCode::malformed, "the_y");
  Model shadows = small();
  shadows.node("Relu", {"y"}, "w");
  shadows.refused(ErrorCode::malformed, "the_w");
}

TEST(Onnx, RefusesOutputsThatNobodyMakes) {
  Model absent({4});
  absent.node("Relu", {"x"}, "other");
  absent.refused(ErrorCode::malformed, "output y");
  Model passed({4});
  passed.node("Relu", {"x"});
  passed.graph.mutable_output(0)->set_name("x");
  passed.refused(ErrorCode::malformed, "computes nothing");
  Model fixed = small();
  fixed.graph.mutable_output(0)->set_name("w");
  fixed.refused(ErrorCode::malformed, "output w");
  Model two = small();
  two.graph.add_output()->set_name("r");
  two.refused(ErrorCode::malformed, "one output");
  Model empty({4});
  empty.refused(ErrorCode::malformed);
}

TEST(Onnx, NamesTheNodeWhoseShapesDoNotFit) {
  Model m({4});
  m.weight("w", {5, 3}, ramp(15));
  m.node("Gemm", {"x", "w"});
  m.refused(ErrorCode::shape_mismatch, "the_y");
  Model sum({2, 3, 3});
  Model::integers(sum.node("MaxPool", {"x"}, "f"), "kernel_shape", {1, 2});
  Model::integers(sum.node("MaxPool", {"x"}, "g"), "kernel_shape", {2, 1});
  sum.node("Add", {"f", "g"});
  sum.refused(ErrorCode::shape_mismatch, "the_y");
}

// ---- bytes of any kind ----

TEST(Onnx, RefusesModelsCutShort) {
  const auto whole = to_onnx(vgg({1, 8, 8}, {4, 4}, 3, 1)).value();
  ASSERT_TRUE(parse_onnx(whole, "whole"));
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    const auto net = parse_onnx(std::span(whole).first(size), "cut");
    ASSERT_FALSE(net) << size;
    EXPECT_TRUE(mentions(net.error(), "cut")) << net.error().what;
  }
  EXPECT_FALSE(parse_onnx({}, "empty"));
}

TEST(Onnx, RefusesWhatIsNoModel) {
  for (const std::string& text :
       {std::string("hello"), std::string(1'000, '\0'), std::string(1'000, '\xFF'), std::string(100'000, '\x3A')}) {
    const auto net = parse_onnx(std::as_bytes(std::span(text)), "text");
    ASSERT_FALSE(net);
    EXPECT_EQ(net.error().code, ErrorCode::malformed);
  }
}

TEST(Onnx, NeverCrashesOnMutatedModels) {
  google::protobuf::LogSilencer quiet;
  std::mt19937_64 random(5);
  int parsed = 0;
  for (int i = 0; i < 2'000; ++i) {
    auto bytes = i % 2 == 0 ? bytes_of(small().proto) : to_onnx(random_net(static_cast<std::uint64_t>(i), 3)).value();
    for (auto changes = random() % 4 + 1; changes > 0; --changes)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    const auto net = parse_onnx(bytes, "mutated");
    if (!net) {
      EXPECT_TRUE(mentions(net.error(), "mutated"));
      continue;
    }
    ++parsed;
    EXPECT_TRUE(infer_shapes(*net));
  }
  EXPECT_GT(parsed, 0);
  EXPECT_LT(parsed, 2'000);
}

}  // namespace
}  // namespace coppice::gpu
