// gpu/file.hpp: files into memory, never more than was agreed to and never from elsewhere than was meant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

// Error: unreadable, naming the file and why (absent, not a plain file, larger than bytes_max).
Expected<std::vector<std::byte>> read_file(const std::filesystem::path& file, std::int64_t bytes_max);

// `bytes` bytes from `offset` on of the plain file `name` below `directory`. The kernel resolves the name (openat2,
// Linux 5.6): one that leads out of the directory, and any symbolic link below it, is refused, so that a file that
// names another cannot name what its owner may not read. Nothing is allocated before the file is known to be so long.
// Error: unreadable, naming the file and why.
Expected<std::vector<std::byte>> read_beneath(const std::filesystem::path& directory, const std::string& name,
                                              std::int64_t offset, std::int64_t bytes);

}  // namespace coppice::gpu
