#include "coding/base64.hpp"

#include <array>
#include <cstdint>

namespace coppice::coding {
namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::uint8_t kNone = 0xFF;

constexpr std::array<std::uint8_t, 256> inverse_alphabet() {
  std::array<std::uint8_t, 256> values{};
  values.fill(kNone);
  for (std::size_t i = 0; i < kAlphabet.size(); ++i)
    values[static_cast<unsigned char>(kAlphabet[i])] = static_cast<std::uint8_t>(i);
  return values;
}

constexpr auto kValues = inverse_alphabet();

}  // namespace

std::string base64_encode(std::span<const std::byte> bytes) {
  std::string text;
  text.reserve(base64_length(bytes.size()));
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t count = bytes.size() - i < 3 ? bytes.size() - i : 3;
    std::uint32_t bits = 0;
    for (std::size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (j < count ? std::to_integer<std::uint32_t>(bytes[i + j]) : 0);
    for (std::size_t j = 0; j < 4; ++j) text += j <= count ? kAlphabet[bits >> (18 - 6 * j) & 63U] : '=';
  }
  return text;
}

bool base64_decode(std::string_view text, std::span<std::byte> out) {
  if (text.size() != base64_length(out.size())) return false;
  std::size_t written = 0;
  for (std::size_t i = 0; i < text.size(); i += 4) {
    const std::size_t count = out.size() - written < 3 ? out.size() - written : 3;
    std::uint32_t bits = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      const char letter = text[i + j];
      if (j > count) {
        if (letter != '=') return false;
        bits <<= 6;
        continue;
      }
      const std::uint8_t value = kValues[static_cast<unsigned char>(letter)];
      if (value == kNone) return false;
      bits = bits << 6 | value;
    }
    for (std::size_t j = 0; j < count; ++j) out[written++] = static_cast<std::byte>(bits >> (16 - 8 * j) & 0xFFU);
    // One text for one value: what is left after the bytes must be zero.
    if (count < 3 && (bits & ((1U << (24 - 8 * count)) - 1U)) != 0) return false;
  }
  return true;
}

}  // namespace coppice::coding
