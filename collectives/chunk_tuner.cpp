#include "collectives/chunk_tuner.hpp"

#include <algorithm>
#include <cmath>

namespace coppice::collectives {

ChunkTuner::ChunkTuner(std::int64_t model, ChunkTunerOptions options) : options_(options) {
  const double wanted = static_cast<double>(std::max<std::int64_t>(model, 1)) * options.smaller_at_first;
  chunk_ = 1 / std::min(wanted, static_cast<double>(options.chunks_max));
}

std::int64_t ChunkTuner::chunks() const {
  return std::clamp<std::int64_t>(std::llround(1 / chunk_), 1, options_.chunks_max);
}

void ChunkTuner::observe(double seconds) {
  if (settled()) return;
  ++calls_;
  fastest_ = calls_here_++ == 0 ? seconds : std::min(fastest_, seconds);
  if (calls_here_ < options_.calls_each && calls_ < options_.calls_max) return;
  calls_here_ = 0;
  const bool better = best_seconds_ == 0 || fastest_ < best_seconds_ * (1 - options_.faster_by);
  no_gain_ = better ? 0 : no_gain_ + 1;
  if (better) {
    best_chunk_ = chunk_;
    best_seconds_ = fastest_;
  }
  if (calls_ >= options_.calls_max || (!better && phase_ == Phase::shrinking)) {
    chunk_ = best_chunk_;
    phase_ = Phase::settled;
    return;
  }
  if (phase_ == Phase::growing && no_gain_ <= options_.patience && chunks() > 1) {
    chunk_ = std::min(2 * chunk_, 1.0);
    return;
  }
  if (phase_ == Phase::growing) {
    phase_ = Phase::shrinking;
    step_ = best_chunk_ / 4;
  }
  chunk_ = best_chunk_ - step_;
  if (chunk_ > step_ / 2) return;
  chunk_ = best_chunk_;  // the step has eaten it up
  phase_ = Phase::settled;
}

}  // namespace coppice::collectives
