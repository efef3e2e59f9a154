// tests/sim/seeds.hpp: which seeds a test runs: COPPICE_SIM_SEED=N that one alone, COPPICE_SIM_SEEDS=COUNT so many.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <vector>

namespace sim {

inline std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

inline std::vector<std::uint64_t> seeds(std::uint64_t otherwise) {
  if (const auto one = setting("COPPICE_SIM_SEED", 0)) return {one};
  std::vector<std::uint64_t> all;
  for (std::uint64_t seed = 1; seed <= setting("COPPICE_SIM_SEEDS", otherwise); ++seed) all.push_back(seed);
  return all;
}

// Whether fewer runs were asked for than a statement about all of them needs.
inline bool only_some_seeds(std::uint64_t all) {
  return setting("COPPICE_SIM_SEED", 0) || setting("COPPICE_SIM_SEEDS", all) < all;
}

}  // namespace sim
