#include "actors/head_choice.hpp"

namespace coppice::actors {

HeadChoice::HeadChoice(std::vector<std::vector<int>> order, Duration suspicion)
    : order_(std::move(order)), suspicion_(suspicion), suspected_(order_.size()) {}

std::optional<int> HeadChoice::choose(int block, const std::function<bool(int)>& ready, Instant now) const {
  const auto at = static_cast<std::size_t>(block);
  std::optional<std::pair<Instant, int>> least;  // of those under suspicion
  for (const int head : order_[at]) {
    if (!ready(head)) continue;
    const auto since = suspected_[at].find(head);
    if (since == suspected_[at].end() || now >= since->second + suspicion_) return head;
    if (!least || since->second < least->first) least = {since->second, head};
  }
  return least ? std::optional(least->second) : std::nullopt;
}

void HeadChoice::suspect(int block, int head, Instant now) { suspected_[static_cast<std::size_t>(block)][head] = now; }

}  // namespace coppice::actors
