#include <algorithm>
#include <utility>

#include "actors/communicator_state.hpp"

namespace coppice::actors::group {
namespace {

// What waits on a link is let go of, and so every run that has something there must take other trees. A link that is
// dead or slow is reported; where frames were lost with a connection nothing is said against the link itself.
void let_go_of_link(Self* self, State& state, const LinkFinding& found) {
  const auto& link = found.link;
  if (state.options.hang_up) state.options.hang_up(far_end(link, state.options.names));
  struct Touched {
    RunId run;
    bool sends = false;  // otherwise it only waits for what should come by the link
  };
  std::vector<Touched> touched;
  for (const auto& [id, call] : state.calls) {
    if (call.stage != Stage::running) continue;
    const auto samples = samples_of(state, call);
    const auto own = samples.find(key_of(link));
    if (own == samples.end()) continue;
    const bool sends = own->second.sent_bytes > own->second.arrived_bytes;
    if (sends || (found.fault == LinkFault::dead && own->second.awaited)) touched.push_back({{id, call.attempt}, sends});
  }
  const std::string which = "the link from " + state.name(link.from) + " to " + state.name(link.to);
  for (const auto& [run_id, sends] : touched) {
    switch (found.fault) {
      case LinkFault::lost: report(self, state, {run_id, {}, 0, "what waited on " + which + " was let go"}); break;
      case LinkFault::slow:
        report(self, state, {run_id, link, static_cast<std::uint64_t>(found.bytes_per_s),
                             which + " carries " + std::to_string(found.bytes_per_s) + " bytes a second"});
        break;
      case LinkFault::dead:
        if (!sends) report(self, state, {run_id, collectives::reversed(link), 0, which + " is dead"});
        report(self, state, {run_id, link, 0, which + " is dead"});
        break;
    }
  }
}

// By each link: how long the largest chunk that any call awaits should take. And when something last came by it.
std::map<LinkKey, Duration> what_is_coming(State& state, const std::map<std::uint64_t, std::map<LinkKey, LinkSample>>& samples, Instant now) {
  std::map<LinkKey, Duration> out;
  std::map<LinkKey, State::Coming> seen;
  for (const auto& [id, own] : samples)
    for (const auto& [key, sample] : own) {
      Duration& longest = out[key];
      if (sample.awaited && sample.planned_back_bytes_per_s > 0)
        longest = std::max(longest, std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
                                        static_cast<double>(sample.chunk_bytes) / static_cast<double>(sample.planned_back_bytes_per_s))));
      seen[key].received_bytes += sample.received_bytes;
    }
  for (auto& [key, link] : seen) {
    const auto before = state.coming.find(key);
    const bool came = before == state.coming.end() ? link.received_bytes > 0 : link.received_bytes > before->second.received_bytes;
    link.last = came ? now : before == state.coming.end() ? Instant{} : before->second.last;
  }
  state.coming = std::move(seen);
  return out;
}

// Calls share a link that they are all busy on: none of them can have more than its part.
void look_at_links(Self* self, State& state, Instant now) {
  std::map<std::uint64_t, std::map<LinkKey, LinkSample>> samples;
  std::map<LinkKey, int> sharing;
  state.doubted.clear();
  for (const auto& [id, call] : state.calls) {
    if (call.stage != Stage::running || call.fault) continue;
    for (const auto& [key, sample] : samples[id] = samples_of(state, call))
      if (sample.sent_bytes > sample.arrived_bytes) ++sharing[key];
  }
  const auto coming = what_is_coming(state, samples, now);
  for (auto& [id, own] : samples) {
    const auto call = state.calls.find(id);  // what one look does may end a call
    if (call == state.calls.end() || call->second.stage != Stage::running) continue;
    std::vector<LinkSample> shared;
    for (auto& [key, sample] : own) {
      sample.planned_bytes_per_s /= std::max(sharing[key], 1);
      sample.heard = state.coming[key].last;
      sample.others = coming.at(key);
      sample.peer_silent = !state.liveness.heard_since(sample.link.to, now - 2 * kAskAgain);
      shared.push_back(sample);
    }
    const auto verdicts = call->second.watch.look(now, shared);
    for (const auto& link : verdicts.ask) {
      state.answered.try_emplace(key_of(link));
      state.doubted.insert(link.to);
      tell_over(state, link, LinkPing{link});
    }
    for (const auto& found : verdicts.findings) let_go_of_link(self, state, found);
  }
}

