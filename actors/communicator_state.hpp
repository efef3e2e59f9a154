// actors/communicator_state.hpp: what a communicator keeps, and the steps that it takes. Private.
//
// communicator.cpp takes messages apart; communicator_notes.cpp tells the other ranks; communicator_calls.cpp is one
// rank's part of a call; communicator_planning.cpp is what the rank that plans does beside it; communicator_watch.cpp
// looks at links and ranks ten times a second; communicator_views.cpp goes on without ranks that are gone.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/collective_messages.hpp"
#include "actors/communicator.hpp"
#include "actors/group_view.hpp"
#include "actors/liveness.hpp"
#include "actors/note_filter.hpp"
#include "actors/type_ids.hpp"
#include "collectives/chunk_tuner.hpp"

namespace coppice::actors::group {

using collectives::Program;

inline constexpr auto kTick = std::chrono::milliseconds{100};
inline constexpr auto kAskAgain = std::chrono::milliseconds{500};
// Kinds beyond these are planned at every call: whoever calls with ever new sizes must not fill the memory.
inline constexpr std::size_t kSettledMax = 1'024;
inline constexpr std::size_t kIdleRelaysMax = 128;
inline constexpr std::size_t kHistory = 64;  // calls of which something is remembered after they are over

enum class Stage : std::uint8_t {
  waiting,    // for a program
  running,    // relays are at work
  pausing,    // relays are ending
  paused,     // they have, and their progress has been told
  part_done,  // all of this rank's are done; its buffer is kept until everyone's are
  closing,    // nothing is left to do but to wait until nobody reads the buffer
};

struct Call {
  StartCall start;
  Stage stage = Stage::waiting;
  Instant begun, moved;
  std::int64_t steps = 0;
  std::int64_t paused_attempt = -1;  // offers up to this one are of the past
  std::uint32_t attempt = 0;
  int attempts = 0;                // that were begun here
  std::int64_t done_attempt = -1;  // the one of which this rank has its part of the result; -1: none
  bool has_all = false;            // of a broadcast: whatever becomes of this attempt
  std::optional<Program> program;
  std::map<std::uint32_t, caf::actor> relays;            // at work
  std::set<std::uint32_t> trees_done;                    // of this attempt
  std::set<std::uint32_t> trees_known;                   // so too, though not all is acknowledged
  std::byte* eager_output = nullptr;                     // the caller's, where the call is done in a copy
  std::vector<std::shared_ptr<RelayProgress>> progress;  // by tree; none where this rank has no part
  LinkWatch watch;
  int asked = 1;  // how often it has been said again what is waited for, and once more
  bool relay_lost = false, leased = false;
  bool settled = false;  // its program is that of all calls of the kind to come
  bool tried = false;    // planning rank: its number of chunks is on trial
  // Links on which frames of an earlier attempt were on their way: they may hold the caller's buffer for ever.
  std::vector<collectives::RankEdge> stale;
  Instant closed;
  int held = 0;  // how often the buffer was found held after that
  bool passes_on = false;  // the call is over here; its relays only help others
  std::vector<TroubleReport> trouble;  // that was reported and must be heard: it is said again
  std::optional<ProgramOffer> later;   // came while the call was closing: others need this rank's help
  std::optional<CallFault> fault;
};

// The rank that plans: what it offered last for a call, and who has finished it.
struct Offered {
  CallKind kind;
  Program program;
  std::uint32_t attempt = 0;
  std::set<int> parts_done;
};

// The rank that plans: a run that is being paused.
struct Replan {
  Instant asked;
  std::map<int, PausedAt> told;
  std::uint64_t next_call = 0;  // the furthest of any rank
};

// The rank that plans: programs of settled kinds as they were when a run was paused. Ranks forget theirs then, but may
// have begun calls with them, up to `until`.
struct Past {
  std::uint64_t until = UINT64_MAX;  // as long as it is not known
  std::map<CallKind, Program> settled;
};

// The rank that proposes a view.
struct ViewChange {
  ViewProposed proposed;
  std::map<int, ViewReady> told;
  Instant begun;
};

using LinkKey = std::tuple<int, std::string, std::string>;
inline LinkKey key_of(const collectives::RankEdge& edge) { return {edge.to, edge.from_address, edge.to_address}; }

struct State {
  CommunicatorOptions options;
  std::shared_ptr<FramePort> port;
  std::uint64_t next_call = 0, next_note = 0;
  std::map<std::uint64_t, Call> calls;  // that are not complete
  std::vector<caf::actor> idle_relays;  // done with their runs: for the next ones
  std::map<std::uint64_t, std::uint32_t> finished;  // calls that are complete here, the last ones, and at which attempt
  std::map<CallKind, Program> settled;
  std::map<std::uint64_t, ProgramOffer> offers;        // for calls that this rank has not made yet
  std::map<std::uint64_t, CallRefused> refusals;       // so too
  std::map<std::uint64_t, std::int64_t> paused_early;  // so too: the attempt that was paused
  Liveness liveness;
  std::map<int, Instant> wanted;  // ranks that another waits for and has never heard, and this one has: since when
  struct Coming {  // by one link, of all calls
    std::int64_t received_bytes = 0;
    Instant last;
  };
  std::map<LinkKey, Coming> coming;  // at the last look
  std::map<LinkKey, Instant> answered;       // when a link's other end last answered over it; of those that were asked
  std::set<int> doubted;                     // ranks at the other ends of links that are silent
  std::map<std::uint32_t, NoteFilter> seen;  // notes that were passed on, by origin
  std::map<CallKind, collectives::ChunkTuner> tuners;  // planning rank, as are those below
  std::map<std::uint64_t, Offered> offered;
  std::map<std::uint64_t, CallFault> refused;          // calls that cannot be, and why
  std::map<std::uint64_t, std::set<int>> parts_early;  // done with calls that it has not made yet: kinds are settled
  std::map<std::uint64_t, Replan> replans;
  std::vector<Past> past;  // the oldest first
  std::uint32_t view = 0;
  std::vector<int> members;               // of the view: ranks, ascending
  std::set<int> lost;                     // members that are gone: another view is to come
  std::map<int, Instant> suspects;        // members that others say are gone, since when
  std::optional<ViewProposed> promised;   // everything waits for it
  std::optional<ViewChange> change;       // this rank's own
  ViewBegun begun;                        // the present view, for those that did not hear of it
  std::map<std::uint64_t, int> has_all;   // broadcasts without their root, and who has all of it
  Instant view_asked{};
  std::optional<CallFault> broken;  // why no further call can be
  bool rough = false;                 // a run was paused before: every note takes every way
  bool ticking = false;

