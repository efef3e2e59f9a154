// What a net's output must be: every operator written out as its definition, in double precision. Slow and plain.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu::reference {

using Values = std::vector<double>;

struct Forward {  // of one item
  const std::vector<const Values*> in;
  const std::vector<Dims> shapes;  // of the inputs
  const Dims from;                 // of the first one, where there is one
  const Dims to;

  struct Pixel {
    std::int64_t z, y, x;
  };
  // Depth, height and width; an image is one plane deep.
  static Pixel size(const Dims& dims) { return {dims.size() == 4 ? dims[1] : 1, dims.end()[-2], dims.back()}; }

  // Calls visit(output index, channel, where the window begins) for every output pixel of a window.
  template <class Visit>
  void slide(const Window& w, Visit visit) const {
    const Pixel all = size(to);
    std::size_t i = 0;
    for (std::int64_t c = 0; c < to[0]; ++c)
      for (std::int64_t z = 0; z < all.z; ++z)
        for (std::int64_t y = 0; y < all.y; ++y)
          for (std::int64_t x = 0; x < all.x; ++x)
            visit(i++, c, Pixel{z * w.stride_d - w.pad_front, y * w.stride_h - w.pad_top, x * w.stride_w - w.pad_left});
  }
  // Calls visit(tap, pixel under it) for every tap of a window, also where that lies beside the input.
  template <class Visit>
  static void taps(const Window& w, const Pixel& begin, Visit visit) {
    std::int64_t tap = 0;
    for (std::int64_t z = 0; z < w.kernel_d; ++z)
      for (std::int64_t y = 0; y < w.kernel_h; ++y)
        for (std::int64_t x = 0; x < w.kernel_w; ++x)
          visit(tap++, Pixel{begin.z + z * w.dilation_d, begin.y + y * w.dilation_h, begin.x + x * w.dilation_w});
  }
  bool inside(const Pixel& p) const {
    const Pixel all = size(from);
    return p.z >= 0 && p.y >= 0 && p.x >= 0 && p.z < all.z && p.y < all.y && p.x < all.x;
  }
  double at(std::int64_t c, const Pixel& p) const {
    const Pixel all = size(from);
    return (*in[0])[static_cast<std::size_t>(((c * all.z + p.z) * all.y + p.y) * all.x + p.x)];
  }

