// Tensors that lie beside their model: inside its directory, and nowhere else.
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <span>

#include "gpu/file.hpp"
#include "gpu/onnx.hpp"
#include "tests/gpu/scratch.hpp"

namespace coppice::gpu {
namespace {

using Entries = std::vector<std::pair<std::string, std::string>>;

std::string bytes_of(const std::vector<float>& values) {
  std::string out(values.size() * sizeof(float), '\0');
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// y = x W, with W [2, 2] where the entries say.
std::string model(const Entries& entries) {
  onnx::ModelProto proto;
  proto.set_ir_version(7);
  proto.add_opset_import()->set_version(13);
  auto& graph = *proto.mutable_graph();
  auto& input = *graph.add_input();
  input.set_name("x");
  auto& type = *input.mutable_type()->mutable_tensor_type();
  type.set_elem_type(onnx::TensorProto::FLOAT);
  type.mutable_shape()->add_dim()->set_dim_param("N");
  type.mutable_shape()->add_dim()->set_dim_value(2);
  graph.add_output()->set_name("y");
  auto& weight = *graph.add_initializer();
  weight.set_name("w");
  weight.set_data_type(onnx::TensorProto::FLOAT);
  weight.add_dims(2);
  weight.add_dims(2);
  weight.set_data_location(onnx::TensorProto::EXTERNAL);
  for (const auto& [key, value] : entries) {
    auto& entry = *weight.add_external_data();
    entry.set_key(key);
    entry.set_value(value);
  }
  auto& node = *graph.add_node();
  node.set_op_type("MatMul");
  node.add_input("x");
  node.add_input("w");
  node.add_output("y");
  return proto.SerializeAsString();
}

class OnnxExternal : public testing::Test {
 protected:
  OnnxExternal() {
    std::filesystem::create_directories(scratch_ / "net/parts");
    scratch_.write("outside.bin", bytes_of(weights_));
    scratch_.write("net/inside.bin", bytes_of(weights_));
    scratch_.write("net/parts/deeper.bin", "12345678" + bytes_of(weights_));
  }
  Expected<Network> load(const Entries& entries) {
    scratch_.write("net/model.onnx", model(entries));
    return load_onnx(scratch_ / "net/model.onnx");
  }
  void refused(const Entries& entries, ErrorCode code, const std::string& part = "") {
    const auto net = load(entries);
    ASSERT_FALSE(net) << part;
    EXPECT_EQ(net.error().code, code) << net.error().what;
    EXPECT_NE(net.error().what.find("tensor w"), std::string::npos) << net.error().what;
    EXPECT_NE(net.error().what.find(part), std::string::npos) << net.error().what;
  }

  Scratch scratch_;
  const std::vector<float> weights_{1, 2, 3, 4};
};

TEST_F(OnnxExternal, IsReadBeneathTheModel) {
  for (const auto& entries :
       std::vector<Entries>{{{"location", "inside.bin"}},
                            {{"location", "./inside.bin"}, {"offset", "0"}, {"length", "16"}},
                            {{"location", "parts/../inside.bin"}, {"checksum", "unread"}},
                            {{"location", "parts/deeper.bin"}, {"offset", "8"}, {"length", "16"}}}) {
    const auto net = load(entries);
    ASSERT_TRUE(net) << net.error().what;
    EXPECT_EQ(std::get<Dense>(net->nodes.at(0).op).weight, (std::vector<float>{1, 3, 2, 4}));
  }
}

TEST_F(OnnxExternal, IsNotReadForBytesWithoutADirectory) {
  const auto bytes = model({{"location", "inside.bin"}});
  const auto net = parse_onnx(std::as_bytes(std::span(bytes)), "bytes");
  ASSERT_FALSE(net);
  EXPECT_EQ(net.error().code, ErrorCode::malformed);
}

TEST_F(OnnxExternal, DoesNotLeaveTheDirectory) {
  for (const auto& location :
       {std::string("../outside.bin"), std::string("parts/../../outside.bin"), (scratch_ / "outside.bin").string(),
        (scratch_ / "net/inside.bin").string(), std::string("/etc/passwd"), std::string("../net/inside.bin")})
    refused({{"location", location}, {"length", "16"}}, ErrorCode::unreadable, "outside of the directory");
}

TEST_F(OnnxExternal, FollowsNoSymbolicLink) {
  std::filesystem::create_symlink("../outside.bin", scratch_ / "net/out");
  std::filesystem::create_symlink("inside.bin", scratch_ / "net/in");
  std::filesystem::create_directory_symlink("parts", scratch_ / "net/elsewhere");
  std::filesystem::create_directory_symlink("..", scratch_ / "net/up");
  for (const char* location : {"out", "in", "elsewhere/deeper.bin", "up/outside.bin"})
    refused({{"location", location}}, ErrorCode::unreadable, "symbolic links");
}

TEST_F(OnnxExternal, MayItselfBeReachedByALink) {
  std::filesystem::create_directory_symlink("net", scratch_ / "link");
  scratch_.write("net/model.onnx", model({{"location", "inside.bin"}}));
  EXPECT_TRUE(load_onnx(scratch_ / "link/model.onnx"));
}

TEST_F(OnnxExternal, IsAPlainFile) {
  ASSERT_EQ(::mkfifo((scratch_ / "net/pipe").c_str(), 0600), 0);
  refused({{"location", "pipe"}}, ErrorCode::unreadable, "plain file");
  refused({{"location", "parts"}}, ErrorCode::unreadable, "plain file");
  refused({{"location", "absent.bin"}}, ErrorCode::unreadable, "absent.bin");
}

TEST_F(OnnxExternal, HasTheBytesThatTheTensorNeeds) {
  const auto most = std::to_string(std::numeric_limits<std::int64_t>::max());
  for (const auto& offset : {std::string("1"), std::string("16"), std::string("17"), most})
    refused({{"location", "inside.bin"}, {"offset", offset}}, ErrorCode::unreadable, "inside.bin");
  for (const auto& length : {std::string("0"), std::string("15"), std::string("17"), most})
    refused({{"location", "inside.bin"}, {"length", length}}, ErrorCode::malformed, length);
  for (const auto* bad : {"-1", "", "8 ", "0x10", "1e3", "99999999999999999999"})
    for (const auto* key : {"offset", "length"})
      refused({{"location", "inside.bin"}, {key, bad}}, ErrorCode::malformed, "properly");
  refused({}, ErrorCode::malformed, "properly");
  refused({{"location", ""}}, ErrorCode::malformed, "properly");
  refused({{"location", std::string("inside.bin\0x", 12)}}, ErrorCode::unreadable, "no file name");
}

TEST_F(OnnxExternal, IsNeverLongerThanItsFile) {
  const auto more = read_beneath(scratch_ / "net", "inside.bin", 0, std::int64_t{1} << 40);
  ASSERT_FALSE(more);
  EXPECT_EQ(more.error().code, ErrorCode::unreadable);
  EXPECT_FALSE(read_beneath(scratch_ / "net", "inside.bin", -1, 4));
  EXPECT_FALSE(read_beneath(scratch_ / "net", "inside.bin", 0, -4));
  EXPECT_EQ(read_beneath(scratch_ / "net", "inside.bin", 4, 8).value().size(), 8U);
}

}  // namespace
}  // namespace coppice::gpu
