#include <algorithm>
#include <cmath>
#include <vector>

#include "gpu/trainer.hpp"

namespace coppice::gpu {
namespace {

// Softened probabilities of one row; gives the log of their normaliser.
double softmax(std::span<const float> scores, double temperature, std::vector<double>& out) {
  out.resize(scores.size());
  const double top = *std::ranges::max_element(scores) / temperature;
  double sum = 0;
  for (std::size_t c = 0; c < scores.size(); ++c) sum += out[c] = std::exp(scores[c] / temperature - top);
  for (double& value : out) value /= sum;
  return std::log(sum) + top;
}

}  // namespace

double cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                     std::span<float> gradients, float weight) {
  const auto width = static_cast<std::size_t>(classes);
  const double each = weight / static_cast<double>(labels.size());
  std::vector<double> p;
  double loss = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto row = scores.subspan(i * width, width);
    const double log_sum = softmax(row, 1, p);
    loss += log_sum - row[labels[i]];
    p[labels[i]] -= 1;
    for (std::size_t c = 0; c < width; ++c) gradients[i * width + c] += static_cast<float>(each * p[c]);
  }
  return each * loss;
}

double binary_cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                            std::span<float> gradients, float weight, float positive_weight) {
  const auto width = static_cast<std::size_t>(classes);
  const double each = weight / static_cast<double>(labels.size());
  double loss = 0;
  for (std::size_t i = 0; i < labels.size(); ++i)
    for (std::size_t c = 0; c < width; ++c) {
      const double z = scores[i * width + c];
      const bool positive = labels[i] == c;
      const double heavy = positive ? positive_weight : 1;
      // log(1 + exp(-z)) of the score that should be high, without overflow
      const double margin = positive ? z : -z;
      loss += heavy * (std::max(-margin, 0.0) + std::log1p(std::exp(-std::abs(margin))));
      const double slope = -1 / (1 + std::exp(margin));
      gradients[i * width + c] += static_cast<float>(each * heavy * (positive ? slope : -slope));
    }
  return each * loss;
}

double distillation(std::span<const float> scores, std::span<const float> teacher, int classes, float temperature,
                    std::span<float> gradients, float weight) {
  const auto width = static_cast<std::size_t>(classes);
  const auto items = scores.size() / width;
  const double t = temperature, each = weight / static_cast<double>(items);
  std::vector<double> own, taught;
  double loss = 0;
  for (std::size_t i = 0; i < items; ++i) {
    const auto row = scores.subspan(i * width, width), wanted = teacher.subspan(i * width, width);
    const double own_log_sum = softmax(row, t, own), taught_log_sum = softmax(wanted, t, taught);
    for (std::size_t c = 0; c < width; ++c) {
      loss += t * t * taught[c] * ((wanted[c] / t - taught_log_sum) - (row[c] / t - own_log_sum));
      gradients[i * width + c] += static_cast<float>(each * t * (own[c] - taught[c]));
    }
  }
  return each * loss;
}

}  // namespace coppice::gpu
