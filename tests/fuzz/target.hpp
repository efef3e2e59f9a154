// A fuzz target: libFuzzer's entry point, and the inputs that mutation starts from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace coppice::fuzz {

std::vector<std::string> seeds();

// Beyond crashes: what must hold whatever the bytes say.
inline void require(bool holds) {
  if (!holds) __builtin_trap();
}

}  // namespace coppice::fuzz
