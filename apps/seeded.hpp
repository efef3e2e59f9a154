// apps/seeded.hpp: random numbers that are the same everywhere: <random>'s distributions differ between libraries.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace coppice::apps {

class Seeded {  // SplitMix64
 public:
  explicit Seeded(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
  }
  double between(double low, double high) { return low + (high - low) * static_cast<double>(next() >> 11) * 0x1p-53; }
  std::size_t below(std::size_t count) { return static_cast<std::size_t>((next() >> 32) * count >> 32); }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  std::uint64_t state_;
};

// A seed of its own for each thing that is named: FNV-1a.
inline std::uint64_t seed_of(std::uint64_t seed, std::string_view what) {
  std::uint64_t hash = 0xCBF29CE484222325U ^ seed * 0x9E3779B97F4A7C15U;
  for (const char c : what) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  return hash;
}

}  // namespace coppice::apps