  int ranks() const { return static_cast<int>(options.names.size()); }
  int planner() const { return members.front(); }
  bool plans() const { return options.rank == planner(); }
  const std::string& name(int rank) const { return options.names[static_cast<std::size_t>(rank)]; }
  int rank_of(const std::string& name) const;  // -1: none
  std::string gone(int rank) const;            // that it is, in words
};

using Self = caf::event_based_actor;

// Whether the caller's buffer is needed until everyone is done: its data is combined elsewhere and never comes back, or
// the call may have to begin again.
bool commits(const State& state, const CallKind& kind);
std::string text(const CallKind& kind);
std::uint32_t fingerprint(const CallKind& kind);

// ---- communicator_notes.cpp ----
// To others: who sends a note to itself has taken it already. target: a rank; -1: all. flood: by every way there is.
void tell(State& state, int target, NoteBody body, bool flood);
void tell_over(State& state, const collectives::RankEdge& link, NoteBody body);  // to its other end, over that link
void on_note(Self* self, State& state, const std::string& from, GroupNote& note);

// ---- communicator_calls.cpp ----
void on_call(Self* self, State& state, StartCall start);
void on_offer(Self* self, State& state, ProgramOffer offer);
void run(Self* self, State& state, std::uint64_t id, std::uint32_t attempt, Program program);
void on_pause(Self* self, State& state, const RunId& run_id);
void on_refusal(Self* self, State& state, const CallRefused& refused);
void on_relay_done(Self* self, State& state, const RelayDone& done);
void on_relay_knows(Self* self, State& state, const RelayKnows& knows);
void on_relay_ended(Self* self, State& state, const caf::down_msg& down);
void on_lease_ended(Self* self, State& state, std::uint64_t id);
void on_ack_wanted(Self* self, State& state, const AckWanted& wanted);
void stop(Self* self, State& state, std::uint64_t id, Call& call);  // its relays; REQUIRES: it runs
void refuse(Self* self, State& state, std::uint64_t id, const CallFault& why);  // that call alone
void close(Self* self, State& state, std::uint64_t id);
void report(Self* self, State& state, TroubleReport trouble);
void fail_all(Self* self, State& state, const CallFault& why);  // the group is over: every call ends with this reason
void fail_everywhere(Self* self, State& state, std::uint64_t id, const CallFault& why);  // everyone is told the same

// ---- communicator_planning.cpp ----
void plan_and_run(Self* self, State& state, std::uint64_t id);  // a call of its own; the others are told
void on_trouble(Self* self, State& state, int origin, const TroubleReport& report);
void on_paused(Self* self, State& state, int rank, const PausedAt& paused);
void on_part_done(Self* self, State& state, int rank, const RunId& run_id);
void on_offer_wanted(State& state, int rank, std::uint64_t id);
void learn(State& state, const Call& call, Instant now);

// ---- communicator_watch.cpp ----
void tick_on(Self* self, State& state);
bool has_been_here(const State& state, int rank);
void on_tick(Self* self, State& state);
std::map<LinkKey, LinkSample> samples_of(const State& state, const Call& call);

// ---- communicator_views.cpp ----
void lose(Self* self, State& state, int rank);  // it is gone for good
void on_rank_lost(Self* self, State& state, int rank);
void on_view_proposed(Self* self, State& state, int origin, const ViewProposed& proposed);
void on_view_ready(Self* self, State& state, int origin, const ViewReady& ready);
void on_view_begun(Self* self, State& state, const ViewBegun& begun);
void ready_if_still(Self* self, State& state);  // answers what is proposed once all relays here have ended
std::set<int> awaited_for_view(const State& state);
void watch_view(Self* self, State& state, Instant now);
bool is_changing(const State& state);

}  // namespace coppice::actors::group
