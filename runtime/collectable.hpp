// runtime/collectable.hpp: the C++ types that collectives take.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "collectives/reduction.hpp"

namespace coppice::runtime {

struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

template <class T>
inline constexpr collectives::Element kElementOf = collectives::Element::bytes;
template <>
inline constexpr collectives::Element kElementOf<float> = collectives::Element::float32;
template <>
inline constexpr collectives::Element kElementOf<float16> = collectives::Element::float16;
template <>
inline constexpr collectives::Element kElementOf<bfloat16> = collectives::Element::bfloat16;
template <>
inline constexpr collectives::Element kElementOf<std::int32_t> = collectives::Element::int32;
template <>
inline constexpr collectives::Element kElementOf<std::int64_t> = collectives::Element::int64;

template <class T>
concept Collectable = std::same_as<T, float> || std::same_as<T, float16> || std::same_as<T, bfloat16> ||
                      std::same_as<T, std::int32_t> || std::same_as<T, std::int64_t> || std::same_as<T, std::byte>;

}  // namespace coppice::runtime
