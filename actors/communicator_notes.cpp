#include <algorithm>

#include "actors/communicator_state.hpp"

namespace coppice::actors::group {
namespace {

void pass_on(State& state, const GroupNote& note, const std::string& except) {
  std::vector<Peer> to;
  for (const Peer& neighbour : state.options.neighbours)
    if (neighbour.name != except) to.push_back(neighbour);
  state.port->send_to_all(to, note);
}

GroupNote note_of(State& state, int target, NoteBody body, bool flood) {
  return {static_cast<std::uint32_t>(state.options.rank), state.options.session, state.next_note++, target, flood, std::move(body)};
}

// Whether the note is its origin's, and has not been here before; only copies of flooded ones are there to tell.
bool is_good(Self* self, State& state, const std::string& from, const GroupNote& note) {
  if (note.origin >= state.options.names.size() || static_cast<int>(note.origin) == state.options.rank) return false;
  const auto& origin = state.name(static_cast<int>(note.origin));
  if (!note.flood && from != origin) return false;
  switch (state.options.router->admit(origin, note.session)) {
    case CollectiveRouter::Sender::stale: return false;
    case CollectiveRouter::Sender::replaced: self->send(self, PeerReplaced{origin}); return false;
    case CollectiveRouter::Sender::anew: state.seen.erase(note.origin); break;
    case CollectiveRouter::Sender::known: break;
  }
  return !note.flood || state.seen[note.origin].is_new(note.number);
}

void take(Self* self, State& state, int origin, bool flood, NoteBody& body) {
  if (std::holds_alternative<RankPing>(body)) return tell(state, origin, RankPong{}, flood);
  const int me = state.options.rank;
  const bool from_planner = origin == state.planner();
  if (auto* offer = std::get_if<ProgramOffer>(&body); offer && from_planner) return on_offer(self, state, std::move(*offer));
  if (const auto* refused = std::get_if<CallRefused>(&body); refused && (refused->fatal || from_planner)) return on_refusal(self, state, *refused);
  if (const auto* trouble = std::get_if<TroubleReport>(&body); trouble && state.plans()) return on_trouble(self, state, origin, *trouble);
  if (const auto* pause = std::get_if<PauseCall>(&body); pause && from_planner) return on_pause(self, state, pause->run);
  if (const auto* paused = std::get_if<PausedAt>(&body); paused && state.plans()) return on_paused(self, state, origin, *paused);
  if (const auto* done = std::get_if<PartDone>(&body); done && state.plans()) return on_part_done(self, state, origin, done->run);
  if (const auto* wanted = std::get_if<OfferWanted>(&body); wanted && state.plans()) return on_offer_wanted(state, origin, wanted->call);
  if (const auto* wanted = std::get_if<AckWanted>(&body); wanted && wanted->link.from == origin && wanted->link.to == me)
    return on_ack_wanted(self, state, *wanted);
  if (const auto* proposed = std::get_if<ViewProposed>(&body)) return on_view_proposed(self, state, origin, *proposed);
  if (const auto* ready = std::get_if<ViewReady>(&body)) return on_view_ready(self, state, origin, *ready);
  if (const auto* begun = std::get_if<ViewBegun>(&body)) return on_view_begun(self, state, *begun);
  if (const auto* lost = std::get_if<RankLost>(&body)) return on_rank_lost(self, state, lost->rank);
  if (const auto* ping = std::get_if<LinkPing>(&body); ping && ping->link.from == origin && ping->link.to == me)
    return tell_over(state, collectives::reversed(ping->link), LinkPong{ping->link});
  if (const auto* pong = std::get_if<LinkPong>(&body); pong && pong->link.to == origin) {
    if (const auto asked = state.answered.find(key_of(pong->link)); asked != state.answered.end()) asked->second = self->clock().now();
    return;
  }
  if (const auto* over = std::get_if<CallOver>(&body); over && from_planner) return close(self, state, over->call);
}

}  // namespace

void tell(State& state, int target, NoteBody body, bool flood) {
  flood = flood || state.rough;
  const GroupNote note = note_of(state, target, std::move(body), flood);
  std::vector<Peer> to;
  for (int rank = 0; rank < state.ranks(); ++rank)
    if (rank != state.options.rank && (target < 0 || target == rank)) to.push_back(Peer{state.name(rank)});
  if (flood) to.insert(to.end(), state.options.neighbours.begin(), state.options.neighbours.end());
  state.port->send_to_all(to, note);
}

void tell_over(State& state, const collectives::RankEdge& link, NoteBody body) {
  state.port->send(far_end(link, state.options.names), note_of(state, link.to, std::move(body), false));
}

void on_note(Self* self, State& state, const std::string& from, GroupNote& note) {
  if (!is_good(self, state, from, note)) return;
  const int origin = static_cast<int>(note.origin);
  state.liveness.heard(origin, self->clock().now());
  if (note.flood) pass_on(state, note, from);
  if (note.target >= 0 && note.target != state.options.rank) {
    // To whoever asks it may not have come yet. Here it is known that it has: if it is gone, this rank finds that out.
    if (note.flood && std::holds_alternative<RankPing>(note.note) && has_been_here(state, note.target)) {
      state.wanted.try_emplace(note.target, self->clock().now());
      tick_on(self, state);
    }
    return;
  }
  // Who was taken for gone and is not must hear so: it can do nothing here any more.
  if (!std::ranges::binary_search(state.members, origin) && !std::holds_alternative<ViewBegun>(note.note)) {
    if (!state.broken && !std::holds_alternative<CallRefused>(note.note)) tell(state, origin, state.begun, false);
    return;
  }
  if (!is_changing(state) || !state.lost.contains(origin)) return take(self, state, origin, note.flood, note.note);
  if (!state.promised && !state.change) state.lost.erase(origin);  // it was only slow
  take(self, state, origin, note.flood, note.note);
}

}  // namespace coppice::actors::group
