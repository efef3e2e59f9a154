// runtime/wire.hpp: data messages as frames and back.
//
// A frame is one or two ZeroMQ parts: a head, which is a msgpack array [version, type, fields…], and, where the message
// carries floats or bytes in bulk, those bytes as they are (float32 little-endian). Bulk is never packed. Every size is
// checked against the bytes that are really there before anything is allocated.
//
// A head and bulk of few bytes are joined in one part, since ZeroMQ queues, encrypts and decrypts each part for itself:
// 0xc1 (which begins no msgpack), three zeros, the head's size (uint32, little-endian), the head, zeros up to a multiple of
// eight bytes, the bulk.
#pragma once

#include <cstddef>
#include <optional>
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
inline constexpr std::size_t kJoinedBulkMax = 16U << 10;

Frame encode(const actors::DataMessage& message);

// Errors: bad_input, for anything that is not a frame of this version, whole and within its limits.
// bulk: messages that share their bytes hold its owner; without one the bytes are copied.
Expected<actors::DataMessage> decode(std::span<const std::byte> head, const actors::SharedBytes& bulk);
Expected<actors::DataMessage> decode(std::span<const std::byte> head, std::span<const std::byte> bulk);

// Of the joined part; none where head and bulk go as parts of their own.
std::optional<std::size_t> joined_bytes(const Frame& frame);
// REQUIRES: `into` has joined_bytes(frame).
void join(const Frame& frame, std::span<std::byte> into);

struct Split {
  std::span<const std::byte> head;
  std::size_t bulk_at = 0;  // to the end of the part
};
bool is_joined(std::span<const std::byte> part);
// Errors: bad_input, for a head that is larger than the part. REQUIRES: is_joined(part).
Expected<Split> split(std::span<const std::byte> part);

}  // namespace coppice::runtime
