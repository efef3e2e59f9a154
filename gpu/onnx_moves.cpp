// Operators that only move numbers: of values as nodes of the net, of constants right away.
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

constexpr std::int64_t kElementsMax = std::int64_t{1} << 31;

// The product, or none where it passes what a tensor may have, by any of its axes. REQUIRES: no negative numbers.
std::optional<std::int64_t> bounded_elements(const Dims& dims) {
  std::int64_t out = 1;
  for (const auto dim : dims) {
    if (dim > 0 && out > kElementsMax / dim) return std::nullopt;
    out *= std::max<std::int64_t>(dim, 1);
  }
  return std::find(dims.begin(), dims.end(), 0) == dims.end() ? out : 0;
}

// to[...] = from[...] with axis i of the result taken from axis order[i].
template <class Value>
std::vector<Value> transposed(const std::vector<Value>& from, const Dims& dims, const std::vector<int>& order) {
  if (from.empty()) return {};
  std::vector<std::size_t> steps(dims.size(), 1), at(dims.size(), 0);
  for (std::size_t i = dims.size(); i-- > 1;) steps[i - 1] = steps[i] * static_cast<std::size_t>(dims[i]);
  std::vector<Value> to;
  to.reserve(from.size());
  while (to.size() < from.size()) {
    std::size_t source = 0;
    for (std::size_t i = 0; i < order.size(); ++i) source += at[i] * steps[static_cast<std::size_t>(order[i])];
    to.push_back(from[source]);
    for (std::size_t i = order.size(); i-- > 0;) {
      if (++at[i] < static_cast<std::size_t>(dims[static_cast<std::size_t>(order[i])])) break;
      at[i] = 0;
    }
  }
  return to;
}

// A begin or an end as Slice counts it: from the back where negative, cut off at the ends.
std::int64_t cut(std::int64_t index, std::int64_t size) {
  return std::clamp<std::int64_t>(index < 0 ? index + size : index, 0, size);
}

}  // namespace

OnnxReader::Done OnnxReader::constant_operator(const onnx::NodeProto& n) {
  for (const auto& a : n.attribute()) {
    if (a.name() == "value" && a.has_t()) {
      auto w = read_tensor(a.t(), file_, external_);
      return w ? give(n, std::move(*w)) : unexpected(w.error());
    }
    if (a.name() == "value_float") return give(n, Weight{{}, {a.f()}, {}});
    if (a.name() == "value_int") return give(n, Weight{{}, {}, {a.i()}});
    if (a.name() == "value_floats")
      return give(n, Weight{{a.floats_size()}, {a.floats().begin(), a.floats().end()}, {}});
    if (a.name() == "value_ints") return give(n, Weight{{a.ints_size()}, {}, {a.ints().begin(), a.ints().end()}});
  }
  return unsupported(at_ + ": only numbers and tensors of them");
}

// ---- Reshape, Flatten, Squeeze, Unsqueeze ----

OnnxReader::Done OnnxReader::move(const onnx::NodeProto& n, int in) {
  auto to = moved(n, whole(in), options_.first_axis_is_batch);
  if (to) to = item(std::move(*to));
  if (!to) return unexpected(to.error());
  return give(n, reshape(in, *to));
}

OnnxReader::Done OnnxReader::move(const onnx::NodeProto& n, const Weight& constants) {
  if (n.op_type() == "Identity") {
    weights_[n.output(0)] = weight(n, 0);
    return {};
  }
  if (auto ok = count(constants.values.size() + constants.integers.size()); !ok) return ok;
  Weight made = constants;
  if (n.op_type() == "Transpose") {
    const auto axes = order(n, constants.dims.size());
    if (!axes) return unexpected(axes.error());
    for (std::size_t i = 0; i < axes->size(); ++i) made.dims[i] = constants.dims[static_cast<std::size_t>((*axes)[i])];
    made.values = transposed(constants.values, constants.dims, *axes);
    made.integers = transposed(constants.integers, constants.dims, *axes);
    return give(n, std::move(made));
  }
  auto to = moved(n, constants.dims, false);
  if (!to) return unexpected(to.error());
  made.dims = std::move(*to);
  return give(n, std::move(made));
}

