#include <thread>

#include "actors/actors.hpp"
#include "actors/faults.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  WorkerOptions options;
  caf::actor encoder, member, head;
  std::unique_ptr<NetPort> net;
  FaultSpec faults;
};

using Self = caf::event_based_actor;

void work(const State& state, const Delivery& delivery, Instant begun) {
  const auto* item = std::get_if<WorkItem>(&delivery.message);
  // An item for another place in the code is one from before this worker was given its own.
  if (!item || !state.net || item->worker != state.options.worker || !item->item ||
      item->item->size() != state.net->input_elements())
    return;
  const auto struck = strike(state.faults, item->request, state.options.worker, state.options.workers,
                             state.options.self);
  if (struck.hold_ms > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(struck.hold_ms));
  SubnetScores scores{item->request, item->epoch, item->worker, 0, {}, delivery.from};
  if (state.net->run(*item->item, scores.scores)) return;  // no scores: to the gateway this worker is a straggler
  const auto spent = std::chrono::steady_clock::now() - begun;
  scores.service_us =
      static_cast<std::uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(spent).count());
  caf::anon_send(state.encoder, std::move(scores));
}

void install(State& state, const WeightsArrived& weights) {
  auto loaded = state.options.load(*weights.bytes);
  if (!loaded) {
    caf::anon_send(state.member, Refused{state.options.self, loaded.error()});
    return;
  }
  state.net = std::move(loaded->net);
  caf::anon_send(state.encoder,
                 InstallRows{std::move(loaded->rows), std::move(loaded->classes), loaded->class_count});
  // Before the gateway can know that this worker is ready, so that no item can overtake it.
  if (state.head && loaded->blocks) caf::anon_send(state.head, InstallBlocks{std::move(loaded->blocks)});
  caf::anon_send(state.member, Ready{state.options.self, static_cast<std::uint64_t>(weights.transfer)});
}

caf::behavior behave(Self*, const std::shared_ptr<State>& state) {
  return {
      [=](const Delivery& delivery) { work(*state, delivery, std::chrono::steady_clock::now()); },
      [=](const WeightsArrived& weights) { install(*state, weights); },
      [=](const SetFaults& set) {
        if (auto spec = parse_faults(set.spec)) state->faults = std::move(*spec);
      },
  };
}

}  // namespace

caf::actor spawn_subnet(caf::actor_system& system, WorkerOptions options, const caf::actor& encoder,
                        const caf::actor& member, const caf::actor* head) {
  auto state = std::make_shared<State>();
  state->options = std::move(options);
  state->encoder = encoder;
  state->member = member;
  if (head) state->head = *head;
  // Detached: the net runs on one thread that nothing else shares, and never delays another actor. The simulation runs
  // it under its own scheduler instead, which no thread may escape.
  return state->options.detached ? system.spawn<caf::detached>(behave, state) : system.spawn(behave, state);
}

}  // namespace coppice::actors
