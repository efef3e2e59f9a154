// actors/group_view.hpp: who takes part, and what becomes of calls when a rank is lost and the others go on. Pure.
//
// A view is a set of members with a number. When one is gone the lowest of those that are left proposes the next view; all
// its members stop, say what they have of every call, and begin it together. So each call has its result over one set of
// ranks: it was complete at everyone (and only some had heard so), or it begins again among the members of the new view,
// from the callers' buffers.
//
// Only one of two halves that cannot hear each other may go on: a view has more than half of the members of the one
// before, or half of them with the lowest. Source: primary partitions, as in virtual synchrony (Birman and Joseph, 1987).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

// Attempts at calls begin at a multiple of this in each view, so that those of different views are told apart.
inline constexpr std::uint32_t kAttemptsPerView = 64;
inline std::uint32_t first_attempt(std::uint32_t view) { return view * kAttemptsPerView; }

// Of all numbers above `seen`, the least that this rank alone gives.
std::uint32_t next_view(std::uint32_t seen, int rank, int ranks);

// Without those that are lost; nothing: too few would be left.
std::optional<std::vector<int>> survivors(const std::vector<int>& members, const std::set<int>& lost);

// Whether the ranks are ascending, and ranks. For what comes from elsewhere.
bool are_members(const std::vector<std::int32_t>& members, int ranks);

struct CallsDecided {
  std::vector<std::uint64_t> over;          // every member has its part
  std::map<std::uint64_t, int> has_all;     // broadcasts, and the lowest rank that has all of it
};

// told: by each member of the new view.
CallsDecided decide_calls(const std::map<int, ViewReady>& told);

}  // namespace coppice::actors
