#include <algorithm>
#include <cmath>

#include "gpu/trainer.hpp"

namespace coppice::gpu {
namespace {

// log(sum(exp(x / temperature))), without overflow.
double log_sum(std::span<const float> x, double temperature) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp((value - top) / temperature);
  return top / temperature + std::log(sum);
}

// log(1 + exp(x)), without overflow.
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace

double cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                     std::span<float> gradients, float weight) {
  const auto width = static_cast<std::size_t>(classes);
  const double share = static_cast<double>(weight) / static_cast<double>(labels.size());
  double loss = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto row = scores.subspan(i * width, width);
    const double total = log_sum(row, 1);
    loss += total - row[labels[i]];
    for (std::size_t c = 0; c < width; ++c)
      gradients[i * width + c] += static_cast<float>(share * (std::exp(row[c] - total) - (c == labels[i] ? 1.0 : 0.0)));
  }
  return share * loss;
}

double binary_cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                            std::span<float> gradients, float weight, float positive_weight) {
  const auto width = static_cast<std::size_t>(classes);
  const double share = static_cast<double>(weight) / static_cast<double>(labels.size());
  double loss = 0;
  for (std::size_t i = 0; i < labels.size(); ++i)
    for (std::size_t c = 0; c < width; ++c) {
      const double score = scores[i * width + c], sigmoid = 1 / (1 + std::exp(-score));
      const bool positive = c == labels[i];
      loss += positive ? positive_weight * softplus(-score) : softplus(score);
      gradients[i * width + c] += static_cast<float>(share * (positive ? positive_weight * (sigmoid - 1) : sigmoid));
    }
  return share * loss;
}

double distillation(std::span<const float> scores, std::span<const float> teacher, int classes, float temperature,
                    std::span<float> gradients, float weight) {
  const auto width = static_cast<std::size_t>(classes);
  const auto batch = scores.size() / width;
  const double share = static_cast<double>(weight) / static_cast<double>(batch), t = temperature;
  double loss = 0;
  for (std::size_t i = 0; i < batch; ++i) {
    const auto row = scores.subspan(i * width, width), aim = teacher.subspan(i * width, width);
    const double total = log_sum(row, t), aim_total = log_sum(aim, t);
    for (std::size_t c = 0; c < width; ++c) {
      const double log_aim = aim[c] / t - aim_total, log_own = row[c] / t - total;
      loss += t * t * std::exp(log_aim) * (log_aim - log_own);
      gradients[i * width + c] += static_cast<float>(share * t * (std::exp(log_own) - std::exp(log_aim)));
    }
  }
  return share * loss;
}

}  // namespace coppice::gpu
