// actors/roster.hpp: which workers there are, who needs the weights, and the plan's epoch. Pure.
//
// A worker is absent, joined (connected, without weights), loading (a broadcast to it is under way) or ready. The epoch
// moves on whenever the set of ready workers changes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "actors/messages.hpp"
#include "coding/generator.hpp"

namespace coppice::actors {

enum class WorkerState : std::uint8_t { absent, joined, loading, ready };
std::string_view name(WorkerState state);

struct RosterOptions {
  // How long after the last join a broadcast waits for those still missing, so that a starting cluster shares one tree.
  Duration settle = std::chrono::milliseconds{500};
  // After this a worker that has not taken up its weights gets a new tree: a relay above it may have died.
  Duration patience = std::chrono::seconds{10};
};

struct WorkerEntry {
  std::string name;
  WorkerState state = WorkerState::absent;
  std::uint32_t pid = 0;
  std::string reason;  // why it was last lost
  std::uint64_t losses = 0;
};

class Roster {
 public:
  Roster(std::vector<std::string> workers, RosterOptions options);

  std::optional<int> index_of(const std::string& worker) const;

  // Each returns the worker's index, or nothing when that name is not a worker of this cluster.
  std::optional<int> on_join(const std::string& worker, std::uint32_t pid, Instant now);
  std::optional<int> on_lost(const std::string& worker, std::string reason, Instant now);
  // Nothing when the transfer is not the one that this worker is waiting for.
  std::optional<int> on_ready(const std::string& worker, TransferId transfer);
  // It has its weights and cannot use them; its state tells why, and it stays without them.
  void on_refused(const std::string& worker, const std::string& reason);

  struct Broadcast {
    TransferId transfer{};
    std::vector<std::string> members;
  };
  // The broadcast to begin now, if any.
  std::optional<Broadcast> on_time(Instant now);
  std::optional<Instant> next_wake() const;  // when on_time may have something to say

  // Of workers first, first + 1, …: bit i is worker first + i.
  coding::ArrivalSet ready(int first = 0, int count = coding::kWorkersMax) const;
  bool all_ready() const;
  Epoch epoch() const { return epoch_; }
  const std::vector<WorkerEntry>& workers() const { return workers_; }

 private:
  bool any_absent() const;
  void step_epoch();

  struct Loading {
    TransferId transfer{};
    Instant since;
  };
  RosterOptions options_;
  std::vector<WorkerEntry> workers_;
  std::vector<Loading> loading_;  // beside workers_
  Instant last_join_{};
  std::uint64_t transfers_ = 0;
  Epoch epoch_{1};
};

}  // namespace coppice::actors
