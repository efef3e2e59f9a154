// gpu/augment.hpp: which items a step sees and how they are changed: pure functions of the seed and the step, so that a
// training that is resumed needs no generator's state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu/trainer.hpp"

namespace coppice::gpu {

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers from every compiler and library.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream);
  std::uint64_t next();
  std::int64_t below(std::int64_t bound);  // 0 <= number < bound

 private:
  std::uint64_t state_;
};

// The order in which an epoch goes through count items.
std::vector<std::int64_t> shuffled(std::int64_t count, std::uint64_t seed, std::int64_t epoch);

// Items by their indices as float32 [indices, item]: normalised, shifted and mirrored as the step draws it for those that
// stand at `first` and after it in the step's batch.
void augmented(const Dataset& data, std::span<const std::int64_t> indices, const Normalisation& normalisation,
               const Augmentation& augmentation, std::uint64_t seed, std::int64_t step, std::int64_t first,
               std::span<float> out);

}  // namespace coppice::gpu
