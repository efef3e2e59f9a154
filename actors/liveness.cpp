#include "actors/liveness.hpp"

#include <algorithm>

namespace coppice::actors {

void Liveness::heard(int rank, Instant now) {
  auto& seen = seen_[rank];
  seen.ever = true;
  seen.heard = now;
}

void Liveness::came(int rank) { seen_[rank].ever = true; }

bool Liveness::ever_heard(int rank) const {
  const auto found = seen_.find(rank);
  return found != seen_.end() && found->second.ever;
}

bool Liveness::heard_since(int rank, Instant then) const {
  const auto found = seen_.find(rank);
  return found != seen_.end() && found->second.ever && found->second.heard > then;
}

Duration Liveness::patience(Door door) const {
  switch (door) {
    case Door::open: return options_.gone_after_open;
    case Door::refused: return options_.gone_after_refused;
    case Door::silent: break;
  }
  return options_.gone_after;
}

bool Liveness::is_silent(int rank, Instant now) const {
  const auto found = seen_.find(rank);
  return found != seen_.end() && found->second.ever && now - std::max(found->second.since, found->second.heard) >= options_.ask_every;
}

Liveness::Verdict Liveness::await(int rank, Instant now, Door door) {
  auto& seen = seen_[rank];
  if (now - seen.awaited > options_.ask_every) seen.since = now;
  seen.awaited = now;
  if (!seen.ever) return {};
  seen.since = std::max(seen.since, seen.heard);
  if (now - seen.since >= patience(door)) return {.gone = true};
  if (now - seen.asked < options_.ask_every) return {};
  seen.asked = now;
  return {.ask = true, .by_every_way = now - seen.since >= options_.gone_after / 4};
}

}  // namespace coppice::actors
