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
};

int rank_of(const State& state, const std::string& name) {
  const auto& names = state.options.names;
  const auto found = std::ranges::find(names, name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

void carry_out(caf::event_based_actor* self, State& state, CollectiveRelayState::Step step) {
  const auto& o = state.options;
  // Before anything is sent: what is let go of with a link must have been counted as on its way.
  o.progress->update(state.relay, self->clock().now());
  for (auto& out : step) {
    const Peer to{o.names[static_cast<std::size_t>(out.edge.to)], "", out.edge.from_address, out.edge.to_address};
    const auto index = static_cast<std::uint64_t>(out.index);
    if (out.bytes)
      state.port->send(to, CollectiveChunk{o.run, o.tree, out.way, index, std::move(out.bytes)});
    else
      state.port->send(to, CollectiveAck{o.run, o.tree, out.way, index, static_cast<std::uint64_t>(out.arrived)});
  }
  if (!state.relay.done()) return;
  self->send(state.communicator, RelayDone{o.run, o.tree});
  self->quit();
}

void note_hop(const State& state, const Delivery& delivery, const CollectiveChunk& chunk) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  state.options.hops->add({state.options.run, state.options.tree, chunk.way, chunk.index, chunk.bytes.size, delivery.from.name,
                           delivery.from.to_address, std::chrono::duration_cast<std::chrono::microseconds>(now)});
}

caf::behavior behave(caf::event_based_actor* self, const std::shared_ptr<State>& state) {
  return {
      [=](const RemindRelay&) {
        for (auto& out : state->relay.reminders())
          state->port->send(Peer{state->options.names[static_cast<std::size_t>(out.edge.to)], "", out.edge.from_address, out.edge.to_address},
                            CollectiveAck{state->options.run, state->options.tree, out.way, static_cast<std::uint64_t>(out.index),
                                          static_cast<std::uint64_t>(out.arrived)});
      },
      [=](const BeginRelay&) { carry_out(self, *state, state->relay.begin()); },
      [=](Delivery& delivery) {
        const int from = rank_of(*state, delivery.from.name);
        auto* chunk = std::get_if<CollectiveChunk>(&delivery.message);
        if (chunk && state->options.hops) note_hop(*state, delivery, *chunk);
        if (chunk)
          carry_out(self, *state,
                    state->relay.on_chunk(from, chunk->way, static_cast<std::int64_t>(chunk->index), std::move(chunk->bytes)));
        else if (const auto* ack = std::get_if<CollectiveAck>(&delivery.message))
          carry_out(self, *state, state->relay.on_ack(from, ack->way, static_cast<std::int64_t>(ack->consumed), static_cast<std::int64_t>(ack->arrived)));
      },
  };
}

}  // namespace

caf::actor spawn_collective_relay(caf::actor_system& system, CollectiveRelayOptions options, CollectiveRelayState relay,
                                  std::shared_ptr<FramePort> port, const caf::actor& communicator) {
  auto state = std::make_shared<State>(State{std::move(options), std::move(relay), std::move(port), communicator});
  return system.spawn(behave, std::move(state));
}

}  // namespace coppice::actors
