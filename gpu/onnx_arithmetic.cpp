// Sums, differences, products and quotients number by number, means, and the norms that are made of these.
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

using Kind = Arithmetic::Kind;

constexpr std::int64_t kAtOnce = 256;  // numbers that a mean adds up in one go

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

std::vector<float> each(std::vector<float> values, float (*made)(float)) {
  std::transform(values.begin(), values.end(), values.begin(), made);
  return values;
}

// The largest that is at most the root.
std::int64_t divisor_near_root(std::int64_t number) {
  auto divisor = static_cast<std::int64_t>(std::sqrt(static_cast<double>(number)));
  while (number % divisor != 0) --divisor;
  return divisor;
}

float opposite(float value) { return -value; }
float inverse(float value) { return 1 / value; }

}  // namespace

// ---- two inputs ----

// The layer that makes a value, where it takes up one number for each of its outputs, or one for all.
std::optional<OnnxReader::Layer> OnnxReader::layer_of(int in, const Dims& dims, const std::vector<float>& values) {
  if (in < 1 || dims.size() > shape(in).size()) return std::nullopt;
  auto& op = net_.nodes[static_cast<std::size_t>(in) - 1].op;
  auto* conv = std::get_if<Convolution>(&op);
  auto* dense = std::get_if<Dense>(&op);
  const auto outputs = shape(in)[0];
  const bool by_channel = dims.size() == shape(in).size() && std::ssize(values) == outputs && dims[0] == outputs;
  if ((!conv && !dense) || (!by_channel && values.size() != 1)) return std::nullopt;
  return Layer{conv ? &conv->weight : &dense->weight, conv ? &conv->bias : &dense->bias,
               by_channel ? values : std::vector<float>(static_cast<std::size_t>(outputs), values[0])};
}

bool OnnxReader::taken_as_bias(int in, const Dims& dims, const std::vector<float>& values) {
  auto layer = layer_of(in, dims, values);
  if (!layer || !layer->bias->empty()) return false;
  *layer->bias = std::move(layer->each);
  return true;
}

bool OnnxReader::taken_as_factor(int in, const Dims& dims, const std::vector<float>& values) {
  const auto layer = layer_of(in, dims, values);
  if (!layer) return false;
  auto weight = *layer->weight, bias = *layer->bias;
  const auto per_output = weight.size() / layer->each.size();
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] *= layer->each[i / per_output];
  for (std::size_t i = 0; i < bias.size(); ++i) bias[i] *= layer->each[i];
  if (!all_finite(weight) || !all_finite(bias)) return false;
  *layer->weight = std::move(weight);
  *layer->bias = std::move(bias);
  return true;
}

Expected<int> OnnxReader::constant_value(const Weight& w, const Dims& dims) {
  if (w.values.empty()) return unsupported(at_ + ": a constant that is not float32");
  if (auto ok = count(w.values.size()); !ok) return unexpected(ok.error());
  return make(Constant{dims, w.values}, {});
}

int OnnxReader::plus(int in, const Weight& addend, bool may_move) {
  if (fault_) return -1;
  const auto dims = item_dims(addend, shape(in).size());
  if (!dims) return refuse(dims.error());
  if (may_move && taken_as_bias(in, *dims, addend.values)) return in;
  const auto constant = constant_value(addend, *dims);
  return constant ? make(Add{}, {in, *constant}) : refuse(constant.error());
}

// The first axis of the second input goes where `axis` says, before opset 7.
OnnxReader::Done OnnxReader::align(const onnx::NodeProto& n, int in, Weight& second) const {
  const auto rank = static_cast<std::int64_t>(whole(in).size()), axis = integer(n, "axis", 0);
  const bool there = axis >= -rank && axis <= rank;
  const auto after = there ? rank - (axis < 0 ? axis + rank : axis) - static_cast<std::int64_t>(second.dims.size()) : -1;
  if (after < 0) return fault(ErrorCode::shape_mismatch, at_ + ": axis does not fit");
  second.dims.resize(second.dims.size() + static_cast<std::size_t>(after), 1);
  return {};
}

