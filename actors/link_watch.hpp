// actors/link_watch.hpp: which of a rank's links carry less than they were planned to. Pure.
//
// Only a link that has something on its way at every look is judged: how fast it is then is how fast it can be. One that
// waits for data from elsewhere is empty now and then, and is not blamed. Nor is one whose other end has not made the call
// yet: before a link is taken for dead it is asked, and has answered nothing either.
#pragma once

#include <chrono>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

struct LinkWatchOptions {
  Duration dead_after = std::chrono::milliseconds{1'500};
  Duration judged_over = std::chrono::milliseconds{1'000};
  double slow_below = 0.7;  // of what was planned
  int chunks_min = 8;       // that a verdict of slowness rests on
  // Behind switches packets meet others', are lost, and TCP backs off for a while: that is no failing link.
  Duration dead_after_switched = std::chrono::seconds{6};
  Duration judged_over_switched = std::chrono::seconds{4};
  double slow_below_switched = 0.3;
};

struct LinkSample {
  collectives::RankEdge link;
  std::int64_t sent_bytes = 0, arrived_bytes = 0;  // since the run began, over all trees
  std::int64_t planned_bytes_per_s = 0;            // 0: not known, and then only death is noticed
  std::int64_t chunk_bytes = 0;                    // the largest
  Instant answered{};                              // when the other end last answered over it
};

struct LinkFinding {
  collectives::RankEdge link;
  std::int64_t bytes_per_s = 0;  // 0: dead
};

struct LinkVerdicts {
  std::vector<LinkFinding> findings;
  std::vector<collectives::RankEdge> ask;  // these, whether they carry anything
};

class LinkWatch {
 public:
  LinkWatch() = default;
  explicit LinkWatch(LinkWatchOptions options) : options_(options) {}
  // Looks at all links of one run; each link is found at fault once. Call it ten times a second or so.
  LinkVerdicts look(Instant now, std::span<const LinkSample> samples);

 private:
  struct Seen {
    bool busy = false, told = false;
    Instant since, moved;
    std::int64_t at_since = 0, arrived = 0;
  };
  using Key = std::tuple<int, std::string, std::string>;
  LinkWatchOptions options_;
  std::map<Key, Seen> seen_;
};

}  // namespace coppice::actors
