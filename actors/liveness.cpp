#include "actors/liveness.hpp"

#include <algorithm>

namespace coppice::actors {

void Liveness::heard(int rank, Instant now) {
  auto& seen = seen_[rank];
  seen.ever = true;
  seen.heard = now;
}

bool Liveness::ever_heard(int rank) const {
  const auto found = seen_.find(rank);
  return found != seen_.end() && found->second.ever;
}

Liveness::Verdict Liveness::await(int rank, Instant now) {
  auto& seen = seen_[rank];
  if (now - seen.awaited > options_.ask_every) seen.since = now;
  seen.awaited = now;
  if (!seen.ever) return {};
  seen.since = std::max(seen.since, seen.heard);
  if (now - seen.since >= options_.gone_after) return {false, true};
  if (now - seen.asked < options_.ask_every) return {};
  seen.asked = now;
  return {true, false};
}

}  // namespace coppice::actors
