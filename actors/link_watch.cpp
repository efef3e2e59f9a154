#include "actors/link_watch.hpp"

#include <algorithm>

namespace coppice::actors {
namespace {

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

LinkVerdicts LinkWatch::look(Instant now, std::span<const LinkSample> samples) {
  LinkVerdicts out;
  for (const LinkSample& sample : samples) {
    Seen& seen = seen_[{sample.link.to, sample.link.from_address, sample.link.to_address}];
    const std::int64_t on_its_way = sample.sent_bytes - sample.arrived_bytes;
    if (on_its_way <= 0) {
      seen.busy = false;
      seen.arrived = sample.arrived_bytes;
      continue;
    }
    if (!seen.busy) {
      seen.busy = true;
      seen.since = seen.moved = now;
      seen.at_since = seen.arrived = sample.arrived_bytes;
    }
    if (sample.arrived_bytes > seen.arrived) {
      seen.arrived = sample.arrived_bytes;
      seen.moved = now;
    }
    if (seen.told) continue;
    const auto planned = static_cast<double>(sample.planned_bytes_per_s);
    // A large chunk on a slow link takes its time: what is on its way may take twice as long as planned.
    const double patience =
        std::max(seconds(sample.link.switched ? options_.dead_after_switched : options_.dead_after), planned > 0 ? 2 * static_cast<double>(on_its_way) / planned : 0.0);
    const double silent = seconds(now - std::max(seen.moved, sample.answered));
    if (silent >= patience) {
      seen.told = true;
      out.findings.push_back({sample.link, 0});
      continue;
    }
    if (silent >= patience / 4) out.ask.push_back(sample.link);
    const auto judged_over = sample.link.switched ? options_.judged_over_switched : options_.judged_over;
    const double over = std::max(seconds(judged_over),
                                 planned > 0 ? options_.chunks_min * static_cast<double>(sample.chunk_bytes) / planned : 0.0);
    const double busy = seconds(now - seen.since);
    if (planned <= 0 || busy < over) continue;
    const double rate = static_cast<double>(sample.arrived_bytes - seen.at_since) / busy;
    if (rate < (sample.link.switched ? options_.slow_below_switched : options_.slow_below) * planned && rate > 0) {
      seen.told = true;
      out.findings.push_back({sample.link, std::max<std::int64_t>(static_cast<std::int64_t>(rate), 1)});
    }
    seen.since = now;
    seen.at_since = sample.arrived_bytes;
  }
  return out;
}

}  // namespace coppice::actors
