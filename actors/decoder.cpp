#include <nlohmann/json.hpp>

#include "actors/actors.hpp"
#include "actors/gather.hpp"
#include "actors/latency_book.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  State(DecoderOptions given, std::shared_ptr<FramePort> frames)
      : options(std::move(given)), port(std::move(frames)), table(options.shape, floats_of(options.generator)),
        books(static_cast<std::size_t>(options.shape.workers)) {}

  DecoderOptions options;
  std::shared_ptr<FramePort> port;
  GatherTable table;
  std::vector<LatencyBook> books;
  caf::actor supervisor;
  bool timer_armed = false;
  std::uint64_t no_response = 0, not_finite = 0, impostors = 0;
};

void answer(State& state, Completion completion) {
  InferReply reply;
  reply.tag = completion.reply_to.tag;
  reply.request = static_cast<std::uint64_t>(completion.request);
  reply.epoch = static_cast<std::uint64_t>(completion.epoch);
  reply.gateway_us = micros(completion.closed - completion.opened);
  const auto decode = [&](const coding::Arrivals& arrivals) {
    return coding::decode(state.options.decoder, state.options.generator, arrivals);
  };
  if (auto scores = decode_usable(completion, state.options.shape.needed, state.not_finite, decode)) {
    reply.status = completion.degraded ? ReplyStatus::degraded : ReplyStatus::ok;
    reply.label = scores->label;
    reply.margin = scores->margin;
    reply.scores = std::move(scores->scores);
  } else {
    ++state.no_response;
    reply.status = ReplyStatus::no_response;
    reply.error = "no usable response by the deadline: " + scores.error().what;
  }
  if (completion.reply_to.record) reply.arrivals = std::move(completion.order);
  state.port->send(completion.reply_to.client, std::move(reply));
}

std::string status(const State& state, const std::string& draft) {
  auto json = nlohmann::json::parse(draft);
  const auto& c = state.table.counts();
  json["requests"] = {{"opened", c.opened},       {"completed", c.completed}, {"degraded", c.degraded},
                      {"no_response", state.no_response}, {"in_flight", state.table.in_flight()}};
  json["responses"] = {{"late", c.late},           {"duplicate", c.duplicate}, {"stale_epoch", c.stale_epoch},
                       {"unknown_request", c.unknown_request}, {"bad_shape", c.bad_shape},
                       {"not_finite", state.not_finite},       {"impostors", state.impostors}};
  for (std::size_t i = 0; i < state.books.size() && i < json["workers"].size(); ++i) {
    const auto& book = state.books[i];
    json["workers"][i]["responses"] = book.count();
    json["workers"][i]["p50_us"] = book.quantile_us(0.5);
    json["workers"][i]["p99_us"] = book.quantile_us(0.99);
  }
  return json.dump();
}

using Self = caf::event_based_actor;

void arm(Self* self, State& state, Instant now) {
  const auto deadline = state.table.next_deadline();
  if (state.timer_armed || !deadline) return;
  state.timer_armed = true;
  self->delayed_send(self, std::max(*deadline - now, Duration::zero()), DeadlineTick{});
}

void answer_all(State& state, std::vector<Completion> completions) {
  if (completions.empty()) return;
  const std::size_t count = completions.size();
  for (auto& completion : completions) answer(state, std::move(completion));
  if (state.supervisor) caf::anon_send(state.supervisor, RequestsClosed{count});
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  const auto now = [self] { return self->clock().now(); };
  return {
      [=](Delivery& delivery) {
        auto* response = std::get_if<CodedResponse>(&delivery.message);
        if (!response) return;
        const auto worker = response->worker;
        if (worker >= state->options.workers.size() || state->options.workers[worker] != delivery.from.name) {
          ++state->impostors;  // one worker answering as another
          return;
        }
        auto taken = state->table.on_response(std::move(*response), now());
        if (taken.latency) state->books[worker].add(*taken.latency);
        if (!taken.completion) return;
        std::vector<Completion> one;
        one.push_back(std::move(*taken.completion));
        answer_all(*state, std::move(one));
      },
      [=](Expect& expect) {
        state->table.open(expect.request, expect.epoch, expect.asked, std::move(expect.reply_to), expect.opened,
                          expect.opened + state->options.deadline);
        arm(self, *state, now());
      },
      [=](const StopWaitingFor& lost) { answer_all(*state, state->table.on_worker_lost(lost.worker, now())); },
      [=](DeadlineTick) {
        state->timer_armed = false;
        answer_all(*state, state->table.on_time(now()));
        arm(self, *state, now());
      },
      [=](const StatusDraft& draft) {
        state->port->send(draft.client, TextReply{draft.tag, status(*state, draft.json), ""});
      },
      [=](const caf::actor& supervisor) { state->supervisor = supervisor; },
  };
}

}  // namespace

caf::actor spawn_decoder(caf::actor_system& system, DecoderOptions options, std::shared_ptr<FramePort> port) {
  return system.spawn(behave, std::make_shared<State>(std::move(options), std::move(port)));
}

}  // namespace coppice::actors
