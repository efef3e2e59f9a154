// A folder in ImageNet's layout: a directory a class, images in it; and what makes them all one size.
#include <algorithm>
#include <cmath>

#include "gpu/dataset.hpp"
#include "gpu/dataset_image.hpp"
#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kItemsMax = 1 << 20, kFileBytesMax = 1 << 26;
constexpr std::size_t kClassesMax = 1 << 16;
constexpr int kSideMax = 1024;

unexpected<Error> fault(ErrorCode code, const fs::path& file, const std::string& why) {
  return unexpected(Error{code, file.string() + ": " + why});
}

// ---- names ---------------------------------------------------------------------------------------------------------

bool is_image(const fs::path& file) {
  auto kind = file.extension().string();
  std::ranges::transform(kind, kind.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return kind == ".jpg" || kind == ".jpeg" || kind == ".png";
}

// What `wanted` says yes to, sorted: the order must not be the file system's.
template <class Wanted>
Expected<std::vector<fs::path>> entries(const fs::path& directory, const Wanted& wanted) {
  std::vector<fs::path> out;
  std::error_code failed;
  for (auto entry = fs::directory_iterator(directory, failed); !failed && entry != fs::directory_iterator();
       entry.increment(failed))
    if (std::error_code ignored; wanted(*entry, ignored)) out.push_back(entry->path());
  if (failed) return fault(ErrorCode::unreadable, directory, failed.message());
  std::ranges::sort(out);
  return out;
}

Expected<std::vector<std::string>> classes_in(const fs::path& directory) {
  const auto found = entries(directory, [](const fs::directory_entry& entry, std::error_code& ignored) {
    return entry.is_directory(ignored) && !entry.path().filename().string().starts_with('.');
  });
  if (!found) return unexpected(found.error());
  if (found->empty()) return fault(ErrorCode::malformed, directory, "must hold a directory for each class");
  if (found->size() > kClassesMax)
    return fault(ErrorCode::malformed, directory, std::to_string(found->size()) + " classes are more than are read");
  std::vector<std::string> names;
  for (const auto& path : *found) names.push_back(path.filename().string());
  return names;
}

// test/ or else val/; where there is no train/, the classes are those of what there is.
Expected<fs::path> part_of(const fs::path& directory, Split split) {
  std::error_code ignored;
  const auto names =
      split == Split::train ? std::vector<std::string>{"train"} : std::vector<std::string>{"test", "val"};
  for (const auto& name : names)
    if (fs::is_directory(directory / name, ignored)) return directory / name;
  return fault(ErrorCode::unreadable, directory / names.front(),
               split == Split::train ? "not there" : "not there, and no val/ beside it");
}

// ---- sizes ---------------------------------------------------------------------------------------------------------

// Which pixels along one axis make up pixel `first` and each after it, and how much each counts: a triangle as wide as
// two pixels of the result, so that nothing is skipped when a large image becomes small.
struct Taps {
  int first = 0;
  std::vector<float> weights;
};

std::vector<Taps> taps_of(int from, double scale, double offset, int count) {
  std::vector<Taps> out;
  const double reach = std::max(scale, 1.0);
  for (int i = 0; i < count; ++i) {
    const double centre = (i + offset + 0.5) * scale;
    Taps taps;
    taps.first = std::max(static_cast<int>(centre - reach + 0.5), 0);
    const int end = std::min(static_cast<int>(centre + reach + 0.5), from);
    double sum = 0;
    for (int j = taps.first; j < end; ++j) sum += std::max(0.0, 1 - std::abs(j + 0.5 - centre) / reach);
    for (int j = taps.first; j < end; ++j)
      taps.weights.push_back(static_cast<float>(std::max(0.0, 1 - std::abs(j + 0.5 - centre) / reach) / sum));
    out.push_back(std::move(taps));
  }
  return out;
}

// The middle `side` x `side` of the image whose shorter side is made `resize`; planes one after another.
void fit(const Image& image, int side, int resize, std::uint8_t* out) {
  const double scale = static_cast<double>(std::min(image.width, image.height)) / resize;
  const auto across = taps_of(image.width, scale, (image.width / scale - side) / 2, side);
  const auto down = taps_of(image.height, scale, (image.height / scale - side) / 2, side);
  const auto channels = static_cast<std::size_t>(image.channels), pitch = image.width * channels;
  const int top = down.front().first, bottom = down.back().first + static_cast<int>(down.back().weights.size());
  const auto width = static_cast<std::size_t>(side);
  std::vector<float> rows(static_cast<std::size_t>(bottom - top) * width * channels);  // narrowed, not yet lowered
  for (int y = top; y < bottom; ++y)
    for (std::size_t x = 0; x < width; ++x)
      for (std::size_t c = 0; c < channels; ++c) {
        float sum = 0;
        for (std::size_t t = 0; t < across[x].weights.size(); ++t)
          sum += across[x].weights[t] *
                 image.pixels[static_cast<std::size_t>(y) * pitch + (across[x].first + t) * channels + c];
        rows[(static_cast<std::size_t>(y - top) * width + x) * channels + c] = sum;
      }
  for (std::size_t c = 0; c < channels; ++c)
    for (std::size_t y = 0; y < width; ++y)
      for (std::size_t x = 0; x < width; ++x) {
        float sum = 0;
        for (std::size_t t = 0; t < down[y].weights.size(); ++t)
          sum += down[y].weights[t] * rows[((down[y].first - top + t) * width + x) * channels + c];
        out[(c * width + y) * width + x] = static_cast<std::uint8_t>(std::clamp(sum + 0.5F, 0.0F, 255.0F));
      }
}

// ---- the whole -----------------------------------------------------------------------------------------------------

struct Labelled {
  fs::path file;
  std::uint16_t label;
};

Expected<std::vector<Labelled>> files_of(const fs::path& part, const std::vector<std::string>& classes) {
  const auto held = classes_in(part);
  if (!held) return unexpected(held.error());
  std::vector<Labelled> out;
  for (const auto& name : *held) {
    const auto known = std::ranges::find(classes, name);
    if (known == classes.end()) return fault(ErrorCode::malformed, part / name, "a class that train/ does not have");
    const auto files = entries(part / name, [](const fs::directory_entry& entry, std::error_code& ignored) {
      return entry.is_regular_file(ignored) && is_image(entry.path());
    });
    if (!files) return unexpected(files.error());
    for (const auto& file : *files) out.push_back({file, static_cast<std::uint16_t>(known - classes.begin())});
  }
  if (out.empty()) return fault(ErrorCode::malformed, part, "holds no .jpg, .jpeg or .png in its classes' directories");
  return out;
}

Expected<void> check(const DatasetOptions& options, const fs::path& part, std::size_t files) {
  if (options.side < 1 || options.side > kSideMax || (options.resize != 0 && options.resize < options.side) ||
      options.resize > 2 * kSideMax)
    return fault(ErrorCode::shape_mismatch, part,
                 "images of side " + std::to_string(options.side) + " out of ones of " +
                     std::to_string(options.resize) + ": sides are 1 to " + std::to_string(kSideMax) +
                     " and no larger than what they are cut from");
  const auto count = static_cast<std::int64_t>(files);
  const auto bytes = count * options.side * options.side * (options.grey ? 1 : 3);
  if (count > kItemsMax || bytes > options.bytes_max)
    return fault(ErrorCode::unreadable, part,
                 std::to_string(files) + " images of side " + std::to_string(options.side) + " are " +
                     std::to_string(bytes) + " bytes, more than the " + std::to_string(options.bytes_max) +
                     " that are held in memory (and " + std::to_string(kItemsMax) +
                     " images at most): take a smaller side or fewer images");
  return {};
}

}  // namespace

