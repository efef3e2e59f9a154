// From a net to a program: which kernels, on which buffers, in which layout.
//
// Where tensor cores may be used, images lie channels last, as cuDNN's engines for these want them; float32 keeps NCHW.
// A flattened or reshaped image stays as it lies until somebody needs it otherwise: a dense layer then takes its
// weights in the image's order instead.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "gpu/cuda_moves.hpp"
#include "gpu/cuda_program.hpp"

namespace coppice::gpu {
namespace {

constexpr int kFewItems = 8;  // up to here a dense layer is read, not multiplied: see RowProducts
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Bounds kUnbounded{-kInfinity, kInfinity};

struct Value {
  int buffer = -1;
  Dims dims;   // of an item
  Dims image;  // not empty: the numbers lie as this image does, channels last
  bool half = false;
};

template <class T>
const T* next_as(const Node* node) {
  return node ? std::get_if<T>(&node->op) : nullptr;
}

class Lowering {
 public:
  Lowering(const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision, const Lane& lane)
      : net_(net), shapes_(shapes), batch_(batch), precision_(precision), lane_(lane) {}

  Program program() {
    readers_.assign(net_.nodes.size() + 1, 0);
    for (const auto& node : net_.nodes)
      for (const int input : node.inputs) ++readers_[static_cast<std::size_t>(input)];
    values_.resize(net_.nodes.size() + 1);
    take_input();
    for (std::size_t i = 0; i < net_.nodes.size();) {
      at_ = end_ = i;
      try {
        const Value made = std::visit([&](const auto& op) { return lower(op); }, net_.nodes[i].op);
        for (; i <= end_; ++i) values_[i + 1] = made;
      } catch (const Fault& fault) {
        throw Fault(fault.code, "node " + net_.nodes[i].name + ": " + fault.what());
      }
    }
    give_output();
    return std::move(program_);
  }

 private:
  // ---- values ----

  const Node& node() const { return net_.nodes[at_]; }
  const Value& in(std::size_t i = 0) const { return values_[static_cast<std::size_t>(node().inputs[i])]; }
  const Dims& out_dims() const { return shapes_[end_ + 1]; }
  bool half() const { return precision_ == Precision::float16; }
  bool channels_last() const { return precision_ != Precision::float32; }
  int count(const Dims& dims) const { return narrow(batch_ * elements(dims)); }

  int buffer(int numbers, bool of_halves, bool apart = false) {
    program_.buffers.push_back({static_cast<std::size_t>(numbers) * (of_halves ? sizeof(__half) : sizeof(float)),
                                apart || of_halves != half(), nullptr});
    return static_cast<int>(program_.buffers.size()) - 1;
  }
  // Where it makes no difference, an image counts as lying plainly.
  bool lies_apart(const Dims& dims) const {
    return channels_last() && dims.size() == 3 && dims[0] > 1 && dims[1] * dims[2] > 1;
  }
  Value fresh(const Dims& dims) {
    return {buffer(count(dims), half()), dims, lies_apart(dims) ? dims : Dims{}, half()};
  }
  Value fresh_plain(const Dims& dims, bool of_halves) { return {buffer(count(dims), of_halves), dims, {}, of_halves}; }
  // The same kind of value in the same layout.
  Value fresh_like(const Value& other) { return {buffer(count(other.dims), half()), other.dims, other.image, half()}; }

  // Steps from one number to the next along each axis of the value. REQUIRES: addressable.
  static Dims steps(const Value& value) {
    if (value.image.empty()) return steps_of(value.dims);
    return {1, value.dims[2] * value.dims[0], value.dims[0]};
  }
  // The value with steps along its own axes.
  Value addressable(const Value& value) {
    return value.image.empty() || value.image == value.dims ? value : plain(value);
  }
  Value plain(const Value& value) {
    if (value.image.empty()) return value;
    const Value as_image{value.buffer, value.image, value.image, value.half};
    Value out = fresh_plain(value.image, value.half);
    move(as_image, steps(as_image), out, steps(out), value.image);
    out.dims = value.dims;
    return out;
  }
  // As convolutions and pools take it.
  Value image(const Value& given) {
    const Value value = addressable(given);
    if (!lies_apart(value.dims) || !value.image.empty()) return value;
    const Value out = fresh(value.dims);
    move(value, steps(value), out, steps(out), value.dims);
    return out;
  }
  static Image image_of(const Binding& binding, const Value& value, int batch) {
    const auto& d = value.dims;
    return {reals(binding, value), batch, narrow(d[0]), narrow(d[1]), narrow(d[2]), !value.image.empty()};
  }
  static Reals reals(const Binding& binding, const Value& value) {
    return {binding.places[static_cast<std::size_t>(value.buffer)], value.half};
  }

