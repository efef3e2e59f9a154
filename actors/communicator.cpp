#include "actors/communicator.hpp"

#include <optional>

#include "actors/collective_messages.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

using collectives::Program;

constexpr auto kTick = std::chrono::milliseconds{250};
// Kinds beyond these are planned at every call: whoever calls with ever new sizes must not fill the memory.
constexpr std::size_t kSettledMax = 1'024;

struct Call {
  StartCall start;
  Instant begun;
  std::optional<Program> program;
  std::map<std::uint32_t, caf::actor> relays;  // at work
  std::vector<std::shared_ptr<RelayProgress>> progress;
  bool running = false, leased = false;
  std::int64_t steps = 0;  // when it last moved on
  Instant moved;
  std::optional<std::string> fault;
};

struct State {
  CommunicatorOptions options;
  std::shared_ptr<FramePort> port;
  std::uint64_t next_call = 0;
  std::map<std::uint64_t, Call> calls;             // that are not complete
  std::map<CallKind, Program> settled;
  std::map<std::uint64_t, ProgramOffer> offers;    // for calls that this rank has not made yet
  std::map<std::uint64_t, std::string> refusals;   // so too
  std::optional<std::string> broken;               // why no further call can be
};

using Self = caf::event_based_actor;

std::string text(const CallKind& kind) {
  return std::string(name(kind.operation)) + " of " + std::to_string(kind.bytes) + " bytes of " +
         std::string(name(kind.element));
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

void tell_others(State& state, const DataMessage& message) {
  for (std::size_t rank = 1; rank < state.options.names.size(); ++rank)
    state.port->send(Peer{state.options.names[rank]}, message);
}

// Ends what the call has here; its caller hears when nothing reads the buffer any more.
void let_go(Self* self, State& state, std::uint64_t id, Call& call) {
  for (const auto& [tree, relay] : call.relays) {
    state.options.router->remove({id, 0}, tree);
    self->send_exit(relay, caf::exit_reason::user_shutdown);
  }
  call.relays.clear();
  call.start.buffer.lease.reset();
}

void fail(Self* self, State& state, std::uint64_t id, std::string why) {
  auto& call = state.calls.at(id);
  if (call.fault) return;
  call.fault = std::move(why);
  if (!state.broken) {
    state.broken = *call.fault;
    if (state.options.hang_up) state.options.hang_up();
  }
  let_go(self, state, id, call);
}

void complete_if_over(Self* self, State& state, std::uint64_t id) {
  auto& call = state.calls.at(id);
  if (call.leased || (!call.fault && (!call.running || !call.relays.empty()))) return;
  auto done = std::move(call.start.done);
  CallResult result = CallReport{};
  if (call.fault) {
    result = tl::unexpected(*call.fault);
  } else {
    result->trees = call.program->trees.size();
    result->chunks = collectives::chunks_of(*call.program);
    result->took = self->clock().now() - call.begun;
  }
  state.calls.erase(id);
  state.options.router->forget_below(state.calls.empty() ? state.next_call : state.calls.begin()->first);
  done(std::move(result));
}

void run(Self* self, State& state, std::uint64_t id, Program program) {
  auto& call = state.calls.at(id);
  if (!fits(program, call.start.kind, state.options.names.size())) {
    fail(self, state, id, "call " + std::to_string(id) + " is " + text(call.start.kind) + " here and another one at " +
                              state.options.names.front() + ": all ranks must make the same calls in the same order");
    return complete_if_over(self, state, id);
  }
  call.program = std::move(program);
  call.running = true;
  call.moved = self->clock().now();
  const caf::actor me = self;
  // Its end is told by whoever holds it last, on whatever thread.
  call.start.buffer.lease = std::shared_ptr<void>(nullptr, [me, id](void*) { caf::anon_send(me, LeaseEnded{id}); });
  call.leased = true;
  const auto& trees = call.program->trees;
  for (std::uint32_t tree = 0; tree < trees.size(); ++tree) {
    if (!takes_part(trees[tree], state.options.rank)) continue;
    auto progress = std::make_shared<RelayProgress>();
    const RunId run_id{id, 0};
    auto relay = spawn_collective_relay(
        self->system(), {run_id, tree, state.options.names, progress},
        CollectiveRelayState(*call.program, tree, state.options.rank, call.start.buffer), state.port, me);
    self->monitor(relay);
    self->send(relay, BeginRelay{});
    state.options.router->add(run_id, tree, relay);  // after its beginning: nothing overtakes that
    call.relays.emplace(tree, relay);
    call.progress.push_back(std::move(progress));
  }
  if (call.relays.empty()) let_go(self, state, id, call);  // an empty buffer
}

void on_call(Self* self, State& state, StartCall start) {
  const std::uint64_t id = state.next_call++;
  auto& call = state.calls[id];
  call.start = std::move(start);
  call.begun = call.moved = self->clock().now();
  const CallKind kind = call.start.kind;
  if (state.broken) {
    call.fault = "the communicator failed before: " + *state.broken + "; join again";
    return complete_if_over(self, state, id);
  }
  if (const auto known = state.settled.find(kind); known != state.settled.end()) return run(self, state, id, known->second);
  if (state.options.rank == 0) {
    auto program = state.options.plan(kind, 0);
    if (!program) {
      tell_others(state, CallRefused{id, program.error()});
      call.fault = program.error();  // nothing has begun: later calls may go on
      return complete_if_over(self, state, id);
    }
    const bool settle = state.settled.size() < kSettledMax;
    tell_others(state, ProgramOffer{{id, 0}, settle, *program});
    if (settle) state.settled.emplace(kind, *program);
    return run(self, state, id, std::move(*program));
  }
  if (const auto refused = state.refusals.find(id); refused != state.refusals.end()) {
    call.fault = refused->second;
    state.refusals.erase(refused);
    return complete_if_over(self, state, id);
  }
  if (const auto offer = state.offers.find(id); offer != state.offers.end()) {
    if (offer->second.settled) state.settled.emplace(kind, offer->second.program);
    auto program = std::move(offer->second.program);
    state.offers.erase(offer);
    run(self, state, id, std::move(program));
  }
}

void on_offer(Self* self, State& state, ProgramOffer& offer) {
  const auto id = offer.run.call;
  const auto call = state.calls.find(id);
  if (call == state.calls.end()) {
    // Not called yet, or long over. Bounded: rank 0 cannot be many calls ahead of what it waits for.
    if (id >= state.next_call && state.offers.size() < kSettledMax) state.offers[id] = std::move(offer);
    return;
  }
  if (call->second.running || call->second.fault) return;
  if (offer.settled) state.settled.emplace(call->second.start.kind, offer.program);
  run(self, state, id, std::move(offer.program));
}

void on_refusal(Self* self, State& state, const CallRefused& refused) {
  const auto call = state.calls.find(refused.call);
  if (call == state.calls.end()) {
    if (refused.call >= state.next_call && state.refusals.size() < kSettledMax) state.refusals[refused.call] = refused.reason;
    return;
  }
  if (call->second.running) return;
  call->second.fault = refused.reason;
  complete_if_over(self, state, refused.call);
}

std::string standstill(const State& state, std::uint64_t id, const Call& call) {
  std::string why = "call " + std::to_string(id) + ", " + text(call.start.kind) + ", has stood still for " +
                    std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(state.options.patience).count()) +
                    " ms at " + state.options.names[static_cast<std::size_t>(state.options.rank)];
  if (!call.running) return why + ", which waits for the plan of " + state.options.names.front();
  std::set<int> awaited;
  for (const auto& progress : call.progress)
    if (const int rank = progress->waits_for.load(); rank >= 0) awaited.insert(rank);
  std::string whom;
  for (const int rank : awaited) whom += (whom.empty() ? "" : ", ") + state.options.names[static_cast<std::size_t>(rank)];
  return whom.empty() ? why : why + ", which waits for " + whom;
}