std::string standstill(const State& state, std::uint64_t id, const Call& call) {
  std::string why = "call " + std::to_string(id) + ", " + text(call.start.kind) + ", has stood still for " +
                    std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(state.options.patience).count()) +
                    " ms at " + state.name(state.options.rank);
  if (call.stage == Stage::waiting) return why + ", which waits for the plan of " + state.name(state.planner());
  if (call.stage == Stage::part_done) return why + ", which waits for the others to be done";
  std::set<int> awaited;
  for (const auto& progress : call.progress)
    if (progress)
      if (const int rank = progress->look().waits_for; rank >= 0) awaited.insert(rank);
  std::string whom;
  for (const int rank : awaited) whom += (whom.empty() ? "" : ", ") + state.name(rank);
  return whom.empty() ? why : why + ", which waits for " + whom;
}

bool moves(Call& call, Instant now) {
  std::int64_t steps = 0;
  for (const auto& progress : call.progress)
    if (progress) steps += progress->look().steps;
  if (steps == call.steps) return now - call.moved < kAskAgain;
  call.steps = steps;
  call.moved = now;
  call.asked = 1;
  return true;
}

void ask_neighbours(State& state, std::uint64_t id, const Call& call) {
  for (const auto& [tree, relay] : call.relays)
    for (const auto& traffic : call.progress[tree]->look().traffic) {
      if (traffic.sends && traffic.acknowledged < traffic.sent)
        tell_over(state, traffic.edge,
                  AckWanted{{id, call.attempt}, fingerprint(call.start.kind), tree, traffic.way,
                            static_cast<std::uint64_t>(traffic.sent), traffic.edge});
      // Perhaps it has come, and the link to it never carried anything: then it answers by other ways.
      if (!has_been_here(state, traffic.edge.to)) tell(state, traffic.edge.to, RankPing{}, true);
    }
}

// Notes and acknowledgements go with a connection that breaks: whoever waits says again what it waits with.
void ask_again(State& state, std::uint64_t id, Call& call, Instant now) {
  if (now - call.moved < kAskAgain * call.asked) return;
  ++call.asked;
  ask_neighbours(state, id, call);
  if (state.plans()) return;
  if (call.stage == Stage::waiting || call.stage == Stage::paused) tell(state, state.planner(), OfferWanted{id}, true);
  if (call.stage == Stage::part_done) tell(state, state.planner(), PartDone{{id, call.attempt}}, true);
  for (const auto& trouble : call.trouble) tell(state, state.planner(), trouble, true);
}

// Who may be the reason that a call stands still, beside the links that it waits on.
std::set<int> awaited_by(const State& state) {
  if (!state.plans()) return {state.planner()};
  return {state.members.begin(), state.members.end()};
}

// The rank that plans asks again for what was told with a connection that is gone; of runs that are over there, too.
void ask_for_progress(State& state, Instant now) {
  for (auto& [id, replan] : state.replans) {
    if (now - replan.asked < kAskAgain) continue;
    replan.asked = now;
    tell(state, -1, PauseCall{{id, state.offered.at(id).attempt}}, true);
  }
}

void look_at_ranks(Self* self, State& state, std::set<int> ranks, Instant now) {
  for (const auto& [id, replan] : state.replans)
    for (const int rank : state.members)
      if (!replan.told.contains(rank)) ranks.insert(rank);
  ranks.merge(awaited_for_view(state));
  ranks.insert(state.doubted.begin(), state.doubted.end());
  std::erase_if(state.wanted, [&](const auto& each) { return state.lost.contains(each.first) || state.liveness.heard_since(each.first, each.second); });
  for (const auto& [rank, since] : state.wanted) ranks.insert(rank);
  ranks.erase(state.options.rank);
  for (const int rank : ranks) {
    if (state.lost.contains(rank)) continue;
    if (has_been_here(state, rank)) state.liveness.came(rank);
    const bool knocks = state.options.knock && state.liveness.is_silent(rank, now);
    const auto verdict = state.liveness.await(rank, now, knocks ? state.options.knock(rank) : Door::silent);
    if (verdict.ask) tell(state, rank, RankPing{}, verdict.by_every_way);
    if (verdict.gone) lose(self, state, rank);
  }
}

