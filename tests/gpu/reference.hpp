// What a net's output must be: every operator written out as its definition, in double precision. Slow and plain.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu::reference {

using Values = std::vector<double>;

struct Forward {  // of one item
  const std::vector<const Values*> in;
  const Dims& from;
  const Dims& to;

  // Calls visit(output index, channel, top row, left column) for every output pixel of a window.
  template <class Visit>
  void slide(const Window& w, Visit visit) const {
    for (std::int64_t c = 0; c < to[0]; ++c)
      for (std::int64_t y = 0; y < to[1]; ++y)
        for (std::int64_t x = 0; x < to[2]; ++x)
          visit(static_cast<std::size_t>((c * to[1] + y) * to[2] + x), c, y * w.stride_h - w.pad_top,
                x * w.stride_w - w.pad_left);
  }
  bool inside(std::int64_t y, std::int64_t x) const { return y >= 0 && x >= 0 && y < from[1] && x < from[2]; }
  double at(std::int64_t c, std::int64_t y, std::int64_t x) const {
    return (*in[0])[static_cast<std::size_t>((c * from[1] + y) * from[2] + x)];
  }

  Values operator()(const Convolution& conv) const {
    Values out(static_cast<std::size_t>(elements(to)));
    const auto& w = conv.window;
    const auto per_group = from[0] / conv.groups, outs = conv.out_channels / conv.groups;
    slide(w, [&](std::size_t i, std::int64_t o, std::int64_t top, std::int64_t left) {
      double sum = conv.bias.empty() ? 0.0 : conv.bias[static_cast<std::size_t>(o)];
      for (std::int64_t c = 0; c < per_group; ++c)
        for (std::int64_t y = 0; y < w.kernel_h; ++y)
          for (std::int64_t x = 0; x < w.kernel_w; ++x)
            if (inside(top + y, left + x))
              sum += at(o / outs * per_group + c, top + y, left + x) *
                     conv.weight[static_cast<std::size_t>(((o * per_group + c) * w.kernel_h + y) * w.kernel_w + x)];
      out[i] = sum;
    });
    return out;
  }
  Values operator()(const MaxPool& pool) const {
    Values out(static_cast<std::size_t>(elements(to)));
    slide(pool.window, [&](std::size_t i, std::int64_t c, std::int64_t top, std::int64_t left) {
      double best = -std::numeric_limits<double>::infinity();
      for (std::int64_t y = top; y < top + pool.window.kernel_h; ++y)
        for (std::int64_t x = left; x < left + pool.window.kernel_w; ++x)
          if (inside(y, x)) best = std::max(best, at(c, y, x));
      out[i] = best;
    });
    return out;
  }
  Values operator()(const AveragePool& pool) const {
    Values out(static_cast<std::size_t>(elements(to)));
    slide(pool.window, [&](std::size_t i, std::int64_t c, std::int64_t top, std::int64_t left) {
      double sum = 0, count = 0;
      for (std::int64_t y = top; y < top + pool.window.kernel_h; ++y)
        for (std::int64_t x = left; x < left + pool.window.kernel_w; ++x) {
          if (inside(y, x)) sum += at(c, y, x);
          if (inside(y, x) || pool.count_padding) ++count;
        }
      out[i] = sum / count;
    });
    return out;
  }
  Values operator()(const GlobalAveragePool&) const {
    return Forward{in, from, to}(AveragePool{{from[1], from[2], 1, 1, 0, 0, 0, 0}, false});
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
  Values operator()(const Add&) const {
    Values out = *in[0];
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += (*in[1])[i];
    return out;
  }
};

// The output of the whole batch. REQUIRES: shapes infer, the input is a whole number of items.
inline std::vector<float> forward(const Network& net, std::span<const float> input) {
  const auto shapes = *infer_shapes(net);
  const auto size = static_cast<std::size_t>(elements(net.input));
  std::vector<float> out;
  for (; !input.empty(); input = input.subspan(size)) {
    std::vector<Values> values{Values(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(size))};
    for (std::size_t i = 0; i < net.nodes.size(); ++i) {
      const auto& node = net.nodes[i];
      std::vector<const Values*> in;
      for (const int index : node.inputs) in.push_back(&values[static_cast<std::size_t>(index)]);
      values.push_back(
          std::visit(Forward{in, shapes[static_cast<std::size_t>(node.inputs.front())], shapes[i + 1]}, node.op));
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
