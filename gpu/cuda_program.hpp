// gpu/cuda_program.hpp: a net as launches on numbered buffers: what is decided before there is any memory.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "gpu/cuda_convolution.hpp"
#include "gpu/cuda_plugin.hpp"
#include "gpu/network.hpp"

namespace coppice::gpu {

// Where the buffers are, once they are somewhere.
struct Binding {
  Lane& lane;
  bool timed = false;         // see CompileOptions
  Choices choices;            // of each kind of convolution
  std::vector<void*> places;  // of each buffer
  std::vector<Way> ways;      // of each convolution, as it turned out
};

using Launch = std::function<void()>;  // puts work onto the lane's stream; throws Fault

struct Buffer {
  std::size_t bytes = 0;
  bool apart = false;        // not in the arena: its numbers are of another kind than the rest
  void* constant = nullptr;  // where it is already somewhere
};

struct Step {
  std::vector<int> reads;
  int writes = 0;
  std::function<Launch(Binding&)> bind;  // may try things out on the buffers
};

struct Program {
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  std::vector<DeviceMemory> constants;
  int input = 0, output = 0;              // buffers of float32 in the layout of CompiledNet::run
  int input_count = 0, output_count = 0;  // numbers in them
};

// REQUIRES: shapes are the net's. Uploads its weights. Throws Fault.
Program lowered(const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision, const Lane& lane);

}  // namespace coppice::gpu
