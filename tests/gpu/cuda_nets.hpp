// Nets for checks of the CUDA device, with a GPU and without.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/builder.hpp"

namespace coppice::gpu {

// Nets that together have every operator, every pair that may become one launch, and every kind of window.
inline std::vector<Network> operator_nets() {
  std::vector<Network> out;
  const auto finish = [&](Builder& b, const std::string& name) {
    b.net.name = name;
    out.push_back(b.net);
  };
  {
    Builder b({3, 11, 9}, 1);
    int v = b.conv(0, {3, 3, 2, 2, 0, 1, 1, 0}, 8, 1, false);  // padded more on one side than on the other
    v = b.relu(b.norm(v));
    const int trunk = v;
    v = b.push(Clip{0, 6}, {b.conv(v, {3, 3, 1, 1, 1, 1, 1, 1}, 16, 4)});
    v = b.norm(b.conv(v, {1, 1, 1, 1, 0, 0, 0, 0}, 8, 1, false));
    const int joined = b.relu(b.add(trunk, v));
    v = b.conv(joined, {3, 3, 1, 1, 2, 2, 2, 2, 2, 2}, 8, 8);  // depthwise and dilated
    v = b.add(v, joined);
    v = b.push(MaxPool{{3, 2, 2, 1, 1, 0, 1, 1}}, {v});
    v = b.dense(b.flatten(v), 12);
    v = b.dense(b.relu(v), 5, false);
    finish(b, "residual");
  }
  {
    Builder b({4, 6, 6}, 2);
    const int a = b.conv3x3(0, 4);
    const int left = b.push(Slice{0, 0, 2}, {a}), right = b.push(Slice{0, 2, 4}, {a});
    int v = b.conv(right, {3, 3, 1, 1, 1, 1, 1, 1}, 2, 2);
    v = b.push(Concat{0}, {left, v, left});
    v = b.push(ChannelShuffle{3}, {v});
    v = b.norm(v);
    v = b.push(Clip{-0.5F, 0.5F}, {v});
    v = b.push(AveragePool{{3, 3, 2, 2, 1, 1, 1, 1}, true}, {v});
    v = b.push(AveragePool{{2, 2, 1, 1, 1, 0, 0, 1}, false}, {v});
    v = b.relu(v);
    v = b.push(GlobalAveragePool{}, {v});
    finish(b, "shuffle");
  }
  {
    Builder b({6, 4, 5}, 3);
    int v = b.conv3x3(0, 6);
    const int kept = v;
    const int row = b.push(Slice{2, 1, 2}, {v});  // 6x4x1, repeated along its last axis
    v = b.add(row, kept);
    const int constant = b.push(Constant{{6, 1, 1}, b.sample.floats(6)}, {});
    v = b.add(v, constant);
    const int whole = b.push(Constant{{6, 4, 5}, b.sample.floats(120)}, {});
    v = b.add(whole, v);
    v = b.push(Transpose{{2, 0, 1}}, {v});  // 5x6x4
    v = b.push(Reshape{{5, 3, 2, 2, 2}}, {v});
    v = b.push(Transpose{{1, 0, 4, 2, 3}}, {v});  // 3x5x2x2x2
    v = b.push(Slice{1, 1, 4}, {v});
    v = b.push(Concat{4}, {v, v});
    v = b.push(Reshape{{9, 4, 4}}, {v});
    v = b.conv3x3(v, 4);
    const int lazy = b.flatten(v);  // of an image that two read
    v = b.add(b.push(Reshape{{4, 16}}, {lazy}), b.push(Reshape{{4, 16}}, {b.relu(lazy)}));
    v = b.push(Transpose{{1, 0}}, {v});
    v = b.push(Identity{}, {b.push(Relu{}, {v})});
    finish(b, "moves");
  }
  {
    Builder b({2, 5, 5}, 4);
    const int a = b.relu(b.conv3x3(0, 4));
    const int twice = b.add(a, a);
    int v = b.dense(b.flatten(twice), 6);
    v = b.norm(v);
    v = b.push(Identity{}, {b.relu(v)});
    finish(b, "twice");
  }
  {
    Builder b({3, 4, 4}, 5);
    b.push(Transpose{{0, 2, 1}}, {0});
    finish(b, "an image out");
  }
  return out;
}

// conv-bn-relu pairs with shortcuts, as He et al.'s for CIFAR: 3 x 2n + 2 layers; n = 3 is ResNet-20.
inline Network residual_net(int n, std::int64_t width, int classes) {
  Builder b({3, 32, 32}, 20);
  b.net.name = "resnet-" + std::to_string(6 * n + 2) + " of " + std::to_string(width);
  const auto conv = [&](int in, std::int64_t out, std::int64_t kernel, std::int64_t stride) {
    const auto pad = kernel / 2;
    return b.norm(b.conv(in, {kernel, kernel, stride, stride, pad, pad, pad, pad}, out, 1, false));
  };
  int v = b.relu(conv(0, width, 3, 1));
  for (int block = 0; block < 3 * n; ++block) {
    const auto out = width << (block / n);
    const bool narrows = block > 0 && block % n == 0;
    const int last = conv(b.relu(conv(v, out, 3, narrows ? 2 : 1)), out, 3, 1);
    v = b.relu(b.add(last, narrows ? conv(v, out, 1, 2) : v));
  }
  b.dense(b.flatten(b.push(GlobalAveragePool{}, {v})), classes);
  return b.net;
}

// Norms by an item's own statistics, as ONNX files have them: only forward.
inline Network arithmetic_net() {
  using Kind = Arithmetic::Kind;
  Builder b({6, 4, 5}, 4);
  const int conv = b.conv3x3(0, 6);
  const int mean = b.push(GlobalAveragePool{}, {conv});
  const int centred = b.push(Arithmetic{Kind::subtract}, {conv, mean});
  const int variance = b.push(GlobalAveragePool{}, {b.push(Arithmetic{Kind::multiply}, {centred, centred})});
  const int deviation = b.push(SquareRoot{}, {b.add(variance, b.push(Constant{{1}, {0.01F}}, {}))});
  const int normed = b.relu(b.push(Arithmetic{Kind::divide}, {centred, deviation}));
  const int turned = b.push(Arithmetic{Kind::subtract}, {b.push(Constant{{5}, b.sample.floats(5)}, {}), normed});
  b.dense(b.flatten(b.conv3x3(turned, 4)), 3);
  b.net.name = "arithmetic";
  return b.net;
}

}  // namespace coppice::gpu
