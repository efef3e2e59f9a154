// gpu/dataset.hpp: labelled images from the formats that classifiers are usually tried on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

struct Dataset {
  Dims item;                                  // {1, 28, 28}; {3, 32, 32}, red, green and blue
  std::vector<std::uint8_t> pixels;           // [count, item]
  std::vector<std::uint16_t> labels;          // [count]
  std::vector<std::string> class_names = {};  // by label; empty where the files do not say
  std::int64_t count() const { return static_cast<std::int64_t>(labels.size()); }
};

enum class Split : std::uint8_t { train, test };

enum class DatasetKind : std::uint8_t {
  idx,       // MNIST and its kin: train-images-idx3-ubyte[.gz] and three more
  cifar10,   // data_batch_1.bin to 5, test_batch.bin
  cifar100,  // train.bin, test.bin
  folder,    // ImageNet's layout: train/CLASS/*.jpg or *.png, and test/ or val/
};
const char* name(DatasetKind kind);

// What a directory holds, told by the names in it. Error: unreadable, saying which names are known.
Expected<DatasetKind> dataset_kind(const std::filesystem::path& directory);

struct DatasetOptions {
  // Of a folder's images: the shorter side becomes `resize` pixels (0: as `side`), and the middle `side` x `side` of it
  // is the item.
  int side = 224, resize = 0;
  bool grey = false;                               // one channel instead of three
  bool coarse = false;                             // CIFAR-100's twenty superclasses instead of its hundred classes
  std::int64_t bytes_max = std::int64_t{8} << 30;  // a folder's items in all: they are held in memory
};

// Recognises the kind and reads one split of it. Errors: unreadable or malformed, naming the file, the field and what
// is expected there. Sizes are bounded before anything is allocated: 2^20 items, images of 2^25 pixels.
Expected<Dataset> load_dataset(const std::filesystem::path& directory, Split split, const DatasetOptions& options = {});

// The same, of one kind. IDX: 256 x 256 pixels and 2^30 bytes at most; the classes' names are those of a classes.json
// beside it, {"classes": ["A", ...]}, where there is one and JSON was built in, and Fashion-MNIST's own in Debian's directory.
Expected<Dataset> load_idx(const std::filesystem::path& directory, Split split);
Expected<Dataset> load_cifar(const std::filesystem::path& directory, Split split, DatasetKind kind, bool coarse);
Expected<Dataset> load_folder(const std::filesystem::path& directory, Split split, const DatasetOptions& options);

// Where Debian's package puts the files; the name of the package is the remedy in the error.
std::filesystem::path fashion_mnist_directory();

struct Normalisation {  // x = (pixel / 255 - mean) / deviation
  float mean = 0;
  float deviation = 1;
};

// Of all pixels of all channels of the items, or of all. A data set without contrast gets deviation 1.
Normalisation measured(const Dataset& data, std::span<const std::int64_t> items);
Normalisation measured(const Dataset& data);

// Item i as float32 [item], ready for a net.
void item(const Dataset& data, std::int64_t index, const Normalisation& normalisation, std::span<float> out);

}  // namespace coppice::gpu
