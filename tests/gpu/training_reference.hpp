// What a net in training must do, in double precision: forward over a whole batch, with the batch norms of either mode,
// and gradients as differences of that.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/training.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu::reference {

using Batch = std::vector<Values>;  // [batch][item]

// The mean and the biased variance of every channel over a batch.
struct Statistics {
  std::vector<double> mean, variance;
};

inline Statistics statistics_of(const Batch& batch, std::size_t channels) {
  Statistics out{std::vector<double>(channels, 0.0), std::vector<double>(channels, 0.0)};
  const auto pixels = batch.front().size() / channels;
  const double count = static_cast<double>(pixels * batch.size());
  for (const auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) out.mean[i / pixels] += item[i] / count;
  for (const auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) {
      const double off = item[i] - out.mean[i / pixels];
      out.variance[i / pixels] += off * off / count;
    }
  return out;
}

inline Batch normalised(const BatchNorm& norm, Batch batch, Mode mode) {
  const auto channels = norm.scale.size(), pixels = batch.front().size() / channels;
  Statistics s{{norm.mean.begin(), norm.mean.end()}, {norm.variance.begin(), norm.variance.end()}};
  if (mode == Mode::train) s = statistics_of(batch, channels);
  for (auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) {
      const auto c = i / pixels;
      item[i] = (item[i] - s.mean[c]) / std::sqrt(s.variance[c] + norm.epsilon) * norm.scale[c] + norm.shift[c];
    }
  return batch;
}

// Every value of the net: [value][batch][item].
inline std::vector<Batch> all_values(const Network& net, const Batch& input, Mode mode) {
  const auto shapes = *infer_shapes(net);
  std::vector<Batch> values{input};
  for (std::size_t n = 0; n < net.nodes.size(); ++n) {
    const auto& node = net.nodes[n];
    if (const auto* norm = std::get_if<BatchNorm>(&node.op)) {
      values.push_back(normalised(*norm, values[static_cast<std::size_t>(node.inputs[0])], mode));
      continue;
    }
    Batch out;
    for (std::size_t item = 0; item < input.size(); ++item) {
      std::vector<const Values*> in;
      std::vector<Dims> from;
      for (const int index : node.inputs) {
        in.push_back(&values[static_cast<std::size_t>(index)][item]);
        from.push_back(shapes[static_cast<std::size_t>(index)]);
      }
      const Dims first = from.empty() ? Dims{} : from.front();
      out.push_back(std::visit(Forward{in, from, first, shapes[n + 1]}, node.op));
    }
    values.push_back(std::move(out));
  }
  return values;
}

inline Batch to_batch(std::span<const float> flat, std::size_t items) {
  Batch out;
  const auto size = flat.size() / items;
  for (std::size_t i = 0; i < items; ++i) {
    const auto item = flat.subspan(i * size, size);
    out.emplace_back(item.begin(), item.end());
  }
  return out;
}
inline std::vector<float> flattened(const Batch& batch) {
  std::vector<float> out;
  for (const auto& item : batch)
    for (const double value : item) out.push_back(static_cast<float>(value));
  return out;
}

// The sum of all scores, each times its weight.
inline double weighted_scores(const Network& net, const Batch& input, Mode mode, std::span<const float> weights) {
  const auto scores = all_values(net, input, mode).back();
  double sum = 0;
  std::size_t i = 0;
  for (const auto& item : scores)
    for (const double value : item) sum += value * weights[i++];
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
