#include "gpu/onnx.hpp"

#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>
#include <rapidcheck/gtest.h>

#include <filesystem>
#include <functional>
#include <limits>

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

TEST(Onnx, RefusesGemmThatScales) {
  for (const char* name : {"alpha", "beta"}) {
    Model m({4});
    m.weight("w", {4, 3}, ramp(12));
    Model::attribute(m.node("Gemm", {"x", "w"}), name).set_f(0.5F);
    m.refused(ErrorCode::unsupported_operator, "the_y");
  }
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
  m.refused(ErrorCode::unsupported_operator, "the_sum");
}

TEST(Onnx, RefusesToAddOtherConstants) {
  Model two({4});
  two.weight("w", {4, 2}, ramp(8));
  two.weight("b", {2, 1}, ramp(2));
  two.node("MatMul", {"x", "w"}, "product");
  two.node("Add", {"product", "b"});
  two.refused(ErrorCode::unsupported_operator, "the_y");
  Model image({1, 2, 2});
  image.weight("b", {1}, ramp(1));
  image.node("Add", {"x", "b"});
  image.refused(ErrorCode::unsupported_operator, "the_y");
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
  m.refused(ErrorCode::unsupported_operator, "the_y");
}

TEST(Onnx, ReadsReshapeAsFlatten) {
  for (const Dims& target : std::vector<Dims>{{-1, 12}, {0, -1}, {1, -1}, {1, 12}, {0, 12}}) {
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"});
    m.equals([](Builder& b) { b.flatten(0); });
  }
  for (const Dims& target : std::vector<Dims>{{-1, -1}, {0, 6}, {-1}, {0, 3, 4}, {2, -1}, {-5, 12}}) {
    Model m({3, 2, 2});
    m.target("t", target);
    m.node("Reshape", {"x", "t"});
    m.refused(ErrorCode::unsupported_operator, "the_y");
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

TEST(Onnx, ReadsOpsets9To18Only) {
  for (const std::int64_t opset : {9, 13, 18}) {
    Model m({4}, opset);
    m.node("Relu", {"x"});
    EXPECT_TRUE(m.parse());
  }
  for (const std::int64_t opset :
       {std::int64_t{-1}, std::int64_t{0}, std::int64_t{8}, std::int64_t{19}, std::int64_t{1} << 40}) {
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
  pool([](NodeProto& n) { Model::attribute(n, "auto_pad").set_s("SAME_UPPER"); }, kUnsupported);
  pool([](NodeProto& n) { Model::integers(n, "dilations", {2, 2}); }, kUnsupported);
  pool([](NodeProto& n) { Model::integer(n, "ceil_mode", 1); }, kUnsupported);
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
  Model sum({2, 2, 2});
  sum.node("Flatten", {"x"}, "f");
  sum.node("Add", {"x", "f"});
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
