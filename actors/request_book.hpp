// actors/request_book.hpp: what tables of requests in flight have in common: deadlines in order, and a memory of those
// that are over. Pure.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>

#include "actors/messages.hpp"

namespace coppice::actors {

// Requests by when something is due. Every request waits about equally long, so it is nearly first in, first out.
class DeadlineQueue {
 public:
  void push(Instant at, std::uint64_t id) {
    // Options may shorten the deadline between requests; keep the queue in order all the same.
    auto place = queue_.end();
    while (place != queue_.begin() && std::prev(place)->first > at) --place;
    queue_.emplace(place, at, id);
  }
  // The next that is due, taken out.
  std::optional<std::uint64_t> pop_due(Instant now) {
    if (queue_.empty() || queue_.front().first > now) return std::nullopt;
    const auto id = queue_.front().second;
    queue_.pop_front();
    return id;
  }
  // When the first is due for which `counts` holds; those before it are let go.
  template <class Counts>
  std::optional<Instant> next(const Counts& counts) {
    while (!queue_.empty() && !counts(queue_.front().second)) queue_.pop_front();
    return queue_.empty() ? std::nullopt : std::optional(queue_.front().first);
  }

 private:
  std::deque<std::pair<Instant, std::uint64_t>> queue_;
};

// The last requests that were closed, to tell late from unknown. As many as seconds of traffic at full speed.
template <class Value>
class Remembered {
 public:
  void add(std::uint64_t id, Value value) {
    values_.emplace(id, std::move(value));
    order_.push_back(id);
    if (order_.size() <= kMost) return;
    values_.erase(order_.front());
    order_.pop_front();
  }
  Value* find(std::uint64_t id) {
    const auto found = values_.find(id);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  static constexpr std::size_t kMost = 16'384;
  std::unordered_map<std::uint64_t, Value> values_;
  std::deque<std::uint64_t> order_;
};

}  // namespace coppice::actors