Expected<Dataset> load_folder(const fs::path& directory, Split split, const DatasetOptions& options) {
  const auto part = part_of(directory, split);
  if (!part) return unexpected(part.error());
  std::error_code ignored;
  const auto reference = fs::is_directory(directory / "train", ignored) ? directory / "train" : *part;
  auto classes = classes_in(reference);
  if (!classes) return unexpected(classes.error());
  const auto files = files_of(*part, *classes);
  if (!files) return unexpected(files.error());
  if (auto fits = check(options, *part, files->size()); !fits) return unexpected(fits.error());

  Dataset data;
  data.item = {options.grey ? 1 : 3, options.side, options.side};
  data.class_names = std::move(*classes);
  const auto size = static_cast<std::size_t>(elements(data.item));
  for (const auto& [file, label] : *files) {
    const auto bytes = read_file(file, kFileBytesMax);
    if (!bytes) return unexpected(bytes.error());
    const auto image = decode_image(*bytes, options.grey, file.string());
    if (!image) return unexpected(image.error());
    data.pixels.resize(data.pixels.size() + size);
    fit(*image, options.side, options.resize == 0 ? options.side : options.resize,
        data.pixels.data() + data.pixels.size() - size);
    data.labels.push_back(label);
  }
  return data;
}

}  // namespace coppice::gpu
