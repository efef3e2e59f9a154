// Any bytes as an ONNX model: refused, or a net that can be simplified and written without changing its shape.
#include <google/protobuf/stubs/logging.h>

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
  std::vector<std::string> out;
  for (const auto& net : nets) {
    const auto bytes = to_onnx(net).value();
    out.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return out;
}
