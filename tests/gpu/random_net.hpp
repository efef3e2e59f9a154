// Small nets with every operator, drawn from a seed: odd sizes, strides, pads on one side, groups, branches, dead ends.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

class NetSampler {
 public:
  explicit NetSampler(std::uint64_t seed) : random_(seed) {}

  std::int64_t number(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(high - low + 1));
  }
  std::vector<float> floats(std::int64_t count, float low = -1, float high = 1) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& value : out)
      value = low + (high - low) * static_cast<float>(random_() >> 40) / static_cast<float>(1 << 24);
    return out;
  }

  Network net(int operators) {
    net_ = {"random", {number(1, 20), number(3, 14), number(3, 14)}, {}};
    shapes_ = {net_.input};
    for (int i = 0; i < operators; ++i) image_operator();
    if (number(0, 2) > 0) head();
    return net_;
  }

 private:
  // A value to read: mostly the latest, now and then an earlier one of three axes.
  int source() {
    int index = static_cast<int>(shapes_.size()) - 1;
    if (number(0, 5) == 0) index = static_cast<int>(number(0, index));
    return index;
  }
  const Dims& shape(int value) const { return shapes_[static_cast<std::size_t>(value)]; }
  void push(Operator op, std::vector<int> inputs) {
    Node node{"n" + std::to_string(net_.nodes.size()), std::move(op), std::move(inputs)};
    const auto out = infer_shape(node, shapes_);
    if (!out) return;  // a window that does not fit: some other operator next time
    shapes_.push_back(*out);
    net_.nodes.push_back(std::move(node));
  }
  Window window(std::int64_t kernel_max) {
    Window w;
    w.kernel_h = number(1, kernel_max);
    w.kernel_w = number(1, kernel_max);
    w.stride_h = number(1, 3);
    w.stride_w = number(1, 3);
    w.pad_top = number(0, w.kernel_h - 1);
    w.pad_left = number(0, w.kernel_w - 1);
    w.pad_bottom = number(0, 2) > 0 ? w.pad_top : number(0, w.kernel_h - 1);
    w.pad_right = number(0, 2) > 0 ? w.pad_left : number(0, w.kernel_w - 1);
    return w;
  }
  BatchNorm norm(std::int64_t channels) {
    return {floats(channels), floats(channels), floats(channels), floats(channels, 0.1F, 2), 1e-3F};
  }
  void convolution(int in) {
    const auto channels = shape(in)[0];
    std::int64_t groups = 1;
    for (const std::int64_t candidate : {channels, std::int64_t{4}, std::int64_t{2}})
      if (channels % candidate == 0 && number(0, 3) == 0) groups = candidate;
    Convolution c{window(4), groups * number(1, groups > 4 ? 2 : 18), groups, {}, {}};
    const auto fan_in = channels / groups * c.window.kernel_h * c.window.kernel_w;
    const float bound = 1.5F / std::sqrt(static_cast<float>(fan_in));
    c.weight = floats(c.out_channels * fan_in, -bound, bound);
    if (number(0, 1) == 0) c.bias = floats(c.out_channels);
    push(std::move(c), {in});
  }
  void image_operator() {
    const int in = source();
    switch (number(0, 9)) {
      case 0:
      case 1:
      case 2:
        return convolution(in);
      case 3:
        return push(norm(shape(in)[0]), {in});
      case 4:
        return push(Relu{}, {in});
      case 5:
        return push(MaxPool{window(3)}, {in});
      case 6:
        return push(AveragePool{window(3), number(0, 1) == 0}, {in});
      case 7:
        return push(Identity{}, {in});
      case 8: {  // a residual: around a convolution that keeps the shape, or of any two that are alike
        const auto channels = shape(in)[0];
        push(Convolution{{3, 3, 1, 1, 1, 1, 1, 1}, channels, 1, floats(channels * channels * 9, -0.2F, 0.2F), {}},
             {in});
        const int out = static_cast<int>(shapes_.size()) - 1;
        return number(0, 1) == 0 ? push(Add{}, {out, in}) : push(Add{}, {in, out});
      }
      default:
        return push(number(0, 3) == 0 ? Operator(GlobalAveragePool{}) : Operator(Relu{}), {in});
    }
  }
  void head() {
    push(Flatten{}, {static_cast<int>(shapes_.size()) - 1});
    for (auto layers = number(0, 2); layers > 0; --layers) {
      const int in = static_cast<int>(shapes_.size()) - 1;
      const auto features = shape(in)[0], out = number(1, 20);
      const float bound = 1.5F / std::sqrt(static_cast<float>(features));
      push(Dense{out, floats(out * features, -bound, bound), number(0, 1) == 0 ? floats(out) : std::vector<float>{}},
           {in});
      if (number(0, 2) == 0) push(norm(out), {in + 1});
      if (number(0, 1) == 0) push(Relu{}, {static_cast<int>(shapes_.size()) - 1});
    }
  }

  std::mt19937_64 random_;
  Network net_;
  std::vector<Dims> shapes_;
};

// REQUIRES: operators >= 1. At least one node.
inline Network random_net(std::uint64_t seed, int operators) {
  for (;; ++seed)
    if (Network net = NetSampler(seed).net(operators); !net.nodes.empty()) return net;
}

}  // namespace coppice::gpu