  // ---- steps ----

  template <class Make>
  void add(std::vector<int> reads, int writes, const char* kernel, const Make& make) {
    program_.steps.push_back({std::move(reads), writes, [make, kernel](Binding& binding) -> Launch {
                                return [job = make(binding), kernel, stream = binding.lane.stream()] {
                                  check(launch(job, stream), kernel);
                                };
                              }});
  }
  // A block of these dims from one value to another.
  void move(const Value& from, const Dims& from_steps, const Value& to, const Dims& to_steps, const Dims& block,
            std::int64_t from_begin = 0, std::int64_t to_begin = 0, Onto onto = Onto::put) {
    move(from, to, axes_of(batch_, block, elements(from.dims), from_steps, elements(to.dims), to_steps), from_begin,
         to_begin, onto);
  }
  void move(const Value& from, const Value& to, const std::vector<Axis>& axes, std::int64_t from_begin = 0,
            std::int64_t to_begin = 0, Onto onto = Onto::put) {
    auto job = strided({nullptr, from.half}, from_begin, {nullptr, to.half}, to_begin, axes);
    job.onto = onto;
    add({from.buffer}, to.buffer, "moving kernel", [job, from, to](const Binding& binding) {
      Strided placed = job;
      placed.in.data = reals(binding, from).data;
      placed.out.data = reals(binding, to).data;
      return placed;
    });
  }
  void zero(const Value& value) {
    const auto bytes = program_.buffers[static_cast<std::size_t>(value.buffer)].bytes;
    program_.steps.push_back({{}, value.buffer, [value, bytes](Binding& binding) -> Launch {
                                return [place = reals(binding, value).data, bytes, stream = binding.lane.stream()] {
                                  check(cudaMemsetAsync(place, 0, bytes, stream), "cudaMemsetAsync");
                                };
                              }});
  }
  void pointwise(const Value& from, const Value* other, const Value& to, const float* scale, const float* shift,
                 int channels, int inner, Bounds bounds) {
    const Value second = other ? *other : Value{};
    std::vector<int> reads{from.buffer};
    if (other) reads.push_back(other->buffer);
    add(reads, to.buffer, "pointwise kernel", [=, numbers = count(to.dims)](const Binding& binding) {
      const Reals none{nullptr, false};
      return Pointwise{reals(binding, from),
                       second.buffer < 0 ? none : reals(binding, second),
                       reals(binding, to),
                       scale,
                       shift,
                       numbers,
                       channels,
                       inner,
                       bounds};
    });
  }

  // ---- constants ----

  void* upload(const void* bytes, std::size_t size) {
    program_.constants.push_back(lane_.upload(bytes, size));
    return program_.constants.back().get();
  }
  const float* floats(const std::vector<float>& values) {
    return static_cast<const float*>(upload(values.data(), values.size() * sizeof(float)));
  }
  void* numbers(const std::vector<float>& values) {
    if (!half()) return upload(values.data(), values.size() * sizeof(float));
    std::vector<__half> halves;
    halves.reserve(values.size());
    for (const float value : values) halves.push_back(__float2half(value));
    return upload(halves.data(), halves.size() * sizeof(__half));
  }
  // Rows of numbers that lie as plain images, as such with the channels last.
  static std::vector<float> turned(const std::vector<float>& values, const Dims& image) {
    const auto channels = static_cast<std::size_t>(image[0]), pixels = static_cast<std::size_t>(image[1] * image[2]);
    std::vector<float> out(values.size());
    for (std::size_t row = 0; row < values.size(); row += channels * pixels)
      for (std::size_t c = 0; c < channels; ++c)
        for (std::size_t p = 0; p < pixels; ++p) out[row + p * channels + c] = values[row + c * pixels + p];
    return out;
  }