OnnxReader::Done OnnxReader::pairwise(const onnx::NodeProto& n) {
  if (n.input_size() != 2) return malformed(at_ + " has not two inputs");
  const auto a = value(n, 0), b = value(n, 1);
  for (const int i : {0, 1})
    if (!value(n, i) && !weight(n, i))
      return malformed(at_ + ": its input " + n.input(i) + " is made by no earlier node");
  const bool aligned = opset_ < 7 && attribute(n, "axis");
  if (a && b) {
    if (aligned && shape(*a).size() != shape(*b).size()) return unsupported(at_ + ": axis of what is no constant");
    return pairwise(n, *a, *b);
  }
  if (!a && !b) return unsupported(at_ + ": its inputs are two constants");
  Weight constant = *weight(n, a ? 1 : 0);
  if (constant.values.empty()) return unsupported(at_ + ": works with what is not float32");
  if (aligned && !a && whole(*b).size() != constant.dims.size()) return unsupported(at_ + ": axis of what is no constant");
  if (aligned && a)
    if (auto ok = align(n, *a, constant); !ok) return ok;
  return a ? pairwise(n, *a, std::move(constant)) : pairwise(n, std::move(constant), *b);
}

OnnxReader::Done OnnxReader::pairwise(const onnx::NodeProto& n, int a, int b) {
  if (fault_) return unexpected(*fault_);
  if (options_.first_axis_is_batch && shape(a).size() != shape(b).size())
    return unsupported(at_ + ": takes " + to_string(shape(a)) + " and " + to_string(shape(b)) +
                       " of each item, which sets the batch against another axis");
  const std::string& type = n.op_type();
  if (type == "Sub") return give(n, make(Arithmetic{Kind::subtract}, {a, b}));
  if (type == "Mul") return give(n, make(Arithmetic{Kind::multiply}, {a, b}));
  if (type == "Div") return give(n, make(Arithmetic{Kind::divide}, {a, b}));
  return give(n, make(Add{}, {a, b}));
}

OnnxReader::Done OnnxReader::pairwise(const onnx::NodeProto& n, int in, Weight constant) {
  const std::string& type = n.op_type();
  const bool may_move = read_once(n, 0);
  if (type == "Mul") return give(n, times(in, constant, may_move));
  if (type == "Div") {
    const Weight inverted{constant.dims, each(constant.values, inverse), {}};
    return give(n, all_finite(inverted.values) ? times(in, inverted, may_move) : with_constant(Kind::divide, in, constant));
  }
  if (type == "Sub") constant.values = each(std::move(constant.values), opposite);
  return give(n, plus(in, constant, may_move));
}

OnnxReader::Done OnnxReader::pairwise(const onnx::NodeProto& n, Weight constant, int in) {
  const std::string& type = n.op_type();
  const bool may_move = read_once(n, 1);
  if (type == "Mul") return give(n, times(in, constant, may_move));
  if (type == "Div") return give(n, with_constant(Kind::divide, in, constant, true));
  if (type == "Sub") return give(n, plus(times(in, {{}, {-1}, {}}, may_move), constant, may_move));
  return give(n, plus(in, constant, may_move));
}

// ---- one input ----

OnnxReader::Done OnnxReader::opposite_of(const onnx::NodeProto& n, int in) {
  return give(n, times(in, {{}, {-1}, {}}, read_once(n, 0)));
}

OnnxReader::Done OnnxReader::inverse_of(const onnx::NodeProto& n, int in) {
  return give(n, with_constant(Kind::divide, in, {{}, {1}, {}}, true));
}

// Into the layer that makes the value, where there is one; of an image each channel's pixels by a 1x1 convolution, which
// every device runs and learns. A norm would say the same, but not while it learns: it has the batch's statistics then.
int OnnxReader::times(int in, const Weight& factors, bool may_move) {
  if (fault_) return -1;
  const Dims& from = shape(in);
  const auto dims = item_dims(factors, from.size());
  if (!dims) return refuse(dims.error());
  if (!all_finite(factors.values) || elements(from) == 0) return with_constant(Kind::multiply, in, factors);
  if (may_move && taken_as_factor(in, *dims, factors.values)) return in;
  const bool one = factors.values.size() == 1 && dims->size() <= 3;
  if (from.size() != 3 || (!one && *dims != Dims{from[0], 1, 1})) return with_constant(Kind::multiply, in, factors);
  const auto channels = from[0];
  if (const auto ok = count(static_cast<std::size_t>(channels)); !ok) return refuse(ok.error());
  return make(Convolution{{}, channels, channels,
                          one ? std::vector<float>(static_cast<std::size_t>(channels), factors.values[0]) : factors.values, {}}, {in});
}

int OnnxReader::with_constant(Kind kind, int in, const Weight& constant, bool constant_first) {
  if (fault_) return -1;
  const auto dims = item_dims(constant, shape(in).size());
  if (!dims) return refuse(dims.error());
  const auto made = constant_value(constant, *dims);
  if (!made) return refuse(made.error());
  return make(Arithmetic{kind}, constant_first ? std::vector{*made, in} : std::vector{in, *made});
}

