// actors/block_table.hpp: the gateway's requests in flight whose classes are decoded block by block. Pure: `now` is passed in.
//
// A request is answered exactly once: when every block that was asked has spoken, or at its deadline without the missing
// ones. It is degraded when a block is missing or said so of itself.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "actors/gather.hpp"
#include "actors/request_book.hpp"

namespace coppice::actors {

// How a request's time is shared out: a head gives its block's best estimate early enough that another head can still take
// the place of one that says nothing.
struct BlockTiming {
  Duration deadline = std::chrono::milliseconds{50};
  Duration head_patience() const { return deadline * 6 / 10; }
  Duration silence() const { return deadline * 7 / 10; }  // after it a head that has not spoken is passed over
  // What a head may take that is asked now; nothing where it would be too late.
  std::optional<Duration> patience(Instant opened, Instant now) const;
};

struct BlockCompletion {
  RequestId request{};
  Epoch epoch{};
  ReplyTo reply_to;
  std::vector<BlockScore> scores;  // as they came
  bool degraded = false;
  Instant opened, closed;
};

// The reply that the blocks' scores make.
InferReply answer_of(BlockCompletion completion);

class BlockTable {
 public:
  // block_of[c]: the block of class c.
  BlockTable(int blocks, std::vector<int> block_of, BlockTiming timing);

  // A block's part of a request that is still wanted: what a new head is to be asked.
  struct Wanted {
    RequestId request{};
    Epoch epoch{};
    int block = 0;
    int head = 0;  // who was asked
    bool record = false;
    SharedFloats item;
    Instant opened;
  };

  // heads[b]: who is asked for block b, if anyone is. REQUIRES: `request` was never opened before; some block is asked.
  void open(RequestId request, Epoch epoch, const std::vector<std::optional<int>>& heads, ReplyTo reply_to,
            SharedFloats item, Instant now);
  // Another head is asked instead.
  void asked_anew(const Wanted& wanted, int head);

  struct Taken {
    Receipt receipt;
    std::optional<BlockCompletion> completion;  // when receipt is `completes`
    std::optional<Duration> latency;            // since the request was opened, where that is still known
  };
  Taken on_score(BlockScore score, Instant now);

  // Nobody is left to answer for this block. Returns the requests that this completes.
  std::vector<BlockCompletion> on_block_lost(int block, Instant now);
  // The requests whose deadline has passed.
  std::vector<BlockCompletion> on_time(Instant now);
  // What the heads that were asked first have been silent about for too long, each once.
  std::vector<Wanted> on_silence(Instant now);
  // What a head was asked for a block and has not answered.
  std::vector<Wanted> wanted(int block, int head) const;
  std::optional<Instant> next_wake();

  std::size_t in_flight() const { return open_.size(); }
  const GatherCounts& counts() const { return counts_; }

 private:
  struct Entry {
    Epoch epoch;
    struct Part {
      bool waiting = false, anew = false;  // anew: the first head was passed over
      int head = 0;
    };
    std::vector<Part> parts;  // [blocks]
    ReplyTo reply_to;
    SharedFloats item;
    std::vector<BlockScore> scores;
    Instant opened;
  };
  struct Closed {
    Epoch epoch;
    Instant opened;
  };
  using Open = std::unordered_map<std::uint64_t, Entry>;
  bool well_formed(const BlockScore& score) const;
  static bool finished(const Entry& entry);
  Wanted wanted_of(const Open::value_type& entry, int block) const;
  BlockCompletion close(Open::iterator entry, Instant now);

  int blocks_;
  std::vector<int> block_of_;
  BlockTiming timing_;
  Open open_;
  DeadlineQueue deadlines_, silences_;
  Remembered<Closed> closed_;
  GatherCounts counts_;
};

}  // namespace coppice::actors
