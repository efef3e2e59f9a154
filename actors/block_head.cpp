#include <map>

#include "actors/actors.hpp"
#include "actors/gather.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

struct State {
  State(BlockHeadOptions given, std::shared_ptr<FramePort> frames) : options(std::move(given)), port(std::move(frames)) {
    for (const auto& worker : options.workers) peers.push_back({worker});
  }
  std::uint32_t size() const { return static_cast<std::uint32_t>(options.shape.workers); }

  BlockHeadOptions options;
  std::shared_ptr<FramePort> port;
  std::vector<Peer> peers;
  std::shared_ptr<const std::vector<coding::BlockCode>> codes;
  std::map<std::uint32_t, GatherTable> tables;  // by block
  std::optional<Instant> alarm;                 // when the DeadlineTick that counts will come
  std::uint64_t not_finite = 0;
};

using Self = caf::event_based_actor;

BlockScore score_of(State& state, std::uint32_t block, Completion& completion) {
  const auto& code = (*state.codes)[block];
  BlockScore score;
  score.request = completion.request;
  score.epoch = completion.epoch;
  score.block = block;
  const auto best = decode_usable(completion, state.options.shape.needed, state.not_finite,
                                  [&](const coding::Arrivals& arrivals) { return coding::decode(code, arrivals); });
  score.status = !best ? ReplyStatus::no_response : completion.degraded ? ReplyStatus::degraded : ReplyStatus::ok;
  if (best) {
    score.label = best->label;
    score.score = best->score;
    score.runner_up = best->runner_up;
    score.log_sum_exp = best->log_sum_exp;
  }
  score.head_us = micros(completion.closed - completion.opened);
  if (completion.reply_to.record) {
    score.arrivals = std::move(completion.order);
    for (auto& arrival : score.arrivals) arrival.worker += block * state.size();
  }
  return score;
}

void send_up(State& state, std::uint32_t block, std::vector<Completion> completions) {
  for (auto& completion : completions)
    state.port->send(completion.reply_to.client, score_of(state, block, completion));
}

void arm(Self* self, State& state) {
  const auto now = self->clock().now();
  std::optional<Instant> next;
  for (auto& [block, table] : state.tables)
    if (const auto deadline = table.next_deadline()) next = next ? std::min(*next, *deadline) : *deadline;
  if (!next || (state.alarm && *state.alarm <= *next)) return;
  state.alarm = *next;
  self->delayed_send(self, std::max(*next - now, Duration::zero()), DeadlineTick{});
}

void fan_out(State& state, const BlockItem& item, const Peer& gateway, Instant now) {
  if (!state.codes || item.block >= state.codes->size() || !item.item) return;
  const auto asked = static_cast<coding::ArrivalSet>(item.asked & ((std::uint64_t{1} << state.size()) - 1));
  const auto first = item.block * state.size();
  if (asked == 0 || first + state.size() > state.peers.size()) return;
  auto& table = state.tables
                    .try_emplace(item.block, state.options.shape, floats_of((*state.codes)[item.block].generator))
                    .first->second;
  if (table.knows(item.request)) return;  // the frame came twice
  table.open(item.request, item.epoch, asked, {gateway, 0, item.record}, now,
             now + std::chrono::microseconds(item.patience_us));
  for (std::uint32_t place = 0; place < state.size(); ++place)
    if (asked >> place & 1U)
      state.port->send(state.peers[first + place], WorkItem{item.request, item.epoch, first + place, item.item});
}

void take(State& state, const std::string& from, CodedResponse response, Instant now) {
  const auto block = response.worker / state.size();
  const auto table = state.tables.find(block);
  if (response.worker >= state.options.workers.size() || table == state.tables.end()) return;
  if (state.options.workers[response.worker] != from) return;  // one worker answering as another
  response.worker %= state.size();
  auto taken = table->second.on_response(std::move(response), now);
  if (!taken.completion) return;
  std::vector<Completion> one;
  one.push_back(std::move(*taken.completion));
  send_up(state, block, std::move(one));
}

void give_up(State& state, std::uint32_t worker, Instant now) {
  const auto table = state.tables.find(worker / state.size());
  if (table != state.tables.end())
    send_up(state, table->first, table->second.on_worker_lost(static_cast<int>(worker % state.size()), now));
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  const auto now = [self] { return self->clock().now(); };
  return {
      [=](Delivery& delivery) {
        if (auto* response = std::get_if<CodedResponse>(&delivery.message)) {
          take(*state, delivery.from.name, std::move(*response), now());
        } else if (delivery.from.name != state->options.gateway) {
          return;
        } else if (const auto* item = std::get_if<BlockItem>(&delivery.message)) {
          fan_out(*state, *item, delivery.from, now());
          arm(self, *state);
        } else if (const auto* gone = std::get_if<WorkerGone>(&delivery.message)) {
          give_up(*state, gone->worker, now());
        }
      },
      [=](DeadlineTick) {
        if (state->alarm && now() < *state->alarm) return;  // an earlier one has taken its place
        state->alarm.reset();
        for (auto& [block, table] : state->tables) send_up(*state, block, table.on_time(now()));
        arm(self, *state);
      },
      [=](InstallBlocks& install) {
        state->codes = std::move(install.blocks);
        state->tables.clear();  // a gateway that starts again counts its requests from the beginning
      },
  };
}

}  // namespace

caf::actor spawn_block_head(caf::actor_system& system, BlockHeadOptions options, std::shared_ptr<FramePort> port) {
  return system.spawn(behave, std::make_shared<State>(std::move(options), std::move(port)));
}

}  // namespace coppice::actors
