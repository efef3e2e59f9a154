#include "gpu/npy.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>

#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr std::int64_t kBytesMax = std::int64_t{1} << 30;
constexpr std::size_t kHeaderMax = 65'535;

unexpected<Error> malformed(const std::filesystem::path& file, const std::string& why) {
  return unexpected(Error{ErrorCode::malformed, file.string() + ": " + why});
}

// "3, 4" and "3," and "" to sizes whose product is at most kBytesMax; false when it is something else.
bool parse_shape(const std::string& text, Dims& dims) {
  std::int64_t product = 1;
  std::size_t at = 0;
  const auto skip_spaces = [&] { at = std::min(text.find_first_not_of(' ', at), text.size()); };
  for (skip_spaces(); at < text.size(); skip_spaces()) {
    const std::size_t end = std::min(text.find_first_not_of("0123456789", at), text.size());
    if (end == at || end - at > 10) return false;
    const auto dim = std::stoll(text.substr(at, end - at));
    if (dims.size() == 8 || (dim > 0 && product > kBytesMax / dim)) return false;
    dims.push_back(dim);
    product *= dim;
    at = end;
    skip_spaces();
    if (at < text.size() && text[at++] != ',') return false;
  }
  return true;
}

}  // namespace

Expected<Array> load_npy(const std::filesystem::path& file) {
  const auto bytes = read_file(file, kBytesMax);
  if (!bytes) return unexpected(bytes.error());
  const auto* data = reinterpret_cast<const unsigned char*>(bytes->data());
  if (bytes->size() < 12 || std::memcmp(data, "\x93NUMPY", 6) != 0) return malformed(file, "not a .npy file");
  const int version = data[6];
  const std::size_t prefix = version == 1 ? 10 : 12;
  std::size_t length = std::size_t{data[8]} | std::size_t{data[9]} << 8;
  if (version == 2) length |= std::size_t{data[10]} << 16 | std::size_t{data[11]} << 24;
  if (version < 1 || version > 2 || length > kHeaderMax || prefix + length > bytes->size())
    return malformed(file, "its header is cut short or of an unknown version");

  const std::string header(reinterpret_cast<const char*>(data) + prefix, length);
  const bool floats = header.find("'descr': '<f4'") != std::string::npos;
  if (!floats && header.find("'descr': '|u1'") == std::string::npos)
    return malformed(file, "neither float32 (descr <f4) nor uint8; save it with .astype(\"float32\")");
  if (header.find("'fortran_order': False") == std::string::npos)
    return malformed(file, "not in C order; save numpy.ascontiguousarray of it");
  const auto open = header.find("'shape': (");
  const auto close = open == std::string::npos ? open : header.find(')', open);
  if (close == std::string::npos) return malformed(file, "its header has no shape");
  Array array;
  if (!parse_shape(header.substr(open + 10, close - open - 10), array.dims))
    return malformed(file, "its shape cannot be read or is too large");

  const auto count = static_cast<std::size_t>(elements(array.dims));
  if (bytes->size() - prefix - length != count * (floats ? sizeof(float) : 1))
    return malformed(file, "its data is not what its shape " + to_string(array.dims) + " needs");
  const auto* from = data + prefix + length;
  if (!floats) {
    array.values.assign(from, from + count);
  } else {
    array.values.resize(count);
    if (count > 0) std::memcpy(array.values.data(), from, count * sizeof(float));
  }
  return array;
}

Expected<void> save_npy(const std::filesystem::path& file, const Dims& dims, std::span<const float> values) {
  if (elements(dims) != static_cast<std::int64_t>(values.size()))
    return unexpected(Error{ErrorCode::shape_mismatch, file.string() + ": " + std::to_string(values.size()) +
                                                           " numbers are not " + to_string(dims)});
  std::string shape;
  for (const auto dim : dims) shape += std::to_string(dim) + ",";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';  // as NumPy aligns it
  header += '\n';
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  const std::array<char, 10> magic{'\x93',
                                   'N',
                                   'U',
                                   'M',
                                   'P',
                                   'Y',
                                   1,
                                   0,
                                   static_cast<char>(header.size() & 0xFF),
                                   static_cast<char>(header.size() >> 8)};
  out.write(magic.data(), magic.size());
  out.write(header.data(), static_cast<std::streamsize>(header.size()));
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
  if (!out.flush()) return unexpected(Error{ErrorCode::unreadable, file.string() + ": cannot be written"});
  return {};
}

}  // namespace coppice::gpu
