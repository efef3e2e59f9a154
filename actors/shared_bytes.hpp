// actors/shared_bytes.hpp: bytes that stay where they are while somebody holds them: a frame as it was received, a
// caller's buffer, or memory of their own. What goes into a socket and what comes out of one is never copied for it.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

namespace coppice::actors {

struct SharedBytes {
  std::shared_ptr<void> owner;  // whoever holds this holds the bytes
  std::byte* data = nullptr;
  std::size_t size = 0;

  explicit operator bool() const { return data != nullptr; }
  std::span<const std::byte> view() const { return {data, size}; }
  // A received frame belongs to its one receiver, who may combine into it. Nobody else writes.
  std::span<std::byte> writable() const { return {data, size}; }

  static SharedBytes copy_of(std::span<const std::byte> bytes) {
    const std::shared_ptr<std::byte[]> own(new std::byte[bytes.size()]);
    if (!bytes.empty()) std::memcpy(own.get(), bytes.data(), bytes.size());
    return {own, own.get(), bytes.size()};
  }
};

}  // namespace coppice::actors
