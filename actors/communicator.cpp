#include "actors/communicator.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "actors/collective_messages.hpp"
#include "actors/type_ids.hpp"
#include "collectives/chunk_tuner.hpp"

namespace coppice::actors {
namespace {

using collectives::Program;

constexpr auto kTick = std::chrono::milliseconds{100};
constexpr auto kAskAgain = std::chrono::milliseconds{500};
// Kinds beyond these are planned at every call: whoever calls with ever new sizes must not fill the memory.
constexpr std::size_t kSettledMax = 1'024;
constexpr std::size_t kHistory = 64;     // calls whose program rank 0 remembers after they are over here
constexpr std::size_t kNotesSeen = 4'096;  // of each origin, to tell copies
constexpr int kAttemptsMax = 32;
constexpr int kAttemptsForSlowness = 6;  // what is slow for ever is better gone on with

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
  std::optional<Program> program;
  std::map<std::uint32_t, caf::actor> relays;            // at work
  std::vector<std::shared_ptr<RelayProgress>> progress;  // by tree; none where this rank has no part
  LinkWatch watch;
  int asked = 1;  // how often it has been said again what is waited for, and once more
  bool relay_lost = false, leased = false;
  bool settled = false;  // its program is that of all calls of the kind to come
  bool tried = false;    // rank 0: its number of chunks is on trial
  // Links on which frames of an earlier attempt were on their way: they may hold the caller's buffer for ever.
  std::vector<collectives::RankEdge> stale;
  Instant closed;
  bool passes_on = false;  // the call is over here; its relays only help others
  std::optional<Instant> troubled;
  std::optional<std::string> fault;
};

// Rank 0: what it offered last for a call, and who has finished it.
struct Offered {
  CallKind kind;
  Program program;
  std::uint32_t attempt = 0;
  std::set<int> parts_done;
};

// Rank 0: a run that is being paused.
struct Replan {
  Instant begun, asked;
  std::map<int, PausedAt> told;
  std::uint64_t next_call = 0;  // the furthest of any rank
};

// Rank 0: programs of settled kinds as they were when a run was paused. Ranks forget theirs then, but may have begun calls
// with them, up to `until`.
struct Past {
  std::uint64_t until = UINT64_MAX;  // as long as it is not known
  std::map<CallKind, Program> settled;
};

using LinkKey = std::tuple<int, std::string, std::string>;

LinkKey key_of(const collectives::RankEdge& link) { return {link.to, link.from_address, link.to_address}; }

struct State {
  CommunicatorOptions options;
  std::shared_ptr<FramePort> port;
  std::uint64_t next_call = 0, next_note = 0;
  std::map<std::uint64_t, Call> calls;  // that are not complete
  std::map<CallKind, Program> settled;
  std::map<std::uint64_t, ProgramOffer> offers;        // for calls that this rank has not made yet
  std::map<std::uint64_t, CallRefused> refusals;       // so too
  std::map<std::uint64_t, std::int64_t> paused_early;  // so too: the attempt that was paused
  std::map<LinkKey, Instant> answered;  // when a link's other end last answered over it
  std::map<std::uint32_t, std::set<std::uint64_t>> seen;  // notes that were passed on, by origin
  std::map<CallKind, collectives::ChunkTuner> tuners;  // rank 0
  std::map<std::uint64_t, Offered> offered;
  std::map<std::uint64_t, std::set<int>> parts_early;  // done with calls that rank 0 has not made yet: kinds are settled
  std::map<std::uint64_t, Replan> replans;
  std::vector<Past> past;  // the oldest first
  std::optional<std::string> broken;  // why no further call can be
  bool rough = false;                 // a run was paused before: every note takes every way
  bool ticking = false;

