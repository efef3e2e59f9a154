#include "actors/actors.hpp"
#include "actors/faults.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  WorkerOptions options;
  std::shared_ptr<FramePort> port;
  InstallRows installed;
  FaultSpec faults;
  bool lying = false;
};

using Self = caf::event_based_actor;

Floats code(const State& state, const Floats& scores) {
  Floats z(static_cast<std::size_t>(state.installed.class_count), 0.0F);
  for (std::size_t i = 0; i < scores.size(); ++i)
    z[static_cast<std::size_t>(state.installed.classes[i])] = scores[i];
  Floats values = coding::encode(state.installed.rows, z);
  // A liar is plausible: the right size, finite, and wrong.
  if (state.lying)
    for (auto& value : values) value = -value;
  return values;
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  return {
      [=](const SubnetScores& scores) {
        if (scores.scores.size() != state->installed.classes.size()) return;
        CodedResponse response{scores.request, scores.epoch, scores.worker, scores.service_us,
                               code(*state, scores.scores)};
        const auto struck = strike(state->faults, scores.request, state->options.worker, state->options.workers,
                                   state->options.self);
        if (struck.delay_ms > 0) {
          self->delayed_send(self, std::chrono::microseconds(static_cast<std::int64_t>(struck.delay_ms * 1e3)),
                             LateSend{scores.gateway, std::move(response)});
        } else {
          state->port->send(scores.gateway, std::move(response));
        }
      },
      [=](LateSend& late) { state->port->send(late.to, std::move(late.response)); },
      [=](InstallRows& rows) { state->installed = std::move(rows); },
      [=](const SetFaults& set) {
        const auto spec = parse_faults(set.spec);
        if (!spec) return;
        state->faults = *spec;
        // Lying goes on until faults are ended; a delay spec alone does not cure a liar.
        if (set.spec.empty()) state->lying = false;
        if (spec->lie && aims_at(*spec, state->options.worker, state->options.workers, state->options.self))
          state->lying = true;
      },
  };
}

}  // namespace

caf::actor spawn_encoder(caf::actor_system& system, const WorkerOptions& options, std::shared_ptr<FramePort> port) {
  auto state = std::make_shared<State>();
  state->options = options;
  state->options.load = {};
  state->port = std::move(port);
  return system.spawn(behave, state);
}

}  // namespace coppice::actors
