// ONNX's own backend tests, from Debian's libonnx-testdata: every one whose operators are all read here.
//
// A test is a model, its inputs and the outputs they must give. The first input is the net's; the others are bound as
// initialisers, since weights, bounds and sizes are constants here. Of several outputs each is a net of its own. The
// first axis is the batch where that can be, and else an axis of the one item, as it is without an input. Outputs are
// compared as ONNX does, within 1e-7 + 1e-3 |expected|: those of the plain definitions (tests/gpu/reference.hpp), which
// judge the parser, and those of the CPU device.
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <span>

#include "gpu/device.hpp"
#include "gpu/onnx.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

const std::filesystem::path kData = "/usr/share/libonnx-testdata/data";

const std::set<std::string> kOperators{"Add",
                                       "AveragePool",
                                       "BatchNormalization",
                                       "Clip",
                                       "Concat",
                                       "Constant",
                                       "Conv",
                                       "Div",
                                       "Dropout",
                                       "Flatten",
                                       "Gemm",
                                       "GlobalAveragePool",
                                       "Identity",
                                       "InstanceNormalization",
                                       "LayerNormalization",
                                       "MatMul",
                                       "MaxPool",
                                       "Mul",
                                       "Neg",
                                       "ReduceMean",
                                       "Reciprocal",
                                       "Relu",
                                       "Reshape",
                                       "Slice",
                                       "Split",
                                       "Sqrt",
                                       "Squeeze",
                                       "Sub",
                                       "Transpose",
                                       "Unsqueeze"};

template <class Message>
bool read(const std::filesystem::path& file, Message& into) {
  std::ifstream in(file, std::ios::binary);
  return in && into.ParseFromIstream(&in);
}

struct Tensor {
  Dims dims;
  std::vector<float> values;
};

Tensor tensor(const onnx::TensorProto& proto) {
  Tensor out{{proto.dims().begin(), proto.dims().end()}, {proto.float_data().begin(), proto.float_data().end()}};
  if (!proto.raw_data().empty()) {
    out.values.resize(proto.raw_data().size() / sizeof(float));
    std::memcpy(out.values.data(), proto.raw_data().data(), out.values.size() * sizeof(float));
  }
  return out;
}

// Numbers within ONNX's own tolerance, in the same places.
bool close(const std::vector<float>& got, const std::vector<float>& wanted) {
  return std::equal(got.begin(), got.end(), wanted.begin(), wanted.end(), [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) ||
           std::abs(static_cast<double>(a) - b) <= 1e-7 + 1e-3 * std::abs(static_cast<double>(b));
  });
}

struct Parsed {
  Network net;
  int batch = 1;
};

class BackendTests : public testing::Test {
 protected:
  void run_all(const std::string& kind) {
    std::vector<std::filesystem::path> directories;
    for (const auto& entry : std::filesystem::directory_iterator(kData / kind)) directories.push_back(entry.path());
    std::sort(directories.begin(), directories.end());
    for (const auto& directory : directories) run(directory);
  }

  void run(const std::filesystem::path& directory) {
    onnx::ModelProto model;
    if (!read(directory / "model.onnx", model)) return skip("no model in the package", directory.filename());
    for (const auto& node : model.graph().node())
      if (!kOperators.contains(node.op_type()) || !(node.domain().empty() || node.domain() == "ai.onnx"))
        return skip("operator " + node.op_type() + " not read", directory.filename());
    for (const auto& set : std::filesystem::directory_iterator(directory))
      if (set.is_directory()) run(directory.filename(), set.path(), model);
  }

  // One set of inputs and outputs: the model with all inputs but the first bound, once for each output.
  void run(const std::string& name, const std::filesystem::path& set, onnx::ModelProto model) {
    auto& graph = *model.mutable_graph();
    std::set<std::string> bound;
    for (const auto& weight : graph.initializer()) bound.insert(weight.name());
    Tensor input;
    input_ = nullptr;
    int number = 0;
    for (auto& value : *graph.mutable_input()) {
      if (bound.contains(value.name())) continue;
      if (!value.type().has_tensor_type()) return skip("type not a tensor", name);
      onnx::TensorProto data;
      ASSERT_TRUE(read(set / ("input_" + std::to_string(number) + ".pb"), data)) << name;
      if (number++ == 0) {
        if (data.data_type() != onnx::TensorProto::FLOAT) return skip("type not float32", name);
        input = tensor(data);
        input_ = value.mutable_type()->mutable_tensor_type()->mutable_shape();
        continue;
      }
      if (data.data_type() == onnx::TensorProto::DOUBLE) return skip("type not float32", name);
      data.set_name(value.name());
      *graph.add_initializer() = data;
    }
    const auto outputs = graph.output();
    for (int i = 0; i < outputs.size(); ++i) {
      const std::string label = i == 0 ? name : name + ":" + std::to_string(i);
      onnx::TensorProto data;
      ASSERT_TRUE(read(set / ("output_" + std::to_string(i) + ".pb"), data)) << label;
      if (data.data_type() != onnx::TensorProto::FLOAT) {
        skip("type not float32", label);
        continue;
      }
      graph.clear_output();
      *graph.add_output() = outputs[i];
      judge(label, model, input, tensor(data));
    }
  }

