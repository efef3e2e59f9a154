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
};

inline constexpr std::size_t kHeadBytesMax = 4U << 20;
inline constexpr std::size_t kBulkBytesMax = 16U << 20;

Frame encode(const actors::DataMessage& message);

// Errors: bad_input, for anything that is not a frame of this version, whole and within its limits.
Expected<actors::DataMessage> decode(std::span<const std::byte> head, std::span<const std::byte> bulk);

}  // namespace coppice::runtime
