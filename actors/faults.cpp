#include "actors/faults.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace coppice::actors {
namespace {

constexpr double kDelayMsMax = 600'000;

std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

double uniform(std::uint64_t seed, std::uint64_t request, std::uint64_t salt) {
  return static_cast<double>(mix(mix(mix(seed) ^ request) ^ salt) >> 11) * 0x1.0p-53;
}

enum Salt : std::uint64_t { salt_struck = 1, salt_delay = 1'000, salt_choice = 2'000 };

// Whether `index` is among `count` drawn of `workers`: the ranks of one hash each, so that no list is shuffled.
bool drawn(const FaultSpec& spec, std::uint64_t request, std::uint32_t index, std::uint32_t workers) {
  const double own = uniform(spec.seed, request, salt_choice + index);
  int before = 0;
  for (std::uint32_t other = 0; other < workers; ++other) {
    const double theirs = uniform(spec.seed, request, salt_choice + other);
    if (theirs < own || (theirs == own && other < index)) ++before;
  }
  return before < spec.any;
}

bool aims(const FaultSpec& spec, std::uint64_t request, std::uint32_t index, std::uint32_t workers,
          std::string_view name) {
  if (spec.any > 0) return drawn(spec, request, index, workers);
  return std::find(spec.names.begin(), spec.names.end(), name) != spec.names.end();
}

std::optional<double> number(std::string_view text) {
  double value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<double> milliseconds(std::string_view text) {
  double unit = 1;
  if (text.ends_with("ms")) {
    text.remove_suffix(2);
  } else if (text.ends_with("us")) {
    text.remove_suffix(2);
    unit = 1e-3;
  } else if (text.ends_with("s")) {
    text.remove_suffix(1);
    unit = 1e3;
  } else {
    return std::nullopt;
  }
  const auto value = number(text);
  if (!value || *value < 0 || *value * unit > kDelayMsMax) return std::nullopt;
  return *value * unit;
}

std::optional<DelayLaw> law(std::string_view text) {
  using Kind = DelayLaw::Kind;
  if (text.starts_with("exp:")) {
    const auto mean = milliseconds(text.substr(4));
    return mean ? std::optional(DelayLaw{Kind::exponential, 0, *mean}) : std::nullopt;
  }
  if (text.starts_with("pareto:")) {
    text.remove_prefix(7);
    const auto colon = text.find(':');
    if (colon == std::string_view::npos) return std::nullopt;
    const auto shape = number(text.substr(0, colon));
    const auto least = milliseconds(text.substr(colon + 1));
    if (!shape || *shape <= 0 || !least) return std::nullopt;
    return DelayLaw{Kind::pareto, *shape, *least};
  }
  const auto fixed = milliseconds(text);
  return fixed ? std::optional(DelayLaw{Kind::fixed, 0, *fixed}) : std::nullopt;
}

std::optional<FaultTime> fault_time(std::string_view text) {
  const bool percent = text.ends_with("%");
  if (percent) text.remove_suffix(1);
  const auto value = number(text);
  if (!value || *value < 0 || (percent && *value > 100)) return std::nullopt;
  return FaultTime{*value, percent};
}

// The shortest text that reads back as the same number: a spec is sent on as its text.
std::string shown(double value) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

}  // namespace

double DelayLaw::draw_ms(double u) const {
  switch (kind) {
    case Kind::fixed: return scale_ms;
    case Kind::exponential: return std::min(-scale_ms * std::log1p(-u), kDelayMsMax);
    case Kind::pareto:  // the power may be infinite, and nothing times infinity is no number
      return scale_ms > 0 ? std::min(scale_ms * std::pow(1 - u, -1 / shape), kDelayMsMax) : 0;
  }
  return 0;
}

tl::expected<FaultSpec, std::string> parse_faults(std::string_view text) {
  FaultSpec spec;
  const auto wrong = [&](std::string_view word, std::string_view expected) {
    return tl::unexpected("straggler spec: '" + std::string(word) + "': " + std::string(expected));
  };
  if (text.empty()) return spec;
  if (text.size() > 4'096) return wrong(text.substr(0, 20), "a spec is at most 4096 characters");
  for (std::size_t at = 0; at <= text.size();) {
    const auto comma = std::min(text.find(',', at), text.size());
    const std::string_view word = text.substr(at, comma - at);
    at = comma + 1;
    if (word.starts_with("worker=any:")) {
      const auto count = number(word.substr(11));
      if (!count || *count < 1 || *count > 32 || *count != std::floor(*count))
        return wrong(word, "any:COUNT takes a whole number from 1 to 32");
      spec.any = static_cast<int>(*count);
    } else if (word.starts_with("worker=")) {
      if (word.size() == 7) return wrong(word, "expected worker=NAME or worker=any:COUNT");
      spec.names.emplace_back(word.substr(7));
    } else if (word.starts_with("delay=") || word.starts_with("hold=")) {
      if (spec.law) return wrong(word, "only one delay or hold is taken");
      spec.hold = word.starts_with("hold=");
      spec.law = law(word.substr(word.find('=') + 1));
      if (!spec.law) return wrong(word, "expected 50ms, exp:20ms or pareto:2:10ms, at most 600 s");
    } else if (word.starts_with("p=")) {
      const auto p = number(word.substr(2));
      if (!p || *p < 0 || *p > 1) return wrong(word, "p is a share from 0 to 1");
      spec.p = *p;
    } else if (word.starts_with("seed=")) {
      const auto digits = word.substr(5);
      const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), spec.seed);
      if (fault != std::errc{} || end != digits.data() + digits.size()) return wrong(word, "seed is a whole number");
    } else if (word.starts_with("kill@") || word.starts_with("stop@") || word.starts_with("lie@")) {
      const auto when = fault_time(word.substr(word.find('@') + 1));
      if (!when) return wrong(word, "expected seconds, or a share of the requests such as 50%");
      (word[0] == 'k' ? spec.kill : word[0] == 's' ? spec.stop : spec.lie) = when;
    } else {
      return wrong(word, "expected worker=, delay=, hold=, p=, kill@, stop@, lie@ or seed=");
    }
  }
  if (spec.any == 0 && spec.names.empty()) return wrong(text, "says no worker=NAME or worker=any:COUNT");
  if (spec.any > 0 && !spec.names.empty()) return wrong(text, "give worker names or any:COUNT, not both");
  if (!spec.law && !spec.kill && !spec.stop && !spec.lie) return wrong(text, "says no fault: delay=, hold=, kill@ …");
  return spec;
}

