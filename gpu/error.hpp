// gpu/error.hpp: what can go wrong below actors/ when nets are read, compiled and run.
#pragma once

#include <cstdint>
#include <string>

// The machine with the GPU may lack libexpected-dev; its compiler then has the standard's own.
#if __has_include(<tl/expected.hpp>) && !defined(COPPICE_GPU_STD_EXPECTED)
#include <tl/expected.hpp>
#define COPPICE_GPU_EXPECTED_FROM tl
#else
#include <expected>
#define COPPICE_GPU_EXPECTED_FROM std
#endif

namespace coppice::gpu {

enum class ErrorCode : std::uint8_t {
  unreadable = 1,        // a file that is not there, is too large or cannot be read or written
  malformed,             // bytes that are not what their format says
  unsupported_operator,  // a graph node that no device here runs
  shape_mismatch,        // tensors whose sizes do not fit one another
  device_unavailable,    // no driver, no plug-in, no such ordinal
  device_failed,         // the library under the device reported an error
  stopped,               // the caller asked for it: long work that can be taken up again
  replica_lost,          // another machine that trains the same net is gone or disagrees
};

struct Error {
  ErrorCode code;
  std::string what;  // one line: the file, node or tensor at fault and what to do
};

template <class T>
using Expected = COPPICE_GPU_EXPECTED_FROM::expected<T, Error>;
using COPPICE_GPU_EXPECTED_FROM::unexpected;

}  // namespace coppice::gpu

#undef COPPICE_GPU_EXPECTED_FROM
