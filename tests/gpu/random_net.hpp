// Small nets with every operator, drawn from a seed: odd sizes, strides, pads on one side, groups, branches, dead ends.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// What random nets are made of: what a convolutional net of any year has, or every operator on values of any rank.
enum class Palette { images, all };

class NetSampler {
 public:
  explicit NetSampler(std::uint64_t seed, Palette palette = Palette::images) : random_(seed), palette_(palette) {}

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
    if (palette_ == Palette::all && number(0, 4) == 0) w.dilation_h = number(1, 3);
    if (palette_ == Palette::all && number(0, 4) == 0) w.dilation_w = number(1, 3);
    w.pad_top = number(0, w.kernel_h - 1);
    w.pad_left = number(0, w.kernel_w - 1);
    w.pad_bottom = number(0, 2) > 0 ? w.pad_top : number(0, w.kernel_h - 1);
    w.pad_right = number(0, 2) > 0 ? w.pad_left : number(0, w.kernel_w - 1);
    return w;
  }
  Window pool_window() {  // none lies in padding alone
    Window w = window(3);
    if (w.dilation_h * w.dilation_w > 1) w.pad_top = w.pad_left = w.pad_bottom = w.pad_right = 0;
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
    if (shape(in).size() != 3) return other_operator(in);
    switch (number(0, palette_ == Palette::all ? 12 : 8)) {
      case 0:
      case 1:
      case 2:
        return convolution(in);
      case 3:
        return push(norm(shape(in)[0]), {in});
      case 4:
        return palette_ == Palette::images || number(0, 1) == 0 ? push(Relu{}, {in}) : push(clip(), {in});
      case 5:
        return push(MaxPool{pool_window()}, {in});
      case 6:
        return push(AveragePool{pool_window(), number(0, 1) == 0}, {in});
      case 7:
        return push(Identity{}, {in});
      case 8: {  // a residual: around a convolution that keeps the shape, or of any two that are alike
        const auto channels = shape(in)[0];
        push(Convolution{{3, 3, 1, 1, 1, 1, 1, 1}, channels, 1, floats(channels * channels * 9, -0.2F, 0.2F), {}},
             {in});
        const int out = static_cast<int>(shapes_.size()) - 1;
        return number(0, 1) == 0 ? push(Add{}, {out, in}) : push(Add{}, {in, out});
      }
      case 9:
      case 10:
        return moved(in);
      case 11:
        return other_operator(in);
      default:
        return push(number(0, 3) == 0 ? Operator(GlobalAveragePool{}) : Operator(Relu{}), {in});
    }
  }
  Clip clip() {
    const float low = floats(1).front();
    return {number(0, 1) == 0 ? 0 : low, std::max(low, 0.0F) + floats(1, 0, 1).front()};
  }
  // Slices, concatenations and shuffles of channels.
  void moved(int in) {
    const auto channels = shape(in)[0];
    const auto begin = number(0, 1) == 0 ? channels / 2 : number(0, channels - 1);
    switch (number(0, 2)) {
      case 0:
        for (std::int64_t groups = number(1, 4); groups > 0; --groups)
          if (channels % groups == 0) return push(ChannelShuffle{groups}, {in});
        return;
      case 1:
        return push(Slice{0, begin, number(begin + 1, channels)}, {in});
      default: {
        push(Slice{0, begin, channels}, {in});
        const int part = static_cast<int>(shapes_.size()) - 1;
        return number(0, 1) == 0 ? push(Concat{0}, {part, in}) : push(Concat{0}, {in, part, in});
      }
    }
  }
  // What works on values of any rank.
  void other_operator(int in) {
    const Dims dims = shape(in);
    const auto axis = static_cast<int>(number(0, static_cast<std::int64_t>(dims.size()) - 1));
    const auto length = dims[static_cast<std::size_t>(axis)];
    switch (number(0, 9)) {
      case 0: {
        std::vector<int> order(dims.size());
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random_);
        return push(Transpose{order}, {in});
      }
      case 1: {  // one axis in two, or two axes in one
        Dims to = dims;
        if (length % 2 == 0 && dims.size() < 8) {
          to[static_cast<std::size_t>(axis)] /= 2;
          to.insert(to.begin() + axis, 2);
        } else if (dims.size() > 1) {
          to[1] *= to[0];
          to.erase(to.begin());
        }
        return push(Reshape{to}, {in});
      }
      case 2:
        return push(Slice{axis, length / 3, length - length / 4}, {in});
      case 3:
        return push(Concat{axis}, {in, in});
      case 4: {
        const int other = constant(dims, -1, 1);
        return number(0, 1) == 0 ? push(Add{}, {other, in}) : push(Add{}, {in, other});
      }
      case 8: {  // a root of what is not negative
        const auto kind = static_cast<Arithmetic::Kind>(number(0, 2));
        push(Arithmetic{kind}, {in, number(0, 1) == 0 && kind != Arithmetic::Kind::divide ? in : constant(dims, 0.5F, 2)});
        push(Clip{0, 4}, {static_cast<int>(shapes_.size()) - 1});
        return push(SquareRoot{}, {static_cast<int>(shapes_.size()) - 1});
      }
      case 5:
        return push(norm(dims[0]), {in});
      case 6:
        return push(clip(), {in});
      case 7:
        return push(Add{}, {in, in});
      default:
        return push(Relu{}, {in});
    }
  }
  // One that is repeated along some axes of `dims`.
  int constant(const Dims& dims, float low, float high) {
    Dims of(dims.begin() + number(0, static_cast<std::int64_t>(dims.size()) - 1), dims.end());
    for (auto& dim : of)
      if (number(0, 1) == 0) dim = 1;
    push(Constant{of, floats(elements(of), low, high)}, {});
    return static_cast<int>(shapes_.size()) - 1;
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
  Palette palette_;
  Network net_;
  std::vector<Dims> shapes_;
};

// REQUIRES: operators >= 1. At least one node.
inline Network random_net(std::uint64_t seed, int operators, Palette palette = Palette::images) {
  for (;; ++seed)
    if (Network net = NetSampler(seed, palette).net(operators); !net.nodes.empty()) return net;
}

}  // namespace coppice::gpu
