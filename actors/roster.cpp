#include "actors/roster.hpp"

#include <algorithm>

namespace coppice::actors {

std::string_view name(WorkerState state) {
  switch (state) {
    case WorkerState::absent: return "absent";
    case WorkerState::joined: return "joined";
    case WorkerState::loading: return "loading";
    case WorkerState::ready: return "ready";
  }
  return "?";
}

Roster::Roster(std::vector<std::string> workers, RosterOptions options) : options_(options) {
  for (auto& worker : workers) workers_.emplace_back().name = std::move(worker);
  loading_.resize(workers_.size());
}

std::optional<int> Roster::index_of(const std::string& worker) const {
  for (std::size_t i = 0; i < workers_.size(); ++i)
    if (workers_[i].name == worker) return static_cast<int>(i);
  return std::nullopt;
}

std::optional<int> Roster::on_join(const std::string& worker, std::uint32_t pid, Instant now) {
  const auto index = index_of(worker);
  if (!index) return std::nullopt;
  auto& entry = workers_[static_cast<std::size_t>(*index)];
  if (entry.state == WorkerState::ready) step_epoch();  // a process that came back before its loss was noticed
  entry.state = WorkerState::joined;
  entry.pid = pid;
  entry.reason.clear();
  last_join_ = now;
  return index;
}

std::optional<int> Roster::on_lost(const std::string& worker, std::string reason, Instant) {
  const auto index = index_of(worker);
  if (!index) return std::nullopt;
  auto& entry = workers_[static_cast<std::size_t>(*index)];
  if (entry.state == WorkerState::absent) return index;
  if (entry.state == WorkerState::ready) step_epoch();
  entry.state = WorkerState::absent;
  entry.reason = std::move(reason);
  ++entry.losses;
  return index;
}

void Roster::on_refused(const std::string& worker, const std::string& reason) {
  if (const auto index = index_of(worker)) workers_[static_cast<std::size_t>(*index)].reason = "cannot use its weights: " + reason;
}

std::optional<int> Roster::on_ready(const std::string& worker, TransferId transfer) {
  const auto index = index_of(worker);
  if (!index) return std::nullopt;
  const auto at = static_cast<std::size_t>(*index);
  if (workers_[at].state != WorkerState::loading || loading_[at].transfer != transfer) return std::nullopt;
  workers_[at].state = WorkerState::ready;
  step_epoch();
  return index;
}

std::optional<Roster::Broadcast> Roster::on_time(Instant now) {
  for (std::size_t i = 0; i < workers_.size(); ++i)
    if (workers_[i].state == WorkerState::loading && now >= loading_[i].since + options_.patience)
      workers_[i].state = WorkerState::joined;

  const bool waiting = std::any_of(workers_.begin(), workers_.end(),
                                   [](const auto& w) { return w.state == WorkerState::joined; });
  if (!waiting || (any_absent() && now < last_join_ + options_.settle)) return std::nullopt;
  Broadcast broadcast{TransferId{++transfers_}, {}};
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].state != WorkerState::joined) continue;
    workers_[i].state = WorkerState::loading;
    loading_[i] = {broadcast.transfer, now};
    broadcast.members.push_back(workers_[i].name);
  }
  return broadcast;
}

std::optional<Instant> Roster::next_wake() const {
  std::optional<Instant> wake;
  const auto consider = [&](Instant at) { wake = wake ? std::min(*wake, at) : at; };
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].state == WorkerState::joined) consider(any_absent() ? last_join_ + options_.settle : last_join_);
    if (workers_[i].state == WorkerState::loading) consider(loading_[i].since + options_.patience);
  }
  return wake;
}

coding::ArrivalSet Roster::ready(int first, int count) const {
  coding::ArrivalSet set = 0;
  for (int i = 0; i < std::min(count, static_cast<int>(workers_.size()) - first); ++i)
    if (workers_[static_cast<std::size_t>(first + i)].state == WorkerState::ready) set |= coding::ArrivalSet{1} << i;
  return set;
}

bool Roster::all_ready() const {
  return std::all_of(workers_.begin(), workers_.end(), [](const auto& w) { return w.state == WorkerState::ready; });
}

bool Roster::any_absent() const {
  return std::any_of(workers_.begin(), workers_.end(), [](const auto& w) { return w.state == WorkerState::absent; });
}

void Roster::step_epoch() { epoch_ = Epoch{static_cast<std::uint64_t>(epoch_) + 1}; }

}  // namespace coppice::actors
