// gpu/arena.hpp: where the intermediate values of a net lie in one block of memory.
#pragma once

#include <cstddef>
#include <vector>

namespace coppice::gpu {

// A buffer is needed from the step that writes it to the last step that reads it, both included.
struct Lifetime {
  std::size_t bytes = 0;
  int first = 0;
  int last = 0;
};

struct ArenaPlan {
  std::vector<std::size_t> offsets;  // of each buffer, in bytes, multiples of kArenaAlignment
  std::size_t bytes = 0;
};

inline constexpr std::size_t kArenaAlignment = 256;

// Buffers that are needed at one time never overlap. Largest first, each at the lowest place that is free.
// Why: the values of a small net then stay in the cache, since a layer writes where an earlier one read.
ArenaPlan plan_arena(const std::vector<Lifetime>& buffers);

}  // namespace coppice::gpu
