#include "gpu/onnx.hpp"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <onnx/onnx_pb.h>

#include <utility>

#include "gpu/file.hpp"
#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

Expected<Network> parse(std::span<const std::byte> bytes, const std::string& name, const OnnxOptions& options,
                        ExternalData external) {
  if (static_cast<std::int64_t>(bytes.size()) > kOnnxBytesMax) return malformed(name + ": larger than 512 MiB");
  onnx::ModelProto model;
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  google::protobuf::io::CodedInputStream coded(&stream);
  coded.SetTotalBytesLimit(static_cast<int>(bytes.size()) + 1);
  coded.SetRecursionLimit(64);
  if (bytes.empty() || !model.ParseFromCodedStream(&coded) || !coded.ConsumedEntireMessage() || !model.has_graph())
    return malformed(name + ": not an ONNX model, or cut short");
  return OnnxReader(model, name, options, std::move(external)).read();
}

}  // namespace

Expected<Network> parse_onnx(std::span<const std::byte> bytes, const std::string& name, const OnnxOptions& options) {
  return parse(bytes, name, options, {});
}

Expected<Network> load_onnx(const std::filesystem::path& file, const OnnxOptions& options) {
  const auto bytes = read_file(file, kOnnxBytesMax);
  if (!bytes) return unexpected(bytes.error());
  ExternalData external;
  external.directory = file.parent_path();
  return parse(*bytes, file.string(), options, std::move(external));
}

}  // namespace coppice::gpu
