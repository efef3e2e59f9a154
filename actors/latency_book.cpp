#include "actors/latency_book.hpp"

#include <algorithm>
#include <cmath>

namespace coppice::actors {

void LatencyBook::add(Duration latency) {
  const double us = std::max(1.0, std::chrono::duration<double, std::micro>(latency).count());
  const auto bucket = static_cast<std::size_t>(std::log2(us) * kPerOctave);
  ++buckets_[std::min(bucket, buckets_.size() - 1)];
  ++count_;
}

double LatencyBook::quantile_us(double q) const {
  if (count_ == 0) return 0;
  const auto rank = static_cast<std::uint64_t>(std::ceil(std::clamp(q, 0.0, 1.0) * static_cast<double>(count_)));
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= std::max<std::uint64_t>(rank, 1)) return std::exp2(static_cast<double>(i + 1) / kPerOctave);
  }
  return std::exp2(kOctaves);
}

}  // namespace coppice::actors
