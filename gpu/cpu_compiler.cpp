#include "gpu/cpu_compiler.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "gpu/cpu_blocked.hpp"
#include "gpu/cpu_fusion.hpp"
#include "gpu/cpu_memory.hpp"

namespace coppice::gpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;
using Place = std::shared_ptr<const Stored>;
constexpr std::int64_t kVectorFloats = 16;  // of AVX-512
constexpr auto kInference = dnnl::prop_kind::forward_inference;

void append(dnnl::post_ops& ops, const Clamp& clamp) {
  if (clamp.idle()) return;
  const bool relu = clamp.low == 0 && clamp.high == Clamp{}.high;
  const auto kind = relu ? dnnl::algorithm::eltwise_relu : dnnl::algorithm::eltwise_clip;
  ops.append_eltwise(1.0F, kind, relu ? 0.0F : clamp.low, relu ? 0.0F : clamp.high);
}

dnnl::primitive_attr attributes(const Fusion& fusion) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (fusion.addend >= 0) ops.append_sum();
  append(ops, fusion.clamp);
  attr.set_post_ops(ops);
  return attr;
}

// A window's axes as oneDNN takes them.
struct Slide {
  memory::dims kernel, strides, dilates, before, after;

  Slide(const Window& w, const Dims& value) {
    for (const auto& axis : axes(w, value)) {
      kernel.push_back(axis.kernel);
      strides.push_back(axis.stride);
      dilates.push_back(axis.dilation - 1);
      before.push_back(axis.before);
      after.push_back(axis.after);
    }
  }
  bool dilated() const {
    return std::any_of(dilates.begin(), dilates.end(), [](auto gap) { return gap > 0; });
  }
};

float* floats(const memory& at) { return static_cast<float*>(at.get_data_handle()); }

class Compiler {
 public:
  Compiler(const Network& net, const std::vector<Dims>& shapes, int batch, const dnnl::engine& engine)
      : net_(net), fusions_(fusions(net, shapes)), space_(engine, batch), stream_(engine), values_(shapes.size()) {
    for (std::size_t i = 0; i < shapes.size(); ++i) values_[i].dims = shapes[i];
    unread_.resize(shapes.size(), 0);
    for (const auto& node : net.nodes)
      for (const int input : node.inputs) ++unread_[static_cast<std::size_t>(input)];
    values_[0].stored = space_.make(space_.plain(net.input), net.input);
  }

  CpuProgram run() && {
    for (std::size_t i = 0; i < net_.nodes.size(); ++i) {
      fusion_ = fusions_[i];
      if (fusion_.result == 0) continue;
      inputs_ = net_.nodes[i].inputs;
      Value made = std::visit(*this, net_.nodes[i].op);
      made.dims = out();
      values_[static_cast<std::size_t>(fusion_.result)] = std::move(made);
      for (const int input : inputs_) --unread_[static_cast<std::size_t>(input)];
      if (fusion_.addend >= 0) --unread_[static_cast<std::size_t>(fusion_.addend)];
    }
    return space_.finish(values_.back());
  }

  Value operator()(const Convolution& c) { return stored(convolution(c, in(), out())); }
  Value operator()(const MaxPool& p) { return pool(p.window, dnnl::algorithm::pooling_max); }
  Value operator()(const AveragePool& p) {
    return pool(p.window, p.count_padding ? dnnl::algorithm::pooling_avg_include_padding
                                          : dnnl::algorithm::pooling_avg_exclude_padding);
  }
  Value operator()(const GlobalAveragePool&) {
    return pool({in().dims[1], in().dims[2], 1, 1, 0, 0, 0, 0}, dnnl::algorithm::pooling_avg_exclude_padding);
  }
  Value operator()(const Identity&) { return in(); }
  Value operator()(const Flatten&) { return stored(space_.reshaped(in(), out())); }
  Value operator()(const Reshape&) { return stored(space_.reshaped(in(), out())); }
  Value operator()(const Relu&) { return clamped({0, Clamp{}.high}); }
  Value operator()(const Clip& clip) { return clamped({clip.low, clip.high}); }
  Value operator()(const Constant& c) { return stored(space_.constant(c.values, c.dims)); }
  Value operator()(const SquareRoot&) { return each(dnnl::algorithm::eltwise_sqrt, 0, 0); }
  Value operator()(const Add&) { return combined(dnnl::algorithm::binary_add, &add_strided); }
  Value operator()(const Arithmetic&);
  Value operator()(const BatchNorm&);
  Value operator()(const Dense&);
  Value operator()(const Slice&);
  Value operator()(const Concat&);
  Value operator()(const ChannelShuffle&);
  Value operator()(const Transpose&);

