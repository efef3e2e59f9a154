// Any bytes as a pair of IDX files: refused, or images and labels that go together. The first two bytes say where the
// images end and the labels begin.
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "gpu/dataset.hpp"
#include "tests/fuzz/target.hpp"

namespace {

// A directory of this process's own.
const std::filesystem::path& scratch() {
  static const std::filesystem::path kDirectory = [] {
    std::string name = (std::filesystem::temp_directory_path() / "coppice-fuzz-XXXXXX").string();
    coppice::fuzz::require(::mkdtemp(name.data()) != nullptr);
    std::atexit([] { std::filesystem::remove_all(scratch()); });
    return std::filesystem::path(name);
  }();
  return kDirectory;
}

std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string all(reinterpret_cast<const char*>(data) + 2, size - 2);
  const auto middle = std::min<std::size_t>(data[0] * 256U + data[1], all.size());
  std::ofstream(scratch() / "train-images-idx3-ubyte", std::ios::binary) << all.substr(0, middle);
  std::ofstream(scratch() / "train-labels-idx1-ubyte", std::ios::binary) << all.substr(middle);
  const auto read = coppice::gpu::load_idx(scratch(), coppice::gpu::Split::train);
  if (!read) return 0;
  const auto item = static_cast<std::size_t>(coppice::gpu::elements(read->item));
  coppice::fuzz::require(read->pixels.size() == read->labels.size() * item);
  return 0;
}

std::vector<std::string> coppice::fuzz::seeds() {
  const std::string images =
                        big_endian(0x803) + big_endian(3) + big_endian(4) + big_endian(5) + std::string(60, '\x7F'),
                    labels = big_endian(0x801) + big_endian(3) + std::string("\0\1\2", 3);
  return {std::string{static_cast<char>(images.size() / 256), static_cast<char>(images.size() % 256)} + images +
          labels};
}
