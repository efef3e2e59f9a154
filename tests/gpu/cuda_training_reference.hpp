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

}  // namespace coppice::gpu::reference