constexpr int kHeldMax = 3;  // looks, half a second apart

// The buffers of calls that are over here may be in frames that wait on a link for ever.
void free_buffers(Self* self, State& state, Instant now) {
  std::vector<collectives::RankEdge> stale;
  bool failed = false;
  for (auto& [id, call] : state.calls) {
    if (call.stage != Stage::closing || !call.leased || now - call.closed < kAskAgain) continue;
    call.closed = now;
    // Everything of it has been acknowledged: what is still held lies where nobody fetches it, as on the way to one that is lost.
    failed = failed || call.fault || ++call.held > kHeldMax;
    for (auto& link : std::exchange(call.stale, {})) stale.push_back(std::move(link));
  }
  if (failed && state.options.hang_up) state.options.hang_up(std::nullopt);
  for (auto& link : stale) let_go_of_link(self, state, {std::move(link), LinkFault::lost, 0});
}

}  // namespace

bool has_been_here(const State& state, int rank) {
  return state.options.router->heard_from(state.name(rank)) || state.liveness.ever_heard(rank);
}

std::map<LinkKey, LinkSample> samples_of(const State& state, const Call& call) {
  std::map<LinkKey, LinkSample> links;
  for (std::size_t tree = 0; tree < call.progress.size(); ++tree) {
    if (!call.progress[tree]) continue;
    const auto& program = call.program->trees[tree];
    const auto look = call.progress[tree]->look();
    for (std::size_t i = 0; i < look.traffic.size(); ++i) {
      const auto& traffic = look.traffic[i];
      if (!has_been_here(state, traffic.edge.to)) continue;  // calls wait for it
      auto& sample = links[key_of(traffic.edge)];
      // Only with all that it was planned for does a link show what it can carry: of its trees, the one that waited last.
      if (traffic.sends && program.bytes_per_s > 0) sample.busy_since = std::max(sample.busy_since, look.busy_since[i]);
      sample.link = traffic.edge;
      sample.sent_bytes += traffic.sent_bytes;
      sample.arrived_bytes += traffic.arrived_bytes;
      sample.acknowledgements += traffic.acknowledgements;
      sample.awaited = sample.awaited || traffic.awaited;
      sample.received_bytes += traffic.received_bytes;
      (traffic.sends ? sample.planned_bytes_per_s : sample.planned_back_bytes_per_s) += program.bytes_per_s;
      sample.chunk_bytes = std::max(sample.chunk_bytes, program.chunk_bytes);
      if (const auto answered = state.answered.find(key_of(traffic.edge)); answered != state.answered.end())
        sample.answered = answered->second;
    }
  }
  return links;
}

void tick_on(Self* self, State& state) {
  if (state.ticking) return;
  state.ticking = true;
  self->delayed_send(self, kTick, WatchTick{});
}

void on_tick(Self* self, State& state) {
  state.ticking = false;
  const Instant now = self->clock().now();
  std::optional<std::pair<std::uint64_t, std::string>> failed;
  std::set<int> awaited;
  for (auto& [id, call] : state.calls) {
    if (call.stage == Stage::closing || moves(call, now)) continue;
    ask_again(state, id, call, now);
    if (awaited.empty()) awaited = awaited_by(state);
    if (!failed && now - call.moved > state.options.patience) failed = {id, standstill(state, id, call)};
  }
  if (failed) fail_everywhere(self, state, failed->first, failed->second);
  free_buffers(self, state, now);
  ask_for_progress(state, now);
  watch_view(self, state, now);
  look_at_ranks(self, state, std::move(awaited), now);
  look_at_links(self, state, now);
  if (!state.calls.empty() || !state.replans.empty() || !state.wanted.empty() || is_changing(state)) tick_on(self, state);
}

}  // namespace coppice::actors::group
