// collectives/reduction.hpp: what a reduction does to two buffers, element by element. Pure.
//
// Buffers may lie anywhere: what arrives over a socket is seldom aligned. float16 and bfloat16 are added in float32 and
// rounded to nearest even at every step; integers wrap around.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace coppice::collectives {

enum class Element : std::uint8_t { float32, float16, bfloat16, int32, int64, bytes };
enum class Reduction : std::uint8_t { sum, min, max, avg };

inline constexpr Element kElements[] = {Element::float32, Element::float16, Element::bfloat16,
                                        Element::int32,   Element::int64,   Element::bytes};
inline constexpr Reduction kReductions[] = {Reduction::sum, Reduction::min, Reduction::max, Reduction::avg};

std::string_view name(Element element);
std::string_view name(Reduction reduction);
std::optional<Element> element_of(std::string_view word);
std::optional<Reduction> reduction_of(std::string_view word);

std::size_t size_of(Element element);  // bytes of one

// Whole numbers as elements of a type, one after another; bytes take them modulo 256.
std::vector<std::byte> elements_of(Element element, std::span<const int> values);

// into[i] = into[i] ∘ from[i]; avg adds. Bytes are unsigned numbers of eight bits. A NaN of either side stays one under
// every operation. REQUIRES: equal sizes, whole elements.
void combine(Element element, Reduction reduction, std::span<std::byte> into, std::span<const std::byte> from);

// What is left to do once all ranks are in: avg divides by their number; integers drop the remainder.
void finish(Element element, Reduction reduction, int ranks, std::span<std::byte> buffer);

}  // namespace coppice::collectives
