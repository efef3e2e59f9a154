// Nets by hand: each call appends a node and gives the index of its value; weights come from a seed.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/random_net.hpp"

namespace coppice::gpu {

struct Builder {
  Network net;
  NetSampler sample;

  Builder(Dims input, std::uint64_t seed) : net{"net", std::move(input), {}}, sample(seed) {}

  std::int64_t draw(std::int64_t low, std::int64_t high) { return sample.number(low, high); }
  bool toss() { return draw(0, 1) == 1; }
  Dims shape(int value) const {
    if (value == 0) return net.input;
    return infer_shapes({net.name, net.input, {net.nodes.begin(), net.nodes.begin() + value}}).value().back();
  }
  int push(Operator op, std::vector<int> inputs) {
    net.nodes.push_back({"node" + std::to_string(net.nodes.size()), std::move(op), std::move(inputs)});
    return static_cast<int>(net.nodes.size());
  }
  int conv(int in, Window w, std::int64_t out, std::int64_t groups = 1, bool bias = true) {
    const auto fan_in = shape(in)[0] / groups * w.taps();
    const float bound = 1.5F / std::sqrt(static_cast<float>(fan_in));
    auto weight = sample.floats(out * fan_in, -bound, bound);
    return push(Convolution{w, out, groups, std::move(weight), bias ? sample.floats(out) : std::vector<float>{}}, {in});
  }
  int conv3x3(int in, std::int64_t out) { return conv(in, {3, 3, 1, 1, 1, 1, 1, 1}, out); }
  int norm(int in) {
    const auto c = shape(in)[0];
    return push(BatchNorm{sample.floats(c), sample.floats(c), sample.floats(c), sample.floats(c, 0.5F, 2), 1e-3F},
                {in});
  }
  int dense(int in, std::int64_t out, bool bias = true) {
    const auto fan_in = shape(in)[0];
    const float bound = 1.5F / std::sqrt(static_cast<float>(fan_in));
    auto weight = sample.floats(out * fan_in, -bound, bound);
    return push(Dense{out, std::move(weight), bias ? sample.floats(out) : std::vector<float>{}}, {in});
  }
  int relu(int in) { return push(Relu{}, {in}); }
  int clip(int in) {
    const auto low = draw(0, 1) == 0 ? 0.0F : sample.floats(1, -1, 0).front();
    return push(Clip{low, sample.floats(1, 0.2F, 1).front()}, {in});
  }
  int add(int a, int b) { return push(Add{}, {a, b}); }
  int flatten(int in) { return push(Flatten{}, {in}); }
  int identity(int in) { return push(Identity{}, {in}); }

  // A window that fits the net's input.
  Window window(bool of_pool) {
    Window w;
    const auto height = net.input.end()[-2], width = net.input.back();
    w.kernel_h = draw(1, std::min<std::int64_t>(4, height));
    w.kernel_w = draw(1, std::min<std::int64_t>(4, width));
    w.stride_h = draw(1, 3);
    w.stride_w = draw(1, 3);
    for (auto* pad : {&w.pad_top, &w.pad_bottom}) *pad = draw(0, of_pool ? w.kernel_h - 1 : 2);
    for (auto* pad : {&w.pad_left, &w.pad_right}) *pad = draw(0, of_pool ? w.kernel_w - 1 : 2);
    if (net.input.size() == 4) {
      w.kernel_d = draw(1, std::min<std::int64_t>(4, net.input[1]));
      w.stride_d = draw(1, 3);
      for (auto* pad : {&w.pad_front, &w.pad_back}) *pad = draw(0, of_pool ? w.kernel_d - 1 : 2);
    }
    return w;
  }
};

inline std::vector<float> random_input(const Network& net, int batch, std::uint64_t seed) {
  return NetSampler(seed).floats(batch * elements(net.input));
}

}  // namespace coppice::gpu
