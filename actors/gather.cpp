#include "actors/gather.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace coppice::actors {
namespace {

coding::ArrivalSet bit(std::uint32_t worker) { return coding::ArrivalSet{1} << worker; }

}  // namespace

std::uint32_t micros(Duration d) {
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count(), 0, UINT32_MAX));
}

std::vector<int> floats_of(const coding::Generator& generator) {
  std::vector<int> out;
  for (const auto& worker : generator.workers) out.push_back(worker.floats);
  return out;
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
  deadlines_.push(deadline, id);
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
    auto* old = closed_.find(id);
    if (!old) {
      ++counts_.unknown_request;
      return {Receipt::unknown_request, std::nullopt, std::nullopt};
    }
    if (old->epoch != response.epoch) {
      ++counts_.stale_epoch;
      return {Receipt::stale_epoch, std::nullopt, std::nullopt};
    }
    if (old->arrived & bit(worker)) {
      ++counts_.duplicate;
      return {Receipt::duplicate, std::nullopt, std::nullopt};
    }
    old->arrived |= bit(worker);
    ++counts_.late;
    return {Receipt::late, std::nullopt, now - old->opened};
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
  while (const auto id = deadlines_.pop_due(now))
    if (const auto found = open_.find(*id); found != open_.end()) completions.push_back(close(found, now));
  return completions;
}

std::optional<Instant> GatherTable::next_deadline() {
  return deadlines_.next([this](std::uint64_t id) { return open_.contains(id); });
}

bool GatherTable::knows(RequestId request) {
  const auto id = static_cast<std::uint64_t>(request);
  return open_.contains(id) || closed_.find(id);
}

bool GatherTable::finished(const Entry& entry) const {
  return std::popcount(entry.arrived) >= shape_.needed || entry.arrived == entry.asked;
}

Completion GatherTable::close(std::unordered_map<std::uint64_t, Entry>::iterator it, Instant now) {
  const auto id = it->first;
  Entry entry = std::move(it->second);
  open_.erase(it);
  next_deadline();  // lets go of what is over
  closed_.add(id, Closed{entry.epoch, entry.arrived, entry.opened});

  const bool degraded = std::popcount(entry.arrived) < shape_.needed;
  ++counts_.completed;
  if (degraded) ++counts_.degraded;
  return {RequestId{id},           entry.epoch, std::move(entry.reply_to), std::move(entry.arrivals),
          std::move(entry.order), degraded,    entry.opened,              now};
}

}  // namespace coppice::actors
