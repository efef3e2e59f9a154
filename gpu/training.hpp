// gpu/training.hpp: a net that learns on one device: forward, backward, and a step of stochastic gradient descent.
//
// What to learn is not known here: the caller makes a loss of the scores and hands their gradients back, so that a loss
// with other nets, a decoder or erasures in it needs nothing of this folder. gpu/trainer.hpp goes round the data.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "gpu/device.hpp"
#include "gpu/network.hpp"

namespace coppice::gpu {

struct TrainingOptions {
  int batch = 128;
  int threads = 0;              // of this net on the CPU; 0: as many as the device's
  bool input_gradient = false;  // whether read_value_gradient(0) works; a training that does not ask saves the time
};

enum class Mode : std::uint8_t {
  train,     // batch norms use the batch's own statistics and move the running ones
  evaluate,  // batch norms use the running statistics, as the finished net will
};

// Every vector of numbers of a node, const or not, that a TrainingState holds, in its order.
template <class AnyNode, class Visit>
void for_each_parameter(AnyNode& node, const Visit& visit) {
  const auto visit_all = [&](auto&... vectors) { (visit(vectors), ...); };
  if (auto* c = std::get_if<Convolution>(&node.op)) visit_all(c->weight, c->bias);
  if (auto* d = std::get_if<Dense>(&node.op)) visit_all(d->weight, d->bias);
  if (auto* b = std::get_if<BatchNorm>(&node.op)) visit_all(b->scale, b->shift, b->mean, b->variance);
}

// One step: v <- momentum v + (g + weight_decay w); w <- w - rate (g + weight_decay w + momentum v) with Nesterov's
// momentum, w - rate v without. Biases and batch norms are not decayed.
struct SgdStep {
  float rate = 0.1F, momentum = 0.9F, weight_decay = 5e-4F;
  bool nesterov = true;
  float average_decay = 0;  // of the running average of the weights: a <- d a + (1 - d) w; 0 keeps none
};

// All that a net in training is: enough to go on as if it had never stopped.
struct TrainingState {
  std::vector<float> weights;   // of every parameter and running statistic, in the order of the net's nodes
  std::vector<float> velocity;  // as many
  std::vector<float> average;   // as many, or empty
};

// Told while a backward goes on: the gradients of all parameters from number `first` on (in the order of
// TrainingState::weights) are whole. Comes with falling numbers, on the thread of the backward; not every device tells.
using GradientsReady = std::function<void(std::int64_t first)>;

// One caller at a time; different nets of one device may run on different threads. A batch is always whole.
class TrainableNet {
 public:
  virtual ~TrainableNet() = default;
  virtual std::int64_t input_elements() const = 0;   // of the whole batch
  virtual std::int64_t output_elements() const = 0;  // of the whole batch
  // input: float32 [batch, input dims]; scores: float32 [batch, output dims]. Errors: shape_mismatch, device_failed.
  virtual Expected<void> forward(std::span<const float> input, std::span<float> scores, Mode mode) = 0;
  // d loss / d scores, [batch, output dims], of the latest forward. Adds to the parameters' gradients; also after a
  // forward in Mode::evaluate, where running statistics count as constants. Nothing is told of gradients that are added
  // to others before their update.
  virtual Expected<void> backward(std::span<const float> score_gradients, const GradientsReady& ready = {}) = 0;
  // Moves the weights against the gradients and clears these.
  virtual Expected<void> update(const SgdStep& step) = 0;

  // Of the latest forward and backward: value 0 is the input, value i + 1 the output of node i; [batch, its dims].
  // Where no gradient arrives (nothing that learns comes before, or no score after), the gradient reads as zero.
  virtual Expected<void> read_value(int value, std::span<float> out) const = 0;
  virtual Expected<void> read_value_gradient(int value, std::span<float> out) const = 0;

  // The parameters' gradients in the order of TrainingState::weights; 0 for running statistics.
  virtual std::int64_t parameter_elements() const = 0;
  virtual Expected<void> read_gradients(std::span<float> out) const = 0;
  virtual Expected<void> write_gradients(std::span<const float> in) = 0;
  // What replicas of one net, each with its part of a batch, average between backward and update: the gradients, and
  // these themselves in the places of running statistics. Parameters [first, first + size), of whole nodes; also from
  // within GradientsReady. Errors: shape_mismatch.
  virtual Expected<void> read_shared(std::int64_t first, std::span<float> out) const = 0;
  virtual Expected<void> write_shared(std::int64_t first, std::span<const float> in) = 0;

  // The net as it stands; averaged: with the running average of the weights, where there is one.
  virtual Expected<Network> network(bool averaged) const = 0;
  virtual Expected<TrainingState> state() const = 0;
  virtual Expected<void> restore(const TrainingState& state) = 0;
};

}  // namespace coppice::gpu
