#include <algorithm>

#include "actors/communicator_state.hpp"

namespace coppice::actors::group {
namespace {

constexpr std::uint32_t kAttemptsMax = 32;  // at a call, in one view
constexpr std::uint32_t kAttemptsForSlowness = 6;  // what is slow for ever is better gone on with

void remember(State& state, std::uint64_t id, const CallKind& kind, const Program& program, std::uint32_t attempt) {
  std::set<int> done;
  if (auto early = state.parts_early.extract(id); early && attempt == first_attempt(state.view)) done = std::move(early.mapped());
  state.offered[id] = {kind, program, attempt, std::move(done)};
  while (state.offered.size() > kHistory && !state.calls.contains(state.offered.begin()->first))
    state.offered.erase(state.offered.begin());
}

// Of a kind that is not settled: what some rank may have begun with, or a new plan.
collectives::Expected<Program> asked_for(State& state, std::uint64_t id) {
  auto& call = state.calls.at(id);
  const CallKind& kind = call.start.kind;
  if (kind.root >= 0 && !std::ranges::binary_search(state.members, kind.root)) {
    if (const auto who = state.has_all.find(id); who != state.has_all.end()) return state.options.pass_on(kind, who->second, state.members);
    return tl::unexpected(collectives::Error{collectives::ErrorCode::bad_root, state.gone(kind.root)});
  }
  std::erase_if(state.past, [&](const Past& past) { return past.until <= id; });
  for (const Past& past : state.past)
    if (const auto known = past.settled.find(kind); known != past.settled.end()) return known->second;
  if (kind.bytes < state.options.tune_from) return state.options.plan(kind, 0, state.members);
  auto tuner = state.tuners.find(kind);
  if (tuner == state.tuners.end()) {
    const auto model = state.options.plan(kind, 0, state.members);
    if (!model) return model;
    if (state.tuners.size() >= kSettledMax) state.tuners.clear();
    tuner = state.tuners.emplace(kind, collectives::ChunkTuner(collectives::chunks_of(*model))).first;
  }
  call.tried = !tuner->second.settled();
  return state.options.plan(kind, tuner->second.chunks(), state.members);
}

// How far each rank is, in the program that was paused.
std::vector<collectives::RankProgress> progress_of(const Replan& replan, const Program& program) {
  std::vector<collectives::RankProgress> out(static_cast<std::size_t>(program.ranks));
  for (const auto& [rank, told] : replan.told) {
    collectives::RankProgress own{told.over, {}};
    for (std::size_t tree = 0; tree < program.trees.size(); ++tree) {
      const auto all = static_cast<std::uint64_t>(collectives::chunk_count(program.trees[tree]));
      own.known.push_back(static_cast<std::int64_t>(tree < told.known.size() ? std::min(told.known[tree], all) : 0));
    }
    out[static_cast<std::size_t>(rank)] = std::move(own);
  }
  return out;
}

void go_on(Self* self, State& state, std::uint64_t id, Replan replan) {
  const std::uint64_t until = std::max(replan.next_call, state.next_call);
  if (state.replans.empty())
    for (Past& past : state.past) past.until = std::min(past.until, until);
  const Offered before = state.offered.at(id);
  auto rest = state.options.resume(before.kind, before.program, progress_of(replan, before.program));
  if (!rest) return fail_everywhere(self, state, id, "call " + std::to_string(id) + " cannot go on: " + rest.error().what);
  remember(state, id, before.kind, *rest, before.attempt + 1);
  const ProgramOffer offer{{id, before.attempt + 1}, false, std::move(*rest)};
  tell(state, -1, offer, true);
  on_offer(self, state, offer);
}

static_assert(kAttemptsMax < kAttemptsPerView);

}  // namespace

void plan_and_run(Self* self, State& state, std::uint64_t id) {
  auto& call = state.calls.at(id);
  const auto known = state.settled.find(call.start.kind);
  call.settled = known != state.settled.end();
  auto program = call.settled ? known->second : asked_for(state, id);
  if (!program) {  // nothing has begun: later calls may go on
    CallFault why{program.error().what};
    const int root = call.start.kind.root;
    if (root >= 0 && !std::ranges::binary_search(state.members, root)) why.gone = {root};
    tell(state, -1, CallRefused{id, false, why.what, why.gone}, false);
    state.refused[id] = why;
    if (state.refused.size() > kHistory) state.refused.erase(state.refused.begin());
    return refuse(self, state, id, why);
  }
  const std::uint32_t attempt = first_attempt(state.view);
  remember(state, id, call.start.kind, *program, attempt);
  if (!call.settled) {
    const bool passed_on = state.has_all.contains(id);
    call.settled = state.settled.size() < kSettledMax && state.past.empty() && !call.tried && !passed_on;
    tell(state, -1, ProgramOffer{{id, attempt}, call.settled, *program}, false);
    if (call.settled) state.settled.emplace(call.start.kind, *program);
  }
  run(self, state, id, attempt, std::move(*program));
}

void on_offer_wanted(State& state, int rank, std::uint64_t id) {
  if (const auto refused = state.refused.find(id); refused != state.refused.end())
    return tell(state, rank, CallRefused{id, false, refused->second.what, refused->second.gone}, true);
  const auto offered = state.offered.find(id);
  if (offered != state.offered.end() && !state.replans.contains(id))
    tell(state, rank, ProgramOffer{{id, offered->second.attempt}, false, offered->second.program}, true);
}

void on_part_done(Self* self, State& state, int rank, const RunId& run_id) {
  if (run_id.call >= state.next_call) {
    if (state.parts_early.size() < kSettledMax && run_id.attempt == first_attempt(state.view)) state.parts_early[run_id.call].insert(rank);
    return;
  }
  const auto offered = state.offered.find(run_id.call);
  if (offered == state.offered.end() || state.replans.contains(run_id.call)) return;
  if (offered->second.attempt != run_id.attempt) return on_offer_wanted(state, rank, run_id.call);  // that was lost
  offered->second.parts_done.insert(rank);
  if (offered->second.parts_done.size() < state.members.size()) return;
  if (!state.calls.contains(run_id.call)) return tell(state, rank, CallOver{run_id.call}, true);  // so was this
  tell(state, -1, CallOver{run_id.call}, false);
  close(self, state, run_id.call);
}

void on_trouble(Self* self, State& state, int origin, const TroubleReport& report) {
  const auto id = report.run.call;
  const auto offered = state.offered.find(id);
  if (state.broken || state.promised || offered == state.offered.end() || offered->second.attempt != report.run.attempt) return;
  if (report.link.from >= 0 && report.link.from < state.ranks() && report.link.to >= 0 && report.link.to < state.ranks()) {
    if (report.link.from != origin && report.link.to != origin) return;  // of its own links alone
    // Whoever was at the other end has been here, though perhaps not heard by this rank.
    const int other = report.link.from == origin ? report.link.to : report.link.from;
    if (other != state.options.rank && !state.liveness.ever_heard(other)) state.liveness.heard(other, self->clock().now());
    if (state.options.degrade)
      state.options.degrade(report.link, static_cast<std::int64_t>(std::min<std::uint64_t>(report.bytes_per_s, INT64_MAX)));
  }
  if (state.replans.contains(id)) return;
  const bool slow = report.bytes_per_s > 0;
  if (slow && report.run.attempt % kAttemptsPerView >= kAttemptsForSlowness) return;
  if (slow && state.options.can_resume && !state.options.can_resume(offered->second.kind, state.members)) return;
  if (report.run.attempt % kAttemptsPerView + 1 >= kAttemptsMax)
    return fail_everywhere(self, state, id, "call " + std::to_string(id) + " broke off too often: " + report.what);
  if (state.options.notice)
    state.options.notice("call " + std::to_string(id) + ", attempt " + std::to_string(report.run.attempt % kAttemptsPerView + 1) + ": " + report.what +
                         ", says " + state.name(origin) + "; what is left takes other trees");
  state.replans[id] = {self->clock().now(), {}, 0};
  tick_on(self, state);
  // From here on every kind is asked for again. Ranks that forget a kind before they call wait for an offer.
  state.past.push_back({UINT64_MAX, std::move(state.settled)});
  state.settled.clear();
  for (const auto& [other, call] : state.calls)
    if (other != id && call.program && !state.replans.contains(other))
      tell(state, -1, ProgramOffer{{other, call.attempt}, false, *call.program}, false);
  tell(state, -1, PauseCall{report.run}, true);
  on_pause(self, state, report.run);
}

void on_paused(Self* self, State& state, int rank, const PausedAt& paused) {
  const auto id = paused.run.call;
  const auto replan = state.replans.find(id);
  const auto offered = state.offered.find(id);
  if (replan == state.replans.end() || offered == state.offered.end() || offered->second.attempt != paused.run.attempt) return;
  replan->second.told[rank] = paused;
  replan->second.next_call = std::max(replan->second.next_call, paused.next_call);
  if (replan->second.told.size() < state.members.size()) return;
  auto all = std::move(replan->second);
  state.replans.erase(replan);
  go_on(self, state, id, std::move(all));
}

// What a call teaches about the number of chunks. From the first frame on: who calls late says nothing of that.
void learn(State& state, const Call& call, Instant now) {
  const auto tuner = state.tuners.find(call.start.kind);
  if (tuner == state.tuners.end() || call.fault || call.attempt != first_attempt(state.view) || !call.tried) return;
  std::optional<Instant> flowing;
  for (const auto& progress : call.progress) {
    if (!progress) continue;
    const auto since = progress->look().flowing;
    if (since && (!flowing || *since < *flowing)) flowing = since;
  }
  if (flowing) tuner->second.observe(std::chrono::duration<double>(now - *flowing).count());
}

}  // namespace coppice::actors::group
