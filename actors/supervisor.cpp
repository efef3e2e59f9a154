#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "actors/actors.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  State(SupervisorOptions given, std::shared_ptr<FramePort> frames, caf::actor decode, caf::actor relay_root)
      : options(std::move(given)), port(std::move(frames)), decoder(std::move(decode)), relay(std::move(relay_root)),
        roster(options.workers, options.roster) {
    for (const auto& worker : options.workers) peers.push_back({worker, ""});
  }

  SupervisorOptions options;
  std::shared_ptr<FramePort> port;
  caf::actor decoder, relay;
  Roster roster;
  std::vector<Peer> peers;
  std::uint64_t last_request = 0;
  std::size_t in_flight = 0;
  std::uint64_t refused = 0;
  bool serving = false;      // from the first time that enough workers were ready
  std::optional<Instant> alarm;  // when the RosterTick that counts will come
};

using Self = caf::event_based_actor;

void refuse(State& state, const Peer& client, std::uint64_t tag, ReplyStatus status, std::string why) {
  ++state.refused;
  InferReply reply;
  reply.tag = tag;
  reply.status = status;
  reply.error = std::move(why);
  state.port->send(client, std::move(reply));
}

// By block: which of its workers may be asked. Without blocks there is one, of all workers.
std::vector<coding::ArrivalSet> ready_by_block(const State& state) {
  std::vector<coding::ArrivalSet> ready;
  for (int block = 0; block < std::max(1, state.options.blocks); ++block)
    ready.push_back(state.roster.ready(block * state.options.shape.workers, state.options.shape.workers));
  return ready;
}

void admit(State& state, const Peer& client, const InferRequest& request, Instant now) {
  auto ready = ready_by_block(state);
  if (!request.item || request.item->size() != state.options.item_elements)
    return refuse(state, client, request.tag, ReplyStatus::bad_request,
                  "an item has " + std::to_string(state.options.item_elements) + " floats, this one has " +
                      std::to_string(request.item ? request.item->size() : 0));
  if (!state.serving)
    return refuse(state, client, request.tag, ReplyStatus::not_ready,
                  "the workers do not have their weights yet: wait until `coppice status` says ready");
  if (std::ranges::all_of(ready, [](auto set) { return set == 0; }))
    return refuse(state, client, request.tag, ReplyStatus::no_workers,
                  "no worker is alive: start them again with `coppice launch`");
  if (state.in_flight >= state.options.in_flight_max)
    return refuse(state, client, request.tag, ReplyStatus::overloaded,
                  std::to_string(state.in_flight) + " requests are in flight: send fewer at once");

  const RequestId id{++state.last_request};
  const Epoch epoch = state.roster.epoch();
  ++state.in_flight;
  ReplyTo reply_to{client, request.tag, request.record};
  if (state.options.blocks > 0) {
    caf::anon_send(state.decoder, ExpectBlocks{id, epoch, std::move(ready), std::move(reply_to), request.item, now});
    return;
  }
  caf::anon_send(state.decoder, Expect{id, epoch, ready[0], std::move(reply_to), now});
  for (std::uint32_t i = 0; i < state.peers.size(); ++i)
    if (ready[0] >> i & 1U) state.port->send(state.peers[i], WorkItem{id, epoch, i, request.item});
}

std::string status(const State& state) {
  nlohmann::json json = {{"cluster", state.options.cluster},
                         {"ready", state.roster.all_ready()},
                         {"serving", state.serving},
                         {"epoch", static_cast<std::uint64_t>(state.roster.epoch())},
                         {"refused", state.refused},
                         {"n", state.options.shape.workers},
                         {"k", state.options.shape.needed},
                         {"workers", nlohmann::json::array()}};
  if (state.options.blocks > 0) json["b"] = state.options.blocks;
  if (state.options.traffic) {
    const auto traffic = state.options.traffic();
    json["frames"] = {{"from_workers", traffic.in}, {"to_workers", traffic.out}};
  }
  for (const auto& worker : state.roster.workers())
    json["workers"].push_back({{"name", worker.name},
                               {"state", name(worker.state)},
                               {"pid", worker.pid},
                               {"losses", worker.losses},
                               {"reason", worker.reason}});
  return json.dump();
}

void run_roster(Self* self, State& state) {
  const auto now = self->clock().now();
  if (auto broadcast = state.roster.on_time(now)) {
    TransferOpen open;
    open.transfer = broadcast->transfer;
    open.epoch = state.roster.epoch();
    open.bytes = state.options.weights->size();
    open.chunk_bytes = state.options.chunk_bytes;
    open.sha256 = state.options.weights_sha256;
    open.tree = state.options.plan_tree(broadcast->members);
    caf::anon_send(state.relay, StartTransfer{std::move(open), state.options.weights});
  }
  const auto wake = state.roster.next_wake();
  if (!wake) return;
  const auto delay = std::max<Duration>(*wake - now, std::chrono::milliseconds{1});
  // A join may have to be seen to long before the tick that watches over a broadcast.
  if (state.alarm && *state.alarm <= now + delay) return;
  state.alarm = now + delay;
  self->delayed_send(self, delay, RosterTick{});
}

void lose(State& state, const WorkerLost& lost, Instant now) {
  if (const auto index = state.roster.on_lost(lost.name, lost.reason, now))
    caf::anon_send(state.decoder, StopWaitingFor{*index});
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  caf::anon_send(state->decoder, caf::actor_cast<caf::actor>(self));
  return {
      [=](const Delivery& delivery) {
        if (const auto* request = std::get_if<InferRequest>(&delivery.message)) {
          admit(*state, delivery.from, *request, self->clock().now());
        } else if (const auto* asked = std::get_if<StatusRequest>(&delivery.message)) {
          caf::anon_send(state->decoder, StatusDraft{delivery.from, asked->tag, status(*state)});
        } else if (const auto* faults = std::get_if<FaultRequest>(&delivery.message)) {
          state->options.spread_faults(faults->spec, [port = state->port, to = delivery.from, tag = faults->tag](const std::string& why_not) {
            port->send(to, TextReply{tag, "", why_not});
          });
        }
      },
      [=](const RequestsClosed& closed) { state->in_flight -= std::min(state->in_flight, closed.count); },
      [=](const WorkerJoined& joined) {
        // A process that is back before its loss was noticed has forgotten what it was asked.
        const auto index = state->roster.index_of(joined.name);
        if (index) caf::anon_send(state->decoder, StopWaitingFor{*index});
        state->roster.on_join(joined.name, joined.pid, self->clock().now());
        run_roster(self, *state);
      },
      [=](const WorkerReady& ready) {
        if (!state->roster.on_ready(ready.name, ready.transfer)) return;
        state->serving |= std::ranges::all_of(ready_by_block(*state), [&](auto set) {
          return std::popcount(set) >= state->options.shape.needed;
        });
      },
      [=](const Refused& refused) { state->roster.on_refused(refused.name, refused.reason); },
      [=](const WorkerLost& lost) {
        lose(*state, lost, self->clock().now());
        run_roster(self, *state);
      },
      [=](RosterTick) {
        if (state->alarm && self->clock().now() < *state->alarm) return;  // an earlier one has taken its place
        state->alarm.reset();
        run_roster(self, *state);
      },
  };
}

}  // namespace

caf::actor spawn_supervisor(caf::actor_system& system, SupervisorOptions options, std::shared_ptr<FramePort> port,
                            const caf::actor& decoder, const caf::actor& relay) {
  return system.spawn(behave, std::make_shared<State>(std::move(options), std::move(port), decoder, relay));
}

}  // namespace coppice::actors
