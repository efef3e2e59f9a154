#include "actors/communicator.hpp"

#include <algorithm>

#include "actors/communicator_state.hpp"

namespace coppice::actors {
namespace group {

int State::rank_of(const std::string& name) const {
  const auto found = std::ranges::find(options.names, name);
  return found == options.names.end() ? -1 : static_cast<int>(found - options.names.begin());
}

std::string State::gone(int rank) const {
  return "rank " + std::to_string(rank) + " (" + name(rank) + ") is gone, and its data with it";
}

bool commits(const State& state, const CallKind& kind) {
  return state.options.on_loss == OnLoss::complete_among_survivors || kind.operation == collectives::Operation::reduce || kind.operation == collectives::Operation::reduce_scatter;
}

std::string text(const CallKind& kind) {
  std::string out(name(kind.operation));
  if (collectives::combines(kind.operation)) out += " (" + std::string(name(kind.reduction)) + ")";
  out += " of " + std::to_string(kind.bytes) + " bytes of " + std::string(name(kind.element));
  return kind.root < 0 ? out : out + " with root " + std::to_string(kind.root);
}

// FNV-1a of the fields.
std::uint32_t fingerprint(const CallKind& kind) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  const auto bytes = static_cast<std::uint64_t>(kind.bytes);
  for (const std::uint64_t field : {static_cast<std::uint64_t>(kind.operation), static_cast<std::uint64_t>(kind.element),
                                    static_cast<std::uint64_t>(kind.reduction), static_cast<std::uint64_t>(kind.root), bytes})
    for (int shift = 0; shift < 64; shift += 8) hash = (hash ^ (field >> shift & 0xff)) * 0x100000001b3ULL;
  return static_cast<std::uint32_t>(hash ^ hash >> 32);
}

namespace {

void on_call_differs(Self* self, State& state, const CallDiffers& differs) {
  const auto call = state.calls.find(differs.run.call);
  if (call == state.calls.end() || call->second.fault || call->second.attempt != differs.run.attempt) return;
  const auto id = differs.run.call;
  fail_everywhere(self, state, id,
                  "call " + std::to_string(id) + " is " + text(call->second.start.kind) + " at " +
                      state.name(state.options.rank) + " and another one at " + differs.from +
                      ": all ranks must make the same calls in the same order");
}

void end_a_relay(Self* self, const State& state) {
  for (const auto& [id, call] : state.calls) {
    if (call.relays.empty()) continue;
    self->send_exit(call.relays.begin()->second, caf::exit_reason::kill);
    return;
  }
}

// Relays know their communicator and it knows them: none would ever be let go.
void leave(State& state) {
  for (const auto& [id, call] : state.calls)
    for (const auto& [tree, relay] : call.relays) caf::anon_send_exit(relay, caf::exit_reason::user_shutdown);
  for (const auto& relay : state.idle_relays) caf::anon_send_exit(relay, caf::exit_reason::user_shutdown);
  state.calls.clear();
  state.idle_relays.clear();
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  self->attach_functor([state] { leave(*state); });
  self->set_down_handler([=](const caf::down_msg& down) { on_relay_ended(self, *state, down); });
  return {
      [=](StartCall& start) { on_call(self, *state, std::move(start)); },
      [=](Delivery& delivery) {
        if (auto* note = std::get_if<GroupNote>(&delivery.message)) on_note(self, *state, delivery.from.name, *note);
      },
      [=](const RelayDone& done) { on_relay_done(self, *state, done); },
      [=](const RelayKnows& knows) { on_relay_knows(self, *state, knows); },
      [=](const SendAcks&) { state->options.acks->flush(*state->port); },
      [=](const CallDiffers& differs) { on_call_differs(self, *state, differs); },
      [=](const PeerReplaced& peer) {
        if (const int rank = state->rank_of(peer.name); rank >= 0) lose(self, *state, rank);
      },
      [=](const LeaseEnded& ended) { on_lease_ended(self, *state, ended.call); },
      [=](const WatchTick&) { on_tick(self, *state); },
      [=](const EndARelay&) { end_a_relay(self, *state); },
  };
}

}  // namespace
}  // namespace group

caf::actor spawn_communicator(caf::actor_system& system, CommunicatorOptions options, std::shared_ptr<FramePort> port) {
  auto state = std::make_shared<group::State>();
  state->liveness = Liveness(options.liveness);
  state->options = std::move(options);
  for (int rank = 0; rank < state->ranks(); ++rank) state->members.push_back(rank);
  state->port = std::move(port);
  auto communicator = system.spawn(group::behave, state);
  state->options.router->attach(communicator);
  return communicator;
}

}  // namespace coppice::actors
