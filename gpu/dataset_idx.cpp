#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>

#include "gpu/dataset.hpp"
#include "gpu/file.hpp"

#ifdef COPPICE_GPU_ZLIB
#include <zlib.h>
#endif
#ifdef COPPICE_GPU_JSON
#include <nlohmann/json.hpp>
#endif

namespace coppice::gpu {
namespace {

constexpr std::int64_t kItemsMax = 1 << 20, kSideMax = 256, kBytesMax = 1 << 30, kJsonBytesMax = 1 << 24;
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

#ifdef COPPICE_GPU_ZLIB
// gzread reads plain files as they are.
class Bytes {
 public:
  explicit Bytes(const std::filesystem::path& file) : handle_(::gzopen(file.c_str(), "rb"), &::gzclose) {}
  std::string refusal() const { return handle_ ? "" : "cannot be opened"; }
  std::int64_t read(void* out, std::int64_t count) {
    return ::gzread(handle_.get(), out, static_cast<unsigned>(count));
  }
  // Of a file that lacks its last bytes, gzread gives what there is; gzerror alone tells.
  bool ended_well() {
    char more = 0;
    const int after = ::gzread(handle_.get(), &more, 1);
    int status = Z_OK;
    ::gzerror(handle_.get(), &status);
    return after == 0 && status == Z_OK;
  }

 private:
  std::unique_ptr<gzFile_s, int (*)(gzFile)> handle_;
};
#else
class Bytes {
 public:
  explicit Bytes(const std::filesystem::path& file)
      : handle_(std::fopen(file.c_str(), "rb"), &std::fclose), gzipped_(file.extension() == ".gz") {}
  std::string refusal() const {
    if (gzipped_) return "gzipped, and this build has no zlib: unpack it with gunzip";
    return handle_ ? "" : "cannot be opened";
  }
  std::int64_t read(void* out, std::int64_t count) {
    return static_cast<std::int64_t>(std::fread(out, 1, static_cast<std::size_t>(count), handle_.get()));
  }
  bool ended_well() { return std::fgetc(handle_.get()) == EOF && !std::ferror(handle_.get()); }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> handle_;
  bool gzipped_;
};
#endif

class Stream {
 public:
  explicit Stream(const std::filesystem::path& file) : file_(file), bytes_(file) {}

  Expected<std::uint32_t> word(const std::string& field) {
    std::array<unsigned char, 4> b{};
    if (const auto why = bytes_.refusal(); !why.empty()) return fault(ErrorCode::unreadable, file_, why);
    if (bytes_.read(b.data(), 4) != 4)
      return fault(ErrorCode::malformed, file_, "ends before its field \"" + field + "\"");
    return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
  }

  Expected<std::vector<std::uint8_t>> bytes(std::int64_t count, const std::string& field) {
    std::vector<std::uint8_t> out;
    std::int64_t got = 0;
    while (got < count) {
      const auto wanted = std::min(count - got, kChunk);
      out.resize(static_cast<std::size_t>(got + wanted));
      const auto n = bytes_.read(out.data() + got, wanted);
      if (n <= 0) break;
      got += n;
    }
    if (got != count)
      return fault(ErrorCode::malformed, file_,
                   "its field \"" + field + "\" has " + std::to_string(got) + " of " + std::to_string(count) +
                       " bytes: the file is truncated or corrupt");
    if (!bytes_.ended_well())
      return fault(ErrorCode::malformed, file_, "goes on or is corrupt after its field \"" + field + "\"");
    return out;
  }

 private:
  std::filesystem::path file_;
  Bytes bytes_;
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

#ifdef COPPICE_GPU_JSON
// Of classes.json, or none where there is no such file.
Expected<std::vector<std::string>> names_beside(const std::filesystem::path& directory, std::size_t needed) {
  const auto file = directory / "classes.json";
  if (std::error_code ignored; !std::filesystem::exists(file, ignored)) return std::vector<std::string>{};
  const auto bytes = read_file(file, kJsonBytesMax);
  if (!bytes) return unexpected(bytes.error());
  const auto* text = reinterpret_cast<const char*>(bytes->data());
  const auto json = nlohmann::json::parse(text, text + bytes->size(), nullptr, false);
  if (!json.is_object() || !json.contains("classes") || !json["classes"].is_array())
    return fault(ErrorCode::malformed, file, "its field \"classes\" must be a list of names");
  std::vector<std::string> names;
  for (const auto& name : json["classes"]) {
    if (!name.is_string()) return fault(ErrorCode::malformed, file, "its field \"classes\" must be a list of names");
    names.push_back(name.get<std::string>());
  }
  if (names.size() < needed)
    return fault(ErrorCode::malformed, file,
                 "its field \"classes\" has " + std::to_string(names.size()) + " names, but there is label " +
                     std::to_string(needed - 1));
  return names;
}
#else
Expected<std::vector<std::string>> names_beside(const std::filesystem::path&, std::size_t) {
  return std::vector<std::string>{};
}
#endif

// Those of Debian's package, whose files do not say.
std::vector<std::string> fashion_mnist_names() {
  return {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"};
}

}  // namespace

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
  if ((*sizes)[0] * elements(data.item) > kBytesMax)
    return fault(ErrorCode::malformed, *images_file,
                 "its field \"pixels\" has more than the " + std::to_string(kBytesMax) + " bytes that are read");
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
  auto names = names_beside(directory, std::size_t{1} + *std::ranges::max_element(data.labels));
  if (!names) return unexpected(names.error());
  data.class_names = std::move(*names);
  if (data.class_names.empty() && directory == fashion_mnist_directory()) data.class_names = fashion_mnist_names();
  return data;
}

}  // namespace coppice::gpu
