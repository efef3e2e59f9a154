#include "actors/rate_meter.hpp"

#include <algorithm>
#include <vector>

namespace coppice::actors {
namespace {

double seconds(std::chrono::microseconds duration) { return std::chrono::duration<double>(duration).count(); }

constexpr double kApartMin = 0.001;  // s, of samples that are kept: no rate needs more of them

}  // namespace

void RateMeter::add(std::chrono::microseconds at, std::uint64_t bytes) {
  const Sample sample{seconds(at), static_cast<double>(bytes)};
  if (!samples_.empty() && (sample.at_s < samples_.back().at_s || sample.bytes < samples_.back().bytes)) return;
  if (samples_.size() > 1 && sample.at_s - samples_[samples_.size() - 2].at_s < kApartMin)
    samples_.back() = sample;
  else
    samples_.push_back(sample);
}

// Between two samples bytes are taken to come evenly. REQUIRES: samples, and a time among theirs.
double RateMeter::bytes_at(double at_s) const {
  const auto after = std::ranges::lower_bound(samples_, at_s, {}, &Sample::at_s);
  if (after == samples_.begin()) return after->bytes;
  if (after == samples_.end()) return samples_.back().bytes;
  const auto before = std::prev(after);
  return before->bytes + (after->bytes - before->bytes) * (at_s - before->at_s) / (after->at_s - before->at_s);
}

double RateMeter::recent() const {
  if (samples_.size() < 2) return 0;
  const double end = samples_.back().at_s, from = std::max(samples_.front().at_s, end - seconds(options_.window));
  return end - from < kApartMin ? 0 : (samples_.back().bytes - bytes_at(from)) / (end - from);
}

std::optional<RateMeter::Rate> RateMeter::rate() const {
  if (samples_.size() < 2) return std::nullopt;
  const double end = samples_.back().at_s, width = seconds(options_.window), warm = seconds(options_.warm_up);
  const auto over = [&](double from, double to) { return (bytes_at(to) - bytes_at(from)) / (to - from); };
  if (!options_.settles) {
    // Up to the same moment as the others of the round, though a sample comes a little later.
    const double until = seconds(options_.longest);
    if (end < until) return std::nullopt;
    return Rate{over(warm, until), true};
  }
  const auto windows = static_cast<int>((end - warm) / width + 1e-9);
  if (windows < options_.windows) return std::nullopt;
  std::vector<double> rates;  // the last window first
  for (int i = 0; i < windows; ++i) rates.push_back(over(end - (i + 1) * width, end - i * width));
  const auto last = rates.begin() + options_.windows;
  const auto [least, most] = std::minmax_element(rates.begin(), last);
  const double mean = over(end - options_.windows * width, end);
  if (mean > 0 && *most - *least <= options_.tolerance * mean) return Rate{mean, true};
  if (end < seconds(options_.longest)) return std::nullopt;
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  return Rate{*middle, false};
}

}  // namespace coppice::actors