  // ---- what becomes part of the launch before it ----

  // The next node, where it alone reads the value of the latest one.
  const Node* follower() const {
    if (end_ + 1 >= net_.nodes.size() || readers_[end_ + 1] != 1) return nullptr;
    const auto& next = net_.nodes[end_ + 1];
    return std::ranges::count(next.inputs, static_cast<int>(end_) + 1) == 1 ? &next : nullptr;
  }
  Bounds following_bounds() {
    if (next_as<Relu>(follower())) {
      ++end_;
      return {0.0F, kInfinity};
    }
    if (const auto* clip = next_as<Clip>(follower())) {
      ++end_;
      return {clip->low, clip->high};
    }
    return kUnbounded;
  }
  // What the next node adds, where it is another value of the same shape.
  std::optional<Value> following_residual() {
    if (!next_as<Add>(follower())) return {};
    const auto& inputs = follower()->inputs;
    const auto other = static_cast<std::size_t>(inputs[inputs[0] == static_cast<int>(end_) + 1 ? 1 : 0]);
    if (shapes_[other] != shapes_[end_ + 1]) return {};
    ++end_;
    return image(values_[other]);
  }

  // ---- operators ----

  Value lower(const Convolution& c) {
    auto w = c.window;
    Value from = image(in());
    if (w.pad_top != w.pad_bottom || w.pad_left != w.pad_right) {
      from = padded(from, w);
      w.pad_top = w.pad_left = 0;
    }
    const Dims dims = shapes_[at_ + 1];
    const auto residual = following_residual();
    const auto inner = from.dims[0] / c.groups;
    const Dims kernel{inner, w.kernel_h, w.kernel_w};
    return convolution(from, c, w, dims, channels_last() ? turned(c.weight, kernel) : c.weight, residual);
  }
  // Zeros around an image that is to be padded more on one side than on the other.
  Value padded(const Value& from, const Window& w) {
    const auto& d = from.dims;
    const Value out = fresh({d[0], d[1] + w.pad_top + w.pad_bottom, d[2] + w.pad_left + w.pad_right});
    zero(out);
    const auto to = steps(out);
    move(from, steps(from), out, to, d, 0, w.pad_top * to[1] + w.pad_left * to[2]);
    return out;
  }
  Value convolution(const Value& from, const Convolution& c, const Window& w, const Dims& dims,
                    const std::vector<float>& weight, const std::optional<Value>& residual) {
    const Bounds bounds = following_bounds();
    const Value out = fresh(dims);
    const ConvolutionSpec spec{batch_,
                               narrow(from.dims[0]),
                               narrow(from.dims[1]),
                               narrow(from.dims[2]),
                               narrow(dims[0]),
                               narrow(dims[1]),
                               narrow(dims[2]),
                               narrow(c.groups),
                               narrow(w.kernel_h),
                               narrow(w.kernel_w),
                               narrow(w.stride_h),
                               narrow(w.stride_w),
                               narrow(w.pad_top),
                               narrow(w.pad_left),
                               narrow(w.dilation_h),
                               narrow(w.dilation_w),
                               half(),
                               channels_last(),
                               channels_last(),
                               !c.bias.empty(),
                               residual.has_value(),
                               bounds.low,
                               bounds.high};
    ConvolutionOperands operands;
    operands.w = numbers(weight);
    if (spec.bias) {
      operands.bias = numbers(c.bias);
      operands.float_bias = floats(c.bias);
    }
    std::vector<int> reads{from.buffer};
    if (residual) reads.push_back(residual->buffer);
    program_.steps.push_back(
        {reads, out.buffer, [=](Binding& binding) -> Launch {
           auto placed = operands;
           placed.x = reals(binding, from).data;
           placed.y = reals(binding, out).data;
           if (residual) placed.residual = reals(binding, *residual).data;
           auto known = binding.choices.find(spec);
           if (known == binding.choices.end())
             known = binding.choices.emplace(spec, choose(binding.lane, spec, placed, binding.timed)).first;
           binding.ways.push_back(known->second.way);
           const auto ready = std::make_shared<FusedConvolution>(spec, placed, known->second);
           return [ready, &lane = binding.lane] { ready->run(lane); };
         }});
    return out;
  }
  Value lower(const Dense& d) {
    const Value& from = in();
    const auto weight = from.image.empty() ? d.weight : turned(d.weight, from.image);
    if (batch_ > kFewItems) {  // a matrix product: a convolution of one pixel
      Convolution c{{}, d.out_features, 1, {}, d.bias};
      const Value pixels{from.buffer, {from.dims[0], 1, 1}, {}, from.half};
      Value out = convolution(pixels, c, c.window, {d.out_features, 1, 1}, weight, {});
      out.dims = {d.out_features};
      return out;
    }
    const Bounds bounds = following_bounds();
    // The net's scores are float32 at once.
    const Value out = fresh_plain({d.out_features}, half() && end_ + 1 < net_.nodes.size());
    const Reals rows{numbers(weight), half()};
    const float* bias = d.bias.empty() ? nullptr : floats(d.bias);
    add({from.buffer}, out.buffer, "dense kernel",
        [=, batch = batch_, inputs = narrow(from.dims[0]), outputs = narrow(d.out_features)](const Binding& binding) {
          return RowProducts{{}, reals(binding, from), rows, reals(binding, out), bias, batch, inputs, outputs, bounds};
        });
    return out;
  }
  Value pool(const Window& w, bool average, bool count_padding) {
    const Value from = image(in()), out = fresh(out_dims());
    // The kernel adds these up.
    narrow(from.dims[1] + w.pad_top + w.pad_bottom);
    narrow(from.dims[2] + w.pad_left + w.pad_right);
    const PoolWindow window{narrow(w.kernel_h),   narrow(w.kernel_w),   narrow(w.stride_h),
                            narrow(w.stride_w),   narrow(w.pad_top),    narrow(w.pad_left),
                            narrow(w.dilation_h), narrow(w.dilation_w), average,
                            count_padding};
    add({from.buffer}, out.buffer, "pool kernel", [from, out, window, batch = batch_](const Binding& binding) {
      return Pool{image_of(binding, from, batch), image_of(binding, out, batch), window};
    });
    return out;
  }
  Value lower(const MaxPool& p) { return pool(p.window, false, false); }
  Value lower(const AveragePool& p) { return pool(p.window, true, p.count_padding); }
  Value lower(const GlobalAveragePool&) { return pool({in().dims[1], in().dims[2], 1, 1, 0, 0, 0, 0}, true, false); }

