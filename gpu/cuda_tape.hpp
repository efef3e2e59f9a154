// gpu/cuda_tape.hpp: the steps of one forward and one backward pass of a net in training, and the values between them.
#pragma once

#include <functional>
#include <vector>

#include "gpu/cuda_parameters.hpp"
#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {

class Tape {
 public:
  // Tries cuDNN's algorithms out on the values and gradients. REQUIRES: all references outlive it. Throws Fault.
  Tape(const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision, Lane& lane,
       const Parameters& parameters);

  int count(int value) const { return counts_[static_cast<std::size_t>(value)]; }  // numbers of the whole batch
  int values() const { return static_cast<int>(counts_.size()); }
  float* value(int index) const { return values_[static_cast<std::size_t>(index)]; }
  float* gradient(int index) const { return gradients_[static_cast<std::size_t>(index)]; }

  // From value 0 to the last one; from the last one's gradient to value 0's. Onto the stream; throw Fault.
  void forward(Mode mode) const;
  void backward(Mode mode) const;

 private:
  friend class TapeWriter;
  using Pass = std::function<void(Mode)>;

  std::vector<int> counts_;
  std::vector<float*> values_, gradients_;
  DeviceMemory value_block_, gradient_block_;
  std::vector<DeviceMemory> scratch_;
  std::vector<Pass> forward_, backward_;  // in the order in which they run
};

}  // namespace coppice::gpu
