#include "actors/link_watch.hpp"

#include <algorithm>
#include <utility>

namespace coppice::actors {
namespace {

constexpr std::int64_t kRepeated = 2;  // acknowledgements of the same, after an answer

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }
Duration duration(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

}  // namespace

// A large chunk on a slow link takes its time: what is on its way may take twice as long as planned, and an answer waits
// behind another call's.
Duration LinkWatch::silence_max(const LinkSample& sample) const {
  const auto least = sample.link.switched ? options_.dead_after_switched : options_.dead_after;
  const auto twice = [](std::int64_t bytes, std::int64_t bytes_per_s) {
    return bytes_per_s > 0 ? duration(2 * static_cast<double>(bytes) / static_cast<double>(bytes_per_s)) : Duration::zero();
  };
  return std::max({Duration(least), twice(sample.sent_bytes - sample.arrived_bytes, sample.planned_bytes_per_s),
                   twice(sample.awaited ? sample.chunk_bytes : 0, sample.planned_back_bytes_per_s), 2 * sample.others});
}

bool LinkWatch::was_lost(Seen& seen, const LinkSample& sample, Instant now) const {
  if (sample.sent_bytes == sample.arrived_bytes || sample.answered <= seen.moved) return false;
  if (!seen.acknowledgements) seen.acknowledgements = sample.acknowledgements;
  return sample.acknowledgements >= *seen.acknowledgements + kRepeated && now - seen.moved >= silence_max(sample);
}

std::optional<std::int64_t> LinkWatch::too_slow(Seen& seen, const LinkSample& sample) const {
  const auto planned = static_cast<double>(sample.planned_bytes_per_s);
  const auto judged_over = sample.link.switched ? options_.judged_over_switched : options_.judged_over;
  const double over = std::max(seconds(judged_over),
                               planned > 0 ? options_.chunks_min * static_cast<double>(sample.chunk_bytes) / planned : 0.0);
  if (planned <= 0 || !seen.since || seconds(seen.arrived_last - *seen.since) < over) return std::nullopt;
  const double rate = static_cast<double>(seen.arrived - seen.at_since) / seconds(seen.arrived_last - *seen.since);
  seen.since = seen.arrived_last;
  seen.at_since = seen.arrived;
  const double least = (sample.link.switched ? options_.slow_below_switched : options_.slow_below) * planned;
  const auto before = std::exchange(seen.slow, rate < least ? std::optional(rate) : std::nullopt);
  if (rate >= least || !before) return std::nullopt;
  return std::max<std::int64_t>(static_cast<std::int64_t>(std::max(rate, *before)), 1);
}

LinkVerdicts LinkWatch::look(Instant now, std::span<const LinkSample> samples) {
  LinkVerdicts out;
  for (const LinkSample& sample : samples) {
    Seen& seen = seen_[{sample.link.to, sample.link.from_address, sample.link.to_address}];
    const bool sends = sample.sent_bytes > sample.arrived_bytes;
    if (!sends && !sample.awaited) {
      seen.busy = false;
      continue;
    }
    const bool arrives = sample.arrived_bytes != seen.arrived;
    const bool moves = arrives || sample.received_bytes != seen.received;
    seen.arrived = sample.arrived_bytes;
    seen.received = sample.received_bytes;
    if (!seen.busy || moves) {
      seen.moved = now;
      seen.acknowledgements.reset();
    }
    // Rates are judged over a time in which the link is always busy, and shared by the same calls.
    if (!seen.busy || !sends || sample.planned_bytes_per_s != seen.planned || sample.busy_since > seen.busy_from) {
      seen.busy_from = now;
      seen.planned = sample.planned_bytes_per_s;
      seen.since.reset();
      seen.slow.reset();
    } else if (arrives) {
      seen.arrived_last = now;
      if (!seen.since) {
        seen.since = now;
        seen.at_since = sample.arrived_bytes;
      }
    }
    seen.busy = true;
    if (sample.peer_silent) seen.peer_silent = now;
    if (seen.told) continue;
    const auto silent = now - std::max({seen.moved, sample.answered, sample.heard}), silence_most = silence_max(sample);
    std::optional<LinkFinding> found;
    if (silent >= silence_most && now - seen.peer_silent >= options_.after_peer) {
      found = LinkFinding{sample.link, LinkFault::dead};
    } else if (was_lost(seen, sample, now)) {
      found = LinkFinding{sample.link, LinkFault::lost};
    } else {
      if (silent >= silence_most / 4) out.ask.push_back(sample.link);
      if (!sends || seen.told_slow) continue;
      if (const auto rate = too_slow(seen, sample)) found = LinkFinding{sample.link, LinkFault::slow, *rate};
    }
    if (!found) continue;
    (found->fault == LinkFault::slow ? seen.told_slow : seen.told) = true;
    out.findings.push_back(std::move(*found));
  }
  return out;
}

}  // namespace coppice::actors