// ---- means, and norms by an item's own statistics ----

// Over any axes by way of the two that a global pool takes: those that stay go first. Of many numbers in two stages, since
// pools add them up one after another, and what is lost grows with their number.
int OnnxReader::mean(int in, const std::vector<bool>& gone, bool keep) {
  if (fault_) return -1;
  const Dims from = shape(in);
  std::vector<int> order(from.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_partition(order.begin(), order.end(), [&](int axis) { return !gone[static_cast<std::size_t>(axis)]; });
  Dims to;
  std::int64_t left = 1;
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (!gone[i]) left *= from[i];
    if (!gone[i] || keep) to.push_back(gone[i] ? 1 : from[i]);
  }
  const std::int64_t numbers = elements(from) / left;
  if (gone != std::vector<bool>{false, true, true} || numbers > kAtOnce) {
    const auto row = numbers > kAtOnce ? divisor_near_root(numbers) : 1;
    in = reshape(transpose(in, order), {left, numbers / row, row});
    if (row > 1) in = make(AveragePool{{1, row, 1, row}, false}, {in});
  }
  in = make(GlobalAveragePool{}, {in});
  return fault_ || to == shape(in) ? in : reshape(in, to);
}

OnnxReader::Done OnnxReader::reduce_mean(const onnx::NodeProto& n, int in) {
  const auto rank = whole(in).size();
  const bool global = n.op_type() == "GlobalAveragePool";
  Dims axes(rank);
  std::iota(axes.begin(), axes.end(), 0);
  if (global) {
    if (rank < 3) return fault(ErrorCode::shape_mismatch, at_ + ": has no spatial axes in " + to_string(whole(in)));
    axes.erase(axes.begin(), axes.begin() + 2);
  } else {
    const auto named = numbers(n, 1, "axes", 18);
    if (!named) return unexpected(named.error());
    if (*named && !(*named)->empty()) {
      axes = **named;
    } else if (integer(n, "noop_with_empty_axes", 0) != 0) {
      return give(n, make(Identity{}, {in}));
    }
  }
  std::vector<bool> gone(shape(in).size(), false);
  for (const auto each : axes) {
    const auto axis = item_axis(each, rank);
    if (!axis) return unexpected(axis.error());
    gone[static_cast<std::size_t>(*axis)] = true;
  }
  if (elements(shape(in)) == 0) return unsupported(at_ + ": takes the mean of an empty tensor");
  const bool keep = global || integer(n, "keepdims", 1) != 0;
  if (!keep && std::find(gone.begin(), gone.end(), false) == gone.end())
    return unsupported(at_ + ": leaves one number without an axis");
  return give(n, mean(in, gone, keep));
}

// (x - mean) / sqrt(variance + epsilon), both taken over the axes that go, of which one is left of each. What the mean is
// off by is taken off again: where all numbers are alike, nothing else is left to divide by epsilon's root.
OnnxReader::Standardised OnnxReader::standardise(int in, const std::vector<bool>& gone, float epsilon) {
  Standardised made;
  const int about = mean(in, gone, true), nearly = make(Arithmetic{Kind::subtract}, {in, about});
  const int rest = mean(nearly, gone, true), centred = make(Arithmetic{Kind::subtract}, {nearly, rest});
  made.mean = make(Add{}, {about, rest});
  made.variance = mean(make(Arithmetic{Kind::multiply}, {centred, centred}), gone, true);
  const int small = make(Constant{{1}, {epsilon}}, {});
  made.deviation = make(SquareRoot{}, {make(Add{}, {made.variance, small})});
  made.value = make(Arithmetic{Kind::divide}, {centred, made.deviation});
  return made;
}

// One number a channel, in sizes that meet a value with `spatial` axes behind the channels'.
Expected<Weight> OnnxReader::channel_constant(const onnx::NodeProto& n, int i, std::int64_t channels, std::size_t spatial) {
  Weight made;
  if (auto ok = constant(n, i, "statistic", made.values); !ok) return unexpected(ok.error());
  if (std::ssize(made.values) != channels)
    return fault(ErrorCode::shape_mismatch, at_ + ": its statistics are not one for each of " + std::to_string(channels) + " channels");
  made.dims.assign(spatial + 1, 1);
  made.dims[0] = channels;
  return made;
}

// Scale and shift are inputs 1 and 2.
int OnnxReader::scaled_and_shifted(const onnx::NodeProto& n, int in, std::int64_t channels, std::size_t spatial) {
  const auto scale = channel_constant(n, 1, channels, spatial), shift = channel_constant(n, 2, channels, spatial);
  if (!scale) return refuse(scale.error());
  if (!shift) return refuse(shift.error());
  return plus(times(in, *scale, false), *shift, false);
}