  const std::string& name(int rank) const { return options.names[static_cast<std::size_t>(rank)]; }
  bool plans() const { return options.rank == 0; }
};

using Self = caf::event_based_actor;

std::string text(const CallKind& kind) {
  return std::string(name(kind.operation)) + " of " + std::to_string(kind.bytes) + " bytes of " +
         std::string(name(kind.element));
}

// Its data is combined elsewhere and never comes back: whoever is done must keep it until all are.
bool commits(const CallKind& kind) {
  return kind.operation == collectives::Operation::reduce || kind.operation == collectives::Operation::reduce_scatter;
}

bool takes_part(const collectives::TreeProgram& tree, int rank) {
  const auto at = [&](const collectives::RankEdge& edge) { return edge.from == rank || edge.to == rank; };
  return tree.root == rank || std::ranges::any_of(tree.up, at) || std::ranges::any_of(tree.down, at);
}

bool fits(const Program& program, const CallKind& kind, std::size_t ranks) {
  return program.operation == kind.operation && program.element == kind.element &&
         program.reduction == kind.reduction && program.bytes == kind.bytes &&
         program.ranks == static_cast<int>(ranks);
}

// ---- notes -----------------------------------------------------------------------------------------------------------

void pass_on(State& state, const GroupNote& note, const std::string& except) {
  for (const Peer& neighbour : state.options.neighbours)
    if (neighbour.name != except) state.port->send(neighbour, note);
}

// To others: who sends a note to itself has taken it already.
template <class Note>
void tell(State& state, int target, Note body, bool flood) {
  flood = flood || state.rough;
  const GroupNote note{static_cast<std::uint32_t>(state.options.rank), state.next_note++, target, flood, std::move(body)};
  for (int rank = 0; rank < static_cast<int>(state.options.names.size()); ++rank)
    if (rank != state.options.rank && (target < 0 || target == rank)) state.port->send(Peer{state.name(rank)}, note);
  if (flood) pass_on(state, note, "");
}

// To the other end of one link, over that link.
template <class Note>
void tell_over(State& state, const collectives::RankEdge& link, Note body) {
  state.port->send(Peer{state.name(link.to), "", link.from_address, link.to_address},
                   GroupNote{static_cast<std::uint32_t>(state.options.rank), state.next_note++, link.to, false, std::move(body)});
}

// Whether a note has not been here yet; only copies of flooded ones are there to tell.
bool is_new(State& state, const GroupNote& note) {
  if (!note.flood) return true;
  auto& seen = state.seen[note.origin];
  if (!seen.insert(note.number).second) return false;
  if (seen.size() > kNotesSeen) seen.erase(seen.begin());
  return true;
}

// ---- the end of a call -----------------------------------------------------------------------------------------------

// Ends what the call has here; its caller hears when nothing reads the buffer any more.
void let_go(Self* self, State& state, std::uint64_t id, Call& call) {
  for (const auto& [tree, relay] : call.relays) {
    state.options.router->remove({id, call.attempt}, tree);
    self->send_exit(relay, caf::exit_reason::user_shutdown);
  }
  call.relays.clear();
  call.stage = Stage::closing;
  call.closed = self->clock().now();
  call.start.buffer.lease.reset();
}

// Rank 0: what a call teaches about the number of chunks. From the first frame on: who calls late says nothing of that.
void learn(State& state, const Call& call, Instant now) {
  const auto tuner = state.tuners.find(call.start.kind);
  if (tuner == state.tuners.end() || call.fault || call.attempt > 0 || !call.tried) return;
  std::optional<Instant> flowing;
  for (const auto& progress : call.progress) {
    if (!progress) continue;
    const auto since = progress->look().flowing;
    if (since && (!flowing || *since < *flowing)) flowing = since;
  }
  if (flowing) tuner->second.observe(std::chrono::duration<double>(now - *flowing).count());
}

bool tunes(const State& state, const CallKind& kind) { return kind.bytes >= state.options.tune_from; }

void complete_if_over(Self* self, State& state, std::uint64_t id) {
  auto& call = state.calls.at(id);
  if (call.leased || (!call.fault && call.stage != Stage::closing)) return;
  if (state.plans()) learn(state, call, self->clock().now());
  auto done = std::move(call.start.done);
  CallResult result = CallReport{};
  if (call.fault) {
    result = tl::unexpected(*call.fault);
  } else {
    result->trees = call.program->trees.size();
    result->chunks = collectives::chunks_of(*call.program);
    result->attempts = static_cast<int>(call.attempt) + 1;
    result->settled = call.settled;
    result->took = self->clock().now() - call.begun;
  }
  state.calls.erase(id);
  state.options.router->forget_below(state.calls.empty() ? state.next_call : state.calls.begin()->first);
  if (done) done(std::move(result));
}

void fail(Self* self, State& state, std::uint64_t id, const std::string& why) {
  const auto found = state.calls.find(id);
  if (!state.broken) {
    state.broken = why;
    if (state.options.hang_up) state.options.hang_up(std::nullopt);
  }
  state.replans.erase(id);
  if (found == state.calls.end() || found->second.fault) return;
  found->second.fault = why;
  let_go(self, state, id, found->second);
  complete_if_over(self, state, id);
}

// Everyone is told the same. The connections are new ones after the failure, so that the word still gets round.
void fail_everywhere(Self* self, State& state, std::uint64_t id, const std::string& why) {
  fail(self, state, id, why);
  tell(state, -1, CallRefused{id, true, why}, true);
}

// ---- a run -----------------------------------------------------------------------------------------------------------

void tick_on(Self* self, State& state) {
  if (state.ticking) return;
  state.ticking = true;
  self->delayed_send(self, kTick, WatchTick{});
}

void part_is_done(Self* self, State& state, std::uint64_t id, Call& call);
std::map<LinkKey, LinkSample> samples_of(const State& state, const Call& call);

void run(Self* self, State& state, std::uint64_t id, std::uint32_t attempt, Program program) {
  auto& call = state.calls.at(id);
  if (!call.passes_on && !fits(program, call.start.kind, state.options.names.size()))
    return fail_everywhere(self, state, id,
                           "call " + std::to_string(id) + " is " + text(call.start.kind) + " at " +
                               state.name(state.options.rank) + " and another one at " + state.name(0) +
                               ": all ranks must make the same calls in the same order");
  call.program = std::move(program);
  call.attempt = attempt;
  call.stage = Stage::running;
  call.moved = self->clock().now();
  call.watch = LinkWatch(state.options.watch);
  call.relay_lost = false;
  call.troubled.reset();
  const caf::actor me = self;
  if (!call.start.buffer.lease) {
    // Its end is told by whoever holds it last, on whatever thread.
    call.start.buffer.lease = std::shared_ptr<void>(self, [me, id](void*) { caf::anon_send(me, LeaseEnded{id}); });
    call.leased = true;
  }
  const auto& trees = call.program->trees;
  call.progress.assign(trees.size(), nullptr);
  for (std::uint32_t tree = 0; tree < trees.size(); ++tree) {
    if (!takes_part(trees[tree], state.options.rank)) continue;
    auto progress = std::make_shared<RelayProgress>();
    const RunId run_id{id, attempt};
    auto relay = spawn_collective_relay(
        self->system(), {run_id, tree, state.options.names, progress, state.options.hops},
        CollectiveRelayState(*call.program, tree, state.options.rank, call.start.buffer), state.port, me);
    self->monitor(relay);
    if (trees[tree].wait_us > 0)
      self->delayed_send(relay, std::chrono::microseconds{trees[tree].wait_us}, BeginRelay{});
    else
      self->send(relay, BeginRelay{});
    state.options.router->add(run_id, tree, relay);  // after its beginning: nothing overtakes that
    call.relays.emplace(tree, relay);
    call.progress[tree] = std::move(progress);
  }
  tick_on(self, state);
  if (call.relays.empty()) part_is_done(self, state, id, call);  // nothing to do here
}

void close(Self* self, State& state, std::uint64_t id) {
  const auto found = state.calls.find(id);
  if (found == state.calls.end() || found->second.stage == Stage::closing) return;
  let_go(self, state, id, found->second);
}

void on_part_done(Self* self, State& state, int rank, const RunId& run_id) {
  if (run_id.call >= state.next_call) {
    if (state.parts_early.size() < kSettledMax) state.parts_early[run_id.call].insert(rank);
    return;
  }
  const auto offered = state.offered.find(run_id.call);
  if (offered == state.offered.end() || offered->second.attempt != run_id.attempt || state.replans.contains(run_id.call)) return;
  offered->second.parts_done.insert(rank);
  if (offered->second.parts_done.size() < state.options.names.size()) return;
  if (!state.calls.contains(run_id.call)) return tell(state, rank, CallOver{run_id.call}, true);  // it was lost
  tell(state, -1, CallOver{run_id.call}, false);
  close(self, state, run_id.call);
}

void part_is_done(Self* self, State& state, std::uint64_t id, Call& call) {
  if (!commits(call.start.kind) || call.passes_on) return close(self, state, id);
  call.stage = Stage::part_done;
  const RunId run_id{id, call.attempt};
  if (state.plans()) return on_part_done(self, state, 0, run_id);
  tell(state, 0, PartDone{run_id}, false);
}

// ---- what rank 0 does ------------------------------------------------------------------------------------------------

void on_pause(Self* self, State& state, const RunId& run_id);
void on_offer(Self* self, State& state, ProgramOffer offer);

void remember(State& state, std::uint64_t id, const CallKind& kind, const Program& program, std::uint32_t attempt) {
  std::set<int> done;
  if (const auto early = state.parts_early.find(id); early != state.parts_early.end()) {
    if (attempt == 0) done = std::move(early->second);
    state.parts_early.erase(early);
  }
  state.offered[id] = {kind, program, attempt, std::move(done)};
  while (state.offered.size() > kHistory && !state.calls.contains(state.offered.begin()->first))
    state.offered.erase(state.offered.begin());
}

void on_trouble(Self* self, State& state, const TroubleReport& report) {
  const auto id = report.run.call;
  const auto offered = state.offered.find(id);
  if (!state.plans() || state.broken || offered == state.offered.end() || offered->second.attempt != report.run.attempt) return;
  if (report.link.from >= 0 && state.options.degrade)
    state.options.degrade(report.link, static_cast<std::int64_t>(report.bytes_per_s));
  if (state.replans.contains(id) || (report.bytes_per_s > 0 && report.run.attempt >= kAttemptsForSlowness)) return;
  if (report.run.attempt + 1 >= kAttemptsMax)
    return fail_everywhere(self, state, id, "call " + std::to_string(id) + " broke off too often: " + report.what);
  const Instant now = self->clock().now();
  state.replans[id] = {now, now, {}, 0};
  tick_on(self, state);
  // From here on every kind is asked for again. Ranks that forget a kind before they call wait for an offer.
  state.past.push_back({UINT64_MAX, std::move(state.settled)});
  state.settled.clear();
  for (const auto& [other, call] : state.calls)
    if (other != id && call.program && !state.replans.contains(other))
      tell(state, -1, ProgramOffer{{other, call.attempt}, false, *call.program}, false);
  tell(state, -1, PauseCall{report.run}, true);
  on_pause(self, state, report.run);
}

void on_paused(Self* self, State& state, int rank, const PausedAt& paused) {
  const auto id = paused.run.call;
  const auto replan = state.replans.find(id);
  const auto offered = state.offered.find(id);
  if (replan == state.replans.end() || offered == state.offered.end() || offered->second.attempt != paused.run.attempt) return;
  replan->second.told[rank] = paused;
  replan->second.next_call = std::max(replan->second.next_call, paused.next_call);
  if (replan->second.told.size() < state.options.names.size()) return;
  std::vector<collectives::RankProgress> progress;
  for (const auto& [who, told] : replan->second.told) {
    collectives::RankProgress own{told.over, {told.known.begin(), told.known.end()}};
    own.known.resize(offered->second.program.trees.size(), 0);
    for (std::size_t tree = 0; tree < own.known.size(); ++tree)
      own.known[tree] = std::clamp<std::int64_t>(own.known[tree], 0, collectives::chunk_count(offered->second.program.trees[tree]));
    progress.push_back(std::move(own));
  }
  const std::uint64_t until = std::max(replan->second.next_call, state.next_call);
  state.replans.erase(replan);
  if (state.replans.empty())
    for (Past& past : state.past) past.until = std::min(past.until, until);
  auto rest = state.options.resume(offered->second.kind, offered->second.program, progress);
  if (!rest) return fail_everywhere(self, state, id, "call " + std::to_string(id) + " cannot go on: " + rest.error());
  const std::uint32_t attempt = offered->second.attempt + 1;
  remember(state, id, CallKind(offered->second.kind), *rest, attempt);
  const ProgramOffer offer{{id, attempt}, false, std::move(*rest)};
  tell(state, -1, offer, true);
  on_offer(self, state, offer);
}

void watch_replans(Self* self, State& state, Instant now) {
  std::vector<std::pair<std::uint64_t, std::string>> lost;
  for (auto& [id, replan] : state.replans) {
    if (now - replan.begun >= state.options.gone_after) {
      for (int rank = 0; rank < static_cast<int>(state.options.names.size()); ++rank)
        if (!replan.told.contains(rank) && (rank == 0 || state.options.router->heard_from(state.name(rank)))) {
          lost.emplace_back(id, "rank " + std::to_string(rank) + " (" + state.name(rank) + ") is gone, and its data with it");
          break;
        }
    } else if (now - replan.asked >= kAskAgain) {
      replan.asked = now;
      tell(state, -1, PauseCall{{id, state.offered.at(id).attempt}}, true);
    }
  }
  for (const auto& [id, why] : lost) fail_everywhere(self, state, id, why);
}

// ---- what every rank does --------------------------------------------------------------------------------------------

// Of a kind that is not settled: what some rank may have begun with, or a new plan.
tl::expected<Program, std::string> asked_for(State& state, const CallKind& kind, std::uint64_t id) {
  std::erase_if(state.past, [&](const Past& past) { return past.until <= id; });
  for (const Past& past : state.past)
    if (const auto known = past.settled.find(kind); known != past.settled.end()) return known->second;
  if (!tunes(state, kind)) return state.options.plan(kind, 0);
  auto tuner = state.tuners.find(kind);
  if (tuner == state.tuners.end()) {
    const auto model = state.options.plan(kind, 0);
    if (!model) return model;
    if (state.tuners.size() >= kSettledMax) state.tuners.clear();
    tuner = state.tuners.emplace(kind, collectives::ChunkTuner(collectives::chunks_of(*model))).first;
  }
  state.calls.at(id).tried = !tuner->second.settled();
  return state.options.plan(kind, tuner->second.chunks());
}

void on_call(Self* self, State& state, StartCall start) {
  const std::uint64_t id = state.next_call++;
  auto& call = state.calls[id];
  call.start = std::move(start);
  call.begun = call.moved = self->clock().now();
  const CallKind kind = call.start.kind;
  tick_on(self, state);
  if (state.broken) {
    call.fault = "the communicator failed before: " + *state.broken + "; join again";
    return complete_if_over(self, state, id);
  }
  if (state.plans()) {
    const auto known = state.settled.find(kind);
    auto program = known != state.settled.end() ? known->second : asked_for(state, kind, id);
    if (!program) {
      tell(state, -1, CallRefused{id, false, program.error()}, false);
      call.fault = program.error();  // nothing has begun: later calls may go on
      return complete_if_over(self, state, id);
    }
    call.settled = known != state.settled.end();
    remember(state, id, kind, *program, 0);
    if (known == state.settled.end()) {
      const bool settle = state.settled.size() < kSettledMax && state.past.empty() && !call.tried;
      call.settled = settle;
      tell(state, -1, ProgramOffer{{id, 0}, settle, *program}, false);
      if (settle) state.settled.emplace(kind, *program);
    }
    return run(self, state, id, 0, std::move(*program));
  }
  if (const auto refused = state.refusals.find(id); refused != state.refusals.end()) {
    call.fault = refused->second.reason;
    state.refusals.erase(refused);
    return complete_if_over(self, state, id);
  }
  if (const auto paused = state.paused_early.find(id); paused != state.paused_early.end()) {
    call.paused_attempt = paused->second;
    state.paused_early.erase(paused);
  }
  if (const auto offer = state.offers.find(id); offer != state.offers.end()) {
    auto own = std::move(offer->second);
    state.offers.erase(offer);
    return on_offer(self, state, std::move(own));
  }
  if (const auto known = state.settled.find(kind); known != state.settled.end() && call.paused_attempt < 0) {
    call.settled = true;
    run(self, state, id, 0, known->second);
  }
}

void on_offer(Self* self, State& state, ProgramOffer offer) {
  const auto id = offer.run.call;
  auto found = state.calls.find(id);
  if (found == state.calls.end() && id >= state.next_call) {  // not called yet
    // Bounded: rank 0 cannot be many calls ahead of what it waits for.
    const auto kept = state.offers.find(id);
    if (kept == state.offers.end() ? state.offers.size() < kSettledMax : kept->second.run.attempt < offer.run.attempt)
      state.offers.insert_or_assign(id, std::move(offer));
    return;
  }
  if (found == state.calls.end()) {  // over here: only help others
    const bool needed = std::ranges::any_of(offer.program.trees, [&](const auto& tree) { return takes_part(tree, state.options.rank); });
    if (offer.run.attempt == 0 || !needed) return;
    found = state.calls.emplace(id, Call{}).first;
    found->second.passes_on = true;
    found->second.begun = self->clock().now();
  }
  auto& call = found->second;
  const bool newer = !call.program || offer.run.attempt > call.attempt;
  if (call.fault || call.stage == Stage::closing || !newer || static_cast<std::int64_t>(offer.run.attempt) <= call.paused_attempt) return;
  call.settled = offer.settled;
  if (offer.settled) state.settled.insert_or_assign(call.start.kind, offer.program);
  run(self, state, id, offer.run.attempt, std::move(offer.program));
}

void tell_progress(Self* self, State& state, std::uint64_t id, const Call* call) {
  PausedAt paused;
  paused.run = {id, static_cast<std::uint32_t>(call->paused_attempt)};
  paused.over = call->stage == Stage::closing || call->passes_on;
  paused.next_call = state.next_call;
  if (!state.plans()) state.settled.clear();
  if (call->program && call->attempt == paused.run.attempt)
    for (const auto& progress : call->progress)
      paused.known.push_back(static_cast<std::uint64_t>(progress ? progress->look().known : 0));
  if (state.plans()) return on_paused(self, state, 0, paused);
  tell(state, 0, paused, true);
}

void paused_if_still(Self* self, State& state, std::uint64_t id, Call& call) {
  if (!call.relays.empty()) return;
  call.stage = Stage::paused;
  tell_progress(self, state, id, &call);
}

void on_pause(Self* self, State& state, const RunId& run_id) {
  state.rough = true;
  const auto found = state.calls.find(run_id.call);
  if (found == state.calls.end()) {
    PausedAt paused{run_id, run_id.call < state.next_call, state.next_call, {}};
    if (!state.plans()) state.settled.clear();
    if (!paused.over) {  // not called yet: whatever was offered for it is of the past
      state.offers.erase(run_id.call);
      state.paused_early[run_id.call] = run_id.attempt;
    }
    if (state.plans()) return on_paused(self, state, 0, paused);
    return tell(state, 0, paused, true);
  }
  auto& call = found->second;
  const auto attempt = static_cast<std::int64_t>(run_id.attempt);
  if (attempt < call.paused_attempt || (call.program && call.attempt > run_id.attempt)) return;  // of the past
  call.paused_attempt = attempt;
  call.moved = self->clock().now();
  if (call.stage == Stage::running) {
    call.stage = Stage::pausing;
    for (const auto& [key, sample] : samples_of(state, call))
      if (sample.sent_bytes > sample.arrived_bytes) call.stale.push_back(sample.link);
    for (const auto& [tree, relay] : call.relays) {
      state.options.router->remove({run_id.call, call.attempt}, tree);
      self->send_exit(relay, caf::exit_reason::user_shutdown);
    }
  }
  if (call.stage == Stage::pausing) return paused_if_still(self, state, run_id.call, call);
  tell_progress(self, state, run_id.call, &call);
}

void report(Self* self, State& state, TroubleReport trouble) {
  auto& call = state.calls.at(trouble.run.call);
  const bool slow = trouble.bytes_per_s > 0;  // and goes on: rank 0 may leave it at that
  if (!call.troubled && !slow) call.troubled = self->clock().now();
  if (state.plans()) return on_trouble(self, state, trouble);
  tell(state, 0, std::move(trouble), true);
}

void on_refusal(Self* self, State& state, const CallRefused& refused) {
  if (refused.fatal) return fail(self, state, refused.call, refused.reason);
  const auto call = state.calls.find(refused.call);
  if (call == state.calls.end()) {
    if (refused.call >= state.next_call && state.refusals.size() < kSettledMax) state.refusals[refused.call] = refused;
    return;
  }
  if (call->second.stage != Stage::waiting) return;
  call->second.fault = refused.reason;
  complete_if_over(self, state, refused.call);
}

void on_relay_ended(Self* self, State& state, const caf::down_msg& down) {
  for (auto& [id, call] : state.calls) {
    for (auto relay = call.relays.begin(); relay != call.relays.end(); ++relay) {
      if (caf::actor_cast<caf::actor_addr>(relay->second) != down.source) continue;
      const auto tree = relay->first;
      const auto run_id = RunId{id, call.attempt};
      state.options.router->remove(run_id, tree);
      call.relays.erase(relay);
      if (call.stage == Stage::pausing) return paused_if_still(self, state, id, call);
      call.relay_lost = true;
      return report(self, state, {run_id, {}, 0, "the relay of tree " + std::to_string(tree) + " at " + state.name(state.options.rank) + " ended"});
    }
  }
}

void on_relay_done(Self* self, State& state, const RelayDone& done) {
  const auto found = state.calls.find(done.run.call);
  if (found == state.calls.end() || found->second.attempt != done.run.attempt) return;
  auto& call = found->second;
  if (call.relays.erase(done.tree) == 0) return;
  state.options.router->remove(done.run, done.tree);
  if (!call.relays.empty()) return;
  if (call.stage == Stage::pausing) return paused_if_still(self, state, done.run.call, call);
  if (!call.relay_lost) part_is_done(self, state, done.run.call, call);
}

// ---- watching --------------------------------------------------------------------------------------------------------

std::map<LinkKey, LinkSample> samples_of(const State& state, const Call& call) {
  std::map<LinkKey, LinkSample> links;
  for (std::size_t tree = 0; tree < call.progress.size(); ++tree) {
    if (!call.progress[tree]) continue;
    const auto& program = call.program->trees[tree];
    for (const auto& traffic : call.progress[tree]->look().traffic) {
      if (!state.options.router->heard_from(state.name(traffic.edge.to))) continue;  // not here yet: calls wait
      auto& sample = links[key_of(traffic.edge)];
      sample.link = traffic.edge;
      sample.sent_bytes += traffic.sent_bytes;
      sample.arrived_bytes += traffic.arrived_bytes;
      sample.planned_bytes_per_s += program.bytes_per_s;
      sample.chunk_bytes = std::max(sample.chunk_bytes, program.chunk_bytes);
      if (const auto answered = state.answered.find(key_of(traffic.edge)); answered != state.answered.end())
        sample.answered = answered->second;
    }
  }
  return links;
}

// What waits on a link is let go, and so every run that has something there must take other trees. bytes_per_s: what the
// link is found to carry; none: nothing is said against the link itself.
void let_go_of_link(Self* self, State& state, const collectives::RankEdge& link, std::optional<std::int64_t> bytes_per_s) {
  if (state.options.hang_up) state.options.hang_up(Peer{state.name(link.to), "", link.from_address, link.to_address});
  std::vector<RunId> touched;
  for (const auto& [id, call] : state.calls) {
    if (call.stage != Stage::running) continue;
    const auto samples = samples_of(state, call);
    const auto own = samples.find(key_of(link));
    if (own != samples.end() && own->second.sent_bytes > own->second.arrived_bytes) touched.push_back({id, call.attempt});
  }
  const std::string which = "the link from " + state.name(link.from) + " to " + state.name(link.to);
  for (const auto& run_id : touched) {
    if (!bytes_per_s)
      report(self, state, {run_id, {}, 0, "what waited on " + which + " was let go"});
    else
      report(self, state, {run_id, link, static_cast<std::uint64_t>(*bytes_per_s),
                           which + (*bytes_per_s > 0 ? " carries " + std::to_string(*bytes_per_s) + " bytes a second" : " is dead")});
  }
}

void look_at_links(Self* self, State& state, Call& call, Instant now) {
  std::vector<LinkSample> samples;
  for (auto& [key, sample] : samples_of(state, call)) samples.push_back(sample);
  const auto verdicts = call.watch.look(now, samples);
  for (const auto& link : verdicts.ask) tell_over(state, link, LinkPing{link});
  for (const auto& found : verdicts.findings) let_go_of_link(self, state, found.link, found.bytes_per_s);
}

std::string standstill(const State& state, std::uint64_t id, const Call& call) {
  std::string why = "call " + std::to_string(id) + ", " + text(call.start.kind) + ", has stood still for " +
                    std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(state.options.patience).count()) +
                    " ms at " + state.name(state.options.rank);
  if (call.stage == Stage::waiting) return why + ", which waits for the plan of " + state.name(0);
  if (call.stage == Stage::part_done) return why + ", which waits for the others to be done";
  std::set<int> awaited;
  for (const auto& progress : call.progress)
    if (progress)
      if (const int rank = progress->look().waits_for; rank >= 0) awaited.insert(rank);
  std::string whom;
  for (const int rank : awaited) whom += (whom.empty() ? "" : ", ") + state.name(rank);
  return whom.empty() ? why : why + ", which waits for " + whom;
}

