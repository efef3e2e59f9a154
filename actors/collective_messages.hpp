// actors/collective_messages.hpp: what the communicator and the relays of one process tell one another. Private.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "actors/ack_ledger.hpp"
#include "actors/communicator.hpp"

namespace coppice::actors {

// What a relay lets others see while it works.
class RelayProgress {
 public:
  struct Look {
    std::int64_t steps = 0;  // as the relay counts them: repetitions are none
    std::optional<Instant> flowing;  // since when frames have come
    std::int64_t known = 0;  // chunks of which the result is in place
    int waits_for = -1;      // rank
    std::vector<CollectiveRelayState::Traffic> traffic;
    std::vector<Instant> busy_since;  // of each entry: since when there has always been something on its way
  };
  void update(const CollectiveRelayState& relay, Instant now) {
    const std::lock_guard lock(mutex_);
    if (++updates_ == 2) now_.flowing = now;  // the first is the beginning
    now_.steps = relay.steps();
    now_.known = relay.known();
    now_.waits_for = relay.waits_for().value_or(-1);
    relay.look_at_traffic(now_.traffic);
    now_.busy_since.resize(now_.traffic.size(), now);
    emptied_.resize(now_.traffic.size(), 0);
    for (std::size_t i = 0; i < emptied_.size(); ++i) {
      const auto& edge = now_.traffic[i];
      if (edge.sent_bytes == edge.arrived_bytes || edge.emptied != emptied_[i]) now_.busy_since[i] = now;
      emptied_[i] = edge.emptied;
    }
  }
  Look look() const {
    const std::lock_guard lock(mutex_);
    return now_;
  }

 private:
  mutable std::mutex mutex_;
  Look now_;
  std::vector<std::int64_t> emptied_;  // at the last update
  int updates_ = 0;
};

// The other end of a link, for frames that are to travel on that very link.
inline Peer far_end(const collectives::RankEdge& link, const std::vector<std::string>& names) {
  return {names[static_cast<std::size_t>(link.to)], "", link.from_address, link.to_address};
}

struct CollectiveRelayOptions {
  RunId run;
  std::uint32_t kind = 0;  // fingerprint of the call's
  std::uint32_t tree = 0;
  std::uint64_t session = 0;
  std::vector<std::string> names;
  std::shared_ptr<RelayProgress> progress;
  std::shared_ptr<HopLog> hops;
  std::shared_ptr<AckLedger> acks = {};  // where its acknowledgements wait for others; none: they are sent at once
};

// Sends nothing of its own accord before BeginRelay. When it is done it holds nothing, and takes on another run or ends when
// told to. It begins where the communicator runs: for a small call that is the caller's thread.
caf::actor spawn_collective_relay(caf::event_based_actor* communicator, CollectiveRelayOptions options,
                                  CollectiveRelayState state, std::shared_ptr<FramePort> port);

struct TakeOn {  // communicator -> relay that is done; then BeginRelay, as for a new one
  std::shared_ptr<std::pair<CollectiveRelayOptions, CollectiveRelayState>> work;
};
struct BeginRelay {
  RunId run;
  std::uint32_t tree = 0;
};
struct RemindRelay {};  // communicator -> relay: say again what you have
struct RelayDone {  // relay -> communicator
  RunId run;
  std::uint32_t tree = 0;
};
struct RelayKnows {  // relay -> communicator: the tree's part of the result is in place, though not all is acknowledged
  RunId run;
  std::uint32_t tree = 0;
};
struct SendAcks {};  // that wait in the ledger
struct CallDiffers {  // relay or router -> communicator: a rank carries out another call under the same number
  RunId run;
  std::string from;
};
struct PeerReplaced {  // router -> communicator: another process has this rank's name
  std::string name;
};
struct LeaseEnded {  // nothing reads the caller's buffer any more
  std::uint64_t call = 0;
};
struct WatchTick {};

}  // namespace coppice::actors
