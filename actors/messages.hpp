// actors/messages.hpp: the whole vocabulary. Reading this file is enough to draw the protocol.
//
// Data messages travel as ZeroMQ frames (runtime/wire.hpp encodes them) and, inside a process, between actors as they
// are. Control messages (the last part) are the only ones that cross processes over CAF, and they hold no float: CAF
// 0.17 turns NaN into 1.0 and never finishes writing an infinity.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "actors/shared_bytes.hpp"
#include "collectives/measure.hpp"
#include "collectives/program.hpp"

namespace coppice::actors {

// Monotonic; comes from the actor system's clock, which the simulator moves by hand.
using Instant = std::chrono::steady_clock::time_point;
using Duration = std::chrono::steady_clock::duration;

enum class RequestId : std::uint64_t {};   // given by the gateway, never used twice in its life
enum class Epoch : std::uint64_t {};       // of the plan: moves on whenever a worker comes or goes
enum class TransferId : std::uint64_t {};  // of one weight broadcast

// Who a frame came from or goes to. `name` is what the peer's key says (never what the peer says). `route` is empty for
// a host of the cluster file, and the way back to a client otherwise.
// The addresses, where they are given, are the ends of the very link that a frame is to travel on: that of this host and
// that of the peer.
struct Peer {
  std::string name;
  std::string route = {};
  std::string from_address = {};
  std::string to_address = {};
  auto operator<=>(const Peer&) const = default;
};

using Floats = std::vector<float>;
using SharedFloats = std::shared_ptr<const Floats>;

// ---- serving -------------------------------------------------------------------------------------------------------

// client -> supervisor. item: float32, the net's input shape, normalised.
struct InferRequest {
  std::uint64_t tag = 0;  // the client's own number, returned with the reply
  bool record = false;    // whether the reply lists the arrivals
  SharedFloats item;
};

// supervisor -> subnet
struct WorkItem {
  RequestId request{};
  Epoch epoch{};
  std::uint32_t worker = 0;  // the place in the code that the receiver is taken to hold
  SharedFloats item;
};

// subnet -> encoder (one process). scores: one per class of the worker's net.
struct SubnetScores {
  RequestId request{};
  Epoch epoch{};
  std::uint32_t worker = 0;
  std::uint32_t service_us = 0;  // time in the net
  Floats scores;
  Peer gateway;
};

// encoder -> decoder
struct CodedResponse {
  RequestId request{};
  Epoch epoch{};
  std::uint32_t worker = 0;
  std::uint32_t service_us = 0;
  Floats values;  // y = G_worker z
};

// gateway -> block head: answer this item for one block (coding/block.hpp) with one BlockScore
struct BlockItem {
  RequestId request{};
  Epoch epoch{};
  std::uint32_t block = 0;
  std::uint64_t asked = 0;        // bit p: the block's worker at place p is asked
  std::uint32_t patience_us = 0;  // until then the block's best estimate is given
  bool record = false;            // whether the score lists the arrivals
  SharedFloats item;
};

enum class ReplyStatus : std::uint8_t {
  ok = 0,        // at least k useful responses
  degraded = 1,  // the best estimate from fewer than k
  no_response,   // nothing arrived by the deadline: there is no estimate
  no_workers,    // no worker is alive
  not_ready,     // the weights have not arrived everywhere yet
  overloaded,    // more requests in flight than the gateway takes
  bad_request,   // the item has another size than the net's input
};

struct ArrivalRecord {
  std::uint32_t worker = 0;
  std::uint32_t at_us = 0;  // since the request reached the supervisor
  Floats values;
};

// block head -> gateway: all that a block says. Numbers are finite.
struct BlockScore {
  RequestId request{};
  Epoch epoch{};
  std::uint32_t block = 0;
  ReplyStatus status = ReplyStatus::ok;  // ok, degraded or no_response
  std::int32_t label = -1;               // the best class; -1: no_response
  float score = 0, runner_up = 0, log_sum_exp = 0;
  std::uint32_t head_us = 0;             // from the item's arrival at the head to this
  std::vector<ArrivalRecord> arrivals;   // in order; empty unless asked for
};

// gateway -> block head: nobody waits for this worker any more
struct WorkerGone {
  std::uint32_t worker = 0;
};

// decoder -> client
struct InferReply {
  std::uint64_t tag = 0;
  std::uint64_t request = 0;
  std::uint64_t epoch = 0;
  ReplyStatus status = ReplyStatus::ok;
  std::int32_t label = -1;
  float margin = 0;
  float probability = 0;                // of label; 0 unless the classes are decoded block by block
  std::uint32_t gateway_us = 0;         // from the supervisor's receipt to this reply
  Floats scores;                        // one per class; empty unless ok or degraded, and with blocks
  std::vector<ArrivalRecord> arrivals;  // in order; empty unless asked for
  std::string error;                    // for a person; empty when ok
};

// ---- weights -------------------------------------------------------------------------------------------------------

struct RelayNode {
  std::string name;
  std::int32_t parent = -1;  // index of the parent in the list; -1: the root, which comes first
};

// parent -> child: a broadcast begins. `tree` lists all its nodes, parents before children.
struct TransferOpen {
  TransferId transfer{};
  Epoch epoch{};
  std::uint64_t bytes = 0;
  std::uint32_t chunk_bytes = 0;
  std::string sha256;  // of the whole, 64 hex digits
  std::vector<RelayNode> tree;
};

// parent -> child, in order of index
struct WeightChunk {
  TransferId transfer{};
  std::uint32_t index = 0;
  std::shared_ptr<const std::vector<std::byte>> bytes;
};

// child -> parent: how many chunks it holds; this is the parent's credit to send on.
struct ChunkAck {
  TransferId transfer{};
  std::uint32_t received = 0;
};

// ---- collectives ---------------------------------------------------------------------------------------------------

enum class Way : std::uint8_t { up, down };  // towards a tree's root, where chunks are combined, or away from it

// One run of a program: the call's number, the same at every rank, and the attempt, which moves on when trees are planned
// anew for what is left.
struct RunId {
  std::uint64_t call = 0;
  std::uint32_t attempt = 0;
  auto operator<=>(const RunId&) const = default;
};

// relay -> relay of the same tree at another rank
struct CollectiveChunk {
  RunId run;
  std::uint32_t kind = 0;     // fingerprint of the call's: ranks that call differently must not mix their data
  std::uint64_t session = 0;  // of the sender
  std::uint32_t tree = 0;
  Way way = Way::down;
  std::uint64_t index = 0;
  SharedBytes bytes;
};

// To whoever sends chunks this way. consumed: how many the receiver needs no room for any more, which is credit for as
// many new ones; arrived: how many have come, which tells how fast the link is.
struct CollectiveAck {
  RunId run;
  std::uint32_t kind = 0;
  std::uint64_t session = 0;
  std::uint32_t tree = 0;
  Way way = Way::down;
  std::uint64_t consumed = 0;
  std::uint64_t arrived = 0;
};

// Of small calls, many at once: see actors/ack_ledger.hpp.
struct CollectiveAcks {
  std::vector<CollectiveAck> acks;
};
inline constexpr std::size_t kAcksMax = 256;

// rank 0, which plans -> others: what to do in this run
struct ProgramOffer {
  RunId run;
  // Calls of the same kind and size do the same from now on, without asking.
  bool settled = false;
  collectives::Program program;
};

// any -> all: this call cannot be; fatal: it had begun, and with it the group has failed
struct CallRefused {
  std::uint64_t call = 0;
  bool fatal = false;
  std::string reason;
  std::vector<int> gone = {};  // the ranks whose loss is the reason, ascending
};

// any -> rank 0: the run should take other trees. A relay ended (no link: from is -1), or a link carries so little.
struct TroubleReport {
  RunId run;
  collectives::RankEdge link;
  std::uint64_t bytes_per_s = 0;
  std::string what;  // for a person
};

// rank 0 -> all: stop the run's relays and say how far they came
struct PauseCall {
  RunId run;
};

// any -> rank 0
struct PausedAt {
  RunId run;
  bool over = false;  // the caller has its result, and its buffer again
  std::uint64_t next_call = 0;  // this and later ones will ask; earlier ones may have begun with what was settled before
  std::vector<std::uint64_t> known;
};

// Where a rank's buffer is needed until the end although its own part is done: any -> rank 0, and rank 0 -> all.
struct PartDone {
  RunId run;
};
struct CallOver {
  std::uint64_t call = 0;
};

// any -> rank 0: nothing has come for this call
struct OfferWanted {
  std::uint64_t call = 0;
};

// Over the very link, and back over it: whether it carries anything at all.
struct LinkPing {
  collectives::RankEdge link;  // from who asks
};
struct LinkPong {
  collectives::RankEdge link;  // as it was asked
};

// Over the very link that chunks went by: say again how many have come. Acknowledgements go with a connection that breaks,
// and whoever sent them may be done.
struct AckWanted {
  RunId run;
  std::uint32_t kind = 0;
  std::uint32_t tree = 0;
  Way way = Way::down;
  std::uint64_t sent = 0;      // chunks
  collectives::RankEdge link;  // from who asks
};

// Where calls are to be completed among the survivors: who takes part from now on, its number and, before that, what each
// of its members has. The lowest of them proposes it when a rank is gone; greater numbers are later ones. Whoever answers
// has stopped every relay and does nothing for an earlier view any more.
struct ViewProposed {
  std::uint32_t view = 0;
  std::vector<std::int32_t> members;  // ranks, ascending
};
// member -> who proposed it. Calls that are not listed and are below next_call are over there.
struct CallStands {
  std::uint64_t call = 0;
  std::int64_t done_attempt = -1;  // this rank has its part of the result of that attempt; -1: of none
  bool has_all = false;            // of a broadcast: all that the root sent
};
struct ViewReady {
  std::uint32_t view = 0;
  std::uint64_t next_call = 0;
  std::vector<CallStands> calls;
};
// who proposed it -> members. over: calls of which every member has its part; all others begin again.
struct ViewBegun {
  std::uint32_t view = 0;
  std::vector<std::int32_t> members;
  std::vector<std::uint64_t> over;
};
// member -> the lowest of those that are left: see whether this rank still answers
struct RankLost {
  std::int32_t rank = -1;
};

// Whether a rank still answers: who waits for it -> it, and back.
struct RankPing {};
struct RankPong {};

// What the ranks of a group tell one another beside the data. In trouble a note is passed on over every link that there
// is until it has been everywhere, so that it arrives wherever any way is left; `number` tells its copies apart.
using NoteBody = std::variant<ProgramOffer, CallRefused, TroubleReport, PauseCall, PausedAt, PartDone, CallOver, LinkPing,
                              LinkPong, OfferWanted, RankPing, RankPong, AckWanted, ViewProposed, ViewReady, ViewBegun, RankLost>;
struct GroupNote {
  std::uint32_t origin = 0;   // rank
  std::uint64_t session = 0;  // of the origin's process: its name may be taken by another one later, its data may not
  std::uint64_t number = 0;   // of the origin's notes
  std::int32_t target = -1;   // rank; -1: all
  bool flood = false;
  NoteBody note;
};

// ---- probing -------------------------------------------------------------------------------------------------------

// leader -> every host, and its answer: whether it is there at all
struct ProbeHello {};
struct ProbeHere {};

// leader -> who sends: measure what goes from here to a host, over the link of these ends where they are given.
struct MeasureOrder {
  collectives::Measure::Kind kind = collectives::Measure::Kind::rate;
  std::string to, from_address, to_address;
};

// -> leader
struct MeasureDone {
  std::uint64_t bytes_per_s = 0;
  std::uint64_t least_ns = 0, median_ns = 0;  // round trips
  bool settled = false;
  std::string fault;  // why there is no figure; empty when there is one
};

// Over what is measured, and back.
struct ProbePing {
  std::uint32_t index = 0;
};
struct ProbePong {
  std::uint32_t index = 0;
};

// sender -> receiver, of no meaning
struct ProbeBytes {
  SharedBytes bytes;
};

// receiver -> sender: what has come of the measure, and when the last of it did, by the receiver's clock from the first on.
struct ProbeArrived {
  std::uint64_t bytes = 0;
  std::uint64_t at_us = 0;
};

// leader -> every host: it is over. topology: the file's JSON, empty when there is none, and then why.
struct SurveyOver {
  std::string topology;
  std::string fault;
};

// What hosts say to one another while their links are measured; `measure` is the leader's number of it.
struct ProbeNote {
  std::uint64_t measure = 0;
  std::variant<ProbeHello, ProbeHere, MeasureOrder, MeasureDone, ProbePing, ProbePong, ProbeBytes, ProbeArrived, SurveyOver> note;
};

// ---- asking and breaking -------------------------------------------------------------------------------------------

struct StatusRequest {
  std::uint64_t tag = 0;
};

// client -> gateway: strike with faults as a straggler SPEC says (actors/faults.hpp); "" ends them.
struct FaultRequest {
  std::uint64_t tag = 0;
  std::string spec;
};

// gateway -> client. text: a JSON object (status) or "" (faults taken up); error: "" when all is well.
struct TextReply {
  std::uint64_t tag = 0;
  std::string text;
  std::string error;
};

// Everything that may travel as a frame.
using DataMessage = std::variant<InferRequest, WorkItem, CodedResponse, InferReply, TransferOpen, WeightChunk, ChunkAck,
                                 StatusRequest, FaultRequest, TextReply, CollectiveChunk, CollectiveAck, GroupNote,
                                 ProbeNote, BlockItem, BlockScore, WorkerGone, CollectiveAcks>;

// A data message that reached this node, with the peer whose key it came under.
struct Delivery {
  Peer from;
  DataMessage message;
};

// ---- control, over CAF with TLS ------------------------------------------------------------------------------------

// worker -> gateway, first thing on a new connection
struct Join {
  std::string name;
  std::uint32_t pid = 0;
  std::uint32_t version = 0;  // of this vocabulary
};

// worker -> gateway: the weights of this transfer are installed; items may come
struct Ready {
  std::string name;
  std::uint64_t transfer = 0;
};

// worker -> gateway: what arrived cannot be used
struct Refused {
  std::string name;
  std::string reason;
};

// gateway -> worker: strike as the spec says, as the worker of this index among `workers`
struct SetFaults {
  std::string spec;
  std::uint32_t worker = 0, workers = 0;
};

inline constexpr std::uint32_t kVersion = 5;

}  // namespace coppice::actors
