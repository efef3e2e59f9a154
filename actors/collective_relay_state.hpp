// actors/collective_relay_state.hpp: one rank's part in one tree of a collective. Pure: says what to send, never sends.
//
// Way up: a chunk is combined when every child's has arrived, in the children's order whatever the order of arrival, so
// that the same plan gives the same bits. It is combined in the first child's frame: the caller's own data stays as it is
// until the result is known, and can be counted again if the tree breaks. Way down: a chunk is laid into the caller's
// buffer and passed on from there.
//
// On each edge at most a window of chunks is on its way: a chunk counts as arrived when its receiver no longer needs room
// for it. A relay is done when the last of its own chunks is acknowledged, not when the last has arrived: one that lets
// go of its buffer earlier sends rubbish to slow children (measured on real links).
// Sources: Blink (MLSys 2020), section 4; per-edge credits as in every sliding window since Cerf and Kahn, 1974.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "actors/messages.hpp"
#include "actors/shared_bytes.hpp"
#include "collectives/program.hpp"

namespace coppice::actors {

// A caller's buffers. Offsets are of the collective's whole buffer; a rank may hold a part of it only.
struct CollectiveBuffer {
  std::shared_ptr<void> lease;  // held by every frame that is read from the buffers
  std::byte* input = nullptr;   // what this rank contributes; begins at input_begin of the whole
  std::int64_t input_begin = 0;
  std::byte* output = nullptr;  // where the result goes; may be the input
  std::int64_t output_begin = 0;
  std::shared_ptr<std::byte[]> kept = {};  // the input, where the result would overwrite the caller's

  std::span<std::byte> in(const collectives::Stretch& at) const {
    return {input + (at.offset - input_begin), static_cast<std::size_t>(at.bytes)};
  }
  std::span<std::byte> out(const collectives::Stretch& at) const {
    return {output + (at.offset - output_begin), static_cast<std::size_t>(at.bytes)};
  }
};

// Chunks that may be on their way on an edge; see the header on what that bounds. Trees that cross a link the same way share
// kWindowsTogether: more would only queue up before it, and every hop of every tree would wait that much longer. At most
// kWindowMax, which keeps one tree's link busy, and two, so that one is on its way while another is acknowledged.
inline constexpr std::int64_t kWindowMax = 6, kWindowMin = 2, kWindowsTogether = 12;
inline constexpr std::int64_t kLeadMax = 2;  // windows that one child of a tree may be ahead of another
std::int64_t window_of(const collectives::Program& program, const collectives::RankEdge& edge);

class CollectiveRelayState {
 public:
  // window: of every edge; 0: as window_of has it. REQUIRES: check(program); the rank is in the tree.
  CollectiveRelayState(const collectives::Program& program, std::size_t tree, int rank, CollectiveBuffer buffer,
                       std::int64_t window = 0);

  struct Outgoing {
    collectives::RankEdge edge;  // from this rank
    Way way = Way::down;
    std::int64_t index = 0;
    SharedBytes bytes;  // none: an acknowledgement of what came this way: all chunks below `index` are consumed
    std::int64_t arrived = 0;  // and so many have come
  };
  using Step = std::vector<Outgoing>;

  Step begin();
  // From a rank that is no neighbour, out of order, beyond the window or of a wrong size: ignored.
  Step on_chunk(int from, Way way, std::int64_t index, SharedBytes bytes);
  Step on_ack(int from, Way way, std::int64_t consumed, std::int64_t arrived);

  // Once more what was acknowledged last, in case that was lost: repeating it does no harm.
  Step reminders() const;

  // What has gone out on an edge, where more sent than arrived is on its way, and what came back by it.
  struct Traffic {
    collectives::RankEdge edge;
    bool sends = false;  // chunks go out on it; otherwise they come in
    Way way = Way::down;
    std::int64_t sent = 0, acknowledged = 0;  // chunks
    std::int64_t sent_bytes = 0, arrived_bytes = 0;
    std::int64_t acknowledgements = 0;  // that came, those that said nothing new among them
    std::int64_t emptied = 0;           // how often all that was sent had arrived
    bool awaited = false;               // a chunk or an acknowledgement is still to come from its other end
    std::int64_t received_bytes = 0;
  };
  // One entry an edge, the same ones in the same order at every time. REQUIRES: into is empty or from an earlier time.
  void look_at_traffic(std::vector<Traffic>& into) const;

  // Grows with everything that is sent, comes or is acknowledged for the first time.
  std::int64_t steps() const;

  bool done() const;
  // Of the tree's chunks, how many this rank knows the final bytes of: a prefix.
  std::int64_t known() const { return known_; }
  std::int64_t chunks() const { return chunks_; }
  // A rank without which nothing goes on here: the first child or parent that something is awaited from.
  std::optional<int> waits_for() const;

 private:
  struct Neighbour {  // that this rank sends to
    collectives::RankEdge edge;
    std::int64_t window = 0;
    std::int64_t sent = 0, acknowledged = 0, arrived = 0, acknowledgements = 0, emptied = 0;
  };
  struct Source {  // that it receives from
    collectives::RankEdge back;  // the edge that acknowledgements take
    std::int64_t window = 0;
    std::int64_t received = 0;
    std::deque<SharedBytes> waiting;  // arrived, in order, not yet combined
  };

  bool keeps() const;
  bool is_source() const;  // of the way down: it knows everything from the start
  void advance(Step& step);
  void combine_ready(Step& step);
  void make_known(std::int64_t index, const SharedBytes& bytes);
  void send_up(Step& step);
  void send_down(Step& step);
  bool sent_all(const Neighbour& to) const { return to.acknowledged == chunks_; }

  collectives::TreeProgram tree_;
  collectives::Element element_;
  collectives::Reduction reduction_;
  int ranks_, rank_;  // how many take part, and this one
  CollectiveBuffer buffer_;
  std::int64_t chunks_;

  std::vector<Source> up_from_;  // children, on the way up
  std::optional<Neighbour> up_to_;
  std::int64_t combined_ = 0;      // chunks
  std::deque<SharedBytes> ready_;  // combined, not yet sent up: the chunks from up_to_->sent on
  std::optional<Source> down_from_;
  std::vector<Neighbour> down_to_;
  std::int64_t known_ = 0;
  std::int64_t held_from_ = 0;     // where this rank keeps nothing: the first chunk of held_
  std::deque<SharedBytes> held_;   // passed on, not kept: those that some child does not have yet
};

}  // namespace coppice::actors
