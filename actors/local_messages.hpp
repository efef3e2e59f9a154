// actors/local_messages.hpp: what the actors of one process tell one another beside messages.hpp. Never serialised.
#pragma once

#include <string>

#include "actors/gather.hpp"
#include "actors/messages.hpp"
#include "coding/block.hpp"

namespace coppice::actors {

// membership -> supervisor
struct WorkerJoined {
  std::string name;
  std::uint32_t pid = 0;
};
struct WorkerReady {
  std::string name;
  TransferId transfer{};
};
struct WorkerLost {
  std::string name, reason;
};

// supervisor -> decoder
struct Expect {  // comes before the request's frames leave, so no response can overtake it
  RequestId request{};
  Epoch epoch{};
  coding::ArrivalSet asked = 0;
  ReplyTo reply_to;
  Instant opened;
};
struct ExpectBlocks {  // to the combiner, which asks the blocks' heads itself
  RequestId request{};
  Epoch epoch{};
  std::vector<coding::ArrivalSet> ready;  // by block: which of its workers may be asked
  ReplyTo reply_to;
  SharedFloats item;
  Instant opened;
};
struct StopWaitingFor {
  int worker = 0;
};
struct StatusDraft {  // the decoder adds what it knows and replies
  Peer client;
  std::uint64_t tag = 0;
  std::string json;
};

// decoder -> supervisor: so many requests are no longer in flight
struct RequestsClosed {
  std::size_t count = 0;
};

// supervisor -> tree_relay, at the root
struct StartTransfer {
  TransferOpen open;
  std::shared_ptr<const std::vector<std::byte>> bytes;
};

// tree_relay -> subnet: everything has arrived and its digest is right
struct WeightsArrived {
  TransferId transfer{};
  std::shared_ptr<const std::vector<std::byte>> bytes;
};

// subnet -> encoder
struct InstallRows {
  coding::WorkerRows rows;
  std::vector<int> classes;  // of the net's outputs, in order
  int class_count = 0;
};

// subnet -> block head: what the weights say of the blocks. What was in flight before is forgotten.
struct InstallBlocks {
  std::shared_ptr<const std::vector<coding::BlockCode>> blocks;
};

// timers
struct DeadlineTick {};
struct RosterTick {};
struct LateSend {  // a response that a fault holds back
  Peer to;
  CodedResponse response;
};

}  // namespace coppice::actors
