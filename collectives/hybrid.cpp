#include "collectives/hybrid.hpp"

#include <cstdlib>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

constexpr double kSwitchingMax = 10;  // seconds: kWaitUsMax of program.hpp

tl::unexpected<Error> malformed(std::string what) {
  return tl::unexpected(Error{ErrorCode::malformed, "hybrid: " + std::move(what)});
}

}  // namespace

Expected<HybridPlan> plan_hybrid(const Topology& topology, const PlanRequest& request, const HybridRequest& hybrid,
                                 double bytes) {
  const auto unit = unit_bytes_per_s(topology.unit);
  if (!unit) return malformed("the speed of " + in_quotes(topology.unit) + " is not known");
  if (hybrid.first == hybrid.second) return malformed("both kinds are " + in_quotes(hybrid.first));
  if (!(hybrid.switching_s >= 0 && hybrid.switching_s <= kSwitchingMax)) return malformed("switching takes 0 to 10 s");
  if (hybrid.second_share && !(*hybrid.second_share >= 0 && *hybrid.second_share <= 1)) return malformed("a share is in 0..1");
  HybridPlan out;
  const auto plan = [&](const std::string& kind, Plan& into, Topology& links) -> Expected<void> {
    links = of_kind(topology, kind);
    if (links.links.empty()) return malformed("no link is of kind " + in_quotes(kind));
    auto made = make_plan(links, request);
    if (!made) return tl::unexpected(Error{made.error().code, "links of kind " + in_quotes(kind) + ": " + made.error().what});
    into = *std::move(made);
    return {};
  };
  if (auto made = plan(hybrid.first, out.first, out.first_links); !made) return tl::unexpected(made.error());
  if (auto made = plan(hybrid.second, out.second, out.second_links); !made) return tl::unexpected(made.error());
  const double first = out.first.rate.get_d() * unit->get_d(), second = out.second.rate.get_d() * unit->get_d();
  out.split = hybrid_split(bytes, first, second, hybrid.switching_s);
  if (hybrid.second_share) {
    out.split.second_bytes = bytes * *hybrid.second_share;
    out.split.first_bytes = bytes - out.split.second_bytes;
    out.split.seconds = std::max(out.split.first_bytes / first,
                                 out.split.second_bytes > 0 ? out.split.second_bytes / second + hybrid.switching_s : 0.0);
  }
  if (hybrid.emulate) out.waits_s = hybrid.switching_s;
  return out;
}

std::optional<HybridRequest> hybrid_of(const std::string& first, const std::string& text) {
  const auto colon = text.find(':');
  if (first.empty() || colon == std::string::npos || colon == 0) return std::nullopt;
  char* end = nullptr;
  const double ms = std::strtod(text.c_str() + colon + 1, &end);
  if (end == text.c_str() + colon + 1 || *end != 0 || !(ms >= 0)) return std::nullopt;
  return HybridRequest{.first = first, .second = text.substr(0, colon), .switching_s = ms * 1e-3};
}

}  // namespace coppice::collectives