// batched: the first axis is the batch, stands as 1 and must stay where it is.
Expected<Dims> OnnxReader::moved(const onnx::NodeProto& n, const Dims& whole, bool batched) const {
  if (n.op_type() == "Reshape") return reshaped(n, whole);
  if (n.op_type() == "Flatten") return flattened(n, whole, batched);
  if (n.op_type() == "Squeeze") return squeezed(n, whole, batched);
  return unsqueezed(n, whole, batched);
}

Expected<Dims> OnnxReader::reshaped(const onnx::NodeProto& n, const Dims& whole) const {
  const auto target = numbers(n, 1, "shape", 5);
  if (!target) return unexpected(target.error());
  if (!*target) return unsupported(at_ + ": its shape is not given");
  Dims to = **target;
  if (!to.empty() && to[0] == kBatchSize && options_.first_axis_is_batch) to[0] = 1;
  const auto mismatch = [&] {
    return fault(ErrorCode::shape_mismatch, at_ + ": cannot make " + to_string(**target) + " of " + to_string(whole));
  };
  std::optional<std::size_t> open;
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (to[i] == 0 && integer(n, "allowzero", 0) == 0) {
      if (i >= whole.size()) return mismatch();
      to[i] = whole[i];
    }
    if (to[i] < -1 || (to[i] == -1 && open)) return mismatch();
    if (to[i] == -1) {
      open = i;
      to[i] = 1;
    }
  }
  const auto size = bounded_elements(to), wanted = bounded_elements(whole);
  if (!size || !wanted || (open ? *size == 0 || *wanted % *size != 0 : *size != *wanted)) return mismatch();
  if (open) to[*open] = *wanted / *size;
  return to;
}

Expected<Dims> OnnxReader::flattened(const onnx::NodeProto& n, const Dims& whole, bool batched) const {
  const auto rank = static_cast<std::int64_t>(whole.size());
  auto axis = integer(n, "axis", 1);
  if (axis < -rank || axis > rank)
    return fault(ErrorCode::shape_mismatch, at_ + ": has no axis " + std::to_string(axis));
  if (axis < 0) axis += rank;
  if (batched && axis != 1) return unsupported(at_ + ": only axis 1 leaves the batch as it is");
  const auto middle = whole.begin() + axis;
  return Dims{elements(Dims(whole.begin(), middle)), elements(Dims(middle, whole.end()))};
}

// Which axes are meant, each at most once, the batch's never.
Expected<std::vector<bool>> OnnxReader::chosen(const Dims& axes, std::size_t rank, bool batched) const {
  std::vector<bool> out(rank, false);
  const auto end = static_cast<std::int64_t>(rank);
  for (const auto axis : axes) {
    if (axis < -end || axis >= end || out[static_cast<std::size_t>(axis < 0 ? axis + end : axis)])
      return fault(ErrorCode::shape_mismatch, at_ + ": has no axis " + std::to_string(axis) + ", or has it twice");
    out[static_cast<std::size_t>(axis < 0 ? axis + end : axis)] = true;
  }
  if (batched && rank > 0 && out[0]) return unsupported(at_ + ": its first axis is the batch");
  return out;
}

Expected<Dims> OnnxReader::squeezed(const onnx::NodeProto& n, const Dims& whole, bool batched) const {
  const auto axes = numbers(n, 1, "axes", 13);
  if (!axes) return unexpected(axes.error());
  if (!*axes && batched) return unsupported(at_ + ": names no axes, and one of them is the batch");
  Dims ones;
  for (std::size_t i = 0; i < whole.size(); ++i)
    if (whole[i] == 1) ones.push_back(static_cast<std::int64_t>(i));
  const auto gone = chosen(*axes ? **axes : ones, whole.size(), batched);
  if (!gone) return unexpected(gone.error());
  Dims to;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if ((*gone)[i] && whole[i] != 1)
      return fault(ErrorCode::shape_mismatch,
                   at_ + ": axis " + std::to_string(i) + " of " + to_string(whole) + " is not 1");
    if (!(*gone)[i]) to.push_back(whole[i]);
  }
  return to;
}

