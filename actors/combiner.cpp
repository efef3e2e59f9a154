#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "actors/actors.hpp"
#include "actors/block_table.hpp"
#include "actors/head_choice.hpp"
#include "actors/latency_book.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

std::vector<int> block_of_class(const std::vector<std::vector<int>>& classes) {
  std::vector<int> out;
  for (std::size_t block = 0; block < classes.size(); ++block)
    for (const int c : classes[block]) {
      if (out.size() <= static_cast<std::size_t>(c)) out.resize(static_cast<std::size_t>(c) + 1, -1);
      out[static_cast<std::size_t>(c)] = static_cast<int>(block);
    }
  return out;
}

struct BlockTally {
  std::optional<int> head;
  std::uint64_t replaced = 0, degraded = 0;
  LatencyBook book;
};

struct State {
  State(CombinerOptions given, std::shared_ptr<FramePort> frames)
      : options(std::move(given)), port(std::move(frames)), timing{options.deadline},
        table(static_cast<int>(options.classes.size()), block_of_class(options.classes), timing), heads(options.heads),
        ready(options.classes.size()), tallies(options.classes.size()) {}

  CombinerOptions options;
  std::shared_ptr<FramePort> port;
  BlockTiming timing;
  BlockTable table;
  HeadChoice heads;
  std::vector<coding::ArrivalSet> ready;  // by block, as last heard
  std::vector<BlockTally> tallies;
  caf::actor supervisor;
  std::optional<Instant> alarm;  // when the DeadlineTick that counts will come
  std::uint64_t no_response = 0, impostors = 0, scores = 0;
};

using Self = caf::event_based_actor;

std::size_t at(int block) { return static_cast<std::size_t>(block); }

Peer peer_of(const State& state, int head) {
  return {head == kGatewayHead ? state.options.gateway : state.options.workers[static_cast<std::size_t>(head)]};
}

bool is_ready(const State& state, int head) {
  if (head == kGatewayHead) return true;
  const int n = state.options.shape.workers;
  return state.ready[at(head / n)] >> (head % n) & 1U;
}

// Who heads the block now; nobody where none of its workers is left to be asked.
std::optional<int> choose(State& state, int block, Instant now) {
  auto& tally = state.tallies[at(block)];
  std::optional<int> head;
  if (state.ready[at(block)] != 0)
    head = state.heads.choose(block, [&](int candidate) { return is_ready(state, candidate); }, now);
  tally.replaced += tally.head && head && head != tally.head ? 1 : 0;
  tally.head = head;
  return head;
}

void ask(State& state, int head, const BlockTable::Wanted& wanted, Instant now) {
  const auto patience = state.timing.patience(wanted.opened, now);
  if (!patience) return;  // too late for anyone
  BlockItem item{wanted.request, wanted.epoch, static_cast<std::uint32_t>(wanted.block),
                 state.ready[at(wanted.block)], micros(*patience), wanted.record, wanted.item};
  state.port->send(peer_of(state, head), std::move(item));
}

void answer_all(State& state, std::vector<BlockCompletion> completions) {
  if (completions.empty()) return;
  const std::size_t count = completions.size();
  for (auto& completion : completions) {
    const Peer client = completion.reply_to.client;
    auto reply = answer_of(std::move(completion));
    state.no_response += reply.status == ReplyStatus::no_response ? 1 : 0;
    state.port->send(client, std::move(reply));
  }
  if (state.supervisor) caf::anon_send(state.supervisor, RequestsClosed{count});
}

void expect(State& state, ExpectBlocks& expect, Instant now) {
  state.ready = std::move(expect.ready);
  std::vector<std::optional<int>> heads;
  for (int block = 0; block < state.heads.blocks(); ++block) heads.push_back(choose(state, block, now));
  state.table.open(expect.request, expect.epoch, heads, expect.reply_to, expect.item, expect.opened);
  for (int block = 0; block < state.heads.blocks(); ++block)
    if (const auto head = heads[at(block)])
      ask(state, *head, {expect.request, expect.epoch, block, *head, expect.reply_to.record, expect.item, expect.opened},
          now);
}

// Another head takes over what this one was asked and has not answered.
void replace_head(State& state, int block, int old, Instant now) {
  const auto head = choose(state, block, now);
  if (!head) return answer_all(state, state.table.on_block_lost(block, now));
  if (*head == old) return;  // there is no other
  for (const auto& wanted : state.table.wanted(block, old)) {
    state.table.asked_anew(wanted, *head);
    ask(state, *head, wanted, now);
  }
}

