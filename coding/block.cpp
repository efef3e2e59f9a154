#include "coding/block.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "coding/checks.hpp"

namespace coppice::coding {
namespace {

constexpr float kNoOther = std::numeric_limits<float>::lowest();

double log_sum_exp(std::span<const float> scores) {
  const double top = static_cast<double>(*std::max_element(scores.begin(), scores.end()));
  double sum = 0;
  for (const float score : scores) sum += std::exp(static_cast<double>(score) - top);
  return top + std::log(sum);
}

}  // namespace

Generator with_none(Generator generator) {
  const auto classes = size_of(generator.classes);
  for (auto& worker : generator.workers) {
    std::vector<float> rows;
    rows.reserve(size_of(worker.floats) * (classes + 1));
    for (std::size_t at = 0; at < worker.rows.size(); at += classes) {
      const auto row = worker.rows.begin() + static_cast<std::ptrdiff_t>(at);
      rows.insert(rows.end(), row, row + static_cast<std::ptrdiff_t>(classes));
      rows.push_back(0.0F);
    }
    worker.rows = std::move(rows);
  }
  ++generator.classes;
  return generator;
}

tl::expected<BlockBest, DecodeError> decode(const BlockCode& block, const Arrivals& arrivals) {
  check(block.classes.size() + 1 == size_of(block.generator.classes) && !block.classes.empty(),
        "decode: a block's generator has its classes and none of these");
  auto decoded = decode(block.decoder, block.generator, arrivals);
  if (!decoded) return tl::unexpected(std::move(decoded.error()));
  auto scores = std::move(decoded->scores);
  const float none = scores.back();
  scores.pop_back();
  for (float& score : scores) score -= none;  // finite: both are within 4e37
  const auto best = std::max_element(scores.begin(), scores.end());
  BlockBest result{block.classes[static_cast<std::size_t>(best - scores.begin())], *best, kNoOther,
                   static_cast<float>(log_sum_exp(scores))};
  for (auto it = scores.begin(); it != scores.end(); ++it)
    if (it != best) result.runner_up = std::max(result.runner_up, *it);
  return result;
}

Combined combine(std::span<const BlockBest> blocks) {
  check(!blocks.empty(), "combine: at least one block");
  const auto best = std::max_element(blocks.begin(), blocks.end(),
                                     [](const auto& a, const auto& b) { return a.score < b.score; });
  float next = best->runner_up;
  std::vector<float> sums;
  for (auto it = blocks.begin(); it != blocks.end(); ++it) {
    if (it != best) next = std::max(next, it->score);
    sums.push_back(it->log_sum_exp);
  }
  Combined result{best->label, next == kNoOther ? 0.0F : best->score - next, 0};
  // A block's own log-sum-exp is rounded: never more than certain.
  result.probability = static_cast<float>(std::min(1.0, std::exp(static_cast<double>(best->score) - log_sum_exp(sums))));
  return result;
}

}  // namespace coppice::coding