 private:
  Value& in(std::size_t i = 0) { return values_[static_cast<std::size_t>(inputs_[i])]; }
  const Dims& out() const { return values_[static_cast<std::size_t>(fusion_.result)].dims; }
  static Value stored(Place place) { return {{}, std::move(place), {}}; }

  memory::desc any(const Dims& dims) const {
    memory::dims all{space_.batch()};
    all.insert(all.end(), dims.begin(), dims.end());
    return {all, Type::f32, Tag::any};
  }
  Value clamped(const Clamp& clamp);
  Value each(dnnl::algorithm algorithm, float alpha, float beta);
  Value pool(const Window& w, dnnl::algorithm algorithm);
  Place convolution(const Convolution& c, Value& from, const Dims& to);
  Place plain_convolution(const Convolution& c, Value& from, const Dims& to);
  bool blocked_is_faster(const Convolution& c, const Dims& in, const std::string& other) const;
  Place blocked_convolution(const Convolution& c, Value& from, const Dims& to);
  Place convolution_of_columns(const Convolution& c, Value& from, const Dims& to);
  Value plain_pool(const Window& w, dnnl::algorithm algorithm);
  Value dense_as_convolution(const Dense& d);
  template <class BySteps>  // does the same by steps
  Value combined(dnnl::algorithm algorithm, BySteps by_steps);
  template <class BySteps>
  Value combined_by_steps(BySteps by_steps);
  Place sum_target(const memory::desc& layout, const Stored& convolved);
  bool read_for_the_last_time(int value, const Stored& place) const;
  std::vector<Channel> channels(Value& value);
  memory weights(const std::vector<float>& values, const memory::dims& dims, const memory::desc& wanted);
  Place strided(Value& from, StridedSum::Operand reading);

  const Network& net_;
  const std::vector<Fusion> fusions_;
  Workspace space_;
  dnnl::stream stream_;
  std::vector<Value> values_;
  std::vector<int> unread_;  // of each value: readers that are not compiled yet
  // Of the node that is being compiled.
  Fusion fusion_;
  std::vector<int> inputs_;
};

// Dense and row-major as given; moved into the layout that is wanted, once and for all.
memory Compiler::weights(const std::vector<float>& values, const memory::dims& dims, const memory::desc& wanted) {
  memory from({dims, Type::f32, memory::dims(row_major(dims))}, space_.engine(), const_cast<float*>(values.data()));
  memory to = space_.weights(wanted);
  dnnl::reorder(from, to).execute(stream_, from, to);
  stream_.wait();
  return to;
}

// ---- layers with weights ----

// Whether nothing after the node that is being compiled reads what lies there.
bool Compiler::read_for_the_last_time(int value, const Stored& place) const {
  if (!space_.writable(place)) return false;
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const bool last = i + 1 == values_.size();
    const int others = unread_[i] - (static_cast<int>(i) == value ? 1 : 0);
    if (others <= 0 && !last) continue;
    const auto& v = values_[i];
    if (v.stored && v.stored->buffer == place.buffer) return false;
    for (const auto& channel : v.channels)
      if (channel.from->buffer == place.buffer) return false;
  }
  return true;
}

// The addend, where the convolution may add to it in place; else a copy.
Place Compiler::sum_target(const memory::desc& layout, const Stored& convolved) {
  auto& addend = values_[static_cast<std::size_t>(fusion_.addend)];
  const auto place = space_.in_layout(addend, layout);
  const bool fresh = place != addend.stored;  // moved into the layout just now
  if (fresh || (place->buffer != convolved.buffer && read_for_the_last_time(fusion_.addend, *place))) return place;
  return space_.reordered(*place, layout);
}