  Values operator()(const Convolution& conv) const {
    Values out(static_cast<std::size_t>(elements(to)));
    const auto& w = conv.window;
    const auto per_group = from[0] / conv.groups, outs = conv.out_channels / conv.groups;
    const auto kernel = w.kernel_d * w.kernel_h * w.kernel_w;
    slide(w, [&](std::size_t i, std::int64_t o, const Pixel& begin) {
      double sum = conv.bias.empty() ? 0.0 : conv.bias[static_cast<std::size_t>(o)];
      for (std::int64_t c = 0; c < per_group; ++c)
        taps(w, begin, [&](std::int64_t tap, const Pixel& p) {
          if (inside(p))
            sum += at(o / outs * per_group + c, p) *
                   conv.weight[static_cast<std::size_t>((o * per_group + c) * kernel + tap)];
        });
      out[i] = sum;
    });
    return out;
  }
  Values operator()(const MaxPool& pool) const {
    Values out(static_cast<std::size_t>(elements(to)));
    slide(pool.window, [&](std::size_t i, std::int64_t c, const Pixel& begin) {
      double best = -std::numeric_limits<double>::infinity();
      taps(pool.window, begin, [&](std::int64_t, const Pixel& p) {
        if (inside(p)) best = std::max(best, at(c, p));
      });
      out[i] = best;
    });
    return out;
  }
  Values operator()(const AveragePool& pool) const {
    Values out(static_cast<std::size_t>(elements(to)));
    slide(pool.window, [&](std::size_t i, std::int64_t c, const Pixel& begin) {
      double sum = 0, count = 0;
      taps(pool.window, begin, [&](std::int64_t, const Pixel& p) {
        if (inside(p)) sum += at(c, p);
        if (inside(p) || pool.count_padding) ++count;
      });
      out[i] = sum / count;
    });
    return out;
  }
  Values operator()(const GlobalAveragePool&) const {
    return Forward{in, shapes, from, to}(AveragePool{{from[1], from[2], 1, 1, 0, 0, 0, 0}, false});
  }
  Values operator()(const BatchNorm& norm) const {
    Values out = *in[0];
    const auto per_channel = out.size() / norm.scale.size();
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto c = i / per_channel;
      out[i] =
          (out[i] - norm.mean[c]) / std::sqrt(static_cast<double>(norm.variance[c]) + norm.epsilon) * norm.scale[c] +
          norm.shift[c];
    }
    return out;
  }
  Values operator()(const Relu&) const {
    Values out = *in[0];
    for (double& value : out) value = std::max(value, 0.0);
    return out;
  }
  Values operator()(const Dense& dense) const {
    const auto width = in[0]->size();
    Values out(static_cast<std::size_t>(dense.out_features), 0.0);
    for (std::size_t o = 0; o < out.size(); ++o) {
      if (!dense.bias.empty()) out[o] = dense.bias[o];
      for (std::size_t i = 0; i < width; ++i) out[o] += (*in[0])[i] * dense.weight[o * width + i];
    }
    return out;
  }
  Values operator()(const Flatten&) const { return *in[0]; }
  Values operator()(const Identity&) const { return *in[0]; }
  Values operator()(const Clip& clip) const {
    Values out = *in[0];
    for (double& value : out) value = std::clamp<double>(value, clip.low, clip.high);
    return out;
  }
  // out[...] = in[place(...)] for every place of the output, given and asked for as indices along each axis.
  template <class Place>
  Values gathered(const Values& values, const Dims& dims, Place place) const {
    Values out(static_cast<std::size_t>(elements(to)));
    Dims at(to.size(), 0);
    for (double& value : out) {
      const Dims source = place(at);
      std::int64_t index = 0;
      for (std::size_t axis = 0; axis < dims.size(); ++axis) index = index * dims[axis] + source[axis];
      value = values[static_cast<std::size_t>(index)];
      for (std::size_t axis = at.size(); axis-- > 0 && ++at[axis] == to[axis];) at[axis] = 0;
    }
    return out;
  }
  Values repeated(std::size_t i) const {
    const Dims& dims = shapes[i];
    return gathered(*in[i], dims, [&](const Dims& at) {
      Dims source(at.end() - static_cast<std::ptrdiff_t>(dims.size()), at.end());
      for (std::size_t axis = 0; axis < dims.size(); ++axis)
        if (dims[axis] == 1) source[axis] = 0;
      return source;
    });
  }
  template <class Made>
  Values of_pairs(Made made) const {
    Values out = repeated(0);
    const Values other = repeated(1);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = made(out[i], other[i]);
    return out;
  }
  Values operator()(const Add&) const { return of_pairs(std::plus()); }
  Values operator()(const Arithmetic& a) const {
    if (a.kind == Arithmetic::Kind::subtract) return of_pairs(std::minus());
    return a.kind == Arithmetic::Kind::multiply ? of_pairs(std::multiplies()) : of_pairs(std::divides());
  }
  Values operator()(const SquareRoot&) const {
    Values out = *in[0];
    for (double& value : out) value = std::sqrt(value);
    return out;
  }
  Values operator()(const Concat& concat) const {
    const auto axis = static_cast<std::size_t>(concat.axis);
    std::int64_t rows = 1;
    for (std::size_t i = 0; i < axis; ++i) rows *= to[i];
    Values out;
    for (std::int64_t row = 0; row < rows; ++row)
      for (const Values* part : in) {
        const auto width = static_cast<std::ptrdiff_t>(part->size()) / rows;
        out.insert(out.end(), part->begin() + row * width, part->begin() + (row + 1) * width);
      }
    return out;
  }
  Values operator()(const Slice& slice) const {
    return gathered(*in[0], from, [&](Dims at) {
      at[static_cast<std::size_t>(slice.axis)] += slice.begin;
      return at;
    });
  }
  Values operator()(const Reshape&) const { return *in[0]; }
  Values operator()(const Transpose& transpose) const {
    return gathered(*in[0], from, [&](const Dims& at) {
      Dims source(at.size());
      for (std::size_t axis = 0; axis < at.size(); ++axis)
        source[static_cast<std::size_t>(transpose.order[axis])] = at[axis];
      return source;
    });
  }
  Values operator()(const ChannelShuffle& shuffle) const {
    const auto per_group = from[0] / shuffle.groups;
    return gathered(*in[0], from, [&](Dims at) {
      at[0] = at[0] % shuffle.groups * per_group + at[0] / shuffle.groups;
      return at;
    });
  }
  Values operator()(const Constant& constant) const { return {constant.values.begin(), constant.values.end()}; }
};

// The output of the whole batch; of one item where the net takes nothing. REQUIRES: shapes infer, the input is a whole
// number of items.
inline std::vector<float> forward(const Network& net, std::span<const float> input) {
  const auto shapes = *infer_shapes(net);
  const auto size = static_cast<std::size_t>(elements(net.input));
  std::vector<float> out;
  for (auto items = size == 0 ? 1 : input.size() / size; items > 0; --items, input = input.subspan(size)) {
    std::vector<Values> values{Values(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(size))};
    for (std::size_t i = 0; i < net.nodes.size(); ++i) {
      const auto& node = net.nodes[i];
      std::vector<const Values*> in;
      std::vector<Dims> from;
      for (const int index : node.inputs) {
        in.push_back(&values[static_cast<std::size_t>(index)]);
        from.push_back(shapes[static_cast<std::size_t>(index)]);
      }
      const Dims first = from.empty() ? Dims{} : from.front();
      values.push_back(std::visit(Forward{in, from, first, shapes[i + 1]}, node.op));
    }
    for (const double value : values.back()) out.push_back(static_cast<float>(value));
  }
  return out;
}

// The largest difference, relative to the largest expected number (or to 1, where all are smaller).
// Infinity when sizes differ or anything is not a number.
inline double error(std::span<const float> got, std::span<const float> expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double scale = 1, worst = 0;
  for (const float value : expected) scale = std::max(scale, std::abs(static_cast<double>(value)));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - expected[i]);
    if (!(difference <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
  }
  return worst / scale;
}

}  // namespace coppice::gpu::reference
