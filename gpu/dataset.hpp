// gpu/dataset.hpp: labelled images from the four IDX files of MNIST and its kin, plain or gzipped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

struct Dataset {
  Dims item;                         // {1, 28, 28}
  std::vector<std::uint8_t> pixels;  // [count, item]
  std::vector<std::uint16_t> labels;  // [count]
  std::vector<std::string> class_names;  // or none
  std::int64_t count() const { return static_cast<std::int64_t>(labels.size()); }
};

enum class Split : std::uint8_t { train, test };

// Reads train-images-idx3-ubyte[.gz] and its three kin. Errors: unreadable or malformed, naming the file, the field and
// what is expected there. Sizes are bounded (2^16 items, 64 x 64 pixels) before anything is allocated.
Expected<Dataset> load_idx(const std::filesystem::path& directory, Split split);

// Where Debian's package puts the files; the name of the package is the remedy in the error.
std::filesystem::path fashion_mnist_directory();

struct Normalisation {  // x = (pixel / 255 - mean) / deviation
  float mean = 0;
  float deviation = 1;
};

Normalisation measured(const Dataset& data, std::span<const std::int64_t> items);  // of their pixels

// Item i as float32 [item], ready for a net.
void item(const Dataset& data, std::int64_t index, const Normalisation& normalisation, std::span<float> out);

}  // namespace coppice::gpu