void on_tick(Self* self, State& state) {
  state.ticking = false;
  const Instant now = self->clock().now();
  std::vector<std::pair<std::uint64_t, std::string>> failed;
  std::vector<std::uint64_t> running;
  std::vector<collectives::RankEdge> stale;
  for (auto& [id, call] : state.calls) {
    std::int64_t steps = 0;
    for (const auto& progress : call.progress)
      if (progress) steps += progress->look().steps;
    if (steps != call.steps) {
      call.steps = steps;
      call.moved = now;
      call.asked = 1;
    }
    if (call.stage == Stage::closing && call.leased && now - call.closed > kAskAgain)
      for (auto& link : std::exchange(call.stale, {})) stale.push_back(std::move(link));
    if (call.fault || call.stage == Stage::closing) continue;
    // Notes and acknowledgements go with a link that is let go of: whoever waits says again what it waits with.
    if (now - call.moved > kAskAgain * call.asked) {
      ++call.asked;
      if (!state.plans() && (call.stage == Stage::waiting || call.stage == Stage::paused)) tell(state, 0, OfferWanted{id}, true);
      if (!state.plans() && call.stage == Stage::part_done) tell(state, 0, PartDone{{id, call.attempt}}, true);
      for (const auto& [tree, relay] : call.relays) self->send(relay, RemindRelay{});
    }
    if (call.stage == Stage::running) running.push_back(id);
    if (now - call.moved > state.options.patience)
      failed.emplace_back(id, standstill(state, id, call));
    else if (call.troubled && call.stage == Stage::running && now - *call.troubled > state.options.gone_after + kAskAgain)
      failed.emplace_back(id, "rank 0 (" + state.name(0) + ") is gone, and its data with it");
  }
  for (const auto id : running)  // what one look does may end a call
    if (const auto call = state.calls.find(id); call != state.calls.end()) look_at_links(self, state, call->second, now);
  for (const auto& link : stale) let_go_of_link(self, state, link, std::nullopt);
  for (const auto& [id, why] : failed) fail_everywhere(self, state, id, why);
  watch_replans(self, state, now);
  if (!state.calls.empty() || !state.replans.empty()) tick_on(self, state);
}

