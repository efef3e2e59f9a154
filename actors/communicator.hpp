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
// holds up none of them.
#pragma once

#include <caf/fwd.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

#include "actors/collective_relay_state.hpp"
#include "actors/hop_log.hpp"
#include "actors/link_watch.hpp"
#include "actors/ports.hpp"

namespace coppice::actors {

// What must be the same for two calls to do the same.
struct CallKind {
  collectives::Operation operation = collectives::Operation::allreduce;
  collectives::Element element = collectives::Element::float32;
  collectives::Reduction reduction = collectives::Reduction::sum;
  int root = -1;           // rank; -1 where the operation has none
  std::int64_t bytes = 0;  // of the whole buffer
  auto operator<=>(const CallKind&) const = default;
};

struct CallReport {
  std::size_t trees = 0;
  std::int64_t chunks = 0;  // of the tree that has most
  bool settled = true;      // calls of the kind are cut into so many chunks from now on
  int attempts = 1;         // one more for each time that trees were planned anew
  Duration took{};          // at this rank
};

using CallResult = tl::expected<CallReport, std::string>;

// Ends one relay that is at work, as if it had crashed. For tests of faults.
struct EndARelay {};

struct StartCall {
  CallKind kind;
  // Without its lease: the communicator makes that.
  CollectiveBuffer buffer;
  std::function<void(CallResult)> done;  // called once, on an actor's thread
};

// Frames of collectives to the relay that they are for. Those that come before their relay does wait for it, since ranks
// do not call at the same instant; the sender's window bounds them, and bytes_max bounds whoever does not keep to it.
// Any thread may deliver.
class CollectiveRouter {
 public:
  explicit CollectiveRouter(std::size_t bytes_max = std::size_t{1} << 30) : bytes_max_(bytes_max) {}

  void attach(const caf::actor& communicator);  // takes GroupNotes
  void detach();                                // lets go of every actor
  void deliver(Delivery delivery);              // chunks, acknowledgements, notes
  void add(const RunId& run, std::uint32_t tree, const caf::actor& relay);
  void remove(const RunId& run, std::uint32_t tree);
  bool heard_from(const std::string& name) const;  // ever
  void forget_below(std::uint64_t call);  // nothing of older calls is waited for any more

 private:
  struct Impl;
  using Key = std::pair<RunId, std::uint32_t>;
  void pass(const Key& key, Delivery delivery);

  std::size_t bytes_max_;
  std::shared_ptr<Impl> impl_ = make_impl();
  static std::shared_ptr<Impl> make_impl();
};

struct CommunicatorOptions {
  int rank = 0;
  std::vector<std::string> names;  // of the ranks
  std::shared_ptr<CollectiveRouter> router;
  std::vector<Peer> neighbours;  // ranks at the other ends of this one's links, which pass notes on
  // Rank 0 alone, which plans. What all ranks do for a call of this kind, in about so many chunks; 0: as a model says.
  std::function<tl::expected<collectives::Program, std::string>(const CallKind&, std::int64_t chunks)> plan;
  // What is left of it.
  std::function<tl::expected<collectives::Program, std::string>(const CallKind&, const collectives::Program&,
                                                                const std::vector<collectives::RankProgress>&)> resume;
  // From now on a link carries so little; 0: nothing.
  std::function<void(const collectives::RankEdge& link, std::int64_t bytes_per_s)> degrade;
  // Calls of at least so many bytes try which number of chunks is fastest, until that is settled. INT64_MAX: none does.
  std::int64_t tune_from = std::int64_t{1} << 20;
  Duration patience = std::chrono::minutes{5};   // a call that stands still for so long has failed
  Duration gone_after = std::chrono::seconds{2}; // a rank that does not answer for so long is gone
  LinkWatchOptions watch;
  std::shared_ptr<HopLog> hops;  // where this rank's relays note what arrives; nothing: nowhere
  // Forgets what is queued for a peer over a link that is at fault, or, nothing named, for everyone.
  std::function<void(const std::optional<Peer>&)> hang_up;
};

caf::actor spawn_communicator(caf::actor_system& system, CommunicatorOptions options, std::shared_ptr<FramePort> port);

}  // namespace coppice::actors
