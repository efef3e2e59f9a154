#include <algorithm>

#include "actors/collective_messages.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  CollectiveRelayOptions options;
  CollectiveRelayState relay;
  std::shared_ptr<FramePort> port;
  caf::actor communicator;
  bool knows = false;  // and has said so
};

int rank_of(const State& state, const std::string& name) {
  const auto& names = state.options.names;
  const auto found = std::ranges::find(names, name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

void send(caf::event_based_actor* self, State& state, CollectiveRelayState::Outgoing& out) {
  const auto& o = state.options;
  const auto index = static_cast<std::uint64_t>(out.index);
  const Peer to = far_end(out.edge, o.names);
  if (out.bytes) return state.port->send(to, CollectiveChunk{o.run, o.kind, o.session, o.tree, out.way, index, std::move(out.bytes)});
  CollectiveAck ack{o.run, o.kind, o.session, o.tree, out.way, index, static_cast<std::uint64_t>(out.arrived)};
  if (!o.acks) return state.port->send(to, ack);
  if (o.acks->add(*state.port, to, ack)) self->delayed_send(state.communicator, AckLedger::kSoon, SendAcks{});
}

void carry_out(caf::event_based_actor* self, State& state, CollectiveRelayState::Step step) {
  // Before anything is sent: what is let go of with a link must have been counted as on its way.
  state.options.progress->update(state.relay, self->clock().now());
  for (auto& out : step) send(self, state, out);
  if (!state.relay.done()) {
    if (!state.options.acks || state.knows || state.relay.known() < state.relay.chunks()) return;
    state.knows = true;
    return self->send(state.communicator, RelayKnows{state.options.run, state.options.tree});
  }
  self->send(state.communicator, RelayDone{state.options.run, state.options.tree});
  self->quit();
}

void note_hop(const State& state, const Delivery& delivery, const CollectiveChunk& chunk) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  state.options.hops->add({state.options.run, state.options.tree, chunk.way, chunk.index, chunk.bytes.size, delivery.from.name,
                           delivery.from.to_address, std::chrono::duration_cast<std::chrono::microseconds>(now)});
}

template <class Frame>
bool is_of_this_call(caf::event_based_actor* self, const State& state, const std::string& from, const Frame& frame) {
  if (frame.kind == state.options.kind) return true;
  self->send(state.communicator, CallDiffers{frame.run, from});
  return false;
}

void on_delivery(caf::event_based_actor* self, State& state, Delivery& delivery) {
  const auto& name = delivery.from.name;
  const int from = rank_of(state, name);
  if (auto* chunk = std::get_if<CollectiveChunk>(&delivery.message); chunk && is_of_this_call(self, state, name, *chunk)) {
    if (state.options.hops) note_hop(state, delivery, *chunk);
    carry_out(self, state, state.relay.on_chunk(from, chunk->way, static_cast<std::int64_t>(chunk->index), std::move(chunk->bytes)));
  } else if (const auto* ack = std::get_if<CollectiveAck>(&delivery.message); ack && is_of_this_call(self, state, name, *ack)) {
    carry_out(self, state, state.relay.on_ack(from, ack->way, static_cast<std::int64_t>(ack->consumed), static_cast<std::int64_t>(ack->arrived)));
  }
}

caf::behavior behave(caf::event_based_actor* self, const std::shared_ptr<State>& state) {
  return {
      [=](const RemindRelay&) {
        for (auto& out : state->relay.reminders()) send(self, *state, out);
      },
      [=](const BeginRelay&) { carry_out(self, *state, state->relay.begin()); },
      [=](Delivery& delivery) { on_delivery(self, *state, delivery); },
  };
}

}  // namespace

caf::actor spawn_collective_relay(caf::event_based_actor* communicator, CollectiveRelayOptions options, CollectiveRelayState relay,
                                  std::shared_ptr<FramePort> port) {
  auto state = std::make_shared<State>(State{std::move(options), std::move(relay), std::move(port), caf::actor(communicator)});
  return communicator->spawn<caf::lazy_init>(behave, std::move(state));
}

}  // namespace coppice::actors