std::string to_string(const FaultSpec& spec) {
  std::string out;
  const auto add = [&](const std::string& word) { out += (out.empty() ? "" : ",") + word; };
  if (spec.any > 0) add("worker=any:" + std::to_string(spec.any));
  for (const auto& name : spec.names) add("worker=" + name);
  if (spec.law) {
    const std::string scale = shown(spec.law->scale_ms) + "ms";
    const std::string key = spec.hold ? "hold=" : "delay=";
    switch (spec.law->kind) {
      case DelayLaw::Kind::fixed: add(key + scale); break;
      case DelayLaw::Kind::exponential: add(key + "exp:" + scale); break;
      case DelayLaw::Kind::pareto: add(key + "pareto:" + shown(spec.law->shape) + ":" + scale); break;
    }
  }
  if (spec.p != 1) add("p=" + shown(spec.p));
  const auto timed = [&](const char* word, const std::optional<FaultTime>& when) {
    if (when) add(std::string(word) + "@" + shown(when->value) + (when->percent ? "%" : ""));
  };
  timed("kill", spec.kill);
  timed("stop", spec.stop);
  timed("lie", spec.lie);
  if (!out.empty()) add("seed=" + std::to_string(spec.seed));
  return out;
}

Strike strike(const FaultSpec& spec, RequestId request, std::uint32_t index, std::uint32_t workers,
              std::string_view name) {
  const auto id = static_cast<std::uint64_t>(request);
  if (!spec.law || uniform(spec.seed, id, salt_struck) >= spec.p || !aims(spec, id, index, workers, name)) return {};
  const double ms = spec.law->draw_ms(uniform(spec.seed, id, salt_delay + index));
  return spec.hold ? Strike{0, ms} : Strike{ms, 0};
}

bool aims_at(const FaultSpec& spec, std::uint32_t index, std::uint32_t workers, std::string_view name) {
  return aims(spec, 0, index, workers, name);
}

}  // namespace coppice::actors