// The taps of the kernel that lie within the image for some pixel of the output.
std::vector<ColumnCopy::Tap> useful_taps(const Window& w, const Dims& in, const Dims& out) {
  const auto reaches = [](std::int64_t at, std::int64_t stride, std::int64_t outputs, std::int64_t size) {
    for (std::int64_t i = 0; i < outputs; ++i)
      if (i * stride + at >= 0 && i * stride + at < size) return true;
    return false;
  };
  std::vector<ColumnCopy::Tap> taps;
  for (std::int64_t y = 0; y < w.kernel_h; ++y)
    for (std::int64_t x = 0; x < w.kernel_w; ++x)
      if (reaches(y * w.dilation_h - w.pad_top, w.stride_h, out[1], in[1]) &&
          reaches(x * w.dilation_w - w.pad_left, w.stride_w, out[2], in[2]))
        taps.push_back({y, x});
  return taps;
}

bool few_pixels_for_its_weights(const Convolution& c, const Dims& in, const Dims& out) {
  constexpr std::int64_t kPixels = 16, kChannels = 128;
  return in.size() == 3 && c.window.taps() > 1 && c.groups == 1 && out[1] * out[2] <= kPixels && in[0] >= kChannels &&
         c.out_channels >= kChannels;
}

// Many weights and few pixels: what takes the time is reading the weights, once for each row of pixels. As a 1x1
// convolution over columns of taps they are read once for all pixels: 16 % of VGG19's time, 11 % of ResNet-18's.
Place Compiler::convolution_of_columns(const Convolution& c, Value& from, const Dims& to) {
  const auto& w = c.window;
  const ColumnCopy copy{w, useful_taps(w, from.dims, to), space_.batch(), from.dims, to};
  const auto channels = from.dims[0], many = static_cast<std::int64_t>(copy.taps.size());
  const Dims dims{many * channels, to[1], to[2]};
  const auto nhwc = [&](const Dims& d) {
    return memory::desc({space_.batch(), d[0], d[1], d[2]}, Type::f32, Tag::nhwc);
  };
  const auto source = space_.in_layout(from, nhwc(from.dims)), columns = space_.make(nhwc(dims), dims);
  space_.step(
      [copy, in = space_.use(*source), out = space_.use(*columns)] { copy_columns(copy, floats(in), floats(out)); });

  Convolution pointwise{{}, c.out_channels, 1, {}, c.bias};
  pointwise.weight.reserve(static_cast<std::size_t>(c.out_channels * dims[0]));
  for (std::int64_t o = 0; o < c.out_channels; ++o)
    for (const auto& tap : copy.taps)
      for (std::int64_t i = 0; i < channels; ++i)
        pointwise.weight.push_back(
            c.weight[static_cast<std::size_t>(((o * channels + i) * w.kernel_h + tap.y) * w.kernel_w + tap.x)]);
  Value value{dims, columns, {}};
  return convolution(pointwise, value, to);
}

Place Compiler::plain_convolution(const Convolution& c, Value& from, const Dims& to) {
  const auto source = space_.in_layout(from, space_.plain(from.dims));
  const bool adds = fusion_.addend >= 0;
  const auto target = adds ? sum_target(space_.plain(to), *source) : space_.make(space_.plain(to), to);
  const auto fixed = [&](const std::vector<float>& values) {
    const memory::dims dims{static_cast<memory::dim>(values.size())};
    return weights(values, dims, {dims, Type::f32, Tag::x});
  };
  const PlainConvolution plain{c.window, space_.batch(), c.groups,          from.dims,
                               to,       adds,           fusion_.clamp.low, fusion_.clamp.high};
  space_.step([plain, in = space_.use(*source), out = space_.use(*target), weight = fixed(c.weight),
               bias = c.bias.empty() ? memory() : fixed(c.bias)] {
    convolve(plain, floats(in), floats(weight), bias ? floats(bias) : nullptr, floats(out));
  });
  return target;
}

memory::desc blocked(int batch, const Dims& dims) {
  return {{batch, dims[0], dims[1], dims[2]}, Type::f32, Tag::nChw8c};
}

