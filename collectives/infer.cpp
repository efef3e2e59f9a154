#include "collectives/infer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace coppice::collectives {
namespace {

constexpr double kFull = 0.8;     // of what it could carry at most: then nothing between is narrower
constexpr double kApart = 0.8;    // of the sum of its pairs' rates: then these share nothing

// NaN counts for nothing.
double greater(double a, double b) { return std::isnan(a) ? b : std::isnan(b) ? a : std::max(a, b); }

// Every host reaches all others at once as fast as each of them alone.
bool shares_nothing(const HostRates& rates) {
  const std::size_t n = rates.out.size();
  if (n < 3) return true;
  for (std::size_t host = 0; host < n; ++host) {
    double out = 0, in = 0;
    for (std::size_t other = 0; other < n; ++other) {
      if (other == host) continue;
      out += rates.pair[host][other];
      in += rates.pair[other][host];
    }
    if (!(rates.out[host] >= kApart * out) || !(rates.in[host] >= kApart * in)) return false;  // NaN: not known to
  }
  return true;
}

// Hosts between which, one way or another, nothing narrows: connected parts.
std::vector<std::vector<int>> close_together(const std::vector<std::vector<bool>>& full) {
  const std::size_t n = full.size();
  std::vector<int> rack(n, -1);
  std::vector<std::vector<int>> racks;
  for (std::size_t start = 0; start < n; ++start) {
    if (rack[start] >= 0) continue;
    std::vector<std::size_t> ahead{start};
    rack[start] = static_cast<int>(racks.size());
    racks.emplace_back();
    while (!ahead.empty()) {
      const auto host = ahead.back();
      ahead.pop_back();
      racks.back().push_back(static_cast<int>(host));
      for (std::size_t other = 0; other < n; ++other) {
        if (rack[other] >= 0 || !full[host][other] || !full[other][host]) continue;
        rack[other] = rack[start];
        ahead.push_back(other);
      }
    }
    std::ranges::sort(racks.back());
  }
  return racks;
}

}  // namespace

Inference infer(const HostRates& rates) {
  const std::size_t n = rates.out.size();
  Inference found;
  found.up = rates.out;
  found.down = rates.in;
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = 0; b < n; ++b) {
      if (a == b) continue;
      found.up[a] = greater(found.up[a], rates.pair[a][b]);
      found.down[b] = greater(found.down[b], rates.pair[a][b]);
    }
  }
  if (shares_nothing(rates)) {
    found.shape = Shape::cables;
    return found;
  }
  std::vector<std::vector<bool>> full(n, std::vector<bool>(n, true));
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = 0; b < n; ++b)  // of what is not known nothing is held against it
      full[a][b] = a == b || !(rates.pair[a][b] < kFull * std::min(found.up[a], found.down[b]));
  found.racks = close_together(full);
  // Racks of one host each are no racks: such a network is of another kind.
  if (found.racks.size() > 1 && std::ranges::all_of(found.racks, [](const auto& rack) { return rack.size() > 1; })) {
    found.shape = Shape::racks;
  } else {
    found.racks.assign(1, std::vector<int>(n));
    std::iota(found.racks[0].begin(), found.racks[0].end(), 0);
  }
  for (const auto& rack : found.racks)
    for (const int a : rack)
      for (const int b : rack)
        if (!full[static_cast<std::size_t>(a)][static_cast<std::size_t>(b)]) found.unexplained.emplace_back(a, b);
  return found;
}

Rational rounded(double value, int digits) {
  const int exponent = static_cast<int>(std::floor(std::log10(value))) - digits + 1;
  const Rational mantissa(std::lround(value / std::pow(10.0, exponent)));
  mpz_class power;
  mpz_ui_pow_ui(power.get_mpz_t(), 10, static_cast<unsigned long>(std::abs(exponent)));
  return exponent >= 0 ? Rational(mantissa * power) : Rational(mantissa / power);
}

std::vector<double> common_rates(std::vector<double> rates, double tolerance) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < rates.size(); ++i)
    if (rates[i] > 0) order.push_back(i);
  std::ranges::sort(order, {}, [&](std::size_t i) { return rates[i]; });
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    const double least = rates[order[begin]];
    while (end < order.size() && rates[order[end]] <= least * (1 + tolerance)) ++end;
    const double middle = rates[order[begin + (end - begin) / 2]];
    for (std::size_t i = begin; i < end; ++i) rates[order[i]] = middle;
  }
  return rates;
}

}  // namespace coppice::collectives
