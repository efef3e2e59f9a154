// gpu/cpu_fusion.hpp: which nodes of a net one step of the CPU device does together.
#pragma once

#include <limits>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

struct Clamp {  // ReLU is {0, infinity}
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  bool idle() const { return low == -std::numeric_limits<float>::infinity() && high == -low; }
};

// What a node's step does besides the node: adds another value that is there already, then clamps.
struct Fusion {
  int result = 0;  // the value that the step makes; 0: an earlier step makes this node's value, or skips it
  int addend = -1;
  Clamp clamp;
};

// One entry a node. A node is taken up only where its input has no other reader.
// REQUIRES: shapes as infer_shapes gives them.
std::vector<Fusion> fusions(const Network& net, const std::vector<Dims>& shapes);

}  // namespace coppice::gpu
