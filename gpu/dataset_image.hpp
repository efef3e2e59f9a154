// gpu/dataset_image.hpp: one image out of a JPEG or PNG file's bytes, through the libraries that know them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gpu/error.hpp"

namespace coppice::gpu {

struct Image {
  int width = 0, height = 0, channels = 0;  // 1 or 3
  std::vector<std::uint8_t> pixels;         // [height, width, channels]
};

constexpr std::int64_t kImageSideMax = 1 << 15, kImagePixelsMax = 1 << 25;

// Transparent parts are black. Errors: malformed, naming `shown` and the field: what claims to be larger than the
// bounds is refused before it is unpacked, what ends early is refused as a whole.
Expected<Image> decode_image(std::span<const std::byte> bytes, bool grey, const std::string& shown);

}  // namespace coppice::gpu