void lose(State& state, int worker, Instant now) {
  const int n = state.options.shape.workers, block = worker / n;
  state.ready[at(block)] &= ~(coding::ArrivalSet{1} << (worker % n));
  replace_head(state, block, worker, now);
  const auto head = state.tallies[at(block)].head;
  if (head) state.port->send(peer_of(state, *head), WorkerGone{static_cast<std::uint32_t>(worker)});
}

void pass_over_silent(State& state, Instant now) {
  std::set<std::pair<int, int>> silent;  // block, head
  for (const auto& wanted : state.table.on_silence(now)) silent.emplace(wanted.block, wanted.head);
  for (const auto& [block, head] : silent) {
    state.heads.suspect(block, head, now);
    replace_head(state, block, head, now);
  }
}

void take(State& state, const std::string& from, BlockScore score, Instant now) {
  ++state.scores;
  const auto block = static_cast<int>(score.block);
  const auto head_named = [&](int head) { return peer_of(state, head).name == from; };
  if (score.block >= state.options.heads.size() || std::ranges::none_of(state.options.heads[score.block], head_named)) {
    ++state.impostors;
    return;
  }
  const bool degraded = score.status != ReplyStatus::ok;
  auto taken = state.table.on_score(std::move(score), now);
  auto& tally = state.tallies[at(block)];
  if (taken.latency) tally.book.add(*taken.latency);
  if (taken.receipt == Receipt::taken || taken.receipt == Receipt::completes) tally.degraded += degraded ? 1 : 0;
  if (!taken.completion) return;
  std::vector<BlockCompletion> one;
  one.push_back(std::move(*taken.completion));
  answer_all(state, std::move(one));
}

void arm(Self* self, State& state) {
  const auto next = state.table.next_wake();
  if (!next || (state.alarm && *state.alarm <= *next)) return;
  state.alarm = *next;
  self->delayed_send(self, std::max(*next - self->clock().now(), Duration::zero()), DeadlineTick{});
}

std::string status(const State& state, const std::string& draft) {
  auto json = nlohmann::json::parse(draft);
  const auto& c = state.table.counts();
  json["requests"] = {{"opened", c.opened}, {"completed", c.completed}, {"degraded", c.degraded},
                      {"no_response", state.no_response}, {"in_flight", state.table.in_flight()}};
  json["responses"] = {{"taken_in", state.scores}, {"late", c.late}, {"duplicate", c.duplicate},
                       {"stale_epoch", c.stale_epoch}, {"unknown_request", c.unknown_request},
                       {"bad_shape", c.bad_shape}, {"not_finite", 0}, {"impostors", state.impostors}};
  json["blocks"] = nlohmann::json::array();
  for (std::size_t block = 0; block < state.tallies.size(); ++block) {
    const auto& tally = state.tallies[block];
    json["blocks"].push_back({{"head", tally.head ? nlohmann::json(peer_of(state, *tally.head).name) : nlohmann::json()},
                              {"replaced", tally.replaced},
                              {"responses", tally.book.count()},
                              {"degraded", tally.degraded},
                              {"p50_us", tally.book.quantile_us(0.5)},
                              {"p99_us", tally.book.quantile_us(0.99)}});
  }
  return json.dump();
}

caf::behavior behave(Self* self, const std::shared_ptr<State>& state) {
  const auto now = [self] { return self->clock().now(); };
  return {
      [=](Delivery& delivery) {
        if (auto* score = std::get_if<BlockScore>(&delivery.message))
          take(*state, delivery.from.name, std::move(*score), now());
      },
      [=](ExpectBlocks& expected) {
        expect(*state, expected, now());
        arm(self, *state);
      },
      [=](const StopWaitingFor& lost) { lose(*state, lost.worker, now()); },
      [=](DeadlineTick) {
        if (state->alarm && now() < *state->alarm) return;  // an earlier one has taken its place
        state->alarm.reset();
        pass_over_silent(*state, now());
        answer_all(*state, state->table.on_time(now()));
        arm(self, *state);
      },
      [=](const StatusDraft& draft) {
        state->port->send(draft.client, TextReply{draft.tag, status(*state, draft.json), ""});
      },
      [=](const caf::actor& supervisor) { state->supervisor = supervisor; },
  };
}

}  // namespace

caf::actor spawn_combiner(caf::actor_system& system, CombinerOptions options, std::shared_ptr<FramePort> port) {
  return system.spawn(behave, std::make_shared<State>(std::move(options), std::move(port)));
}

}  // namespace coppice::actors