std::int64_t whole_blocks(std::int64_t channels) {
  return (channels + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
}

// Where oneDNN has its kernels for AVX2, and one thread has it all. Channels that fill up the last block stay zero.
bool Compiler::blocked_is_faster(const Convolution& c, const Dims& in, const std::string& other) const {
  const auto& clamp = fusion_.clamp;
  return in.size() == 3 && other == "jit:avx2" && blocked_kernels_run_here() && omp_get_max_threads() == 1 &&
         c.groups == 1 && in[0] >= kBlockChannels && clamp.low <= 0 && clamp.high >= 0;
}

Place Compiler::blocked_convolution(const Convolution& c, Value& from, const Dims& to) {
  const auto source = space_.in_layout(from, blocked(space_.batch(), from.dims));
  const auto layout = blocked(space_.batch(), to);
  const bool adds = fusion_.addend >= 0;
  const auto target = adds ? sum_target(layout, *source) : space_.make(layout, to);
  BlockedConvolution blocks{c.window, space_.batch(), from.dims, to, adds, fusion_.clamp.low, fusion_.clamp.high};
  blocks.in[0] = whole_blocks(blocks.in[0]);
  blocks.out[0] = whole_blocks(blocks.out[0]);
  const memory::dims dims{c.out_channels, from.dims[0], c.window.kernel_h, c.window.kernel_w};
  auto bias = c.bias;
  bias.resize(static_cast<std::size_t>(blocks.out[0]));
  const memory::desc line({blocks.out[0]}, Type::f32, Tag::x);
  const auto scratch = space_.make(space_.plain(blocks.padded_dims()), blocks.padded_dims());
  space_.step([blocks, in = space_.use(*source), padded = space_.use(*scratch), out = space_.use(*target),
               weight = weights(c.weight, dims, {dims, Type::f32, Tag::OIhw8i8o}),
               shift = weights(bias, line.dims(), line)] {
    convolve(blocks, floats(in), floats(weight), floats(shift), floats(padded), floats(out));
  });
  return target;
}

// The first of oneDNN's implementations that is compiled for the shape. Others go through its matrix product, which
// takes memory from the heap in every run, or are plain loops no better than ours. False where there is none.
// `direct`: no convolution as a batch of small matrix products.
template <class Chosen>
bool choose_compiled(Chosen& chosen, bool direct = false) {
  do {
    const std::string name = chosen.impl_info_str();
    if (direct && name.starts_with("brgconv:")) continue;
    if (name.starts_with("jit") || name.starts_with("brg") || name.starts_with("brdgmm")) return true;
  } while (chosen.next_impl());
  return false;
}

Place Compiler::convolution(const Convolution& c, Value& from, const Dims& to) {
  const Slide slide(c.window, from.dims);
  memory::dims dims{c.out_channels, from.dims[0]};
  if (c.groups > 1) dims = {c.groups, c.out_channels / c.groups, from.dims[0] / c.groups};
  dims.insert(dims.end(), slide.kernel.begin(), slide.kernel.end());
  const memory::desc weight(dims, Type::f32, Tag::any);
  const auto bias = c.bias.empty() ? memory::desc() : memory::desc({c.out_channels}, Type::f32, Tag::x);
  const dnnl::convolution_forward::desc desc(kInference, dnnl::algorithm::convolution_direct, any(from.dims), weight,
                                             bias, any(to), slide.strides, slide.dilates, slide.before, slide.after);
  dnnl::convolution_forward::primitive_desc chosen(desc, attributes(fusion_), space_.engine());
  // Where all output channels fit one vector the direct one is faster: by 20 % in an eighth of the VGG's channels.
  if (!choose_compiled(chosen, c.out_channels <= kVectorFloats)) return plain_convolution(c, from, to);
  if (few_pixels_for_its_weights(c, from.dims, to)) return convolution_of_columns(c, from, to);
  if (blocked_is_faster(c, from.dims, chosen.impl_info_str())) return blocked_convolution(c, from, to);
  const auto source = space_.in_layout(from, chosen.src_desc());
  const auto target = fusion_.addend >= 0 ? sum_target(chosen.dst_desc(), *source) : space_.make(chosen.dst_desc(), to);
  Arguments arguments{{DNNL_ARG_SRC, space_.use(*source)},
                      {DNNL_ARG_WEIGHTS, weights(c.weight, dims, chosen.weights_desc())},
                      {DNNL_ARG_DST, space_.use(*target)}};
  if (!c.bias.empty()) arguments.emplace_back(DNNL_ARG_BIAS, weights(c.bias, {c.out_channels}, chosen.bias_desc()));
  space_.step(dnnl::convolution_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
  return target;
}

// A norm that nothing before it took up: a depthwise 1x1 convolution does the same.
Value Compiler::operator()(const BatchNorm& b) {
  Convolution c;
  c.out_channels = c.groups = in().dims[0];
  for (std::size_t i = 0; i < b.scale.size(); ++i) {
    const float factor = b.scale[i] / std::sqrt(b.variance[i] + b.epsilon);
    c.weight.push_back(factor);
    c.bias.push_back(b.shift[i] - b.mean[i] * factor);
  }
  if (in().dims.size() == 3) return stored(convolution(c, in(), out()));
  const Dims image{out()[0], elements(out()) / out()[0], 1};
  Value view{image, space_.reshaped(in(), image), {}};
  Value normed{image, convolution(c, view, image), {}};
  return stored(space_.reshaped(normed, out()));
}

Value Compiler::dense_as_convolution(const Dense& d) {
  const Dims from{in().dims[0], 1, 1}, to{d.out_features, 1, 1};
  Value pixel{from, space_.reshaped(in(), from), {}};
  Value made{to, convolution({{}, d.out_features, 1, d.weight, d.bias}, pixel, to), {}};
  return stored(space_.reshaped(made, out()));
}

Value Compiler::operator()(const Dense& d) {
  const auto features = in().dims[0];
  const memory::desc source = space_.plain(in().dims), target = space_.plain(out());
  const memory::desc weight({d.out_features, features}, Type::f32, Tag::any);
  const auto bias = d.bias.empty() ? memory::desc() : memory::desc({d.out_features}, Type::f32, Tag::x);
  dnnl::inner_product_forward::primitive_desc chosen({kInference, source, weight, bias, target}, attributes(fusion_),
                                                     space_.engine());
  if (!choose_compiled(chosen)) return dense_as_convolution(d);
  const auto from = space_.in_layout(in(), source), to = space_.make(target, out());
  Arguments arguments{{DNNL_ARG_SRC, space_.use(*from)},
                      {DNNL_ARG_WEIGHTS, weights(d.weight, {d.out_features, features}, chosen.weights_desc())},
                      {DNNL_ARG_DST, space_.use(*to)}};
  if (!d.bias.empty()) arguments.emplace_back(DNNL_ARG_BIAS, weights(d.bias, {d.out_features}, chosen.bias_desc()));
  space_.step(dnnl::inner_product_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
  return stored(to);
}

// ---- layers without ----

Value Compiler::plain_pool(const Window& w, dnnl::algorithm algorithm) {
  const auto from = space_.in_layout(in(), space_.plain(in().dims)), to = space_.make(space_.plain(out()), out());
  const PlainPool plain{w,
                        space_.batch() * out()[0],
                        in().dims,
                        out(),
                        algorithm != dnnl::algorithm::pooling_max,
                        algorithm == dnnl::algorithm::pooling_avg_include_padding};
  space_.step([plain, a = space_.use(*from), b = space_.use(*to)] { gpu::pool(plain, floats(a), floats(b)); });
  return stored(to);
}

Value Compiler::pool(const Window& w, dnnl::algorithm algorithm) {
  const Slide slide(w, out());
  if (slide.dilated()) return plain_pool(w, algorithm);  // oneDNN bounds the padding otherwise
  const auto from = space_.solid(in());
  const dnnl::pooling_v2_forward::desc desc(kInference, algorithm, from->data.get_desc(), any(out()), slide.strides,
                                            slide.kernel, slide.dilates, slide.before, slide.after);
  const dnnl::pooling_v2_forward::primitive_desc chosen(desc, attributes({}), space_.engine());
  const auto to = space_.make(chosen.dst_desc(), out());
  if (std::string(chosen.impl_info_str()) == "jit:avx2" && omp_get_max_threads() == 1 &&
      from->data.get_desc() == blocked(space_.batch(), in().dims) &&
      chosen.dst_desc() == blocked(space_.batch(), out())) {
    const BlockedPool blocks{w,
                             space_.batch() * whole_blocks(out()[0]) / kBlockChannels,
                             in().dims,
                             out(),
                             algorithm != dnnl::algorithm::pooling_max,
                             algorithm == dnnl::algorithm::pooling_avg_include_padding};
    space_.step([blocks, a = space_.use(*from), b = space_.use(*to)] { gpu::pool(blocks, floats(a), floats(b)); });
    return stored(to);
  }
  space_.step(dnnl::pooling_v2_forward(chosen), {{DNNL_ARG_SRC, space_.use(*from)}, {DNNL_ARG_DST, space_.use(*to)}},
              chosen.scratchpad_desc());
  return stored(to);
}

Value Compiler::clamped(const Clamp& clamp) {
  const bool relu = clamp.low == 0 && clamp.high == Clamp{}.high;
  return relu ? each(dnnl::algorithm::eltwise_relu, 0, 0) : each(dnnl::algorithm::eltwise_clip, clamp.low, clamp.high);
}

Value Compiler::each(dnnl::algorithm algorithm, float alpha, float beta) {
  const auto from = space_.solid(in());
  const dnnl::eltwise_forward::desc desc(kInference, algorithm, from->data.get_desc(), alpha, beta);
  const dnnl::eltwise_forward::primitive_desc chosen(desc, attributes({}), space_.engine());
  const auto to = read_for_the_last_time(inputs_.front(), *from) ? from : space_.make(chosen.dst_desc(), out());
  space_.step(dnnl::eltwise_forward(chosen), {{DNNL_ARG_SRC, space_.use(*from)}, {DNNL_ARG_DST, space_.use(*to)}},
              chosen.scratchpad_desc());
  return stored(to);
}

Value Compiler::operator()(const Arithmetic& a) {
  using Kind = Arithmetic::Kind;
  const auto algorithm = a.kind == Kind::subtract   ? dnnl::algorithm::binary_sub
                         : a.kind == Kind::multiply ? dnnl::algorithm::binary_mul
                                                    : dnnl::algorithm::binary_div;
  return combined(algorithm, [kind = a.kind](const auto&... operands) { combine_strided(kind, operands...); });
}

template <class BySteps>
Value Compiler::combined(dnnl::algorithm algorithm, BySteps by_steps) {
  if (in(0).dims != in(1).dims) return combined_by_steps(by_steps);
  const auto first = space_.solid(in(0));
  const auto layout = first->data.get_desc();
  const auto second = space_.in_layout(in(1), layout);
  const dnnl::binary::primitive_desc chosen({algorithm, layout, layout, layout}, attributes(fusion_), space_.engine());
  const auto to = space_.make(chosen.dst_desc(), out());
  space_.step(
      dnnl::binary(chosen),
      {{DNNL_ARG_SRC_0, space_.use(*first)}, {DNNL_ARG_SRC_1, space_.use(*second)}, {DNNL_ARG_DST, space_.use(*to)}},
      chosen.scratchpad_desc());
  return stored(to);
}

template <class BySteps>
Value Compiler::combined_by_steps(BySteps by_steps) {
  const auto batched = [&](Dims dims) {
    dims.insert(dims.begin(), space_.batch());
    return dims;
  };
  StridedSum sum;
  sum.dims = batched(out());
  sum.out.steps = row_major(sum.dims);
  const auto operand = [&](const Dims& dims) {
    const auto steps = row_major(batched(dims));
    StridedSum::Operand made{0, std::vector<std::ptrdiff_t>(sum.dims.size(), 0)};
    made.steps.front() = steps.front();
    for (std::size_t i = 1; i <= dims.size(); ++i)  // from the last axis
      if (dims[dims.size() - i] > 1) made.steps[made.steps.size() - i] = steps[steps.size() - i];
    return made;
  };
  sum.first = operand(in(0).dims);
  sum.second = operand(in(1).dims);
  const auto first = space_.in_layout(in(0), space_.plain(in(0).dims)),
             second = space_.in_layout(in(1), space_.plain(in(1).dims)), to = space_.make(space_.plain(out()), out());
  space_.step([by_steps, sum, clamp = fusion_.clamp, a = space_.use(*first), b = space_.use(*second), c = space_.use(*to)] {
    by_steps(sum, floats(a), floats(b), floats(c), clamp.low, clamp.high);
  });
  return stored(to);
}

// ---- what moves numbers about ----

std::vector<Channel> Compiler::channels(Value& value) {
  if (!value.channels.empty()) return value.channels;
  auto place = space_.solid(value);
  if (!channel_place(place->data.get_desc(), 0)) place = space_.in_layout(value, space_.plain(value.dims));
  std::vector<Channel> all;
  for (std::int64_t c = 0; c < value.dims[0]; ++c) all.push_back({place, c});
  return all;
}

// The output as a walk over the plain input.
Place Compiler::strided(Value& from, StridedSum::Operand reading) {
  StridedSum copy;
  copy.dims = out();
  copy.dims.insert(copy.dims.begin(), space_.batch());
  copy.out.steps = row_major(copy.dims);
  reading.steps.insert(reading.steps.begin(), elements(from.dims));
  copy.first = std::move(reading);
  const auto source = space_.in_layout(from, space_.plain(from.dims)), to = space_.make(space_.plain(out()), out());
  space_.step([copy = std::move(copy), a = space_.use(*source), c = space_.use(*to)] {
    copy_strided(copy, floats(a), floats(c));
  });
  return to;
}

Value Compiler::operator()(const Slice& s) {
  if (s.axis == 0 && in().dims.size() == 3) {
    const auto all = channels(in());
    return {{}, nullptr, {all.begin() + s.begin, all.begin() + s.end}};
  }
  const auto steps = row_major(in().dims);
  return stored(strided(in(), {s.begin * steps[static_cast<std::size_t>(s.axis)], steps}));
}

Value Compiler::operator()(const ChannelShuffle& s) {
  const auto all = channels(in());
  const auto each = static_cast<std::int64_t>(all.size()) / s.groups;
  Value made{{}, nullptr, std::vector<Channel>(all.size())};
  for (std::int64_t g = 0; g < s.groups; ++g)
    for (std::int64_t i = 0; i < each; ++i)
      made.channels[static_cast<std::size_t>(i * s.groups + g)] = all[static_cast<std::size_t>(g * each + i)];
  return made;
}

Value Compiler::operator()(const Transpose& t) {
  const auto steps = row_major(in().dims);
  StridedSum::Operand reading;
  for (const int axis : t.order) reading.steps.push_back(steps[static_cast<std::size_t>(axis)]);
  return stored(strided(in(), std::move(reading)));
}

Value Compiler::operator()(const Concat& c) {
  if (c.axis == 0 && out().size() == 3) {
    Value made;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const auto more = channels(in(i));
      made.channels.insert(made.channels.end(), more.begin(), more.end());
    }
    return made;
  }
  const auto to = space_.make(space_.plain(out()), out());
  const auto axis = static_cast<std::size_t>(c.axis) + 1;
  std::ptrdiff_t begin = 0;
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    StridedSum copy;
    copy.dims = in(i).dims;
    copy.dims.insert(copy.dims.begin(), space_.batch());
    copy.first.steps = row_major(copy.dims);
    Dims whole = out();
    whole.insert(whole.begin(), space_.batch());
    copy.out = {begin * row_major(whole)[axis], row_major(whole)};
    begin += copy.dims[axis];
    const auto from = space_.in_layout(in(i), space_.plain(in(i).dims));
    space_.step([copy = std::move(copy), a = space_.use(*from), b = space_.use(*to)] {
      copy_strided(copy, floats(a), floats(b));
    });
  }
  return stored(to);
}

}  // namespace

CpuProgram compile_for_cpu(const Network& net, const std::vector<Dims>& shapes, int batch, const dnnl::engine& engine) {
  if (elements(shapes.back()) == 0) {  // the one value without numbers that a simplified net makes
    CpuProgram idle;
    idle.input_count = batch * elements(net.input);
    return idle;
  }
  return Compiler(net, shapes, batch, engine).run();
}

}  // namespace coppice::gpu