Expected<Dims> OnnxReader::unsqueezed(const onnx::NodeProto& n, const Dims& whole, bool batched) const {
  const auto axes = numbers(n, 1, "axes", 13);
  if (!axes) return unexpected(axes.error());
  if (!*axes || (*axes)->size() > 8) return malformed(at_ + ": its axes are not given, or too many");
  const auto added = chosen(**axes, whole.size() + (*axes)->size(), batched);
  if (!added) return unexpected(added.error());
  Dims to;
  auto next = whole.begin();
  for (const bool is_new : *added) to.push_back(is_new ? 1 : *next++);
  return to;
}

// ---- Transpose, Concat ----

Expected<std::vector<int>> OnnxReader::order(const onnx::NodeProto& n, std::size_t rank) const {
  Dims reversed(rank);
  std::iota(reversed.rbegin(), reversed.rend(), 0);
  const Dims perm = integers(n, "perm", reversed);
  const auto all = chosen(perm, rank, false);
  if (!all || perm.size() != rank || std::any_of(perm.begin(), perm.end(), [](auto axis) { return axis < 0; }))
    return fault(ErrorCode::shape_mismatch, at_ + ": its perm is no permutation of " + std::to_string(rank) + " axes");
  return std::vector<int>(perm.begin(), perm.end());
}

OnnxReader::Done OnnxReader::transpose(const onnx::NodeProto& n, int in) {
  auto axes = order(n, whole(in).size());
  if (!axes) return unexpected(axes.error());
  if (options_.first_axis_is_batch) {
    if (axes->front() != 0) return unsupported(at_ + ": moves the batch axis");
    axes->erase(axes->begin());
    for (int& axis : *axes) --axis;
  }
  return give(n, make(Transpose{std::move(*axes)}, {in}));
}

OnnxReader::Done OnnxReader::concat(const onnx::NodeProto& n) {
  std::optional<std::size_t> rank;  // of the items
  for (int i = 0; i < n.input_size(); ++i) {
    if (!value(n, i) && !weight(n, i))
      return malformed(at_ + ": its input " + n.input(i) + " is made by no earlier node");
    if (const auto v = value(n, i); v && !rank) rank = shape(*v).size();
  }
  if (!rank) return unsupported(at_ + ": joins constants only");
  if (opset_ >= 4 && !attribute(n, "axis")) return malformed(at_ + ": its axis is not given");
  const auto axis = item_axis(integer(n, "axis", 1), *rank + (options_.first_axis_is_batch ? 1 : 0));
  if (!axis) return unexpected(axis.error());
  std::vector<int> inputs;
  for (int i = 0; i < n.input_size(); ++i) {
    if (const auto v = value(n, i)) {
      inputs.push_back(*v);
      continue;
    }
    const auto dims = item_dims(*weight(n, i), *rank);
    if (!dims) return unexpected(dims.error());
    const auto made = constant_value(*weight(n, i), *dims);
    if (!made) return unexpected(made.error());
    inputs.push_back(*made);
  }
  return give(n, make(Concat{*axis}, std::move(inputs)));
}

// ---- Slice, Split ----

// Backwards or with gaps, one by one; Concat takes no more than 4096.
int OnnxReader::stepped(int in, int axis, std::int64_t begin, std::int64_t step, std::int64_t count) {
  std::vector<int> parts;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = begin + i * step;
    parts.push_back(make(Slice{axis, at, at + 1}, {in}));
  }
  return make(Concat{axis}, std::move(parts));
}

