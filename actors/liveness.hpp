// actors/liveness.hpp: which ranks still answer. Pure.
//
// Nobody is watched who is not waited for. Whoever is, is asked now and then; one that was heard before and says nothing
// for gone_after is gone. One that was never heard has not come yet, and is waited for.
//
// A process that gets no processor says nothing either, and is not gone: its host still takes connections for it. The host
// of one that was killed refuses them.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>

#include "actors/messages.hpp"

namespace coppice::actors {

enum class Door : std::uint8_t {
  silent,   // nothing is known of the port
  open,     // a process listens there
  refused,  // none does
};

struct LivenessOptions {
  Duration gone_after = std::chrono::seconds{2};
  Duration gone_after_refused = std::chrono::seconds{1};  // what it said last may still be on its way
  Duration gone_after_open = std::chrono::seconds{20};
  Duration ask_every = std::chrono::milliseconds{500};
};

class Liveness {
 public:
  explicit Liveness(LivenessOptions options = {}) : options_(options) {}

  struct Verdict {
    bool ask = false, gone = false;
    bool by_every_way = false;  // it has been silent for so long that the way to it may be at fault
  };

  void heard(int rank, Instant now);  // anything of its own, on whatever way
  void came(int rank);                // it has been here at some time
  bool ever_heard(int rank) const;
  bool heard_since(int rank, Instant then) const;
  // The rank is waited for: to be called at every look, ten times a second or so. After a pause in being called, as when
  // this process stood still itself, the wait begins anew.
  Verdict await(int rank, Instant now, Door door = Door::silent);
  // Whether it has been waited for, and silent, for so long that its door is worth a knock.
  bool is_silent(int rank, Instant now) const;

 private:
  Duration patience(Door door) const;

  struct Seen {
    bool ever = false;
    Instant heard{}, since{}, awaited{}, asked{};
  };
  LivenessOptions options_;
  std::map<int, Seen> seen_;
};

}  // namespace coppice::actors