void on_note(Self* self, State& state, const std::string& from, GroupNote& note) {
  const int me = state.options.rank;
  if (note.origin >= state.options.names.size() || note.origin == static_cast<std::uint32_t>(me) || !is_new(state, note)) return;
  if (note.flood) pass_on(state, note, from);
  if (note.target >= 0 && note.target != me) return;
  const int origin = static_cast<int>(note.origin);
  if (auto* offer = std::get_if<ProgramOffer>(&note.note); offer && origin == 0) return on_offer(self, state, std::move(*offer));
  if (const auto* refused = std::get_if<CallRefused>(&note.note)) return on_refusal(self, state, *refused);
  if (const auto* trouble = std::get_if<TroubleReport>(&note.note)) return on_trouble(self, state, *trouble);
  if (const auto* pause = std::get_if<PauseCall>(&note.note); pause && origin == 0) return on_pause(self, state, pause->run);
  if (const auto* paused = std::get_if<PausedAt>(&note.note); paused && state.plans()) return on_paused(self, state, origin, *paused);
  if (const auto* done = std::get_if<PartDone>(&note.note); done && state.plans()) return on_part_done(self, state, origin, done->run);
  if (const auto* wanted = std::get_if<OfferWanted>(&note.note)) {
    const auto offered = state.offered.find(wanted->call);
    if (offered != state.offered.end() && !state.replans.contains(wanted->call))
      tell(state, origin, ProgramOffer{{wanted->call, offered->second.attempt}, false, offered->second.program}, true);
    return;
  }
  if (const auto* ping = std::get_if<LinkPing>(&note.note); ping && ping->link.from == origin && ping->link.to == me)
    return tell_over(state, collectives::reversed(ping->link), LinkPong{ping->link});
  if (const auto* pong = std::get_if<LinkPong>(&note.note); pong && pong->link.to == origin) {
    state.answered[key_of(pong->link)] = self->clock().now();
    return;
  }
  if (const auto* over = std::get_if<CallOver>(&note.note); over && origin == 0) return close(self, state, over->call);
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  self->set_down_handler([=](const caf::down_msg& down) { on_relay_ended(self, *state, down); });
  return {
      [=](StartCall& start) { on_call(self, *state, std::move(start)); },
      [=](Delivery& delivery) {
        if (auto* note = std::get_if<GroupNote>(&delivery.message)) on_note(self, *state, delivery.from.name, *note);
      },
      [=](const RelayDone& done) { on_relay_done(self, *state, done); },
      [=](const LeaseEnded& ended) {
        const auto found = state->calls.find(ended.call);
        if (found == state->calls.end()) return;
        found->second.leased = false;
        complete_if_over(self, *state, ended.call);
      },
      [=](const WatchTick&) { on_tick(self, *state); },
      [=](const EndARelay&) {
        for (const auto& [id, call] : state->calls) {
          if (call.relays.empty()) continue;
          self->send_exit(call.relays.begin()->second, caf::exit_reason::kill);
          return;
        }
      },
  };
}

}  // namespace

caf::actor spawn_communicator(caf::actor_system& system, CommunicatorOptions options, std::shared_ptr<FramePort> port) {
  auto state = std::make_shared<State>();
  state->options = std::move(options);
  state->port = std::move(port);
  auto communicator = system.spawn(behave, state);
  state->options.router->attach(communicator);
  return communicator;
}

}  // namespace coppice::actors
