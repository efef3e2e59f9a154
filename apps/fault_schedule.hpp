// apps/fault_schedule.hpp: sends a straggler SPEC to a cluster, its kill, stop and lie when their time has come.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "actors/faults.hpp"
#include "runtime/client.hpp"

namespace coppice::apps {

class FaultSchedule {
 public:
  FaultSchedule(runtime::Client& client, actors::FaultSpec spec, std::int64_t requests);

  runtime::Expected<void> begin();          // the delays, and whatever is due at once
  void before(std::int64_t request);        // to be called before each request
  runtime::Expected<void> end();            // ends the faults that can be ended
  const std::optional<runtime::Error>& fault() const { return fault_; }

 private:
  struct Timed {
    std::optional<actors::FaultTime> actors::FaultSpec::*member;
    actors::FaultTime when;
    bool sent = false;
  };
  bool due(const Timed& timed, std::int64_t request) const;
  runtime::Expected<void> send_due(std::int64_t request);

  runtime::Client& client_;
  actors::FaultSpec base_;
  std::vector<Timed> timed_;
  std::int64_t requests_;
  std::chrono::steady_clock::time_point begun_;
  std::optional<runtime::Error> fault_;
};

}  // namespace coppice::apps
