// Reductions in plain words, one element after another, for checks on a GPU and without.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "gpu/element.hpp"

namespace coppice::gpu::reference {

// A floating-point format of 16 bits: a sign, an exponent, and so many bits of mantissa.
struct Half {
  int mantissa;
  int bias() const { return (1 << (14 - mantissa)) - 1; }
  float open(std::uint16_t bits) const {
    const int exponent = (bits & 0x7fff) >> mantissa, low = bits & ((1 << mantissa) - 1);
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 2 * bias() + 1) return static_cast<float>(low ? NAN : sign * INFINITY);
    const int whole = exponent == 0 ? low : low + (1 << mantissa);
    return static_cast<float>(sign * std::ldexp(whole, std::max(exponent, 1) - bias() - mantissa));
  }
  std::uint16_t close(float value) const {  // to nearest even
    const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    const int infinite = (2 * bias() + 1) << mantissa;
    if (std::isnan(value)) return static_cast<std::uint16_t>(infinite | 1 << (mantissa - 1));
    if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinite);
    const double size = std::abs(static_cast<double>(value));
    const int exponent = size > 0 ? std::max(std::ilogb(size), 1 - bias()) : 1 - bias();
    const auto whole = static_cast<int>(std::nearbyint(std::ldexp(size, mantissa - exponent)));
    // A carry out of the mantissa lands in the exponent, and one out of that is infinity, as it should be.
    const int bits = ((exponent + bias() - 1) << mantissa) + whole;
    return static_cast<std::uint16_t>(sign | std::min(bits, infinite));
  }
};
inline constexpr Half kFloat16{10}, kBfloat16{7};

template <class T>
T step(Reduction reduction, T a, T b) {
  if (b != b) return b;  // a NaN of either side stays one
  if (reduction == Reduction::min) return b < a ? b : a;
  if (reduction == Reduction::max) return b > a ? b : a;
  if constexpr (std::is_floating_point_v<T>) {
    return a + b;
  } else {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
  }
}

// f(element of a, element of b), or f(element of a) where there is no b, for each; what comes of it goes to a.
template <class T, class Does>
void each(std::span<std::byte> a, std::span<const std::byte> b, const Does& does) {
  for (std::size_t at = 0; at < a.size(); at += sizeof(T)) {
    T x, y{};
    std::memcpy(&x, a.data() + at, sizeof x);
    if (!b.empty()) std::memcpy(&y, b.data() + at, sizeof y);
    x = static_cast<T>(does(x, y));
    std::memcpy(a.data() + at, &x, sizeof x);
  }
}

// into[i] = into[i] ∘ from[i]
inline void combine(Element element, Reduction reduction, std::span<std::byte> into, std::span<const std::byte> from) {
  const auto plain = [&](auto a, auto b) { return step(reduction, a, b); };
  const auto half = [&](const Half& format) {
    each<std::uint16_t>(into, from, [&](std::uint16_t a, std::uint16_t b) {
      return format.close(step(reduction, format.open(a), format.open(b)));
    });
  };
  switch (element) {
    case Element::float32:
      return each<float>(into, from, plain);
    case Element::float16:
      return half(kFloat16);
    case Element::bfloat16:
      return half(kBfloat16);
    case Element::int32:
      return each<std::int32_t>(into, from, plain);
    case Element::int64:
      return each<std::int64_t>(into, from, plain);
    case Element::bytes:
      return each<std::uint8_t>(into, from, plain);
  }
}

inline void average(Element element, int ranks, std::span<std::byte> buffer) {
  const auto half = [&](const Half& format) {
    each<std::uint16_t>(buffer, {}, [&](std::uint16_t a, std::uint16_t) {
      return format.close(format.open(a) / static_cast<float>(ranks));
    });
  };
  switch (element) {
    case Element::float32:
      return each<float>(buffer, {}, [&](float a, float) { return a / static_cast<float>(ranks); });
    case Element::float16:
      return half(kFloat16);
    case Element::bfloat16:
      return half(kBfloat16);
    case Element::int32:
      return each<std::int32_t>(buffer, {}, [&](std::int64_t a, auto) { return a / ranks; });
    case Element::int64:
      return each<std::int64_t>(buffer, {}, [&](std::int64_t a, auto) { return a / ranks; });
    case Element::bytes:
      return each<std::uint8_t>(buffer, {}, [&](int a, auto) { return a / ranks; });
  }
}

// Elements of every size and sign, infinities and NaNs among them.
inline std::vector<std::byte> any_elements(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (auto& byte : out) byte = static_cast<std::byte>(random() >> 32);
  // Random bits are seldom special: here and there all bits of an exponent are set, or all are clear.
  for (std::size_t at = 0; at + 8 <= bytes; at += 8)
    if (const auto what = random() % 16; what < 4)
      for (std::size_t i = 0; i < 8; ++i)
        out[at + i] = std::byte(what == 0 ? 0x7f : what == 1 ? 0xff : what == 2 ? 0x80 * (i % 2) : 0);
  return out;
}

// The same bits, but for what kind of NaN one is: processors and GPUs differ in that.
inline bool same(Element element, std::span<const std::byte> a, std::span<const std::byte> b) {
  const auto nan = [&](std::span<const std::byte> of, std::size_t at) {
    std::uint16_t bits = 0;
    float value = 0;
    if (element == Element::float32) std::memcpy(&value, of.data() + at, sizeof value);
    if (element == Element::float16 || element == Element::bfloat16) {
      std::memcpy(&bits, of.data() + at, sizeof bits);
      value = (element == Element::float16 ? kFloat16 : kBfloat16).open(bits);
    }
    return std::isnan(value);
  };
  const auto size = size_of(element);
  for (std::size_t at = 0; at < a.size(); at += size)
    if (std::memcmp(a.data() + at, b.data() + at, size) != 0 && !(nan(a, at) && nan(b, at))) return false;
  return a.size() == b.size();
}

}  // namespace coppice::gpu::reference
