// actors/head_choice.hpp: which node heads which block. Pure: `now` is passed in.
//
// Any worker of a block can head it, and so can the gateway. The scheduler says in which order they are to be preferred; a
// head that did not answer in time is passed over for a while.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

inline constexpr int kGatewayHead = -1;  // in place of a worker's index

class HeadChoice {
 public:
  // order[b]: who may head block b, best first.
  explicit HeadChoice(std::vector<std::vector<int>> order, Duration suspicion = std::chrono::seconds{5});

  int blocks() const { return static_cast<int>(order_.size()); }
  // The first that is ready and above suspicion; where there is none, the one that is ready and longest under it.
  std::optional<int> choose(int block, const std::function<bool(int head)>& ready, Instant now) const;
  void suspect(int block, int head, Instant now);

 private:
  std::vector<std::vector<int>> order_;
  Duration suspicion_;
  std::vector<std::map<int, Instant>> suspected_;  // by block: since when
};

}  // namespace coppice::actors
