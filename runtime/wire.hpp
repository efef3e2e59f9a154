// runtime/wire.hpp: data messages as frames and back.
//
// A frame is one or two ZeroMQ parts: a msgpack array [version, type, fields…] and, where the message carries floats or
// bytes in bulk, those bytes as they are (float32 little-endian). Bulk is never packed: it is copied once, from the
// socket's buffer. Every size is checked against the bytes that are really there before anything is allocated.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "actors/messages.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

struct Frame {
  std::vector<std::byte> head;
  std::vector<std::byte> bulk;  // may be empty
  actors::SharedBytes shared = {};  // or bulk that stays where it is until it has been sent

  std::size_t bulk_bytes() const { return bulk.size() + shared.size; }
};

inline constexpr std::size_t kHeadBytesMax = 4U << 20;
inline constexpr std::size_t kBulkBytesMax = 16U << 20;

Frame encode(const actors::DataMessage& message);

// Errors: bad_input, for anything that is not a frame of this version, whole and within its limits.
// bulk: messages that share their bytes hold its owner; without one the bytes are copied.
Expected<actors::DataMessage> decode(std::span<const std::byte> head, const actors::SharedBytes& bulk);
Expected<actors::DataMessage> decode(std::span<const std::byte> head, std::span<const std::byte> bulk);

}  // namespace coppice::runtime
