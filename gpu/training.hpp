// gpu/training.hpp: a net that learns on one device: forward, backward, and a step of stochastic gradient descent.
//
// What to learn is not known here: the caller makes a loss of the scores and hands their gradients back, so that a loss
// with other nets, a decoder or erasures in it needs nothing of this folder. gpu/trainer.hpp goes round the data.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
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

// One caller at a time; different nets of one device may run on different threads. A batch is always whole.
class TrainableNet {
 public:
  virtual ~TrainableNet() = default;
  virtual std::int64_t input_elements() const = 0;   // of the whole batch
  virtual std::int64_t output_elements() const = 0;  // of the whole batch
  // input: float32 [batch, input dims]; scores: float32 [batch, output dims]. Errors: shape_mismatch, device_failed.
  virtual Expected<void> forward(std::span<const float> input, std::span<float> scores, Mode mode) = 0;
  // d loss / d scores, [batch, output dims], of the latest forward. Adds to the parameters' gradients; also after a
  // forward in Mode::evaluate, where running statistics count as constants.
  virtual Expected<void> backward(std::span<const float> score_gradients) = 0;
  // Moves the weights against the gradients and clears these.
  virtual Expected<void> update(const SgdStep& step) = 0;

  // Of the latest forward and backward: value 0 is the input, value i + 1 the output of node i; [batch, its dims].
  // Where no gradient arrives (nothing that learns comes before, or no score after), the gradient reads as zero.
  virtual Expected<void> read_value(int value, std::span<float> out) const = 0;
  virtual Expected<void> read_value_gradient(int value, std::span<float> out) const = 0;

  // The parameters' gradients in the order of TrainingState::weights (0 for running statistics): so that nodes which
  // train one net together can add theirs up between backward and update.
  virtual std::int64_t parameter_elements() const = 0;
  virtual Expected<void> read_gradients(std::span<float> out) const = 0;
  virtual Expected<void> write_gradients(std::span<const float> in) = 0;

  // The net as it stands; averaged: with the running average of the weights, where there is one.
  virtual Expected<Network> network(bool averaged) const = 0;
  virtual Expected<TrainingState> state() const = 0;
  virtual Expected<void> restore(const TrainingState& state) = 0;
};

}  // namespace coppice::gpu
