#include "actors/group_view.hpp"

#include <algorithm>

namespace coppice::actors {

std::uint32_t next_view(std::uint32_t seen, int rank, int ranks) {
  const auto count = static_cast<std::uint32_t>(ranks);
  return (seen / count + 1) * count + static_cast<std::uint32_t>(rank);
}

std::optional<std::vector<int>> survivors(const std::vector<int>& members, const std::set<int>& lost) {
  std::vector<int> left;
  std::ranges::copy_if(members, std::back_inserter(left), [&](int rank) { return !lost.contains(rank); });
  const bool most = 2 * left.size() > members.size();
  const bool half = 2 * left.size() == members.size() && !left.empty() && left.front() == members.front();
  if (!most && !half) return std::nullopt;
  return left;
}

bool are_members(const std::vector<std::int32_t>& members, int ranks) {
  return !members.empty() && std::ranges::is_sorted(members, std::ranges::less_equal{}) && members.front() >= 0 &&
         members.back() < ranks;
}

CallsDecided decide_calls(const std::map<int, ViewReady>& told) {
  std::set<std::uint64_t> calls;
  for (const auto& [rank, ready] : told)
    for (const auto& stands : ready.calls) calls.insert(stands.call);
  CallsDecided out;
  for (const auto call : calls) {
    bool over_somewhere = false, done = true;
    std::set<std::int64_t> attempts;
    for (const auto& [rank, ready] : told) {
      const auto stands = std::ranges::find(ready.calls, call, &CallStands::call);
      if (stands == ready.calls.end()) {
        (ready.next_call > call ? over_somewhere : done) = ready.next_call > call;
        continue;
      }
      attempts.insert(stands->done_attempt);
      if (stands->has_all) out.has_all.try_emplace(call, rank);
    }
    // Who is over was told so when everyone had its part.
    done = done && attempts.size() == 1 && *attempts.begin() >= 0;
    if (over_somewhere || done) out.over.push_back(call);
  }
  return out;
}

}  // namespace coppice::actors
