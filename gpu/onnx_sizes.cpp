// Sizes that a graph computes of shapes which are known here: integers are worked out while the graph is read. What
// exporters write for x.view(x.size(0), -1) or for half of the channels.
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kNumbersMax = 65'536;  // of one result: a graph may join a list with itself again and again

// None where the result does not fit or is not defined. The size of the batch is no number to compute with.
std::optional<std::int64_t> computed(const std::string& type, std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (a == kBatchSize || b == kBatchSize) return std::nullopt;
  if (type == "Add") return __builtin_add_overflow(a, b, &out) ? std::nullopt : std::optional(out);
  if (type == "Sub") return __builtin_sub_overflow(a, b, &out) ? std::nullopt : std::optional(out);
  if (type == "Mul") return __builtin_mul_overflow(a, b, &out) ? std::nullopt : std::optional(out);
  if (b == 0 || (b == -1 && a == std::numeric_limits<std::int64_t>::min())) return std::nullopt;
  return a / b;
}

}  // namespace

bool OnnxReader::computes_sizes(const onnx::NodeProto& n) const {
  constexpr std::array kTypes{"Gather", "Cast", "Concat", "Slice", "Add", "Sub", "Mul", "Div"};
  if (std::find(kTypes.begin(), kTypes.end(), n.op_type()) == kTypes.end() || n.input_size() == 0) return false;
  for (int i = 0; i < n.input_size(); ++i)
    if (const auto w = weight(n, i); given(n, i) && (!w || !w->values.empty() || w->integers.empty())) return false;
  return given(n, 0);
}

OnnxReader::Done OnnxReader::sizes(const onnx::NodeProto& n) {
  auto made = n.op_type() == "Gather"   ? gathered(n)
              : n.op_type() == "Concat" ? joined(n)
              : n.op_type() == "Slice"  ? cut_sizes(n)
              : n.op_type() == "Cast"   ? cast(n)
                                        : arithmetic(n);
  if (!made) return unexpected(made.error());
  if (made->integers.size() > kNumbersMax) return malformed(at_ + ": more than 65,536 sizes");
  return give(n, std::move(*made));
}

OnnxReader::Done OnnxReader::shape_of(const onnx::NodeProto& n) {
  const auto v = value(n, 0);
  const auto w = weight(n, 0);
  if (!v && !w) return malformed(at_ + ": its input is made by no earlier node");
  Dims dims = v ? whole(*v) : w->dims;
  if (v && options_.first_axis_is_batch) dims.front() = kBatchSize;
  const auto rank = static_cast<std::int64_t>(dims.size());
  const auto bound = [&](const char* name, std::int64_t otherwise) {
    const auto at = integer(n, name, otherwise);
    return std::clamp<std::int64_t>(at < 0 ? at + rank : at, 0, rank);
  };
  const auto begin = bound("start", 0), end = std::max(begin, bound("end", rank));
  return give(n, Weight{{end - begin}, {}, {dims.begin() + begin, dims.begin() + end}});
}

Expected<Weight> OnnxReader::gathered(const onnx::NodeProto& n) const {
  const auto from = weight(n, 0), indices = weight(n, 1);
  if (!indices || from->dims.size() != 1 || integer(n, "axis", 0) != 0)
    return unsupported(at_ + ": of constants only a list of sizes is gathered from");
  Weight out{indices->dims, {}, {}};
  const auto size = from->dims[0];
  for (const auto index : indices->integers) {
    if (index < -size || index >= size)
      return fault(ErrorCode::shape_mismatch, at_ + ": has no index " + std::to_string(index));
    out.integers.push_back(from->integers[static_cast<std::size_t>(index < 0 ? index + size : index)]);
  }
  return out;
}

Expected<Weight> OnnxReader::joined(const onnx::NodeProto& n) const {
  Weight out;
  for (int i = 0; i < n.input_size(); ++i) {
    const auto part = weight(n, i);
    if (!part || part->dims.size() != 1) return unsupported(at_ + ": of constants only lists of sizes are joined");
    out.integers.insert(out.integers.end(), part->integers.begin(), part->integers.end());
    if (out.integers.size() > kNumbersMax) break;
  }
  out.dims = {static_cast<std::int64_t>(out.integers.size())};
  return out;
}

Expected<Weight> OnnxReader::cut_sizes(const onnx::NodeProto& n) const {
  const auto from = weight(n, 0);
  const auto starts = numbers(n, 1, "starts", 10), ends = numbers(n, 2, "ends", 10), steps = numbers(n, 4, "steps", 10);
  for (const auto* each : {&starts, &ends, &steps})
    if (!*each) return unexpected(each->error());
  if (from->dims.size() != 1 || !*starts || !*ends || (*starts)->size() != 1 || (*ends)->size() != 1 ||
      (*steps && **steps != Dims{1}))
    return unsupported(at_ + ": of constants only a list of sizes is cut");
  const auto size = from->dims[0];
  const auto place = [&](std::int64_t at) { return std::clamp<std::int64_t>(at < 0 ? at + size : at, 0, size); };
  const auto begin = place((*starts)->front()), end = std::max(begin, place((*ends)->front()));
  return Weight{{end - begin}, {}, {from->integers.begin() + begin, from->integers.begin() + end}};
}

Expected<Weight> OnnxReader::cast(const onnx::NodeProto& n) const {
  const auto to = integer(n, "to", 0);
  if (to != onnx::TensorProto::INT32 && to != onnx::TensorProto::INT64)
    return unsupported(at_ + ": sizes stay integers");
  return *weight(n, 0);
}

Expected<Weight> OnnxReader::arithmetic(const onnx::NodeProto& n) const {
  const auto a = weight(n, 0), b = weight(n, 1);
  if (!a || !b) return malformed(at_ + " has not two inputs");
  const auto a_size = a->integers.size(), b_size = b->integers.size();
  if (a_size != b_size && a_size != 1 && b_size != 1)
    return fault(ErrorCode::shape_mismatch, at_ + ": sizes of " + to_string(a->dims) + " and " + to_string(b->dims));
  const bool like_a = a_size > b_size || (a_size == b_size && a->dims.size() >= b->dims.size());
  Weight out{like_a ? a->dims : b->dims, {}, {}};
  for (std::size_t i = 0; i < std::max(a_size, b_size); ++i) {
    const auto value = computed(n.op_type(), a->integers[a_size == 1 ? 0 : i], b->integers[b_size == 1 ? 0 : i]);
    if (!value) return unsupported(at_ + ": computes with the size of the batch, or beyond 64 bits");
    out.integers.push_back(*value);
  }
  return out;
}

}  // namespace coppice::gpu
