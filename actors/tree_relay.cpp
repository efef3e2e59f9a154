#include <map>

#include "actors/actors.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

// Old transfers are let go when newer ones begin: a parent that died never finishes its own.
constexpr std::size_t kTransfersMax = 4;

struct State {
  TreeRelayOptions options;
  std::shared_ptr<FramePort> port;
  caf::actor sink;
  std::map<TransferId, RelayState> transfers;
};

void send(State& state, const std::string& to, DataMessage message) {
  state.port->send(Peer{to, ""}, std::move(message));
}

void carry_out(State& state, RelayState& relay, RelayState::Step step) {
  const TransferId id = relay.open().transfer;
  for (auto& forward : step.forwards) send(state, forward.child, std::move(forward.chunk));
  if (step.acknowledge) send(state, relay.parent(), ChunkAck{id, relay.received()});
  if (step.whole && state.sink) {
    // A wrong digest is as good as nothing: the supervisor plans a new tree when its patience ends.
    if (state.options.sha256(relay.bytes()) == relay.open().sha256)
      caf::anon_send(state.sink,
                     WeightsArrived{id, std::make_shared<const std::vector<std::byte>>(relay.bytes())});
  }
  if (step.done) state.transfers.erase(id);
}

void begin(State& state, RelayState relay) {
  const TransferId id = relay.open().transfer;
  while (state.transfers.size() >= kTransfersMax) state.transfers.erase(state.transfers.begin());
  auto& kept = state.transfers.insert_or_assign(id, std::move(relay)).first->second;
  for (const auto& child : kept.children()) send(state, child, kept.open());
  carry_out(state, kept, kept.begin());
}

void on_delivery(State& state, const Delivery& delivery) {
  if (const auto* open = std::get_if<TransferOpen>(&delivery.message)) {
    if (!check(*open, state.options.self, delivery.from.name, state.options.limits)) return;
    begin(state, RelayState::inner(*open, state.options.self, state.options.limits));
  } else if (const auto* chunk = std::get_if<WeightChunk>(&delivery.message)) {
    const auto found = state.transfers.find(chunk->transfer);
    if (found == state.transfers.end() || found->second.parent() != delivery.from.name) return;
    carry_out(state, found->second, found->second.on_chunk(*chunk));
  } else if (const auto* ack = std::get_if<ChunkAck>(&delivery.message)) {
    const auto found = state.transfers.find(ack->transfer);
    if (found == state.transfers.end()) return;
    carry_out(state, found->second, found->second.on_ack(delivery.from.name, ack->received));
  }
}

caf::behavior behave(caf::event_based_actor*, const std::shared_ptr<State>& state) {
  return {
      [=](const Delivery& delivery) { on_delivery(*state, delivery); },
      [=](const StartTransfer& start) {
        // No tree could be planned, or the bundle is larger than relays take: the supervisor's patience tries again.
        if (!check(start.open, state->options.self, "", state->options.limits)) return;
        begin(*state, RelayState::root(start.open, *start.bytes, state->options.limits));
      },
  };
}

}  // namespace

caf::actor spawn_tree_relay(caf::actor_system& system, TreeRelayOptions options, std::shared_ptr<FramePort> port,
                            const caf::actor* sink) {
  auto state = std::make_shared<State>();
  state->options = std::move(options);
  state->port = std::move(port);
  if (sink) state->sink = *sink;
  return system.spawn(behave, state);
}

}  // namespace coppice::actors
