// gpu/error.hpp: what can go wrong below actors/ when nets are read, compiled and run.
#pragma once

#include <cstdint>
#include <string>
#include <tl/expected.hpp>

namespace coppice::gpu {

enum class ErrorCode : std::uint8_t {
  unreadable = 1,        // a file that is not there, is too large or cannot be read
  malformed,             // bytes that are not what their format says
  unsupported_operator,  // a graph node that no device here runs
  shape_mismatch,        // tensors whose sizes do not fit one another
  device_unavailable,    // no driver, no plug-in, no such ordinal
  device_failed,         // the library under the device reported an error
};

struct Error {
  ErrorCode code;
  std::string what;  // one line: the file, node or tensor at fault and what to do
};

template <class T>
using Expected = tl::expected<T, Error>;

}  // namespace coppice::gpu
