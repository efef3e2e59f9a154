// actors/rate_meter.hpp: how fast something comes, out of how much had come when. Pure.
//
// The beginning does not count: TCP is still finding its pace, and a shaped link lets the first bytes pass at once. After it
// time is cut into windows; when the last few agree, their mean is the rate.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>

namespace coppice::actors {

struct RateMeterOptions {
  std::chrono::microseconds warm_up{400'000};
  std::chrono::microseconds window{200'000};
  int windows = 4;          // that must agree
  double tolerance = 0.03;  // the widest spread among them, of their mean
  std::chrono::microseconds longest{3'000'000};
  bool settles = true;      // false: lasts the longest time, whatever comes
};

class RateMeter {
 public:
  explicit RateMeter(RateMeterOptions options = {}) : options_(options) {}

  // bytes: all that have come; at: when the last of them did, since the first. Neither ever falls; others are left out.
  void add(std::chrono::microseconds at, std::uint64_t bytes);

  struct Rate {
    double bytes_per_s = 0;
    bool settled = false;  // the windows agreed
  };
  // Nothing: not known yet. Not settled after the longest time: the median of the windows since the warm-up, which a pause
  // or two does not move; where it never settles, the mean over them all.
  std::optional<Rate> rate() const;

  // Bytes a second over the last window or so, for whoever must know how much to have on its way; 0: not known yet.
  double recent() const;

 private:
  struct Sample {
    double at_s;
    double bytes;
  };
  double bytes_at(double at_s) const;
  RateMeterOptions options_;
  std::deque<Sample> samples_;
};

}  // namespace coppice::actors