  void judge(const std::string& label, const onnx::ModelProto& model, const Tensor& input, const Tensor& wanted) {
    std::string why;
    const auto parsed = parse(model, input, why);
    ASSERT_TRUE(parsed) << label << ": " << why;
    Dims made = infer_shapes(parsed->net)->back();
    if (batched_) made.insert(made.begin(), parsed->batch);
    EXPECT_EQ(made, wanted.dims) << label;
    EXPECT_TRUE(close(reference::forward(parsed->net, input.values), wanted.values)) << label;
    EXPECT_TRUE(close(reference::forward(simplified(parsed->net), input.values), wanted.values))
        << label << ", simplified";
    ++passed_;
    on_device(label, *parsed, input, wanted);
  }

  // With the first axis as the batch where that can be.
  std::optional<Parsed> parse(const onnx::ModelProto& model, const Tensor& input, std::string& why) {
    why.clear();
    for (const bool batched : {true, false}) {
      if (batched && !input.dims.empty() && input.dims[0] == 0) continue;  // a batch of none
      if (input_) input_->clear_dim();
      for (std::size_t i = 0; i < input.dims.size(); ++i) {
        auto& dim = *input_->add_dim();
        if (batched && i == 0) {
          dim.set_dim_param("N");
        } else {
          dim.set_dim_value(input.dims[i]);
        }
      }
      const std::string bytes = model.SerializeAsString();
      auto net = parse_onnx(std::as_bytes(std::span(bytes)), "backend", {.first_axis_is_batch = batched});
      batched_ = batched;
      if (net) return Parsed{std::move(*net), batched ? static_cast<int>(input.dims[0]) : 1};
      why += (batched ? "as a batch: " : "; as one item: ") + net.error().what;
    }
    return std::nullopt;
  }

  void on_device(const std::string& label, const Parsed& parsed, const Tensor& input, const Tensor& wanted) {
    const auto compiled = device_->compile(parsed.net, {parsed.batch});
    ASSERT_TRUE(compiled) << label << ": " << compiled.error().what;
    std::vector<float> got(wanted.values.size());
    const auto ran = (*compiled)->run(input.values, got);
    ASSERT_TRUE(ran) << label << ": " << ran.error().what;
    EXPECT_TRUE(close(got, wanted.values)) << label << " on the CPU device";
  }

  void skip(const std::string& reason, const std::string& label) { skipped_[reason].push_back(label); }

  void report() const {
    std::printf("ONNX backend tests: %d outputs as expected, by the definitions and by the CPU device\n", passed_);
    std::size_t by_operator = 0;
    for (const auto& [reason, labels] : skipped_) {
      if (reason.starts_with("operator")) {
        by_operator += labels.size();
        continue;
      }
      std::printf("  skipped, %s: %zu:", reason.c_str(), labels.size());
      for (const auto& label : labels) std::printf(" %s", label.c_str());
      std::printf("\n");
    }
    std::printf("  skipped, operators not read: %zu:", by_operator);
    for (const auto& [reason, labels] : skipped_)
      if (reason.starts_with("operator"))
        std::printf(" %s %zu", reason.substr(9, reason.size() - 18).c_str(), labels.size());
    std::printf("\n");
  }

  std::unique_ptr<Device> device_ = std::move(make_cpu_device({}).value());
  onnx::TensorShapeProto* input_ = nullptr;  // the sizes of the net's input, in the model that is being judged; or none
  bool batched_ = true;
  int passed_ = 0;
  std::map<std::string, std::vector<std::string>> skipped_;  // by reason
};

TEST_F(BackendTests, PassForEveryOperatorThatIsRead) {
  if (!std::filesystem::exists(kData)) GTEST_SKIP() << "Debian's libonnx-testdata is not installed";
  for (const char* kind : {"node", "simple", "pytorch-converted", "pytorch-operator"}) run_all(kind);
  report();
  EXPECT_GE(passed_, 304);
}

}  // namespace
}  // namespace coppice::gpu
