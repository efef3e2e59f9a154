// actors/collective_router.hpp: frames of collectives to the relay that they are for.
//
// Those that come before their relay does wait for it, since ranks do not call at the same instant; the sender's window
// bounds them, and bytes_max bounds whoever does not keep to it. Any thread may deliver.
#pragma once

#include <caf/fwd.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "actors/messages.hpp"

namespace coppice::actors {

class CollectiveRouter {
 public:
  explicit CollectiveRouter(std::size_t bytes_max = std::size_t{1} << 30) : bytes_max_(bytes_max) {}

  void attach(const caf::actor& communicator);  // takes GroupNotes
  void detach();                                // lets go of every actor
  // Chunks, acknowledgements, notes. unit: where those that a small one wakes are to run; none: where the scheduler says.
  void deliver(Delivery delivery, caf::execution_unit* unit = nullptr);
  // What came before the relay goes to it now; unit: as above.
  void add(const RunId& run, std::uint32_t tree, const caf::actor& relay, caf::execution_unit* unit = nullptr);
  void remove(const RunId& run, std::uint32_t tree);
  // All relays of the run are here: what comes for it and finds none, or for an earlier attempt, is of the past.
  void began(const RunId& run);
  void forget_below(std::uint64_t call);           // nothing of older calls is waited for any more
  bool heard_from(const std::string& name) const;  // ever
  std::size_t waiting_bytes() const;               // of frames whose relay has not come

  // Of a peer, which process it is. One that takes the name of another is another rank: what the first one gave is lost.
  enum class Sender : std::uint8_t {
    known,
    anew,      // so far nothing depended on the one before
    replaced,  // of one whose data is here
    stale,     // the one before
  };
  Sender admit(const std::string& name, std::uint64_t session);

 private:
  struct Impl;
  std::size_t bytes_max_;
  std::shared_ptr<Impl> impl_ = make_impl();
  static std::shared_ptr<Impl> make_impl();
};

}  // namespace coppice::actors
