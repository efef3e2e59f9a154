#include "collectives/reduction.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <type_traits>

namespace coppice::collectives {
namespace {

// ---- one step on two values -----------------------------------------------------------------------------------------

struct Sum {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;  // wraps around without undefined behaviour
      return static_cast<T>(static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
    } else {
      return a + b;
    }
  }
};
// The comparison that keeps `a` when it is a NaN, and takes `b` when that is one.
struct Min {
  template <class T>
  static T of(T a, T b) {
    return b < a || b != b ? b : a;
  }
};
struct Max {
  template <class T>
  static T of(T a, T b) {
    return b > a || b != b ? b : a;
  }
};

// ---- over buffers of any alignment ----------------------------------------------------------------------------------

// Blocks go through aligned memory: the compiler makes vector loads of the copies, and no type is punned.
constexpr std::size_t kBlock = 512;  // elements

template <class T, class Step>
void walk(std::span<std::byte> into, std::span<const std::byte> from) {
  alignas(64) std::array<T, kBlock> a;
  alignas(64) std::array<T, kBlock> b;
  for (std::size_t at = 0; at < into.size(); at += kBlock * sizeof(T)) {
    const std::size_t bytes = std::min(kBlock * sizeof(T), into.size() - at);
    std::memcpy(a.data(), into.data() + at, bytes);
    std::memcpy(b.data(), from.data() + at, bytes);
    const std::size_t count = bytes / sizeof(T);
    for (std::size_t i = 0; i < count; ++i) a[i] = Step::of(a[i], b[i]);
    std::memcpy(into.data() + at, a.data(), bytes);
  }
}

// Half: Eigen::half or Eigen::bfloat16, widened to float32 for the step and rounded back.
template <class Half, class Step>
void walk_half(std::span<std::byte> into, std::span<const std::byte> from) {
  using Narrow = Eigen::Array<Half, Eigen::Dynamic, 1, 0, kBlock, 1>;
  using Wide = Eigen::Array<float, Eigen::Dynamic, 1, 0, kBlock, 1>;
  Narrow narrow;
  Wide a, b;
  for (std::size_t at = 0; at < into.size(); at += kBlock * sizeof(Half)) {
    const std::size_t bytes = std::min(kBlock * sizeof(Half), into.size() - at);
    const auto count = static_cast<Eigen::Index>(bytes / sizeof(Half));
    narrow.resize(count);
    std::memcpy(static_cast<void*>(narrow.data()), into.data() + at, bytes);
    a = narrow.template cast<float>();
    std::memcpy(static_cast<void*>(narrow.data()), from.data() + at, bytes);
    b = narrow.template cast<float>();
    for (Eigen::Index i = 0; i < count; ++i) a[i] = Step::of(a[i], b[i]);
    narrow = a.template cast<Half>();
    std::memcpy(into.data() + at, static_cast<const void*>(narrow.data()), bytes);
  }
}

template <class Step>
void step(Element element, std::span<std::byte> into, std::span<const std::byte> from) {
  switch (element) {
    case Element::float32: return walk<float, Step>(into, from);
    case Element::float16: return walk_half<Eigen::half, Step>(into, from);
    case Element::bfloat16: return walk_half<Eigen::bfloat16, Step>(into, from);
    case Element::int32: return walk<std::int32_t, Step>(into, from);
    case Element::int64: return walk<std::int64_t, Step>(into, from);
    case Element::bytes: return walk<std::uint8_t, Step>(into, from);
  }
}

template <class T, class Wide = T>
void divide(std::span<std::byte> buffer, int ranks) {
  for (std::size_t at = 0; at < buffer.size(); at += sizeof(T)) {
    T value;
    std::memcpy(static_cast<void*>(&value), buffer.data() + at, sizeof(T));
    value = static_cast<T>(static_cast<Wide>(value) / static_cast<Wide>(ranks));
    std::memcpy(buffer.data() + at, static_cast<const void*>(&value), sizeof(T));
  }
}

template <class Enum, std::size_t N>
std::optional<Enum> named(const Enum (&all)[N], std::string_view word) {
  for (const Enum one : all)
    if (name(one) == word) return one;
  return std::nullopt;
}

}  // namespace

std::string_view name(Element element) {
  switch (element) {
    case Element::float32: return "float32";
    case Element::float16: return "float16";
    case Element::bfloat16: return "bfloat16";
    case Element::int32: return "int32";
    case Element::int64: return "int64";
    case Element::bytes: return "bytes";
  }
  return "";
}

std::string_view name(Reduction reduction) {
  switch (reduction) {
    case Reduction::sum: return "sum";
    case Reduction::min: return "min";
    case Reduction::max: return "max";
    case Reduction::avg: return "avg";
  }
  return "";
}

std::optional<Element> element_of(std::string_view word) { return named(kElements, word); }
std::optional<Reduction> reduction_of(std::string_view word) { return named(kReductions, word); }

std::size_t size_of(Element element) {
  switch (element) {
    case Element::float32:
    case Element::int32: return 4;
    case Element::float16:
    case Element::bfloat16: return 2;
    case Element::int64: return 8;
    case Element::bytes: return 1;
  }
  return 1;
}

std::vector<std::byte> elements_of(Element element, std::span<const int> values) {
  std::vector<std::byte> out(values.size() * size_of(element));
  const auto put = [&](std::size_t at, const auto& value) {
    std::memcpy(out.data() + at * sizeof value, static_cast<const void*>(&value), sizeof value);
  };
  for (std::size_t at = 0; at < values.size(); ++at) {
    const int value = values[at];
    switch (element) {
      case Element::float32: put(at, static_cast<float>(value)); break;
      case Element::float16: put(at, Eigen::half(static_cast<float>(value))); break;
      case Element::bfloat16: put(at, Eigen::bfloat16(static_cast<float>(value))); break;
      case Element::int32: put(at, static_cast<std::int32_t>(value)); break;
      case Element::int64: put(at, static_cast<std::int64_t>(value)); break;
      case Element::bytes: put(at, static_cast<std::uint8_t>(value)); break;
    }
  }
  return out;
}

void combine(Element element, Reduction reduction, std::span<std::byte> into, std::span<const std::byte> from) {
  assert(into.size() == from.size() && into.size() % size_of(element) == 0);
  switch (reduction) {
    case Reduction::sum:
    case Reduction::avg: return step<Sum>(element, into, from);
    case Reduction::min: return step<Min>(element, into, from);
    case Reduction::max: return step<Max>(element, into, from);
  }
}

void finish(Element element, Reduction reduction, int ranks, std::span<std::byte> buffer) {
  if (reduction != Reduction::avg) return;
  switch (element) {
    case Element::float32: return divide<float>(buffer, ranks);
    case Element::float16: return divide<Eigen::half, float>(buffer, ranks);
    case Element::bfloat16: return divide<Eigen::bfloat16, float>(buffer, ranks);
    case Element::int32: return divide<std::int32_t, std::int64_t>(buffer, ranks);
    case Element::int64: return divide<std::int64_t>(buffer, ranks);
    case Element::bytes: return divide<std::uint8_t, int>(buffer, ranks);
  }
}

}  // namespace coppice::collectives
