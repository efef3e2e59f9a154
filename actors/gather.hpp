// actors/gather.hpp: the requests in flight and when each is answered. Pure: `now` is passed in.
//
// A request is answered exactly once: at the k-th response; or as soon as everyone still alive has answered; or at its
// deadline with whatever is there. The last two are degraded when fewer than k have answered. Responses after that are
// counted and dropped, but still teach how slow their worker was.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "actors/messages.hpp"
#include "actors/request_book.hpp"
#include "coding/decoder.hpp"

namespace coppice::actors {

std::uint32_t micros(Duration d);  // whole microseconds, as replies carry them; held to what fits

// What the answer must be given to, carried along untouched.
struct ReplyTo {
  Peer client;
  std::uint64_t tag = 0;
  bool record = false;
};

// A request that is to be answered now, with what there is.
struct Completion {
  RequestId request{};
  Epoch epoch{};
  ReplyTo reply_to;
  coding::Arrivals arrivals;
  std::vector<ArrivalRecord> order;  // as they came
  bool degraded = false;             // fewer than k
  Instant opened, closed;
};

// Decodes what arrived, by `decode`. A response with a number that is not finite is its worker's fault: it is set aside,
// counted in `not_finite`, and the rest decoded.
template <class Decode>
auto decode_usable(Completion& completion, int needed, std::uint64_t& not_finite, const Decode& decode) {
  for (;;) {
    auto scores = decode(completion.arrivals);
    if (scores || scores.error().code != coding::DecodeErrorCode::not_finite || scores.error().worker < 0) return scores;
    ++not_finite;
    completion.arrivals.responses[static_cast<std::size_t>(scores.error().worker)].clear();
    completion.degraded |= std::popcount(completion.arrivals.set()) < needed;
  }
}

// How many numbers each worker answers with.
std::vector<int> floats_of(const coding::Generator& generator);

// What became of a response.
enum class Receipt : std::uint8_t { taken, completes, late, duplicate, stale_epoch, unknown_request, bad_shape };

struct GatherCounts {
  std::uint64_t opened = 0, completed = 0, degraded = 0;
  std::uint64_t late = 0, duplicate = 0, stale_epoch = 0, unknown_request = 0, bad_shape = 0;
};

class GatherTable {
 public:
  // floats[i]: how many numbers worker i answers with. REQUIRES: floats.size() == shape.workers.
  GatherTable(coding::CodeShape shape, std::vector<int> floats);

  // REQUIRES: `request` was never opened before; `asked` is not empty.
  void open(RequestId request, Epoch epoch, coding::ArrivalSet asked, ReplyTo reply_to, Instant now, Instant deadline);

  struct Taken {
    Receipt receipt;
    std::optional<Completion> completion;  // when receipt is `completes`
    std::optional<Duration> latency;       // since the request was opened, where that is still known
  };
  Taken on_response(CodedResponse response, Instant now);

  // Nobody waits for this worker any more. Returns the requests that this completes.
  std::vector<Completion> on_worker_lost(int worker, Instant now);

  // The requests whose deadline has passed.
  std::vector<Completion> on_time(Instant now);
  std::optional<Instant> next_deadline();

  bool knows(RequestId request);  // open, or closed not long ago
  std::size_t in_flight() const { return open_.size(); }
  const GatherCounts& counts() const { return counts_; }

 private:
  struct Entry {
    Epoch epoch;
    coding::ArrivalSet asked, arrived;
    ReplyTo reply_to;
    coding::Arrivals arrivals;
    std::vector<ArrivalRecord> order;
    Instant opened, deadline;
  };
  struct Closed {  // remembered for a while, to tell late from unknown and to time it
    Epoch epoch;
    coding::ArrivalSet arrived;
    Instant opened;
  };
  bool finished(const Entry& entry) const;
  Completion close(std::unordered_map<std::uint64_t, Entry>::iterator entry, Instant now);

  coding::CodeShape shape_;
  std::vector<int> floats_;
  std::unordered_map<std::uint64_t, Entry> open_;
  DeadlineQueue deadlines_;
  Remembered<Closed> closed_;
  GatherCounts counts_;
};

}  // namespace coppice::actors
