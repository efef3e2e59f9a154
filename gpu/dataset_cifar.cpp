// CIFAR's binary versions: records of one label (CIFAR-10) or two (CIFAR-100: coarse, fine) and 3 x 32 x 32 bytes.
#include <algorithm>

#include "gpu/dataset.hpp"
#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kPixels = 3 * 32 * 32;
constexpr std::int64_t kFileItemsMax = 1 << 16, kNamesBytesMax = 1 << 16;

struct Layout {
  std::vector<std::string> files;
  std::string names;          // text file of the classes' names, one a line
  std::size_t labels, label;  // bytes before the pixels, and which of them counts
  std::size_t classes;
};

Layout layout_of(Split split, DatasetKind kind, bool coarse) {
  const bool train = split == Split::train;
  if (kind == DatasetKind::cifar100) {
    const auto* names = coarse ? "coarse_label_names.txt" : "fine_label_names.txt";
    return {{train ? "train.bin" : "test.bin"}, names, 2, coarse ? 0U : 1U, coarse ? 20U : 100U};
  }
  std::vector<std::string> files{"test_batch.bin"};
  if (train)
    files = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"};
  return {std::move(files), "batches.meta.txt", 1, 0, 10};
}

Expected<void> append(Dataset& data, const std::filesystem::path& file, const Layout& layout) {
  const auto record = layout.labels + kPixels;
  const auto bytes = read_file(file, kFileItemsMax * static_cast<std::int64_t>(record));
  if (!bytes) return unexpected(bytes.error());
  const auto malformed = [&](const std::string& why) {
    return unexpected(Error{ErrorCode::malformed, file.string() + ": " + why});
  };
  if (bytes->empty() || bytes->size() % record != 0)
    return malformed("its " + std::to_string(bytes->size()) + " bytes are not a number of records of " +
                     std::to_string(record) + " bytes: the file is truncated or not CIFAR's binary version");
  for (std::size_t at = 0; at < bytes->size(); at += record) {
    const auto label = std::to_integer<std::uint16_t>((*bytes)[at + layout.label]);
    if (label >= layout.classes)
      return malformed("its field \"label\" of record " + std::to_string(at / record) + " is " + std::to_string(label) +
                       ", of " + std::to_string(layout.classes) + " classes");
    data.labels.push_back(label);
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(bytes->data() + at + layout.labels);
    data.pixels.insert(data.pixels.end(), pixels, pixels + kPixels);
  }
  return {};
}

// Blank lines stand at the end of CIFAR's own files.
Expected<std::vector<std::string>> names_in(const std::filesystem::path& file, std::size_t classes) {
  std::vector<std::string> names;
  if (std::error_code ignored; !std::filesystem::exists(file, ignored)) return names;
  const auto bytes = read_file(file, kNamesBytesMax);
  if (!bytes) return unexpected(bytes.error());
  std::string line;
  const auto end_line = [&] {
    if (!line.empty()) names.push_back(std::move(line));
    line.clear();
  };
  for (const auto byte : *bytes) {
    const auto c = std::to_integer<char>(byte);
    if (c == '\n')
      end_line();
    else if (c != '\r')
      line += c;
  }
  end_line();
  if (names.size() != classes)
    return unexpected(Error{ErrorCode::malformed, file.string() + ": " + std::to_string(names.size()) + " names, not " +
                                                      std::to_string(classes)});
  return names;
}

}  // namespace

Expected<Dataset> load_cifar(const std::filesystem::path& directory, Split split, DatasetKind kind, bool coarse) {
  const auto layout = layout_of(split, kind, coarse);
  Dataset data;
  data.item = {3, 32, 32};
  auto names = names_in(directory / layout.names, layout.classes);
  if (!names) return unexpected(names.error());
  data.class_names = std::move(*names);
  for (const auto& file : layout.files)
    if (auto done = append(data, directory / file, layout); !done) return unexpected(done.error());
  return data;
}

}  // namespace coppice::gpu
