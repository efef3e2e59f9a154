// gpu/class_groups.hpp: which classes share a sub-net.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

using ClassGroups = std::vector<std::vector<int>>;  // a partition of 0 .. classes - 1, each part ascending

// Runs of neighbours, as even as can be. REQUIRES: 1 <= groups <= classes.
ClassGroups contiguous_groups(int classes, int groups);

// Balanced k-means of the classes' mean features (sensAI, section 3): classes that look alike share a sub-net, and
// group sizes differ by one at most. features: [class][any]. The best of twenty starts, each improved until no exchange
// of two classes helps. Errors: shape_mismatch.
Expected<ClassGroups> similar_groups(const std::vector<std::vector<double>>& features, int groups, std::uint64_t seed);

// Errors: shape_mismatch naming the class that is missing, doubled or unknown.
Expected<void> check_groups(const ClassGroups& groups, int classes);

}  // namespace coppice::gpu
