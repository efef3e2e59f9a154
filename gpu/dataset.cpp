#include "gpu/dataset.hpp"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <array>
#include <memory>

namespace coppice::gpu {
namespace {

constexpr std::int64_t kItemsMax = 1 << 16, kSideMax = 64;
constexpr std::int64_t kChunk = 1 << 24;  // memory grows with what the file really holds

unexpected<Error> fault(ErrorCode code, const std::filesystem::path& file, const std::string& why) {
  return unexpected(Error{code, file.string() + ": " + why});
}

// The file itself, or its gzipped twin.
Expected<std::filesystem::path> find(const std::filesystem::path& directory, const std::string& name) {
  for (const auto& candidate : {directory / name, directory / (name + ".gz")})
    if (std::error_code ignored; std::filesystem::is_regular_file(candidate, ignored)) return candidate;
  return fault(ErrorCode::unreadable, directory / (name + ".gz"),
               directory == fashion_mnist_directory()
                   ? "not there: install Debian's package dataset-fashion-mnist (bash apps/deps)"
                   : "not there: the directory must hold the four IDX files of MNIST's format");
}

// gzread reads plain files as they are.
class Stream {
 public:
  explicit Stream(const std::filesystem::path& file) : file_(file), handle_(::gzopen(file.c_str(), "rb"), &::gzclose) {}

  Expected<std::uint32_t> word(const std::string& field) {
    std::array<unsigned char, 4> b{};
    if (!handle_) return fault(ErrorCode::unreadable, file_, "cannot be opened");
    if (::gzread(handle_.get(), b.data(), 4) != 4)
      return fault(ErrorCode::malformed, file_, "ends before its field \"" + field + "\"");
    return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
  }

  Expected<std::vector<std::uint8_t>> bytes(std::int64_t count, const std::string& field) {
    std::vector<std::uint8_t> out;
    std::int64_t got = 0;
    while (got < count) {
      const auto wanted = std::min(count - got, kChunk);
      out.resize(static_cast<std::size_t>(got + wanted));
      const int n = ::gzread(handle_.get(), out.data() + got, static_cast<unsigned>(wanted));
      if (n <= 0) break;
      got += n;
    }
    if (got != count)
      return fault(ErrorCode::malformed, file_,
                   "its field \"" + field + "\" has " + std::to_string(got) + " of " + std::to_string(count) +
                       " bytes: the file is truncated or corrupt");
    // Of a file that lacks its last bytes, gzread gives what there is; gzerror alone tells.
    char more = 0;
    const int after = ::gzread(handle_.get(), &more, 1);
    int status = Z_OK;
    ::gzerror(handle_.get(), &status);
    if (after != 0 || status != Z_OK)
      return fault(ErrorCode::malformed, file_, "goes on or is corrupt after its field \"" + field + "\"");
    return out;
  }

 private:
  std::filesystem::path file_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> handle_;
};

// Magic and sizes of an IDX file of bytes with `axes` axes.
Expected<std::vector<std::int64_t>> header(Stream& stream, const std::filesystem::path& file, unsigned axes) {
  const auto magic = stream.word("magic");
  if (!magic) return unexpected(magic.error());
  if (*magic != (0x800U | axes))
    return fault(ErrorCode::malformed, file,
                 "its field \"magic\" is " + std::to_string(*magic) + ", not " + std::to_string(0x800U | axes) +
                     " (IDX of bytes)");
  std::vector<std::int64_t> sizes;
  const std::array<const char*, 3> names{"count", "rows", "columns"};
  for (unsigned i = 0; i < axes; ++i) {
    const auto size = stream.word(names[i]);
    if (!size) return unexpected(size.error());
    if (*size < 1 || *size > static_cast<std::uint32_t>(i == 0 ? kItemsMax : kSideMax))
      return fault(ErrorCode::malformed, file,
                   std::string("its field \"") + names[i] + "\" is " + std::to_string(*size));
    sizes.push_back(*size);
  }
  return sizes;
}

}  // namespace

std::filesystem::path fashion_mnist_directory() { return "/usr/share/datasets/fashion-mnist"; }

Expected<Dataset> load_idx(const std::filesystem::path& directory, Split split) {
  const std::string prefix = split == Split::train ? "train" : "t10k";
  const auto images_file = find(directory, prefix + "-images-idx3-ubyte");
  if (!images_file) return unexpected(images_file.error());
  const auto labels_file = find(directory, prefix + "-labels-idx1-ubyte");
  if (!labels_file) return unexpected(labels_file.error());

  Dataset data;
  Stream images(*images_file);
  const auto sizes = header(images, *images_file, 3);
  if (!sizes) return unexpected(sizes.error());
  data.item = {1, (*sizes)[1], (*sizes)[2]};
  auto pixels = images.bytes((*sizes)[0] * elements(data.item), "pixels");
  if (!pixels) return unexpected(pixels.error());
  data.pixels = std::move(*pixels);

  Stream labels(*labels_file);
  const auto count = header(labels, *labels_file, 1);
  if (!count) return unexpected(count.error());
  if ((*count)[0] != (*sizes)[0])
    return fault(ErrorCode::malformed, *labels_file,
                 "its field \"count\" is " + std::to_string((*count)[0]) + ", but there are " +
                     std::to_string((*sizes)[0]) + " images");
  auto values = labels.bytes((*count)[0], "labels");
  if (!values) return unexpected(values.error());
  data.labels.assign(values->begin(), values->end());
  return data;
}

Normalisation measured(const Dataset& data, std::span<const std::int64_t> items) {
  const auto size = elements(data.item);
  double sum = 0, squares = 0;
  for (const auto index : items)
    for (std::int64_t i = 0; i < size; ++i) {
      const double value = data.pixels[static_cast<std::size_t>(index * size + i)] / 255.0;
      sum += value;
      squares += value * value;
    }
  const double count = static_cast<double>(size) * static_cast<double>(std::max<std::size_t>(items.size(), 1));
  const double mean = sum / count;
  return {static_cast<float>(mean), static_cast<float>(std::sqrt(std::max(squares / count - mean * mean, 1e-12)))};
}

void item(const Dataset& data, std::int64_t index, const Normalisation& normalisation, std::span<float> out) {
  const auto size = static_cast<std::size_t>(elements(data.item));
  const auto* pixels = data.pixels.data() + static_cast<std::size_t>(index) * size;
  for (std::size_t i = 0; i < size; ++i)
    out[i] = (static_cast<float>(pixels[i]) / 255.0F - normalisation.mean) / normalisation.deviation;
}

}  // namespace coppice::gpu
