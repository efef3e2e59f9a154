// gpu/cuda_parameters.hpp: all that a net learns, in one array on the GPU, so that one kernel updates it.
#pragma once

#include <span>
#include <vector>

#include "gpu/cuda_handles.hpp"
#include "gpu/cuda_training_jobs.hpp"
#include "gpu/training.hpp"

namespace coppice::gpu {

class Parameters {
 public:
  // Of every parameter and running statistic in the order of the net's nodes; velocities and gradients are 0.
  Parameters(const Network& net, const Lane& lane);

  std::int64_t elements() const { return elements_; }  // without the gaps in the array
  // On the GPU. which counts the node's arrays as they stand in TrainingState: weight and bias, or scale, shift, mean
  // and variance. Null where the node has none.
  float* weight(int node, int which) const { return at(weights_, node, which); }
  float* gradient(int node, int which) const { return at(gradients_, node, which); }

  void update(const Lane& lane, const SgdStep& step);  // moves the weights, clears the gradients
  void clear(const Lane& lane) const;                  // gradients only
  void read_gradients(const Lane& lane, std::span<float> out) const;
  void write_gradients(const Lane& lane, std::span<const float> in) const;
  // Gradients, and values of what is fixed. REQUIRES: [first, first + size) lies within.
  void read_shared(const Lane& lane, std::int64_t first, std::span<float> out) const;
  void write_shared(const Lane& lane, std::int64_t first, std::span<const float> in) const;
  TrainingState state(const Lane& lane) const;
  void restore(const Lane& lane, const TrainingState& state);  // REQUIRES: sizes fit
  Network network(const Lane& lane, const Network& like, bool averaged) const;

 private:
  struct Piece {
    int node, which;
    std::size_t begin, count;  // in the array
    ParameterKind kind;
  };
  float* at(const DeviceMemory& array, int node, int which) const;
  std::vector<float> read(const Lane& lane, const DeviceMemory& array) const;  // without the gaps
  void write(const Lane& lane, const DeviceMemory& array, std::span<const float> values) const;
  // Calls visit(number, whether it is fixed) for the numbers [first, first + count) of all parameters.
  template <class Visit>
  void each_number(std::int64_t first, std::size_t count, const Visit& visit) const;
  std::size_t bytes() const { return size_ * sizeof(float); }

  std::vector<Piece> pieces_;
  std::size_t size_ = 0;  // with the gaps
  std::int64_t elements_ = 0;
  DeviceMemory weights_, gradients_, velocity_, average_, kinds_;
};

// The arrays of a node that a net in training carries, in their order. For const and other nodes alike.
template <class Node, class Visit>
void each_array(Node& node, const Visit& visit) {
  if (auto* c = std::get_if<Convolution>(&node.op)) {
    visit(0, c->weight, ParameterKind::decayed);
    visit(1, c->bias, ParameterKind::plain);
  } else if (auto* d = std::get_if<Dense>(&node.op)) {
    visit(0, d->weight, ParameterKind::decayed);
    visit(1, d->bias, ParameterKind::plain);
  } else if (auto* b = std::get_if<BatchNorm>(&node.op)) {
    visit(0, b->scale, ParameterKind::plain);
    visit(1, b->shift, ParameterKind::plain);
    visit(2, b->mean, ParameterKind::fixed);
    visit(3, b->variance, ParameterKind::fixed);
  }
}

}  // namespace coppice::gpu