  // A batch norm that no convolution took up.
  Value lower(const BatchNorm& b) {
    std::vector<float> scale, shift;
    for (std::size_t i = 0; i < b.scale.size(); ++i) {
      scale.push_back(b.scale[i] / std::sqrt(b.variance[i] + b.epsilon));
      shift.push_back(b.shift[i] - b.mean[i] * scale.back());
    }
    const Value from = addressable(in());
    const Bounds bounds = following_bounds();
    const Value out = fresh_like(from);
    pointwise(from, nullptr, out, floats(scale), floats(shift), narrow(from.dims[0]),
              from.image.empty() ? narrow(elements(from.dims) / from.dims[0]) : 1, bounds);
    return out;
  }
  Value bounded(Bounds bounds) {
    const Value out = fresh_like(in());
    pointwise(in(), nullptr, out, nullptr, nullptr, 1, 1, bounds);
    return out;
  }
  Value lower(const Relu&) { return bounded({0.0F, kInfinity}); }
  Value lower(const Clip& c) { return bounded({c.low, c.high}); }

  Value lower(const Add&) {
    if (in(0).dims != in(1).dims) return combined(Onto::add);
    const bool alike = in(0).image == in(1).image;
    const Value a = alike ? in(0) : image(in(0)), b = alike ? in(1) : image(in(1));
    const Bounds bounds = following_bounds();
    const Value out = fresh_like(a);
    pointwise(a, &b, out, nullptr, nullptr, 1, 1, bounds);
    return out;
  }
  Value lower(const Arithmetic& a) {
    using Kind = Arithmetic::Kind;
    return combined(a.kind == Kind::subtract ? Onto::subtract : a.kind == Kind::multiply ? Onto::multiply : Onto::divide);
  }
  // The first input, repeated where it has to be, and the second onto it.
  Value combined(Onto second) {
    const Value out = fresh(out_dims());
    for (const std::size_t i : {0U, 1U}) {
      const Value part = addressable(in(i));
      move(part, repeated_steps(part.dims, steps(part), out.dims), out, steps(out), out.dims, 0, 0, i > 0 ? second : Onto::put);
    }
    return out;
  }
  Value lower(const SquareRoot&) {
    const Value from = in(), out = fresh_like(from);
    add({from.buffer}, out.buffer, "square root kernel", [=, numbers = count(out.dims)](const Binding& binding) {
      return SquareRoots{reals(binding, from), reals(binding, out), numbers};
    });
    return out;
  }
  Value lower(const Concat& c) {
    const Value out = fresh(out_dims());
    const auto axis = static_cast<std::size_t>(c.axis);
    const auto to = steps(out);
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < node().inputs.size(); ++i) {
      const Value part = addressable(in(i));
      move(part, steps(part), out, to, part.dims, 0, begin * to[axis]);
      begin += part.dims[axis];
    }
    return out;
  }
  Value lower(const Slice& s) {
    const Value from = addressable(in()), out = fresh(out_dims());
    const auto steps_in = steps(from);
    move(from, steps_in, out, steps(out), out.dims, s.begin * steps_in[static_cast<std::size_t>(s.axis)]);
    return out;
  }
  Value lower(const Transpose& t) {
    const Value from = addressable(in()), out = fresh(out_dims());
    const auto steps_in = steps(from);
    Dims turned_steps;
    for (const int axis : t.order) turned_steps.push_back(steps_in[static_cast<std::size_t>(axis)]);
    move(from, turned_steps, out, steps(out), out.dims);
    return out;
  }
  Value lower(const ChannelShuffle& s) {
    const Value from = addressable(in()), out = fresh(out_dims());
    move(from, out, shuffle_axes(batch_, from.dims, s.groups, steps(from), steps(out)));
    return out;
  }
  Value renamed(const Dims& dims) const {
    Value out = in();
    out.dims = dims;
    return out;
  }
  Value lower(const Reshape& r) { return renamed(r.to); }
  Value lower(const Flatten&) { return renamed(out_dims()); }
  Value lower(const Identity&) { return in(); }
  Value lower(const Constant& c) {
    std::vector<float> all;
    const auto item = lies_apart(c.dims) ? turned(c.values, c.dims) : c.values;
    all.reserve(static_cast<std::size_t>(count(c.dims)));
    for (int i = 0; i < batch_; ++i) all.insert(all.end(), item.begin(), item.end());
    const Value out{buffer(count(c.dims), half(), true), c.dims, lies_apart(c.dims) ? c.dims : Dims{}, half()};
    program_.buffers.back().constant = numbers(all);
    return out;
  }

  // ---- both ends ----

  void take_input() {
    program_.input_count = count(net_.input);
    program_.output_count = count(shapes_.back());
    const Value given{buffer(program_.input_count, false, true), net_.input, {}, false};
    program_.input = given.buffer;
    values_[0] = given;
    if (!half() && !lies_apart(net_.input)) return;
    values_[0] = fresh(net_.input);
    move(given, steps(given), values_[0], steps(values_[0]), net_.input);
  }
  void give_output() {
    Value last = values_.back();
    if (!last.image.empty()) last = plain(last);
    if (last.half) {
      const Value floats_out = fresh_plain(last.dims, false);
      move(last, steps(last), floats_out, steps(floats_out), last.dims);
      last = floats_out;
    }
    program_.output = last.buffer;
  }

  const Network& net_;
  const std::vector<Dims>& shapes_;
  int batch_;
  Precision precision_;
  const Lane& lane_;
  std::vector<int> readers_;
  std::vector<Value> values_;
  std::size_t at_ = 0, end_ = 0;  // the node being lowered; the last one that its launch includes
  Program program_;
};

}  // namespace

Program lowered(const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision, const Lane& lane) {
  return Lowering(net, shapes, batch, precision, lane).program();
}

}  // namespace coppice::gpu
