#include "gpu/file.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>

namespace coppice::gpu {

Expected<std::vector<std::byte>> read_file(const std::filesystem::path& file, std::int64_t bytes_max) {
  const auto unreadable = [&](const std::string& why) {
    return unexpected(Error{ErrorCode::unreadable, file.string() + ": " + why});
  };
  std::error_code fault;
  const auto size = std::filesystem::file_size(file, fault);
  if (fault) return unreadable(fault.message());
  if (static_cast<std::int64_t>(size) > bytes_max)
    return unreadable(std::to_string(size) + " bytes are more than the " + std::to_string(bytes_max) +
                      " that are read");
  std::ifstream in(file, std::ios::binary);
  if (!in) return unreadable(std::strerror(errno));
  std::vector<std::byte> bytes(size);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (in.gcount() != static_cast<std::streamsize>(size)) return unreadable("it was cut short while it was read");
  return bytes;
}

}  // namespace coppice::gpu
