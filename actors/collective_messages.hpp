// actors/collective_messages.hpp: what the communicator and the relays of one process tell one another. Private.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "actors/communicator.hpp"

namespace coppice::actors {

// What a relay lets others see while it works.
class RelayProgress {
 public:
  struct Look {
    std::int64_t steps = 0;
    std::optional<Instant> flowing;  // since when frames have come
    std::int64_t known = 0;  // chunks of which the result is in place
    int waits_for = -1;      // rank
    std::vector<CollectiveRelayState::Traffic> traffic;
  };
  void update(const CollectiveRelayState& relay, Instant now) {
    const std::lock_guard lock(mutex_);
    if (++now_.steps == 2) now_.flowing = now;  // the first is the beginning
    now_.known = relay.known();
    now_.waits_for = relay.waits_for().value_or(-1);
    now_.traffic = relay.traffic();
  }
  Look look() const {
    const std::lock_guard lock(mutex_);
    return now_;
  }

 private:
  mutable std::mutex mutex_;
  Look now_;
};

struct CollectiveRelayOptions {
  RunId run;
  std::uint32_t tree = 0;
  std::vector<std::string> names;
  std::shared_ptr<RelayProgress> progress;
  std::shared_ptr<HopLog> hops;
};

// Sends nothing of its own accord before BeginRelay, and quits when it is done or told to.
caf::actor spawn_collective_relay(caf::actor_system& system, CollectiveRelayOptions options, CollectiveRelayState state,
                                  std::shared_ptr<FramePort> port, const caf::actor& communicator);

struct BeginRelay {};
struct RemindRelay {};  // communicator -> relay: say again what you have
struct RelayDone {  // relay -> communicator
  RunId run;
  std::uint32_t tree = 0;
};
struct LeaseEnded {  // nothing reads the caller's buffer any more
  std::uint64_t call = 0;
};
struct WatchTick {};

}  // namespace coppice::actors
