// actors/link_watch.hpp: which of a rank's links carry less than they were planned to. Pure.
//
// Only a link that has something on its way all the time is judged: how fast it is then is how fast it can be. One that
// waits for data from elsewhere is empty now and then, perhaps between two looks, and is not blamed. Nor is one whose other
// end has not made the call yet: before a link is taken for dead it is asked, and has answered nothing either. Links by
// which data is awaited are asked too: whoever should send it may be gone, with nothing on its way to it that would tell.
// Where the other end says nothing by any other way either, that is not the link's fault, and the rank is asked instead
// (liveness.hpp).
//
// A rate counts from the first arrival: before it comes what an earlier attempt has left in the link's queues. And it must
// be too low in two stretches, one after the other: TCP may need the first to find its pace.
//
// A connection that broke and was made again has lost what was on its way, and answers. Frames keep their order: when the
// answer has come, and the other end has acknowledged the same as before since, that is what has happened.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "actors/messages.hpp"

namespace coppice::actors {

struct LinkWatchOptions {
  Duration dead_after = std::chrono::milliseconds{1'500};
  Duration after_peer = std::chrono::milliseconds{300};  // since its other end was last silent altogether
  Duration judged_over = std::chrono::milliseconds{1'000};  // twice
  double slow_below = 0.7;  // of what was planned
  int chunks_min = 8;       // that a verdict of slowness rests on
  // Behind switches packets meet others', are lost, and TCP backs off for a while: that is no failing link.
  Duration dead_after_switched = std::chrono::seconds{6};
  Duration judged_over_switched = std::chrono::seconds{3};
  double slow_below_switched = 0.3;
};

struct LinkSample {
  collectives::RankEdge link;
  std::int64_t sent_bytes = 0, arrived_bytes = 0;  // since the run began, over all trees
  std::int64_t planned_bytes_per_s = 0;            // 0: not known, and then only death is noticed
  std::int64_t chunk_bytes = 0;                    // the largest
  Instant answered{};                              // when the other end last answered over it
  std::int64_t acknowledgements = 0;  // that have come, those that say nothing new among them
  bool awaited = false;               // something should come from its other end
  std::int64_t received_bytes = 0;
  std::int64_t planned_back_bytes_per_s = 0;  // of what comes; 0: not known
  Instant busy_since{};                       // something has been on its way since, without a pause
  Duration others{};                          // that a chunk of another call, by the same way, should take to come
  Instant heard{};                            // when something of another call last came by it
  bool peer_silent = false;                   // its other end has said nothing of late, by whatever way
};

enum class LinkFault : std::uint8_t { slow, dead, lost };

struct LinkFinding {
  collectives::RankEdge link;
  LinkFault fault = LinkFault::dead;
  std::int64_t bytes_per_s = 0;  // of one that is slow
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
    bool busy = false, told = false, told_slow = false;
    Instant moved, peer_silent;
    std::int64_t arrived = 0, received = 0, planned = 0;
    std::optional<std::int64_t> acknowledgements;  // when the link had answered since it moved last
    // Rates: of a time that the link has been busy all through, from an arrival to an arrival.
    Instant busy_from, arrived_last;
    std::optional<Instant> since;  // none: nothing of this busy time has arrived yet
    std::int64_t at_since = 0;
    std::optional<double> slow;  // bytes a second in the stretch before this one, where that was too little
  };
  using Key = std::tuple<int, std::string, std::string>;
  Duration silence_max(const LinkSample& sample) const;
  bool was_lost(Seen& seen, const LinkSample& sample, Instant now) const;
  std::optional<std::int64_t> too_slow(Seen& seen, const LinkSample& sample) const;

  LinkWatchOptions options_;
  std::map<Key, Seen> seen_;
};

}  // namespace coppice::actors
