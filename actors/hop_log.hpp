// actors/hop_log.hpp: which chunks arrived at a rank, over which link, and when: a trace of a collective's hops.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

struct Hop {
  RunId run = {};
  std::uint32_t tree = 0;
  Way way = Way::down;
  std::uint64_t chunk = 0;
  std::uint64_t bytes = 0;
  std::string from = {};     // the rank that passed it on, by its key
  std::string address = {};  // of the end that it came from, as the network says; empty where the transport does not note it
  std::chrono::microseconds at{};  // of the machine's clock, since 1970
};

// Bounded: what comes beyond `hops_max` is counted, not kept. Notes only while it is on. Any thread.
class HopLog {
 public:
  explicit HopLog(std::size_t hops_max = std::size_t{1} << 20) : hops_max_(hops_max) {}

  void record(bool on) { on_ = on; }
  void add(Hop hop) {
    if (!on_) return;
    const std::lock_guard lock(mutex_);
    if (hops_.size() < hops_max_)
      hops_.push_back(std::move(hop));
    else
      ++lost_;
  }
  std::vector<Hop> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(hops_, {});
  }
  std::uint64_t lost() const {
    const std::lock_guard lock(mutex_);
    return lost_;
  }

 private:
  std::size_t hops_max_;
  std::atomic<bool> on_{true};
  mutable std::mutex mutex_;
  std::vector<Hop> hops_;
  std::uint64_t lost_ = 0;
};

}  // namespace coppice::actors
