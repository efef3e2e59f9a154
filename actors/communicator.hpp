// actors/communicator.hpp: one rank of a group that calls collective operations together, and its relays.
//
//   caller ─StartCall→ communicator ─spawns→ collective_relay (one a tree) ⇄ the same tree's relays at other ranks
//                            ▲ ProgramOffer, CallRefused: from rank 0, which plans for all
//
// Every rank makes the same calls in the same order. Rank 0 plans a call of a new kind and tells the others; once a kind
// is settled nobody asks any more. A call is complete at a rank when its data is in place, what others needed from it has
// arrived there, and nothing that is still on its way reads the caller's buffer.
//
// When a relay ends or a link falls behind, whoever sees it reports it to rank 0. That pauses the run everywhere, learns
// how far each rank is, and offers new trees for what is left. A rank that does not answer is gone, and its data with it:
// the call fails at all others with the same error. Notes of that kind take every link there is, so that one that is cut
// holds up none of them. A rank that nobody has heard has not come yet, and is waited for: so each says at its first call
// that it is there.
//
// Where survivors are to complete calls (OnLoss), the lowest rank that is left plans, and who is left is agreed on first:
// actors/group_view.hpp. Every call keeps its contributions then until all ranks have its result.
#pragma once

#include <caf/fwd.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

#include "actors/ack_ledger.hpp"
#include "actors/collective_relay_state.hpp"
#include "actors/collective_router.hpp"
#include "actors/hop_log.hpp"
#include "actors/link_watch.hpp"
#include "actors/liveness.hpp"
#include "actors/ports.hpp"
#include "collectives/group_planner.hpp"

namespace coppice::actors {

using collectives::CallKind;

struct CallReport {
  std::size_t trees = 0;
  std::int64_t chunks = 0;  // of the tree that has most
  bool settled = true;      // calls of the kind are cut into so many chunks from now on
  int attempts = 1;         // one more for each time that trees were planned anew
  Duration took{};          // at this rank
  // Ranks that took part, ascending: the result is of their data, and avg is divided by their number. Parts of others in
  // an allgather's or gather's output hold nothing of use.
  std::vector<int> ranks = {};
};

struct CallFault {
  CallFault() = default;
  CallFault(std::string why, std::vector<int> ranks = {}) : what(std::move(why)), gone(std::move(ranks)) {}
  std::string what;
  std::vector<int> gone;  // ranks that are gone for good, where that is why: the same at every rank, ascending
};

using CallResult = tl::expected<CallReport, CallFault>;

// What becomes of calls when a rank is gone for good.
enum class OnLoss : std::uint8_t {
  fail,                       // they end with an error that names it, and the group is over
  complete_among_survivors,  // they are completed without it. Each call waits until all ranks are done with it
};

// Ends one relay that is at work, as if it had crashed. For tests of faults.
struct EndARelay {};

struct StartCall {
  CallKind kind;
  // Without its lease: the communicator makes that.
  CollectiveBuffer buffer;
  std::function<void(CallResult)> done;  // called once, on an actor's thread
};

struct CommunicatorOptions {
  int rank = 0;
  std::vector<std::string> names;  // of the ranks
  std::uint64_t session = 1;       // greater for a process that takes the same name later
  std::shared_ptr<CollectiveRouter> router;
  std::vector<Peer> neighbours;  // ranks at the other ends of this one's links, which pass notes on
  OnLoss on_loss = OnLoss::fail;  // the same at all ranks
  // Of the rank that plans. What all members do for a call of this kind, in about so many chunks; 0: as a model says.
  using Ranks = std::vector<int>;
  std::function<collectives::Expected<collectives::Program>(const CallKind&, std::int64_t chunks, const Ranks& members)> plan;
  // A broadcast that goes on from a rank that has all of it.
  std::function<collectives::Expected<collectives::Program>(const CallKind&, int from, const Ranks& members)> pass_on;
  // What is left of a program.
  std::function<collectives::Expected<collectives::Program>(const CallKind&, const collectives::Program&,
                                                            const std::vector<collectives::RankProgress>&)> resume;
  // Whether links that are slow can be planned around, in calls of this kind; nothing: they can.
  std::function<bool(const CallKind&, const Ranks& members)> can_resume;
  // From now on a link carries so little; 0: nothing.
  std::function<void(const collectives::RankEdge& link, std::int64_t bytes_per_s)> degrade;
  // Calls of at least so many bytes try which number of chunks is fastest, until that is settled. INT64_MAX: none does.
  std::int64_t tune_from = std::int64_t{1} << 20;
  // Broadcasts and allreduces of at most so many bytes are done in a copy: who has the result has it before everyone has
  // acknowledged what it sent. The same at all ranks; 0: none are.
  std::int64_t eager_bytes = std::int64_t{64} << 10;
  std::shared_ptr<AckLedger> acks = std::make_shared<AckLedger>();
  Duration patience = std::chrono::minutes{5};   // a call that stands still for so long has failed
  LivenessOptions liveness;
  std::function<Door(int rank)> knock;           // what a rank's host says of its port; nothing: nobody is asked
  LinkWatchOptions watch;
  std::shared_ptr<HopLog> hops;  // where this rank's relays note what arrives; nothing: nowhere
  // Forgets what is queued for a peer over a link that is at fault, or, nothing named, for everyone.
  std::function<void(const std::optional<Peer>&)> hang_up;
  std::function<void(const std::string&)> notice = {};  // at whoever plans: why calls take other trees. For a person
};

caf::actor spawn_communicator(caf::actor_system& system, CommunicatorOptions options, std::shared_ptr<FramePort> port);

}  // namespace coppice::actors
