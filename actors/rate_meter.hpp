// actors/rate_meter.hpp: how fast something comes, out of how much had come when. Pure.
//
// The beginning does not count: TCP is still finding its pace, and a shaped link lets the first bytes pass at once. From then
// on a link that has enough to do delivers along a straight line, and whoever looks on sees it late: bytes come in lumps (64
// KiB is a twenty-fifth of a second on a slow link), and a busy processor reads them when it gets to it. So what is seen lies
// on that line or below, and the line is the one that lies on top of it: the edge of the upper hull over the middle of the
// time. When it is as steep over both halves and over the whole, the rate is steady.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

namespace coppice::actors {

struct RateMeterOptions {
  std::chrono::microseconds warm_up{400'000};
  std::chrono::microseconds shortest{800'000};  // that is measured over, after it
  double tolerance = 0.03;                      // between the two halves, of the whole's rate
  std::chrono::microseconds longest{3'000'000};  // with the warm-up
  // false: lasts the longest time, whatever comes. It is one of several that share a link, and not steady by itself: the line
  // is that of least squares through all after the warm-up, so that the rates of all add up to that of what they share.
  bool settles = true;
};

class RateMeter {
 public:
  explicit RateMeter(RateMeterOptions options = {}) : options_(options) {}

  // bytes: all that have come; at: when the last of them did, since the first. Neither ever falls; others are left out.
  void add(std::chrono::microseconds at, std::uint64_t bytes);

  struct Rate {
    double bytes_per_s = 0;
    bool settled = false;
  };
  // Nothing: not known yet. Looks no more often than is of use. While it is not steady a growing beginning is left out, a
  // third of the time.
  std::optional<Rate> rate();

  // Bytes a second over the last fifth of a second or so, for whoever must know how much to have on its way; 0: not known.
  double recent() const;

 private:
  struct Sample {
    double at_s;
    double bytes;
  };
  double bytes_at(double at_s) const;
  double slope_on_top(double from_s, double to_s) const;
  double slope_through(double from_s, double to_s) const;
  RateMeterOptions options_;
  std::vector<Sample> samples_;
  double next_look_s_ = 0;
};

}  // namespace coppice::actors
