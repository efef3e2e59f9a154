#include "actors/ack_ledger.hpp"

#include <utility>

namespace coppice::actors {

static_assert(AckLedger::kTogether <= kAcksMax);

bool AckLedger::add(FramePort& port, const Peer& to, const CollectiveAck& ack) {
  std::vector<CollectiveAck> full;
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = waiting_.empty();
    auto& own = waiting_[to];
    own.push_back(ack);
    if (own.size() >= kTogether) full = std::exchange(own, {});
  }
  if (!full.empty()) port.send(to, CollectiveAcks{std::move(full)});
  return first;
}

void AckLedger::flush(FramePort& port) {
  std::map<Peer, std::vector<CollectiveAck>> all;
  {
    const std::lock_guard lock(mutex_);
    all.swap(waiting_);
  }
  for (auto& [to, acks] : all)
    if (!acks.empty()) port.send(to, CollectiveAcks{std::move(acks)});
}

}  // namespace coppice::actors
