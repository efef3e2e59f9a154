// actors/note_filter.hpp: tells the copies of flooded notes. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>

namespace coppice::actors {

// Of one origin, which numbers its notes. What is so old that it is no longer remembered counts as seen: a note that were
// taken for new again and again would be passed round for ever.
class NoteFilter {
 public:
  static constexpr std::size_t kRemembered = 4'096;

  bool is_new(std::uint64_t number) {
    if (number < floor_ || !seen_.insert(number).second) return false;
    if (seen_.size() > kRemembered) {
      floor_ = *seen_.begin() + 1;
      seen_.erase(seen_.begin());
    }
    return true;
  }

 private:
  std::uint64_t floor_ = 0;
  std::set<std::uint64_t> seen_;
};

}  // namespace coppice::actors
