// coding/base64.hpp: RFC 4648 base64 with padding. Private to coding/.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace coppice::coding {

std::string base64_encode(std::span<const std::byte> bytes);

// Strict: only the alphabet, padding where it belongs, no spare bits set, and exactly out.size() bytes.
// False otherwise; out is then unspecified. Allocates nothing: the caller has bounded out.
bool base64_decode(std::string_view text, std::span<std::byte> out);

// Characters that `bytes` bytes take.
constexpr std::size_t base64_length(std::size_t bytes) { return bytes / 3 * 4 + (bytes % 3 != 0 ? 4 : 0); }

}  // namespace coppice::coding
