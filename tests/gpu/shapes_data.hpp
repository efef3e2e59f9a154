// A problem that a small net learns in a second: in which quarter of a noisy image a bright square is.
#pragma once

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "gpu/trainer.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {

inline constexpr int kQuarters = 4;

inline Dataset shapes_data(int count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Dataset data{{1, 8, 8}, {}, {}};
  for (int i = 0; i < count; ++i) {
    const auto quarter = static_cast<std::uint16_t>(random() % kQuarters);
    const auto top = quarter / 2 * 4 + random() % 2, left = quarter % 2 * 4 + random() % 2;
    for (std::size_t y = 0; y < 8; ++y)
      for (std::size_t x = 0; x < 8; ++x) {
        const bool bright = y >= top && y < top + 3 && x >= left && x < left + 3;
        data.pixels.push_back(static_cast<std::uint8_t>(random() % 128 + (bright ? 100 : 0)));
      }
    data.labels.push_back(quarter);
  }
  return data;
}

inline Network shapes_net(std::uint64_t seed) { return vgg({1, 8, 8}, {8, 8}, kQuarters, seed); }

inline TrainerOptions shapes_options() {
  TrainerOptions options;
  options.epochs = 6;
  options.batch = 20;
  options.schedule.peak = 0.05F;
  options.augmentation = {1, false};
  options.normalisation = {0.3F, 0.2F};
  options.seed = 11;
  return options;
}

// Of nets that are trained side by side, each for itself.
inline LossFunction sum_of_cross_entropies(std::size_t nets) {
  return [nets](const TrainingBatch& batch, std::span<const float> scores,
                std::span<float> gradients) -> Expected<double> {
    double sum = 0;
    std::vector<float> own(batch.labels.size() * kQuarters), back(own.size());
    for (std::size_t net = 0; net < nets; ++net) {
      const auto place = [&](std::size_t i) { return (i / kQuarters * nets + net) * kQuarters + i % kQuarters; };
      std::fill(back.begin(), back.end(), 0.0F);
      for (std::size_t i = 0; i < own.size(); ++i) own[i] = scores[place(i)];
      sum += cross_entropy(own, batch.labels, kQuarters, back);
      for (std::size_t i = 0; i < own.size(); ++i) gradients[place(i)] += back[i];
    }
    return sum;
  };
}

inline double shapes_accuracy(const Network& net, const Dataset& data) {
  int right = 0;
  std::vector<float> image(64);
  for (std::int64_t i = 0; i < data.count(); ++i) {
    item(data, i, shapes_options().normalisation, image);
    const auto scores = reference::forward(net, image);
    right +=
        std::max_element(scores.begin(), scores.end()) - scores.begin() == data.labels[static_cast<std::size_t>(i)];
  }
  return right / static_cast<double>(data.count());
}

// Every number of the net that training moves.
inline std::vector<float> weights_of(const Network& net) {
  std::vector<float> out;
  const auto take = [&](const std::vector<float>& part) { out.insert(out.end(), part.begin(), part.end()); };
  for (const auto& node : net.nodes) {
    if (const auto* c = std::get_if<Convolution>(&node.op)) take(c->weight), take(c->bias);
    if (const auto* d = std::get_if<Dense>(&node.op)) take(d->weight), take(d->bias);
    if (const auto* b = std::get_if<BatchNorm>(&node.op))
      for (const auto* part : {&b->scale, &b->shift, &b->mean, &b->variance}) take(*part);
  }
  return out;
}

}  // namespace coppice::gpu
