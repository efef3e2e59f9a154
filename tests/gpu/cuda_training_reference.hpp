// What a net in training must give: a batch through the definitions in double precision, batch norms on the batch's own
// statistics, and gradients by differences.
#pragma once

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "gpu/training.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu::reference {

using Batch = std::vector<Values>;  // one for each item

// A small change to one number: of a value (0 is the input) while a batch goes through.
struct Nudge {
  int value = 0;
  std::size_t item = 0, element = 0;
  double by = 0;
};

inline std::pair<double, double> statistics(const Batch& batch, std::size_t channel, std::size_t per_channel) {
  double mean = 0, variance = 0;
  for (const auto& item : batch)
    for (std::size_t i = 0; i < per_channel; ++i) mean += item[channel * per_channel + i];
  const double count = static_cast<double>(batch.size() * per_channel);
  mean /= count;
  for (const auto& item : batch)
    for (std::size_t i = 0; i < per_channel; ++i) variance += std::pow(item[channel * per_channel + i] - mean, 2);
  return {mean, variance / count};
}

inline Batch normalised(const BatchNorm& norm, Batch batch) {
  const auto per_channel = batch.front().size() / norm.scale.size();
  for (std::size_t c = 0; c < norm.scale.size(); ++c) {
    const auto [mean, variance] = statistics(batch, c, per_channel);
    for (auto& item : batch)
      for (std::size_t i = c * per_channel; i < (c + 1) * per_channel; ++i)
        item[i] = (item[i] - mean) / std::sqrt(variance + norm.epsilon) * norm.scale[c] + norm.shift[c];
  }
  return batch;
}

// All values of a batch.
inline std::vector<Batch> train_forward(const Network& net, std::span<const float> input, Mode mode,
                                        const std::optional<Nudge>& nudge = {}) {
  const auto shapes = *infer_shapes(net);
  const auto size = static_cast<std::size_t>(elements(net.input));
  std::vector<Batch> values(1);
  for (; !input.empty(); input = input.subspan(size)) {
    const auto item = input.first(size);
    values[0].emplace_back(item.begin(), item.end());
  }
  const auto nudged = [&](int value) {
    if (nudge && nudge->value == value)
      values[static_cast<std::size_t>(value)][nudge->item][nudge->element] += nudge->by;
  };
  nudged(0);
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    const auto& node = net.nodes[i];
    const auto* norm = std::get_if<BatchNorm>(&node.op);
    if (norm && mode == Mode::train) {
      values.push_back(normalised(*norm, values[static_cast<std::size_t>(node.inputs.front())]));
    } else {
      Batch out;
      for (std::size_t item = 0; item < values[0].size(); ++item) {
        std::vector<const Values*> in;
        std::vector<Dims> from;
        for (const int index : node.inputs) {
          in.push_back(&values[static_cast<std::size_t>(index)][item]);
          from.push_back(shapes[static_cast<std::size_t>(index)]);
        }
        const Dims first = from.empty() ? Dims{} : from.front();
        out.push_back(std::visit(Forward{in, from, first, shapes[i + 1]}, node.op));
      }
      values.push_back(std::move(out));
    }
    nudged(static_cast<int>(i) + 1);
  }
  return values;
}

inline std::vector<float> joined(const Batch& batch) {
  std::vector<float> out;
  for (const auto& item : batch)
    for (const double value : item) out.push_back(static_cast<float>(value));
  return out;
}

// The loss whose gradients are given: a weighted sum of the scores.
inline double loss(const Batch& scores, std::span<const float> gradients) {
  double sum = 0;
  std::size_t i = 0;
  for (const auto& item : scores)
    for (const double score : item) sum += score * gradients[i++];
  return sum;
}

// Visits the arrays in the order of TrainingState::weights; running statistics as nothing to be learned.
template <class Visit>
inline void each_parameter(Network& net, const Visit& visit) {
  for (auto& node : net.nodes) {
    if (auto* c = std::get_if<Convolution>(&node.op)) {
      visit(c->weight, true);
      visit(c->bias, true);
    } else if (auto* d = std::get_if<Dense>(&node.op)) {
      visit(d->weight, true);
      visit(d->bias, true);
    } else if (auto* b = std::get_if<BatchNorm>(&node.op)) {
      visit(b->scale, true);
      visit(b->shift, true);
      visit(b->mean, false);
      visit(b->variance, false);
    }
  }
}

struct Case {
  Network net;
  std::vector<float> input, score_gradients;
  Mode mode = Mode::train;
};

// By differences to both sides; none where these are not the same: at a kink of a ReLU, a bound or a maximum.
template <class Loss>
std::optional<double> slope(double step_up, double step_down, const Loss& loss_at) {
  const double here = loss_at(0), up = (loss_at(1) - here) / step_up, down = (here - loss_at(-1)) / step_down;
  if (std::abs(up - down) > 5e-3 * std::max({std::abs(up), std::abs(down), 1e-2})) return {};
  return (up + down) / 2;
}

// Of a weight of `net`, which is the case's. Weights are floats: what they were really moved by counts.
inline std::optional<double> slope(const Case& c, Network& net, float& weight) {
  const float kept = weight, above = kept + 1e-4F, below = kept - 1e-4F;
  const auto out = slope(static_cast<double>(above) - kept, static_cast<double>(kept) - below, [&](int direction) {
    weight = direction > 0 ? above : direction < 0 ? below : kept;
    return loss(train_forward(net, c.input, c.mode).back(), c.score_gradients);
  });
  weight = kept;
  return out;
}

inline std::optional<double> slope(const Case& c, Nudge nudge) {
  constexpr double kStep = 1e-5;
  return slope(kStep, kStep, [&](int direction) {
    nudge.by = kStep * direction;
    return loss(train_forward(c.net, c.input, c.mode, nudge).back(), c.score_gradients);
  });
}

}  // namespace coppice::gpu::reference
