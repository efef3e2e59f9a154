#include <algorithm>
#include <utility>

#include "actors/communicator_state.hpp"

namespace coppice::actors::group {
namespace {

bool is_among(const std::vector<int>& ranks, int rank) { return std::ranges::binary_search(ranks, rank); }

// Whoever proposes the next view, as this rank sees it. REQUIRES: enough are left.
int next_proposer(const State& state) {
  if (state.promised && !state.lost.contains(state.promised->members.front())) return state.promised->members.front();
  return survivors(state.members, state.lost)->front();
}

void begin_if_all_are_ready(Self* self, State& state) {
  if (!state.change || state.change->told.size() < state.change->proposed.members.size()) return;
  const auto decided = decide_calls(state.change->told);
  const ViewBegun begun{state.change->proposed.view, state.change->proposed.members, decided.over};
  state.has_all = decided.has_all;
  state.change.reset();
  tell(state, -1, begun, true);
  on_view_begun(self, state, begun);
}

void propose(Self* self, State& state, std::vector<int> members) {
  const auto seen = std::max({state.view, state.promised ? state.promised->view : 0, state.change ? state.change->proposed.view : 0});
  const ViewProposed proposed{next_view(seen, state.options.rank, state.ranks()), std::move(members)};
  state.change = ViewChange{proposed, {}, self->clock().now()};
  tell(state, -1, proposed, true);
  on_view_proposed(self, state, state.options.rank, proposed);
}

void go_on_without(Self* self, State& state, int rank) {
  auto left = survivors(state.members, state.lost);
  if (!left) {
    std::string who;
    for (const int each : state.lost) who += (who.empty() ? "" : "; ") + state.gone(each);
    return fail_everywhere(self, state, state.next_call,
                           {who + "; the " + std::to_string(state.members.size() - state.lost.size()) + " of " + std::to_string(state.members.size()) +
                                " that are left may be cut off from others, and do not go on alone",
                            {state.lost.begin(), state.lost.end()}});
  }
  tick_on(self, state);
  if (left->front() == state.options.rank) return propose(self, state, std::move(*left));
  if (state.change) state.change.reset();
  tell(state, left->front(), RankLost{rank}, true);
}

// What this rank has of a call, once its relays have ended.
bool has_all(const State& state, const Call& call) {
  if (call.start.kind.operation != collectives::Operation::broadcast || !call.program) return call.has_all;
  if (call.has_all || call.start.kind.root == state.options.rank) return true;
  for (std::size_t tree = 0; tree < call.progress.size(); ++tree)
    if (!call.progress[tree] || call.progress[tree]->look().known < collectives::chunk_count(call.program->trees[tree])) return false;
  return true;
}

// Offers of earlier views are of the past from here on.
void stop_everything(Self* self, State& state) {
  state.rough = true;
  state.settled.clear();
  state.past.clear();
  state.replans.clear();
  for (auto& [id, call] : state.calls) {
    if (call.stage == Stage::closing) continue;
    call.paused_attempt = std::int64_t{first_attempt(state.promised->view)} - 1;
    call.moved = self->clock().now();
    call.trouble.clear();
    if (call.stage == Stage::running) stop(self, state, id, call);
    if (call.stage == Stage::pausing && call.relays.empty()) call.stage = Stage::paused;
  }
}

// What lies in connections to whoever is gone holds callers' buffers.
void hang_up_on_the_lost(State& state) {
  if (!state.options.hang_up) return;
  for (auto& [id, call] : state.calls)
    for (const auto& link : call.stale)
      if (!is_among(state.members, link.to)) state.options.hang_up(far_end(link, state.options.names));
}

void begin_calls_again(Self* self, State& state, const std::vector<std::uint64_t>& over) {
  std::vector<std::uint64_t> again;
  for (auto& [id, call] : state.calls) {
    if (call.stage == Stage::closing) continue;
    if (!std::ranges::binary_search(over, id)) {
      call.stage = Stage::waiting;
      call.has_all = has_all(state, call);
      call.program.reset();
      call.progress.clear();
      call.moved = self->clock().now();
      call.asked = 1;
    }
    again.push_back(id);
  }
  for (const auto id : again) {
    const auto found = state.calls.find(id);
    if (found == state.calls.end()) continue;
    if (found->second.stage != Stage::waiting && found->second.done_attempt < 0)
      refuse(self, state, id, "call " + std::to_string(id) + " cannot be: another rank was told so");
    else if (found->second.stage != Stage::waiting)
      close(self, state, id);
    else if (state.plans())
      plan_and_run(self, state, id);
    else if (auto offer = state.offers.extract(id))
      on_offer(self, state, std::move(offer.mapped()));
  }
}

}  // namespace

void lose(Self* self, State& state, int rank) {
  if (state.broken || !is_among(state.members, rank)) return;
  if (state.options.on_loss == OnLoss::fail) return fail_everywhere(self, state, state.next_call, {state.gone(rank), {rank}});
  if (!state.lost.insert(rank).second) return;
  state.suspects.erase(rank);
  go_on_without(self, state, rank);
}

void on_rank_lost(Self* self, State& state, int rank) {
  if (state.options.on_loss == OnLoss::fail || rank == state.options.rank || !is_among(state.members, rank) || state.lost.contains(rank)) return;
  state.liveness.came(rank);  // whoever says so has heard it, if this rank has not
  state.suspects.try_emplace(rank, self->clock().now());
  tick_on(self, state);
}

void on_view_proposed(Self* self, State& state, int origin, const ViewProposed& proposed) {
  const auto& members = proposed.members;
  if (state.options.on_loss == OnLoss::fail || state.broken || !are_members(members, state.ranks()) || members.front() != origin) return;
  if (proposed.view <= state.view || !is_among(members, state.options.rank)) return;
  if (!std::ranges::includes(state.members, members) || (state.promised && proposed.view < state.promised->view)) return;
  if (state.change && state.change->proposed.view < proposed.view) state.change.reset();
  if (!state.promised || state.promised->view < proposed.view) {
    state.promised = proposed;
    for (const int rank : state.members)
      if (!is_among(members, rank)) state.lost.insert(rank);
    stop_everything(self, state);
    tick_on(self, state);
  }
  ready_if_still(self, state);
}

void ready_if_still(Self* self, State& state) {
  if (!state.promised) return;
  ViewReady ready{state.promised->view, state.next_call, {}};
  for (const auto& [id, call] : state.calls) {
    if (call.stage == Stage::pausing) return;
    if (call.stage != Stage::closing) ready.calls.push_back({id, call.done_attempt, has_all(state, call)});
  }
  const int proposer = state.promised->members.front();
  if (proposer == state.options.rank) return on_view_ready(self, state, proposer, ready);
  tell(state, proposer, ready, true);
}

void on_view_ready(Self* self, State& state, int origin, const ViewReady& ready) {
  if (ready.view == state.view && origin != state.options.rank) return tell(state, origin, state.begun, true);  // that was lost
  if (!state.change || ready.view != state.change->proposed.view || !is_among(state.change->proposed.members, origin)) return;
  state.change->told.insert_or_assign(origin, ready);
  begin_if_all_are_ready(self, state);
}

void on_view_begun(Self* self, State& state, const ViewBegun& begun) {
  if (state.options.on_loss == OnLoss::fail || state.broken || begun.view <= state.view || !are_members(begun.members, state.ranks())) return;
  if (!is_among(begun.members, state.options.rank))
    return fail_all(self, state, "the others took rank " + std::to_string(state.options.rank) + " (" + state.name(state.options.rank) +
                                     ") for gone and went on without it");
  if (!state.promised || state.promised->view != begun.view) return;
  state.promised.reset();
  state.view = begun.view;
  state.members = begun.members;
  state.begun = begun;
  std::erase_if(state.lost, [&](int rank) { return !is_among(state.members, rank); });
  std::erase_if(state.suspects, [&](const auto& each) { return !is_among(state.members, each.first); });
  std::erase_if(state.offers, [&](const auto& each) { return each.second.run.attempt < first_attempt(begun.view); });
  state.offered.clear();
  state.parts_early.clear();
  state.paused_early.clear();
  hang_up_on_the_lost(state);
  begin_calls_again(self, state, begun.over);
  state.has_all.clear();
  tick_on(self, state);
}

std::set<int> awaited_for_view(const State& state) {
  std::set<int> ranks;
  for (const auto& [rank, since] : state.suspects) ranks.insert(rank);
  if (state.change) {
    for (const int rank : state.change->proposed.members)
      if (!state.change->told.contains(rank)) ranks.insert(rank);
  } else if (state.promised || !state.lost.empty()) {
    ranks.insert(next_proposer(state));
  }
  return ranks;
}

void watch_view(Self* self, State& state, Instant now) {
  std::erase_if(state.suspects, [&](const auto& suspect) { return state.liveness.heard_since(suspect.first, suspect.second); });
  if (now - state.view_asked < kAskAgain) return;
  state.view_asked = now;
  if (state.change)
    tell(state, -1, state.change->proposed, true);
  else if (state.promised && !state.lost.contains(state.promised->members.front()))
    ready_if_still(self, state);
  else
    for (const int rank : state.lost) tell(state, next_proposer(state), RankLost{rank}, true);
}

bool is_changing(const State& state) {
  return state.change || state.promised || !state.lost.empty() || !state.suspects.empty();
}

}  // namespace coppice::actors::group
