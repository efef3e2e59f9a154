// runtime/msgpack.hpp: the one place that unpacks msgpack, with limits (the library's own are 2^32 - 1).
#pragma once

#include <cstddef>
#include <msgpack.hpp>
#include <span>

#include "runtime/error.hpp"

namespace coppice::runtime {

struct UnpackLimits {
  std::size_t array = 65'536, map = 4'096, string = 16U << 20, binary = 64U << 20, depth = 16;
};

// Errors: bad_input, for bytes that are malformed, beyond a limit or followed by anything.
Expected<msgpack::object_handle> unpack(std::span<const std::byte> bytes, const UnpackLimits& limits = {});

}  // namespace coppice::runtime
