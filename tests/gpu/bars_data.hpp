// Images that a small net can tell apart: a bright bar whose place and direction say the class, in noise.
#pragma once

#include <random>

#include "gpu/dataset.hpp"

namespace coppice::gpu {

inline Dataset bars(const Dims& item, int classes, std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Dataset data;
  data.item = item;
  data.pixels.resize(static_cast<std::size_t>(count * elements(item)));
  const auto height = item[1], width = item[2];
  for (std::int64_t i = 0; i < count; ++i) {
    const auto label = static_cast<int>(i % classes);
    data.labels.push_back(static_cast<std::uint16_t>(label));
    const auto steps = (classes + 1) / 2;
    const auto row = height * (label / 2) / steps + height / (2 * steps), column = width * (label / 2) / steps + width / (2 * steps);
    for (std::int64_t c = 0; c < item[0]; ++c)
      for (std::int64_t y = 0; y < height; ++y)
        for (std::int64_t x = 0; x < width; ++x) {
          const bool lit = label % 2 == 0 ? y == row : x == column;
          const auto at = static_cast<std::size_t>(((i * item[0] + c) * height + y) * width + x);
          data.pixels[at] = static_cast<std::uint8_t>((lit ? 180 : 40) + random() % 60);
        }
  }
  return data;
}

}  // namespace coppice::gpu
