// gpu/npy.hpp: arrays as NumPy's .npy files (format 1.0 and 2.0, C order): float32, and uint8 read as float32.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

struct Array {
  Dims dims;  // may be empty: a scalar
  std::vector<float> values;
};

// Errors: unreadable, malformed; at most 1 GiB is read, and never more than the file has.
Expected<Array> load_npy(const std::filesystem::path& file);
// Writes format 1.0. REQUIRES: values are as many as dims say. Errors: shape_mismatch, unreadable (not writable).
Expected<void> save_npy(const std::filesystem::path& file, const Dims& dims, std::span<const float> values);

}  // namespace coppice::gpu