void on_tick(Self* self, State& state) {
  const Instant now = self->clock().now();
  std::vector<std::uint64_t> still;
  for (auto& [id, call] : state.calls) {
    std::int64_t steps = 0;
    for (const auto& progress : call.progress) steps += progress->steps.load(std::memory_order_relaxed);
    if (steps != call.steps) {
      call.steps = steps;
      call.moved = now;
    }
    if (!call.fault && now - call.moved > state.options.patience) still.push_back(id);
  }
  for (const auto id : still) {
    fail(self, state, id, standstill(state, id, state.calls.at(id)));
    complete_if_over(self, state, id);
  }
  self->delayed_send(self, kTick, PatienceTick{});
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  self->delayed_send(self, kTick, PatienceTick{});
  self->set_down_handler([=](const caf::down_msg& down) {
    for (auto& [id, call] : state->calls) {
      for (const auto& [tree, relay] : call.relays) {
        if (caf::actor_cast<caf::actor_addr>(relay) != down.source) continue;
        fail(self, *state, id, "the relay of tree " + std::to_string(tree) + " ended: " + caf::to_string(down.reason));
        return complete_if_over(self, *state, id);
      }
    }
  });
  return {
      [=](StartCall& start) { on_call(self, *state, std::move(start)); },
      [=](Delivery& delivery) {
        if (delivery.from.name != state->options.names.front()) return;  // only rank 0 plans
        if (auto* offer = std::get_if<ProgramOffer>(&delivery.message)) on_offer(self, *state, *offer);
        if (const auto* refused = std::get_if<CallRefused>(&delivery.message)) on_refusal(self, *state, *refused);
      },
      [=](const RelayDone& done) {
        const auto found = state->calls.find(done.run.call);
        if (found == state->calls.end() || found->second.relays.erase(done.tree) == 0) return;
        state->options.router->remove(done.run, done.tree);
        if (found->second.relays.empty()) found->second.start.buffer.lease.reset();
      },
      [=](const LeaseEnded& ended) {
        const auto found = state->calls.find(ended.call);
        if (found == state->calls.end()) return;
        found->second.leased = false;
        complete_if_over(self, *state, ended.call);
      },
      [=](const PatienceTick&) { on_tick(self, *state); },
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
