#include "gpu/onnx_attributes.hpp"

#include <onnx/onnx_pb.h>

#include <algorithm>
#include <utility>

namespace coppice::gpu {
namespace {

// So much padding that the output is the input's size by the stride, rounded up; the odd pixel goes to the end or not.
void pad_same(WindowAxis& axis, std::int64_t size, bool more_after) {
  const auto out = (size + axis.stride - 1) / axis.stride;
  const auto total = std::max<std::int64_t>(0, (out - 1) * axis.stride + axis.span() - size);
  axis.before = more_after ? total / 2 : (total + 1) / 2;
  axis.after = total - axis.before;
}

// Whether windows reach further than the padding did.
bool pad_for_ceiling(WindowAxis& axis, std::int64_t size) {
  const auto room = size + axis.before + axis.after - axis.span();
  if (room < 0) return false;                                        // infer_shape says that no window fits
  auto last = (room + axis.stride - 1) / axis.stride * axis.stride;  // where the last window begins
  if (last >= size + axis.before) last -= axis.stride;
  const auto needed = last + axis.span() - size - axis.before;
  const bool overhangs = needed > axis.after;
  axis.after = std::max(axis.after, needed);
  return overhangs;
}

}  // namespace

const onnx::AttributeProto* attribute(const onnx::NodeProto& node, const std::string& name) {
  for (const auto& a : node.attribute())
    if (a.name() == name) return &a;
  return nullptr;
}
std::int64_t integer(const onnx::NodeProto& node, const std::string& name, std::int64_t otherwise) {
  const auto* a = attribute(node, name);
  return a ? a->i() : otherwise;
}
float real(const onnx::NodeProto& node, const std::string& name, float otherwise) {
  const auto* a = attribute(node, name);
  return a ? a->f() : otherwise;
}
Dims integers(const onnx::NodeProto& node, const std::string& name, Dims otherwise) {
  const auto* a = attribute(node, name);
  return a ? Dims(a->ints().begin(), a->ints().end()) : std::move(otherwise);
}

Expected<Sliding> sliding(const onnx::NodeProto& node, const std::string& at, const Dims& sizes, const Dims& kernel) {
  const auto axes = sizes.size();
  const Dims kernels = integers(node, "kernel_shape", kernel), strides = integers(node, "strides", Dims(axes, 1)),
             dilations = integers(node, "dilations", Dims(axes, 1)), pads = integers(node, "pads", Dims(2 * axes, 0));
  if (axes < 1 || axes > 3) return unsupported(at + ": only one, two or three spatial axes");
  if (kernels.size() != axes || strides.size() != axes || dilations.size() != axes || pads.size() != 2 * axes)
    return unsupported(at + ": its kernel_shape, strides, dilations and pads are not those of " + std::to_string(axes) +
                       " axes");
  const auto* automatic = attribute(node, "auto_pad");
  const std::string padding = automatic && !automatic->s().empty() ? automatic->s() : "NOTSET";
  if (padding != "NOTSET" && padding != "VALID" && padding != "SAME_UPPER" && padding != "SAME_LOWER")
    return unsupported(at + ": auto_pad " + padding);
  Sliding out;
  std::vector<WindowAxis> read(3 - axes);  // of what is one pixel high, or one plane deep
  for (std::size_t i = 0; i < axes; ++i) {
    WindowAxis axis{kernels[i], strides[i], pads[i], pads[axes + i], dilations[i]};
    if (padding != "NOTSET") axis.before = axis.after = 0;
    if (!axis.in_bounds()) return fault(ErrorCode::shape_mismatch, at + ": its window is out of bounds");
    if (padding.starts_with("SAME")) pad_same(axis, sizes[i], padding == "SAME_UPPER");
    out.padded |= axis.before + axis.after > 0;
    if (integer(node, "ceil_mode", 0) != 0) out.overhangs |= pad_for_ceiling(axis, sizes[i]);
    read.push_back(axis);
  }
  const auto &d = read[0], &h = read[1], &w = read[2];
  out.window = {h.kernel,   w.kernel,   h.stride, w.stride, h.before, w.before, h.after,   w.after,
                h.dilation, w.dilation, d.kernel, d.stride, d.before, d.after,  d.dilation};
  return out;
}

}  // namespace coppice::gpu
