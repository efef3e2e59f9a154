// actors/faults.hpp: a straggler SPEC as a value, and what it does to one response. Pure: every draw is a hash of the
// seed, so all workers agree on who is struck without a word between them, and a run can be repeated.
//
//   SPEC   comma-separated: worker=NAME (again for more) | worker=any:COUNT, delay=LAW | hold=LAW, p=0.05, kill@T, stop@T,
//          lie@T, seed=N
//   LAW    50ms | exp:20ms | pareto:2:10ms (shape, least delay)
//   T      seconds from when the spec is taken up, or a share of the requests such as 50%
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

struct DelayLaw {
  enum class Kind : std::uint8_t { fixed, exponential, pareto } kind = Kind::fixed;
  double shape = 0;     // pareto's; > 0
  double scale_ms = 0;  // fixed: the delay; exponential: its mean; pareto: its least
  double draw_ms(double uniform) const;  // uniform in [0, 1)
  bool operator==(const DelayLaw&) const = default;
};

struct FaultTime {
  double value = 0;  // seconds, or percent of the requests
  bool percent = false;
  bool operator==(const FaultTime&) const = default;
};

struct FaultSpec {
  std::vector<std::string> names;  // the struck workers, or
  int any = 0;                     // so many of them, drawn anew for each struck request
  std::optional<DelayLaw> law;
  bool hold = false;  // the worker stays busy for the delay, instead of only that response being late
  double p = 1;       // share of the requests that are struck
  std::optional<FaultTime> kill, stop, lie;
  std::uint64_t seed = 1;
  bool operator==(const FaultSpec&) const = default;
};

// Error: one line naming the word at fault and what would be right.
tl::expected<FaultSpec, std::string> parse_faults(std::string_view spec);
std::string to_string(const FaultSpec& spec);

struct Strike {
  double delay_ms = 0;  // of the response alone
  double hold_ms = 0;   // of the worker
};

// What befalls worker `index` of `workers` (named `name`) at this request.
Strike strike(const FaultSpec& spec, RequestId request, std::uint32_t index, std::uint32_t workers,
              std::string_view name);

// Whether the spec's kill, stop or lie is meant for this worker.
bool aims_at(const FaultSpec& spec, std::uint32_t index, std::uint32_t workers, std::string_view name);

}  // namespace coppice::actors
