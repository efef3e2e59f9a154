// runtime/sha256.hpp: what a run of bytes is known by: a base net in its manifest, a bundle of weights on its way.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace coppice::runtime {

std::string sha256(std::span<const std::byte> bytes);  // 64 hex digits

}  // namespace coppice::runtime
