#include "gpu/dataset.hpp"

#include <algorithm>
#include <cmath>
#include <array>
#include <cmath>

namespace coppice::gpu {
namespace {

bool there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool has_idx(const std::filesystem::path& directory) {
  for (const char* name : {"train-images-idx3-ubyte", "t10k-images-idx3-ubyte"})
    if (there(directory / name) || there(directory / (std::string(name) + ".gz"))) return true;
  return false;
}

}  // namespace

const char* name(DatasetKind kind) {
  constexpr std::array names{"IDX", "CIFAR-10", "CIFAR-100", "image folder"};
  return names[static_cast<std::size_t>(kind)];
}

Expected<DatasetKind> dataset_kind(const std::filesystem::path& directory) {
  if (directory == fashion_mnist_directory() || has_idx(directory)) return DatasetKind::idx;
  if (there(directory / "data_batch_1.bin") || there(directory / "test_batch.bin")) return DatasetKind::cifar10;
  if (there(directory / "train.bin") || there(directory / "test.bin")) return DatasetKind::cifar100;
  if (there(directory / "train") || there(directory / "test") || there(directory / "val")) return DatasetKind::folder;
  return unexpected(
      Error{ErrorCode::unreadable, directory.string() + ": " + (there(directory) ? "holds no data set" : "not there") +
                                       ": looked for MNIST's train-images-idx3-ubyte[.gz], CIFAR's data_batch_1.bin or "
                                       "train.bin, and folders train/ and test/ or val/"});
}

Expected<Dataset> load_dataset(const std::filesystem::path& directory, Split split, const DatasetOptions& options) {
  const auto kind = dataset_kind(directory);
  if (!kind) return unexpected(kind.error());
  if (*kind == DatasetKind::idx) return load_idx(directory, split);
  if (*kind == DatasetKind::folder) return load_folder(directory, split, options);
  return load_cifar(directory, split, *kind, options.coarse);
}

std::filesystem::path fashion_mnist_directory() { return "/usr/share/datasets/fashion-mnist"; }

namespace {

using Histogram = std::array<std::int64_t, 256>;  // whole numbers: the order of the pixels does not matter

Normalisation of_histogram(const Histogram& histogram) {
  double count = 0, sum = 0, squares = 0;
  for (std::size_t grey = 0; grey < histogram.size(); ++grey) {
    const double x = static_cast<double>(grey) / 255, n = static_cast<double>(histogram[grey]);
    count += n;
    sum += n * x;
    squares += n * x * x;
  }
  if (count == 0) return {};
  const double mean = sum / count, variance = squares / count - mean * mean;
  return {static_cast<float>(mean), variance > 1e-12 ? static_cast<float>(std::sqrt(variance)) : 1.0F};
}

}  // namespace

Normalisation measured(const Dataset& data, std::span<const std::int64_t> items) {
  const auto size = static_cast<std::size_t>(elements(data.item));
  Histogram histogram{};
  for (const auto index : items)
    for (const auto pixel : std::span(data.pixels).subspan(static_cast<std::size_t>(index) * size, size)) ++histogram[pixel];
  return of_histogram(histogram);
}

Normalisation measured(const Dataset& data) {
  Histogram histogram{};
  for (const auto pixel : data.pixels) ++histogram[pixel];
  return of_histogram(histogram);
}

void item(const Dataset& data, std::int64_t index, const Normalisation& normalisation, std::span<float> out) {
  const auto size = static_cast<std::size_t>(elements(data.item));
  const auto* pixels = data.pixels.data() + static_cast<std::size_t>(index) * size;
  for (std::size_t i = 0; i < size; ++i)
    out[i] = (static_cast<float>(pixels[i]) / 255.0F - normalisation.mean) / normalisation.deviation;
}

}  // namespace coppice::gpu
