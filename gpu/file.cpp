#include "gpu/file.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace coppice::gpu {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  explicit operator bool() const { return number_ >= 0; }
  int number() const { return number_; }

 private:
  int number_;
};

// REQUIRES: no NUL in the name. O_NONBLOCK: opening a pipe must not wait for a writer.
int open_beneath(int directory, const std::string& name) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(::syscall(SYS_openat2, directory, name.c_str(), &how, sizeof how));
}

std::string refusal(int error) {
  if (error == EXDEV) return "it lies outside of the directory";
  if (error == ELOOP) return "symbolic links are not followed";
  if (error == ENOSYS) return "this kernel has no openat2, which Linux 5.6 brought";
  return std::strerror(error);
}

// Bytes that were read, at most those asked for.
std::size_t read_all(int file, std::byte* into, std::size_t bytes, std::int64_t offset) {
  std::size_t done = 0;
  while (done < bytes) {
    const auto got = ::pread(file, into + done, bytes - done, offset + static_cast<std::int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

}  // namespace

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

Expected<std::vector<std::byte>> read_beneath(const std::filesystem::path& directory, const std::string& name,
                                              std::int64_t offset, std::int64_t bytes) {
  const auto unreadable = [&](const std::string& why) {
    return unexpected(Error{ErrorCode::unreadable, (directory / name).string() + ": " + why});
  };
  if (name.empty() || name.find('\0') != std::string::npos) return unreadable("it is no file name");
  const Descriptor from(::open(directory.empty() ? "." : directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!from) return unreadable(std::strerror(errno));
  const Descriptor file(open_beneath(from.number(), name));
  if (!file) return unreadable(refusal(errno));
  struct stat about {};
  if (::fstat(file.number(), &about) != 0) return unreadable(std::strerror(errno));
  if (!S_ISREG(about.st_mode)) return unreadable("it is not a plain file");
  const std::int64_t size = about.st_size;
  if (offset < 0 || bytes < 0 || offset > size || bytes > size - offset)
    return unreadable(std::to_string(bytes) + " bytes from " + std::to_string(offset) + " on are not in its " +
                      std::to_string(size));
  std::vector<std::byte> out(static_cast<std::size_t>(bytes));
  if (read_all(file.number(), out.data(), out.size(), offset) != out.size())
    return unreadable("it was cut short while it was read");
  return out;
}

}  // namespace coppice::gpu
