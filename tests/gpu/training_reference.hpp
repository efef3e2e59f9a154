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

}  // namespace coppice::gpu::reference
