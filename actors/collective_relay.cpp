#include <algorithm>
#include <optional>

#include "actors/collective_messages.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct Work {
  CollectiveRelayOptions options;
  CollectiveRelayState relay;
  bool knows = false;  // and has said so
};

struct State {
  std::shared_ptr<FramePort> port;
  caf::actor communicator;
  std::optional<Work> work;  // nothing between two runs
};

int rank_of(const CollectiveRelayOptions& options, const std::string& name) {
  const auto& names = options.names;
  const auto found = std::ranges::find(names, name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

void send(caf::event_based_actor* self, State& state, CollectiveRelayState::Outgoing& out) {
  const auto& o = state.work->options;
  const auto index = static_cast<std::uint64_t>(out.index);
  const Peer to = far_end(out.edge, o.names);
  if (out.bytes) return state.port->send(to, CollectiveChunk{o.run, o.kind, o.session, o.tree, out.way, index, std::move(out.bytes)});
  CollectiveAck ack{o.run, o.kind, o.session, o.tree, out.way, index, static_cast<std::uint64_t>(out.arrived)};
  if (!o.acks) return state.port->send(to, ack);
  if (o.acks->add(*state.port, to, ack)) self->delayed_send(state.communicator, AckLedger::kSoon, SendAcks{});
}

void carry_out(caf::event_based_actor* self, State& state, CollectiveRelayState::Step step) {
  auto& [options, relay, knows] = *state.work;
  // Before anything is sent: what is let go of with a link must have been counted as on its way.
  options.progress->update(relay, self->clock().now());
  for (auto& out : step) send(self, state, out);
  if (!relay.done()) {
    if (!options.acks || knows || relay.known() < relay.chunks()) return;
    knows = true;
    return self->send(state.communicator, RelayKnows{options.run, options.tree});
  }
  self->send(state.communicator, RelayDone{options.run, options.tree});
  state.work.reset();  // nothing is held for the next one
}

void note_hop(const CollectiveRelayOptions& options, const Delivery& delivery, const CollectiveChunk& chunk) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  options.hops->add({options.run, options.tree, chunk.way, chunk.index, chunk.bytes.size, delivery.from.name,
                     delivery.from.to_address, std::chrono::duration_cast<std::chrono::microseconds>(now)});
}

// What was under way when this relay went on to another run is of the past.
template <class Message>
bool is_of_this_run(const State& state, const Message& message) {
  return state.work && state.work->options.run == message.run && state.work->options.tree == message.tree;
}

template <class Frame>
bool is_of_this_call(caf::event_based_actor* self, const State& state, const std::string& from, const Frame& frame) {
  if (!is_of_this_run(state, frame)) return false;
  if (frame.kind == state.work->options.kind) return true;
  self->send(state.communicator, CallDiffers{frame.run, from});
  return false;
}

void on_delivery(caf::event_based_actor* self, State& state, Delivery& delivery) {
  if (!state.work) return;
  auto& relay = state.work->relay;
  const auto& options = state.work->options;
  const auto& name = delivery.from.name;
  const int from = rank_of(options, name);
  if (auto* chunk = std::get_if<CollectiveChunk>(&delivery.message); chunk && is_of_this_call(self, state, name, *chunk)) {
    if (options.hops) note_hop(options, delivery, *chunk);
    carry_out(self, state, relay.on_chunk(from, chunk->way, static_cast<std::int64_t>(chunk->index), std::move(chunk->bytes)));
  } else if (const auto* ack = std::get_if<CollectiveAck>(&delivery.message); ack && is_of_this_call(self, state, name, *ack)) {
    carry_out(self, state, relay.on_ack(from, ack->way, static_cast<std::int64_t>(ack->consumed), static_cast<std::int64_t>(ack->arrived)));
  }
}

caf::behavior behave(caf::event_based_actor* self, const std::shared_ptr<State>& state) {
  return {
      [=](const RemindRelay&) {
        if (!state->work) return;
        for (auto& out : state->work->relay.reminders()) send(self, *state, out);
      },
      [=](const BeginRelay& begin) {
        if (is_of_this_run(*state, begin)) carry_out(self, *state, state->work->relay.begin());
      },
      [=](Delivery& delivery) { on_delivery(self, *state, delivery); },
      [=](const TakeOn& next) { state->work.emplace(Work{std::move(next.work->first), std::move(next.work->second)}); },
  };
}

}  // namespace

caf::actor spawn_collective_relay(caf::event_based_actor* communicator, CollectiveRelayOptions options, CollectiveRelayState relay,
                                  std::shared_ptr<FramePort> port) {
  auto state = std::make_shared<State>(State{std::move(port), caf::actor(communicator), Work{std::move(options), std::move(relay)}});
  return communicator->spawn<caf::lazy_init>(behave, std::move(state));
}

}  // namespace coppice::actors
