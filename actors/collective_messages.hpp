// actors/collective_messages.hpp: what the communicator and the relays of one process tell one another. Private.
#pragma once

#include <atomic>
#include <memory>

#include "actors/communicator.hpp"

namespace coppice::actors {

// What a relay lets others see while it works.
struct RelayProgress {
  std::atomic<std::int64_t> steps{0};
  std::atomic<int> waits_for{-1};  // rank
};

struct CollectiveRelayOptions {
  RunId run;
  std::uint32_t tree = 0;
  std::vector<std::string> names;
  std::shared_ptr<RelayProgress> progress;
};

// Works from its first message on, which must be BeginRelay, and quits when it is done or told to.
caf::actor spawn_collective_relay(caf::actor_system& system, CollectiveRelayOptions options, CollectiveRelayState state,
                                  std::shared_ptr<FramePort> port, const caf::actor& communicator);

struct BeginRelay {};
struct RelayDone {  // relay -> communicator
  RunId run;
  std::uint32_t tree = 0;
};
struct LeaseEnded {  // nothing reads the caller's buffer any more
  std::uint64_t call = 0;
};
struct PatienceTick {};

}  // namespace coppice::actors
