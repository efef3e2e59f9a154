#include "actors/gather.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace coppice::actors {
namespace {

// Late responses are told from unknown ones for this many requests back: seconds of traffic at full speed.
constexpr std::size_t kClosedRemembered = 16'384;

coding::ArrivalSet bit(std::uint32_t worker) { return coding::ArrivalSet{1} << worker; }

}  // namespace

std::uint32_t micros(Duration d) {
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count(), 0, UINT32_MAX));
}

GatherTable::GatherTable(coding::CodeShape shape, std::vector<int> floats) : shape_(shape), floats_(std::move(floats)) {
  assert(static_cast<int>(floats_.size()) == shape_.workers);
}

void GatherTable::open(RequestId request, Epoch epoch, coding::ArrivalSet asked, ReplyTo reply_to, Instant now,
                       Instant deadline) {
  assert(asked != 0);
  const auto id = static_cast<std::uint64_t>(request);
  Entry entry{epoch, asked, 0, std::move(reply_to), {}, {}, now, deadline};
  entry.arrivals.responses.resize(static_cast<std::size_t>(shape_.workers));
  entry.order.reserve(static_cast<std::size_t>(shape_.needed));
  [[maybe_unused]] const bool fresh = open_.emplace(id, std::move(entry)).second;
  assert(fresh);
  // Options may shorten the deadline between requests; keep the queue in order all the same.
  auto at = deadlines_.end();
  while (at != deadlines_.begin() && std::prev(at)->first > deadline) --at;
  deadlines_.emplace(at, deadline, id);
  ++counts_.opened;
}

GatherTable::Taken GatherTable::on_response(CodedResponse response, Instant now) {
  const auto id = static_cast<std::uint64_t>(response.request);
  const auto worker = response.worker;
  if (worker >= floats_.size() || static_cast<int>(response.values.size()) != floats_[worker]) {
    ++counts_.bad_shape;
    return {Receipt::bad_shape, std::nullopt, std::nullopt};
  }
  const auto found = open_.find(id);
  if (found == open_.end()) {
    const auto old = closed_.find(id);
    if (old == closed_.end()) {
      ++counts_.unknown_request;
      return {Receipt::unknown_request, std::nullopt, std::nullopt};
    }
    if (old->second.epoch != response.epoch) {
      ++counts_.stale_epoch;
      return {Receipt::stale_epoch, std::nullopt, std::nullopt};
    }
    if (old->second.arrived & bit(worker)) {
      ++counts_.duplicate;
      return {Receipt::duplicate, std::nullopt, std::nullopt};
    }
    old->second.arrived |= bit(worker);
    ++counts_.late;
    return {Receipt::late, std::nullopt, now - old->second.opened};
  }

  Entry& entry = found->second;
  if (entry.epoch != response.epoch || !(entry.asked & bit(worker))) {
    ++counts_.stale_epoch;
    return {Receipt::stale_epoch, std::nullopt, std::nullopt};
  }
  if (entry.arrived & bit(worker)) {
    ++counts_.duplicate;
    return {Receipt::duplicate, std::nullopt, std::nullopt};
  }
  const Duration latency = now - entry.opened;
  entry.arrived |= bit(worker);
  entry.order.push_back({worker, micros(latency), response.values});
  entry.arrivals.responses[worker] = std::move(response.values);
  if (!finished(entry)) return {Receipt::taken, std::nullopt, latency};
  return {Receipt::completes, close(found, now), latency};
}

std::vector<Completion> GatherTable::on_worker_lost(int worker, Instant now) {
  std::vector<Completion> completions;
  for (auto it = open_.begin(); it != open_.end();) {
    const auto here = it++;
    Entry& entry = here->second;
    if (entry.arrived & bit(static_cast<std::uint32_t>(worker))) continue;  // what it said still counts
    entry.asked &= ~bit(static_cast<std::uint32_t>(worker));
    if (finished(entry)) completions.push_back(close(here, now));
  }
  return completions;
}

std::vector<Completion> GatherTable::on_time(Instant now) {
  std::vector<Completion> completions;
  while (!deadlines_.empty() && deadlines_.front().first <= now) {
    const auto found = open_.find(deadlines_.front().second);
    if (found != open_.end()) {
      completions.push_back(close(found, now));
    } else {
      deadlines_.pop_front();
    }
  }
  return completions;
}

std::optional<Instant> GatherTable::next_deadline() const {
  if (open_.empty()) return std::nullopt;
  for (const auto& [deadline, id] : deadlines_)
    if (open_.contains(id)) return deadline;
  return std::nullopt;
}

bool GatherTable::finished(const Entry& entry) const {
  return std::popcount(entry.arrived) >= shape_.needed || entry.arrived == entry.asked;
}

Completion GatherTable::close(std::unordered_map<std::uint64_t, Entry>::iterator it, Instant now) {
  const auto id = it->first;
  Entry entry = std::move(it->second);
  open_.erase(it);
  while (!deadlines_.empty() && !open_.contains(deadlines_.front().second)) deadlines_.pop_front();

  closed_.emplace(id, Closed{entry.epoch, entry.arrived, entry.opened});
  closed_order_.push_back(id);
  if (closed_order_.size() > kClosedRemembered) {
    closed_.erase(closed_order_.front());
    closed_order_.pop_front();
  }

  const bool degraded = std::popcount(entry.arrived) < shape_.needed;
  ++counts_.completed;
  if (degraded) ++counts_.degraded;
  return {RequestId{id},           entry.epoch, std::move(entry.reply_to), std::move(entry.arrivals),
          std::move(entry.order), degraded,    entry.opened,              now};
}

}  // namespace coppice::actors
