// gpu/element.hpp: what buffers on GPUs hold, and how two of them become one. Plain C++17, since nvcc compiles it too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coppice::gpu {

enum class Element : std::uint8_t { float32, float16, bfloat16, int32, int64, bytes };
enum class Reduction : std::uint8_t { sum, min, max, avg };

inline constexpr Element kElements[] = {Element::float32, Element::float16, Element::bfloat16,
                                        Element::int32,   Element::int64,   Element::bytes};
inline constexpr Reduction kReductions[] = {Reduction::sum, Reduction::min, Reduction::max, Reduction::avg};

constexpr std::size_t size_of(Element element) {  // bytes of one
  switch (element) {
    case Element::float32:
    case Element::int32:
      return 4;
    case Element::float16:
    case Element::bfloat16:
      return 2;
    case Element::int64:
      return 8;
    case Element::bytes:
      return 1;
  }
  return 1;
}

}  // namespace coppice::gpu
