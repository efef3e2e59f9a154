// gpu/file.hpp: whole files into memory, never more than was agreed to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

// Error: unreadable, naming the file and why (absent, not a plain file, larger than bytes_max).
Expected<std::vector<std::byte>> read_file(const std::filesystem::path& file, std::int64_t bytes_max);

}  // namespace coppice::gpu
