#include "actors/rate_meter.hpp"

#include <algorithm>
#include <cmath>

namespace coppice::actors {
namespace {

double seconds(std::chrono::microseconds duration) { return std::chrono::duration<double>(duration).count(); }

constexpr double kApart_s = 0.001;  // samples that are closer are one
constexpr double kLook_s = 0.02;
constexpr double kRecent_s = 0.2;

}  // namespace

void RateMeter::add(std::chrono::microseconds at, std::uint64_t bytes) {
  const Sample sample{seconds(at), static_cast<double>(bytes)};
  if (!samples_.empty() && (sample.at_s < samples_.back().at_s || sample.bytes < samples_.back().bytes)) return;
  if (samples_.size() > 1 && sample.at_s - samples_[samples_.size() - 2].at_s < kApart_s)
    samples_.back() = sample;
  else
    samples_.push_back(sample);
}

// Between two samples bytes are taken to come evenly. REQUIRES: samples.
double RateMeter::bytes_at(double at_s) const {
  const auto after = std::ranges::lower_bound(samples_, at_s, {}, &Sample::at_s);
  if (after == samples_.begin()) return after->bytes;
  if (after == samples_.end()) return samples_.back().bytes;
  const auto before = std::prev(after);
  return before->bytes + (after->bytes - before->bytes) * (at_s - before->at_s) / (after->at_s - before->at_s);
}

// Of the line of least squares through bytes(t), t in [from, to]: 12 / (to - from)³ ∫ bytes(t) (t - middle) dt.
double RateMeter::slope_through(double from_s, double to_s) const {
  const double middle = (from_s + to_s) / 2, base = bytes_at(from_s);
  double sum = 0;
  const auto piece = [&](double u, double bytes_u, double v, double bytes_v) {  // Simpson's rule: exact here
    const double centre = (u + v) / 2, bytes_centre = (bytes_u + bytes_v) / 2;
    sum += (v - u) / 6 *
           ((bytes_u - base) * (u - middle) + 4 * (bytes_centre - base) * (centre - middle) + (bytes_v - base) * (v - middle));
  };
  Sample last{from_s, base};
  for (auto next = std::ranges::upper_bound(samples_, from_s, {}, &Sample::at_s); next != samples_.end() && next->at_s < to_s; ++next) {
    piece(last.at_s, last.bytes, next->at_s, next->bytes);
    last = *next;
  }
  piece(last.at_s, last.bytes, to_s, bytes_at(to_s));
  return 12 * sum / std::pow(to_s - from_s, 3);
}

double RateMeter::slope_on_top(double from_s, double to_s) const {
  std::vector<Sample> hull;
  const auto rise = [](const Sample& a, const Sample& b) { return (b.bytes - a.bytes) / (b.at_s - a.at_s); };
  for (auto next = std::ranges::lower_bound(samples_, from_s, {}, &Sample::at_s); next != samples_.end() && next->at_s <= to_s; ++next) {
    if (!hull.empty() && next->at_s <= hull.back().at_s) continue;
    while (hull.size() > 1 && rise(hull[hull.size() - 2], hull.back()) <= rise(hull.back(), *next)) hull.pop_back();
    hull.push_back(*next);
  }
  if (hull.size() < 2) return 0;
  const double middle = (hull.front().at_s + hull.back().at_s) / 2;
  const auto end = std::ranges::lower_bound(hull, middle, {}, &Sample::at_s);
  return rise(*std::prev(end), *end);
}

double RateMeter::recent() const {
  if (samples_.size() < 2) return 0;
  const double end = samples_.back().at_s, from = std::max(samples_.front().at_s, end - kRecent_s);
  return end - from < kApart_s ? 0 : (samples_.back().bytes - bytes_at(from)) / (end - from);
}

std::optional<RateMeter::Rate> RateMeter::rate() {
  if (samples_.size() < 2) return std::nullopt;
  const double end = samples_.back().at_s, warm = seconds(options_.warm_up), longest = seconds(options_.longest);
  if (!options_.settles) {
    // Up to the same moment as the others of the round, though a sample comes a little later.
    if (end < longest) return std::nullopt;
    return Rate{slope_through(warm, longest), true};
  }
  const double from = std::max(warm, end / 3), half = (from + end) / 2;
  if (end < next_look_s_ || end - from < seconds(options_.shortest)) return std::nullopt;
  next_look_s_ = end + kLook_s;
  const double first = slope_on_top(from, half), second = slope_on_top(half, end), whole = slope_on_top(from, end);
  const auto [least, most] = std::minmax({first, second, whole});
  if (least > 0 && most - least <= options_.tolerance * whole) return Rate{whole, true};
  if (end < longest) return std::nullopt;
  return Rate{whole, false};
}

}  // namespace coppice::actors
