#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "actors/communicator_state.hpp"
#include "actors/on_this_thread.hpp"

namespace coppice::actors::group {
namespace {

std::optional<std::string> why_not(const State& state, const Call& call, std::uint64_t id, const Program& program) {
  const CallKind offered{program.operation, program.element, program.reduction, program.root, program.bytes};
  if (offered == call.start.kind && program.ranks == state.ranks()) return std::nullopt;
  return "call " + std::to_string(id) + " is " + text(call.start.kind) + " at " + state.name(state.options.rank) + " and " +
         text(offered) + " at " + state.name(state.planner()) + ": all ranks must make the same calls in the same order";
}

void stop_relays(Self* self, State& state, std::uint64_t id, const Call& call) {
  for (const auto& [tree, relay] : call.relays) {
    state.options.router->remove({id, call.attempt}, tree);
    self->send_exit(relay, caf::exit_reason::user_shutdown);
  }
}

// Ends what the call has here; its caller hears when nothing reads the buffer any more.
void let_go(Self* self, State& state, std::uint64_t id, Call& call) {
  stop_relays(self, state, id, call);
  call.relays.clear();
  call.trouble.clear();
  call.stage = Stage::closing;
  call.closed = self->clock().now();
  call.start.buffer.lease.reset();
}

CallResult result_of(const Call& call, Instant now) {
  if (call.fault) return tl::unexpected(*call.fault);
  CallReport report;
  report.trees = call.program->trees.size();
  report.chunks = collectives::chunks_of(*call.program);
  report.attempts = std::max(call.attempts, static_cast<int>(call.attempt % kAttemptsPerView) + 1);
  report.ranks = collectives::members_of(*call.program);
  report.settled = call.settled;
  report.took = now - call.begun;
  return report;
}

// Acknowledgements of such calls are in no hurry: no credit is needed, and no caller waits for them.
bool is_eager(const State& state, const CallKind& kind, const Program& program) {
  return kind.bytes <= state.options.eager_bytes && state.options.on_loss == OnLoss::fail &&
         (kind.operation == collectives::Operation::broadcast || kind.operation == collectives::Operation::allreduce) &&
         std::ranges::all_of(program.trees, [](const auto& tree) { return collectives::chunk_count(tree) <= kWindowMin; });
}

void tell_caller(Self* self, Call& call) {
  const auto done = std::exchange(call.start.done, nullptr);
  if (!done) return;
  auto result = result_of(call, self->clock().now());
  if (result && call.eager_output)
    std::memcpy(call.eager_output, call.start.buffer.output, static_cast<std::size_t>(call.start.kind.bytes));
  done(std::move(result));
}

void complete_if_over(Self* self, State& state, std::uint64_t id) {
  auto& call = state.calls.at(id);
  if (call.leased || (!call.fault && call.stage != Stage::closing)) return;
  const Instant now = self->clock().now();
  if (state.plans()) learn(state, call, now);
  const auto later = std::move(call.later);
  tell_caller(self, call);
  if (!call.fault) state.finished[id] = call.attempt;
  if (!call.fault && commits(state, call.start.kind))  // everyone was done with it
    for (const int rank : state.members) state.liveness.came(rank);
  if (state.finished.size() > kHistory) state.finished.erase(state.finished.begin());
  state.calls.erase(id);
  state.options.router->forget_below(state.calls.empty() ? state.next_call : state.calls.begin()->first);
  if (later && !state.broken) on_offer(self, state, *later);
}

void part_is_done(Self* self, State& state, std::uint64_t id, Call& call) {
  if (!commits(state, call.start.kind) || call.passes_on) return close(self, state, id);
  call.stage = Stage::part_done;
  call.done_attempt = call.attempt;
  const RunId run_id{id, call.attempt};
  if (state.plans()) return on_part_done(self, state, state.options.rank, run_id);
  tell(state, state.planner(), PartDone{run_id}, false);
}

void tell_progress(Self* self, State& state, const RunId& run_id, const Call* call) {
  PausedAt paused{run_id, call ? call->stage == Stage::closing || call->passes_on : run_id.call < state.next_call, state.next_call, {}};
  if (call && call->program && call->attempt == run_id.attempt)
    for (const auto& progress : call->progress)
      paused.known.push_back(static_cast<std::uint64_t>(progress ? progress->look().known : 0));
  if (state.plans()) return on_paused(self, state, state.options.rank, paused);
  state.settled.clear();
  tell(state, state.planner(), paused, true);
}

void paused_if_still(Self* self, State& state, std::uint64_t id, Call& call) {
  if (!call.relays.empty()) return;
  call.stage = Stage::paused;
  if (state.promised) return ready_if_still(self, state);
  tell_progress(self, state, {id, static_cast<std::uint32_t>(call.paused_attempt)}, &call);
}

// One that is done with another run, or a new one: to begin and to end an actor costs as much as a small call does.
caf::actor relay_for(Self* self, State& state, CollectiveRelayOptions options, CollectiveRelayState relay) {
  if (state.idle_relays.empty()) {
    auto made = spawn_collective_relay(self, std::move(options), std::move(relay), state.port);
    self->monitor(made);
    return made;
  }
  auto idle = std::move(state.idle_relays.back());
  state.idle_relays.pop_back();
  self->send(idle, TakeOn{std::make_shared<std::pair<CollectiveRelayOptions, CollectiveRelayState>>(std::move(options), std::move(relay))});
  return idle;
}

void spawn_relays(Self* self, State& state, const RunId& run_id, Call& call) {
  const auto& trees = call.program->trees;
  // Small calls before this one wait for their acknowledgements: not behind its data.
  if (state.options.acks && !is_eager(state, call.start.kind, *call.program)) state.options.acks->flush(*state.port);
  call.progress.assign(trees.size(), nullptr);
  for (std::uint32_t tree = 0; tree < trees.size(); ++tree) {
    if (!collectives::takes_part(trees[tree], state.options.rank)) continue;
    auto progress = std::make_shared<RelayProgress>();
    auto relay = relay_for(self, state,
                           {run_id, fingerprint(call.start.kind), tree, state.options.session, state.options.names, progress, state.options.hops,
                            is_eager(state, call.start.kind, *call.program) ? state.options.acks : nullptr},
                           CollectiveRelayState(*call.program, tree, state.options.rank, call.start.buffer));
    if (trees[tree].wait_us > 0)
      self->delayed_send(relay, std::chrono::microseconds{trees[tree].wait_us}, BeginRelay{run_id, tree});
    else
      self->send(relay, BeginRelay{run_id, tree});
    state.options.router->add(run_id, tree, relay, self->context());  // after its beginning: nothing overtakes that
    call.relays.emplace(tree, relay);
    call.progress[tree] = std::move(progress);
  }
  state.options.router->began(run_id);
}

bool overlap(const std::byte* a, const std::byte* b, std::int64_t bytes) {
  return a && b && std::less<>{}(a, b + bytes) && std::less<>{}(b, a + bytes);
}

// So that the call can begin again when its result has half overwritten what it is made of.
void keep_input(const State& state, StartCall& start) {
  auto& buffer = start.buffer;
  const auto& kind = start.kind;
  if (state.options.on_loss == OnLoss::fail || !collectives::combines(kind.operation)) return;
  if (!overlap(buffer.input, buffer.output, kind.bytes)) return;
  buffer.kept = std::shared_ptr<std::byte[]>(new std::byte[static_cast<std::size_t>(kind.bytes)]);
  std::memcpy(buffer.kept.get(), buffer.input, static_cast<std::size_t>(kind.bytes));
  buffer.input = buffer.kept.get();
}

// The caller has its buffer back as soon as the result is known. Not for whoever is far ahead of the others: it waits.
void work_in_a_copy(const State& state, Call& call) {
  const auto& kind = call.start.kind;
  auto& buffer = call.start.buffer;
  constexpr std::size_t kAheadMax = 64;  // calls
  const bool combines = kind.operation == collectives::Operation::allreduce;
  if (kind.bytes == 0 || kind.bytes > state.options.eager_bytes || state.options.on_loss != OnLoss::fail || !buffer.output ||
      !(combines || kind.operation == collectives::Operation::broadcast) || state.calls.size() > kAheadMax)
    return;
  const auto bytes = static_cast<std::size_t>(kind.bytes);
  std::shared_ptr<std::byte[]> own(new std::byte[bytes]);
  if (buffer.input) std::memcpy(own.get(), buffer.input, bytes);
  call.eager_output = buffer.output;
  buffer.input = buffer.output = own.get();
  buffer.lease = std::move(own);
}

}  // namespace

// ---- beginning -------------------------------------------------------------------------------------------------------

void on_call(Self* self, State& state, StartCall start) {
  const std::uint64_t id = state.next_call++;
  auto& call = state.calls[id];
  keep_input(state, start);
  call.start = std::move(start);
  work_in_a_copy(state, call);
  call.begun = call.moved = self->clock().now();
  tick_on(self, state);
  if (id == 0) tell(state, -1, RankPong{}, false);  // it is there: who was never heard is waited for if it dies
  if (state.broken) return refuse(self, state, id, {"the communicator failed before: " + state.broken->what + "; join again", state.broken->gone});
  if (state.promised) {
    call.paused_attempt = std::int64_t{first_attempt(state.promised->view)} - 1;
    return;
  }
  if (state.plans()) return plan_and_run(self, state, id);
  if (const auto refused = state.refusals.extract(id)) return refuse(self, state, id, {refused.mapped().reason, refused.mapped().gone});
  if (const auto paused = state.paused_early.extract(id)) call.paused_attempt = paused.mapped();
  if (auto offer = state.offers.extract(id)) return on_offer(self, state, std::move(offer.mapped()));
  if (const auto known = state.settled.find(call.start.kind); known != state.settled.end() && call.paused_attempt < 0) {
    call.settled = true;
    run(self, state, id, first_attempt(state.view), known->second);
  }
}

void on_offer(Self* self, State& state, ProgramOffer offer) {
  const auto id = offer.run.call;
  if (offer.program.ranks != state.ranks() || state.broken || state.promised || offer.run.attempt < first_attempt(state.view)) return;
  auto found = state.calls.find(id);
  if (found == state.calls.end() && id >= state.next_call) {  // not called yet
    // Bounded: who plans cannot be many calls ahead of what it waits for.
    const auto kept = state.offers.find(id);
    if (kept == state.offers.end() ? state.offers.size() < kSettledMax : kept->second.run.attempt < offer.run.attempt)
      state.offers.insert_or_assign(id, std::move(offer));
    return;
  }
  if (found == state.calls.end()) {  // over here: only help others
    bool needed = false;
    for (const auto& tree : offer.program.trees) {
      if (collectives::gives_data(tree, state.options.rank)) return;  // that is no longer there
      needed = needed || collectives::takes_part(tree, state.options.rank);
    }
    if (offer.run.attempt == 0 || !needed) return;
    found = state.calls.emplace(id, Call{}).first;
    found->second.passes_on = true;
    const auto& p = offer.program;
    found->second.start.kind = {p.operation, p.element, p.reduction, p.root, p.bytes};
    found->second.begun = self->clock().now();
  }
  auto& call = found->second;
  const bool newer = !call.program || offer.run.attempt > call.attempt;
  if (call.fault || !newer || static_cast<std::int64_t>(offer.run.attempt) <= call.paused_attempt) return;
  if (call.stage == Stage::closing) {
    call.later = std::move(offer);
    return;
  }
  call.settled = offer.settled;
  if (offer.settled) state.settled.insert_or_assign(call.start.kind, offer.program);
  run(self, state, id, offer.run.attempt, std::move(offer.program));
}

void run(Self* self, State& state, std::uint64_t id, std::uint32_t attempt, Program program) {
  auto& call = state.calls.at(id);
  if (const auto why = call.passes_on ? std::nullopt : why_not(state, call, id, program)) return fail_everywhere(self, state, id, *why);
  stop_relays(self, state, id, call);
  call.relays.clear();
  call.program = std::move(program);
  call.attempt = attempt;
  ++call.attempts;
  call.done_attempt = -1;
  call.stage = Stage::running;
  call.moved = self->clock().now();
  call.watch = LinkWatch(state.options.watch);
  call.relay_lost = false;
  call.trouble.clear();
  call.trees_done.clear();
  call.trees_known.clear();
  if (!call.start.buffer.lease) {
    // Its end is told by whoever holds it last, on whatever thread.
    call.start.buffer.lease = std::shared_ptr<void>(
        self, [me = caf::actor(self), id, kept = call.start.buffer.kept](void*) { actors::tell(me, OnThisThread::here(), caf::make_message(LeaseEnded{id})); });
    call.leased = true;
  }
  spawn_relays(self, state, {id, attempt}, call);
  tick_on(self, state);
  if (call.relays.empty()) part_is_done(self, state, id, call);  // nothing to do here
}

// ---- going on --------------------------------------------------------------------------------------------------------

void on_relay_done(Self* self, State& state, const RelayDone& done) {
  const auto found = state.calls.find(done.run.call);
  if (found == state.calls.end() || found->second.attempt != done.run.attempt) return;
  auto& call = found->second;
  const auto relay = call.relays.find(done.tree);
  if (relay == call.relays.end()) return;  // it was told to end
  if (call.stage != Stage::pausing && state.idle_relays.size() < kIdleRelaysMax) {  // those of a paused run were told to end
    state.idle_relays.push_back(std::move(relay->second));
  } else {
    self->send_exit(relay->second, caf::exit_reason::user_shutdown);
  }
  call.relays.erase(relay);
  call.trees_done.insert(done.tree);
  state.options.router->remove(done.run, done.tree);
  if (!call.relays.empty()) return;
  if (call.stage == Stage::pausing) return paused_if_still(self, state, done.run.call, call);
  if (!call.relay_lost) part_is_done(self, state, done.run.call, call);
}

void on_relay_knows(Self* self, State& state, const RelayKnows& knows) {
  const auto found = state.calls.find(knows.run.call);
  if (found == state.calls.end() || found->second.attempt != knows.run.attempt || !found->second.eager_output) return;
  auto& call = found->second;
  call.trees_known.insert(knows.tree);
  const auto known = [&](const auto& relay) { return call.trees_known.contains(relay.first); };
  if (call.stage == Stage::running && !call.relay_lost && std::ranges::all_of(call.relays, known)) tell_caller(self, call);
}

void on_relay_ended(Self* self, State& state, const caf::down_msg& down) {
  std::erase_if(state.idle_relays, [&](const caf::actor& idle) { return caf::actor_cast<caf::actor_addr>(idle) == down.source; });
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

// Whoever is done here has had all that was sent, and says so for good.
void on_ack_wanted(Self* self, State& state, const AckWanted& wanted) {
  bool done = false;
  if (const auto call = state.calls.find(wanted.run.call); call != state.calls.end() && call->second.attempt == wanted.run.attempt) {
    if (const auto relay = call->second.relays.find(wanted.tree); relay != call->second.relays.end()) return self->send(relay->second, RemindRelay{});
    done = call->second.trees_done.contains(wanted.tree);
  } else if (call == state.calls.end()) {
    const auto finished = state.finished.find(wanted.run.call);
    done = finished != state.finished.end() && finished->second == wanted.run.attempt;
  }
  if (done)
    state.port->send(far_end(collectives::reversed(wanted.link), state.options.names),
                     CollectiveAck{wanted.run, wanted.kind, state.options.session, wanted.tree, wanted.way, wanted.sent, wanted.sent});
}

void report(Self* self, State& state, TroubleReport trouble) {
  if (state.plans()) return on_trouble(self, state, state.options.rank, trouble);
  auto& call = state.calls.at(trouble.run.call);
  tell(state, state.planner(), trouble, true);
  // What is slow goes on: the planner may leave it at that.
  if (trouble.bytes_per_s == 0) call.trouble.push_back(std::move(trouble));
}

void stop(Self* self, State& state, std::uint64_t id, Call& call) {
  call.stage = Stage::pausing;
  for (const auto& [key, sample] : samples_of(state, call))
    if (sample.sent_bytes > sample.arrived_bytes) call.stale.push_back(sample.link);
  stop_relays(self, state, id, call);
}

void on_pause(Self* self, State& state, const RunId& run_id) {
  if (state.promised || run_id.attempt < first_attempt(state.view)) return;
  state.rough = true;
  const auto found = state.calls.find(run_id.call);
  if (found == state.calls.end()) {
    if (run_id.call >= state.next_call) {  // not called yet: whatever was offered for it is of the past
      state.offers.erase(run_id.call);
      if (state.paused_early.size() < kSettledMax) state.paused_early[run_id.call] = run_id.attempt;
    }
    return tell_progress(self, state, run_id, nullptr);
  }
  auto& call = found->second;
  const auto attempt = static_cast<std::int64_t>(run_id.attempt);
  if (attempt < call.paused_attempt || (call.program && call.attempt > run_id.attempt)) return;  // of the past
  call.paused_attempt = attempt;
  call.moved = self->clock().now();
  call.trouble.clear();
  if (call.stage == Stage::part_done) call.stage = Stage::paused;
  if (call.stage == Stage::running) stop(self, state, run_id.call, call);
  if (call.stage == Stage::pausing) return paused_if_still(self, state, run_id.call, call);
  tell_progress(self, state, run_id, &call);
}

// ---- ending ----------------------------------------------------------------------------------------------------------

void refuse(Self* self, State& state, std::uint64_t id, const CallFault& why) {
  auto& call = state.calls.at(id);
  call.fault = why;
  let_go(self, state, id, call);
  complete_if_over(self, state, id);
}

void fail_all(Self* self, State& state, const CallFault& why) {
  if (state.broken) return;
  state.broken = why;
  state.replans.clear();
  state.promised.reset();
  state.change.reset();
  state.lost.clear();
  state.suspects.clear();
  state.wanted.clear();
  if (state.options.hang_up) state.options.hang_up(std::nullopt);
  std::vector<std::uint64_t> ids;
  for (const auto& [id, call] : state.calls)
    if (!call.fault) ids.push_back(id);
  for (const auto id : ids) refuse(self, state, id, why);
}

void close(Self* self, State& state, std::uint64_t id) {
  const auto found = state.calls.find(id);
  if (found == state.calls.end() || found->second.stage == Stage::closing) return;
  const bool in_a_copy = found->second.eager_output != nullptr;
  if (in_a_copy) tell_caller(self, found->second);  // as long as the copy is there
  let_go(self, state, id, found->second);
  if (in_a_copy) complete_if_over(self, state, id);
}

void on_lease_ended(Self* self, State& state, std::uint64_t id) {
  const auto found = state.calls.find(id);
  if (found == state.calls.end()) return;
  found->second.leased = false;
  complete_if_over(self, state, id);
}

void on_refusal(Self* self, State& state, const CallRefused& refused) {
  if (refused.fatal) return fail_all(self, state, {refused.reason, refused.gone});
  const auto call = state.calls.find(refused.call);
  if (call == state.calls.end()) {
    if (refused.call >= state.next_call && state.refusals.size() < kSettledMax) state.refusals[refused.call] = refused;
    return;
  }
  if (call->second.stage == Stage::waiting && !call->second.fault) refuse(self, state, refused.call, {refused.reason, refused.gone});
}

// The connections are new ones after the failure, so that the word still gets round.
void fail_everywhere(Self* self, State& state, std::uint64_t id, const CallFault& why) {
  if (state.broken) return;
  fail_all(self, state, why);
  tell(state, -1, CallRefused{id, true, why.what, why.gone}, true);
}

}  // namespace coppice::actors::group
