// What the tests of the CUDA device share: the device on the made-up CUDA, and nets with every operator.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/cuda_plugin.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/cuda_fake.hpp"

extern "C" coppice::gpu::Device* coppice_cuda_device_v2(int ordinal, coppice::gpu::Precision precision,
                                                        std::string* why);

namespace coppice::gpu {

inline std::unique_ptr<Device> cuda(Precision precision = Precision::float32) {
  std::string why;
  return std::unique_ptr<Device>(coppice_cuda_device_v2(0, precision, &why));
}

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
    v = b.push(Transpose{{2, 0, 1}}, {v});        // 5x6x4
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

}  // namespace coppice::gpu
