#include "gpu/npy.hpp"

#include <cstring>
#include <fstream>

#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr std::int64_t kBytesMax = std::int64_t{1} << 30;

tl::unexpected<Error> malformed(const std::filesystem::path& file, const std::string& why) {
  return tl::unexpected(Error{ErrorCode::malformed, file.string() + ": " + why});
}

}  // namespace

Expected<Array> load_npy(const std::filesystem::path& file) {
  const auto bytes = read_file(file, kBytesMax);
  if (!bytes) return tl::unexpected(bytes.error());
  const auto* data = reinterpret_cast<const unsigned char*>(bytes->data());
  if (bytes->size() < 12 || std::memcmp(data, "\x93NUMPY", 6) != 0) return malformed(file, "not a .npy file");
  const std::size_t prefix = data[6] == 1 ? 10 : 12;
  const std::size_t length = data[6] == 1 ? std::size_t{data[8]} | std::size_t{data[9]} << 8
                                          : std::size_t{data[8]} | std::size_t{data[9]} << 8 | std::size_t{data[10]} << 16 | std::size_t{data[11]} << 24;
  if (data[6] > 2 || length > 65'536 || prefix + length > bytes->size()) return malformed(file, "its header is cut short or of an unknown version");
  const std::string header(reinterpret_cast<const char*>(data) + prefix, length);
  if (header.find("'descr': '<f4'") == std::string::npos) return malformed(file, "not float32 (descr <f4); save it with .astype(\"float32\")");
  if (header.find("'fortran_order': False") == std::string::npos) return malformed(file, "not in C order; save numpy.ascontiguousarray of it");
  const auto open = header.find("'shape': (");
  const auto close = open == std::string::npos ? open : header.find(')', open);
  if (close == std::string::npos) return malformed(file, "its header has no shape");
  Array array;
  std::int64_t count = 1;
  std::string number;
  for (const char c : header.substr(open + 10, close - open - 10) + ",") {
    if (c >= '0' && c <= '9' && number.size() < 12) {
      number += c;
    } else if (c == ',' && !number.empty()) {
      const auto dim = std::stoll(number);
      if (array.dims.size() == 8 || (dim > 0 && count > kBytesMax / dim)) return malformed(file, "its shape is too large");
      array.dims.push_back(dim);
      count *= dim;
      number.clear();
    } else if (c != ' ' && c != ',') {
      return malformed(file, "its shape cannot be read");
    }
  }
  if (bytes->size() - prefix - length != static_cast<std::size_t>(count) * sizeof(float))
    return malformed(file, "its data is not what its shape " + to_string(array.dims) + " needs");
  array.values.resize(static_cast<std::size_t>(count));
  if (count > 0) std::memcpy(array.values.data(), data + prefix + length, array.values.size() * sizeof(float));
  return array;
}

Expected<void> save_npy(const std::filesystem::path& file, const Dims& dims, std::span<const float> values) {
  std::string shape;
  for (const auto dim : dims) shape += std::to_string(dim) + ",";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';  // as NumPy aligns it
  header += '\n';
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  const char magic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  out.write(magic, sizeof magic);
  out.write(header.data(), static_cast<std::streamsize>(header.size()));
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
  if (!out.flush()) return tl::unexpected(Error{ErrorCode::unreadable, file.string() + ": cannot be written"});
  return {};
}

}  // namespace coppice::gpu
