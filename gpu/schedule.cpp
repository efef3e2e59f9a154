#include <cmath>
#include <numbers>

#include "gpu/trainer.hpp"

namespace coppice::gpu {
namespace {

// Half a wave of the cosine: from at 0, to at 1.
double eased(double from, double to, double share) {
  return to + (from - to) * (1 + std::cos(std::numbers::pi * share)) / 2;
}

// Begins at a twenty-fifth of the peak (as PyTorch's OneCycleLR does) and ends at a ten-thousandth of it.
double one_cycle(double peak, double rising, double share) {
  return share < rising ? eased(peak / 25, peak, share / rising)
                        : eased(peak, peak / 10'000, rising < 1 ? (share - rising) / (1 - rising) : 0.0);
}

}  // namespace

float Schedule::rate(std::int64_t step, std::int64_t steps) const {
  const double share = static_cast<double>(step) / static_cast<double>(steps);
  double out = peak;
  switch (kind) {
    case Kind::constant:
      break;
    case Kind::step:
      for (const float milestone : milestones)
        if (share >= milestone) out /= 10;
      break;
    case Kind::cosine:
      out = eased(peak, 0, share);
      break;
    case Kind::one_cycle:
      out = one_cycle(peak, rising, share);
      break;
  }
  return static_cast<float>(out);
}

}  // namespace coppice::gpu
