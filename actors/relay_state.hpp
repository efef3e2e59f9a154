// actors/relay_state.hpp: one node's part in one broadcast down a tree. Pure: says what to send, never sends.
//
// Chunks arrive in order from the parent; each is kept and passed to every child as far as that child's credit reaches.
// A child's credit is what it has acknowledged plus a window, so a slow child holds back its own subtree only. A relay is
// done when its last forward has been acknowledged, not when its last chunk has arrived: a relay that lets go of its
// buffer earlier sends rubbish to slow children (facts measured on real links).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "actors/messages.hpp"
#include <tl/expected.hpp>

namespace coppice::actors {

struct RelayOptions {
  // Chunks in flight to each child. Wider fills longer links; narrower bounds memory at a slow child's socket.
  std::uint32_t window = 8;
  std::uint64_t bytes_max = std::uint64_t{1} << 30;       // of one transfer
  std::uint32_t chunk_bytes_max = std::uint32_t{1} << 20;
  std::size_t nodes_max = 4'096;
};

// Whether a transfer that `parent` opens is one that this node takes part in; parent: "" at the root, which opens its
// own. Error: why not.
tl::expected<void, std::string> check(const TransferOpen& open, const std::string& self, const std::string& parent,
                                      const RelayOptions& options);

class RelayState {
 public:
  // The root holds all bytes from the start. REQUIRES: check(open) holds; bytes.size() == open.bytes.
  static RelayState root(const TransferOpen& open, std::vector<std::byte> bytes, const RelayOptions& options);
  // REQUIRES: check(open) holds for `self`.
  static RelayState inner(const TransferOpen& open, const std::string& self, const RelayOptions& options);

  struct Forward {
    std::string child;
    WeightChunk chunk;
  };
  struct Step {
    std::vector<Forward> forwards;  // in order for each child
    bool acknowledge = false;       // tell the parent how many chunks are held
    bool whole = false;             // the last chunk has just arrived: bytes() is complete
    bool done = false;              // everything has arrived and every child has acknowledged everything
  };

  Step begin();                                    // the root's first sends
  Step on_chunk(const WeightChunk& chunk);         // out of order, repeated or of a wrong size: ignored
  Step on_ack(const std::string& child, std::uint32_t received);
  Step on_child_lost(const std::string& child);    // nobody waits for it; its subtree gets a transfer of its own

  std::uint32_t received() const { return received_; }
  const std::string& parent() const { return parent_; }  // empty at the root
  const std::vector<std::byte>& bytes() const { return bytes_; }
  const TransferOpen& open() const { return open_; }
  std::vector<std::string> children() const;

 private:
  struct Child {
    std::string name;
    std::uint32_t sent = 0, acknowledged = 0;
  };
  void forward_to(Child& child, std::vector<Forward>& out);
  bool done() const;

  TransferOpen open_;
  RelayOptions options_;
  std::string parent_;
  std::vector<Child> children_;
  std::vector<std::byte> bytes_;
  std::uint32_t chunks_ = 0, received_ = 0;
};

}  // namespace coppice::actors