// One axis of a Slice, as ONNX counts it.
Expected<int> OnnxReader::sliced(int in, std::int64_t at, std::int64_t begin, std::int64_t end, std::int64_t step) {
  const Dims sizes = whole(in);
  if (at < 0) at += static_cast<std::int64_t>(sizes.size());
  // All of an axis is the one thing that a batch can be cut to.
  const bool all = begin == 0 && end >= std::numeric_limits<std::int32_t>::max() && step == 1;
  if (options_.first_axis_is_batch && at == 0 && all) return in;
  const auto axis = item_axis(at, sizes.size());
  if (!axis) return unexpected(axis.error());
  const auto size = sizes[static_cast<std::size_t>(at)];
  if (step == 0) return malformed(at_ + ": a step of 0");
  const auto from = step > 0 ? cut(begin, size) : std::min(cut(begin, size), size - 1);
  // Backwards, the end is where nothing is taken any more: one before the first at the least.
  const auto to = step > 0 ? cut(end, size) : end < -size ? -1 : cut(end, size);
  if (step > 0 ? from >= to : from <= to) return make(Slice{*axis, 0, 0}, {in});
  if (step == 1) return to - from < size ? make(Slice{*axis, from, to}, {in}) : in;
  const auto length = step > 0 ? to - from : from - to;
  const auto pace = step > 0 ? std::min(step, size) : step < -size ? size : -step;  // either takes the first alone
  const auto count = (length + pace - 1) / pace;
  if (count > 4'096) return unsupported(at_ + ": steps other than 1 to more than 4096 places");
  return stepped(in, *axis, from, step > 0 ? pace : -pace, count);
}

OnnxReader::Done OnnxReader::slice(const onnx::NodeProto& n, int in) {
  const auto starts = numbers(n, 1, "starts", 10), ends = numbers(n, 2, "ends", 10), named = numbers(n, 3, "axes", 10),
             steps = numbers(n, 4, "steps", 10);
  for (const auto* each : {&starts, &ends, &named, &steps})
    if (!*each) return unexpected(each->error());
  if (!*starts || !*ends || (*starts)->size() != (*ends)->size())
    return malformed(at_ + ": its starts and ends do not go together");
  const auto count = (*starts)->size();
  Dims axes(count);
  std::iota(axes.begin(), axes.end(), 0);
  if (*named) axes = **named;
  const Dims paces = *steps ? **steps : Dims(count, 1);
  if (axes.size() != count || paces.size() != count)
    return malformed(at_ + ": its starts, ends, axes and steps do not go together");
  const auto once = chosen(axes, whole(in).size(), false);
  if (!once) return unexpected(once.error());
  int out = in;
  for (std::size_t i = 0; i < count; ++i) {
    const auto part = sliced(out, axes[i], (**starts)[i], (**ends)[i], paces[i]);
    if (!part) return unexpected(part.error());
    if (fault_) return unexpected(*fault_);
    out = *part;
  }
  return give(n, out == in ? make(Identity{}, {in}) : out);
}

OnnxReader::Done OnnxReader::split(const onnx::NodeProto& n, int in) {
  if (opset_ < 2 && n.input_size() > 1) return unsupported(at_ + ": split as an input of opset 1");
  const auto given_axis = integer(n, "axis", 0);
  const auto axis = item_axis(given_axis, whole(in).size());
  const auto named = numbers(n, 1, "split", 13);
  if (!axis) return unexpected(axis.error());
  if (!named) return unexpected(named.error());
  const auto size = shape(in)[static_cast<std::size_t>(*axis)];
  const std::int64_t parts = n.output_size();
  if (opset_ >= 18 && !*named && integer(n, "num_outputs", parts) != parts)
    return malformed(at_ + ": num_outputs is not the number of its outputs");
  const auto each = (size + parts - 1) / parts;  // since opset 18 the last part may be smaller
  Dims sizes(static_cast<std::size_t>(parts), each);
  sizes.back() = size - each * (parts - 1);
  if (opset_ < 18 && each * parts != size) sizes.clear();
  if (*named) sizes = **named;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto part = sizes[i];
    if (part < 0 || part > size - begin || sizes.size() != static_cast<std::size_t>(parts)) break;
    const auto& output = n.output(static_cast<int>(i));
    if (!output.empty() && uses_.contains(output)) {
      if (auto ok = give(n, make(Slice{*axis, begin, begin + part}, {in}), static_cast<int>(i)); !ok) return ok;
    }
    begin += part;
    if (i + 1 == sizes.size() && begin == size) return {};
  }
  return fault(ErrorCode::shape_mismatch, at_ + ": does not split " + std::to_string(size) + " in " +
                                              std::to_string(parts) + " parts" + (*named ? " as told" : ""));
}

// Exporters of old opsets write one that adds nothing before each pool.
OnnxReader::Done OnnxReader::pad(const onnx::NodeProto& n, int in) {
  const auto pads = numbers(n, 1, opset_ < 2 ? "paddings" : "pads", 11);
  if (!pads) return unexpected(pads.error());
  if (!*pads || std::any_of((*pads)->begin(), (*pads)->end(), [](auto pad) { return pad != 0; }))
    return unsupported(at_ + ": adds pixels; give them to the layer after it");
  return give(n, make(Identity{}, {in}));
}

}  // namespace coppice::gpu
