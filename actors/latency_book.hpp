// actors/latency_book.hpp: how fast one worker answers: counts in buckets 1/8 of an octave wide, so that a quantile is
// known within 9 % at any scale and a book is two kilobytes. Pure.
#pragma once

#include <array>
#include <cstdint>

#include "actors/messages.hpp"

namespace coppice::actors {

class LatencyBook {
 public:
  void add(Duration latency);
  std::uint64_t count() const { return count_; }
  // Upper edge of the bucket that holds the q-th quantile, microseconds; 0 when nothing was added. q in [0, 1].
  double quantile_us(double q) const;

 private:
  static constexpr int kPerOctave = 8, kOctaves = 32;
  std::array<std::uint64_t, kPerOctave * kOctaves> buckets_{};
  std::uint64_t count_ = 0;
};

}  // namespace coppice::actors
