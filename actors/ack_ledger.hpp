// actors/ack_ledger.hpp: acknowledgements that nobody waits for, sent together. Pure but for its lock.
//
// A small collective's frames need no credit, and its callers have their results before anything is acknowledged: an
// acknowledgement a frame would double what it costs. They tell in the end that nothing was lost, and that is soon enough
// a few milliseconds later, many in one frame.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "actors/ports.hpp"

namespace coppice::actors {

class AckLedger {
 public:
  static constexpr auto kSoon = std::chrono::milliseconds{20};
  static constexpr std::size_t kTogether = 32;  // to one peer: it holds as many calls back, and may hold twice as many

  // True: the first since all were sent. Whoever is told so sees to it that flush is called soon. Any thread.
  bool add(FramePort& port, const Peer& to, const CollectiveAck& ack);
  void flush(FramePort& port);

 private:
  std::mutex mutex_;
  std::map<Peer, std::vector<CollectiveAck>> waiting_;
};

}  // namespace coppice::actors