OnnxReader::Done OnnxReader::instance_norm(const onnx::NodeProto& n, int in) {
  const auto rank = whole(in).size(), axes = shape(in).size();
  if (rank < 3) return fault(ErrorCode::shape_mismatch, at_ + ": has no spatial axes in " + to_string(whole(in)));
  if (elements(shape(in)) == 0) return unsupported(at_ + ": takes the mean of an empty tensor");
  const auto stay = axes - (rank - 2);  // the last of them: the channels
  const auto channels = shape(in)[stay - 1];
  std::vector<bool> gone(axes, true);
  std::fill_n(gone.begin(), stay, false);
  const auto made = standardise(in, gone, real(n, "epsilon", 1e-5F));
  return give(n, scaled_and_shifted(n, made.value, channels, rank - 2));
}

OnnxReader::Done OnnxReader::layer_norm(const onnx::NodeProto& n, int in) {
  const auto first = item_axis(integer(n, "axis", -1), whole(in).size());
  if (!first) return unexpected(first.error());
  if (elements(shape(in)) == 0) return unsupported(at_ + ": takes the mean of an empty tensor");
  std::vector<bool> gone(shape(in).size(), false);
  std::fill(gone.begin() + *first, gone.end(), true);
  const auto made = standardise(in, gone, real(n, "epsilon", 1e-5F));
  if (wanted(n, 1))
    if (auto ok = give(n, made.mean, 1); !ok) return ok;
  if (wanted(n, 2))
    if (auto ok = give(n, with_constant(Kind::divide, made.deviation, {{}, {1}, {}}, true), 2); !ok) return ok;
  const auto scale = weight(n, 1), shift = weight(n, 2);
  if (!scale || scale->values.empty() || (given(n, 2) && (!shift || shift->values.empty())))
    return unsupported(at_ + ": its scale or shift is not a float32 constant");
  int out = times(made.value, *scale, false);
  if (shift) out = plus(out, *shift, false);
  if (!fault_ && shape(out) != shape(in)) return fault(ErrorCode::shape_mismatch, at_ + ": its scale or shift has more axes");
  return give(n, out);
}

bool OnnxReader::in_training(const onnx::NodeProto& n) const {
  return integer(n, "training_mode", 0) != 0 || (opset_ < 7 && integer(n, "is_test", 0) == 0);
}

OnnxReader::Done OnnxReader::batch_norm(const onnx::NodeProto& n, int in) {
  if (in_training(n)) return batch_norm_in_training(n, in);
  if (auto ok = needs_batch(); !ok) return ok;
  if (opset_ < 9 && integer(n, "spatial", 1) == 0) return unsupported(at_ + ": statistics of every pixel");
  BatchNorm b;
  b.epsilon = real(n, "epsilon", 1e-5F);
  int i = 1;
  for (auto* into : {&b.scale, &b.shift, &b.mean, &b.variance})
    if (auto ok = constant(n, i++, "statistic", *into); !ok) return ok;
  return give(n, make(std::move(b), {in}));
}

// The statistics are the batch's own, and what training is to keep of them are outputs.
OnnxReader::Done OnnxReader::batch_norm_in_training(const onnx::NodeProto& n, int in) {
  if (options_.first_axis_is_batch)
    return unsupported(at_ + " is in training mode, and so works across the items of a batch; export for inference");
  if (shape(in).size() < 2 || elements(shape(in)) == 0)
    return fault(ErrorCode::shape_mismatch, at_ + ": has no channels in " + to_string(shape(in)));
  const auto channels = shape(in)[1];
  const auto axes = shape(in).size();
  std::vector<bool> gone(axes, true);
  gone[1] = false;
  const auto made = standardise(in, gone, real(n, "epsilon", 1e-5F));
  if (auto ok = give(n, scaled_and_shifted(n, made.value, channels, axes - 2)); !ok) return ok;
  const float momentum = real(n, "momentum", 0.9F);
  for (const int i : {1, 2}) {
    if (!wanted(n, i)) continue;
    const int now = reshape(i == 1 ? made.mean : made.variance, {channels});
    auto before = channel_constant(n, i + 2, channels, 0);
    if (!before) return unexpected(before.error());
    for (float& value : before->values) value *= momentum;
    if (auto ok = give(n, plus(times(now, {{}, {1 - momentum}, {}}, false), *before, false), i); !ok) return ok;
  }
  return {};
}

}  // namespace coppice::gpu
