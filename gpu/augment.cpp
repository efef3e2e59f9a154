#include "gpu/augment.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

namespace coppice::gpu {
namespace {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;

std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Streams of one seed: an epoch's order and a step's changes never share numbers.
constexpr std::uint64_t kOrders = 0, kChanges = std::uint64_t{1} << 63;

struct Change {
  std::int64_t down = 0, right = 0;  // pixels that the image moves
  bool mirrored = false;
};

// out[y][x] = in[y - down][x - right], mirrored before; 0 outside, which is the mean after normalisation.
void move_plane(const std::uint8_t* in, std::int64_t height, std::int64_t width, const Change& change,
                const std::array<float, 256>& values, float* out) {
  for (std::int64_t y = 0; y < height; ++y)
    for (std::int64_t x = 0; x < width; ++x) {
      const auto row = y - change.down;
      auto column = x - change.right;
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      if (change.mirrored) column = width - 1 - column;
      *out++ = inside ? values[in[row * width + column]] : 0.0F;
    }
}

}  // namespace

Random::Random(std::uint64_t seed, std::uint64_t stream) : state_(mixed(mixed(seed + kGolden) ^ (stream + kGolden))) {}

std::uint64_t Random::next() { return mixed(state_ += kGolden); }

// The high half of a product: uneven by at most bound / 2^64.
std::int64_t Random::below(std::int64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::int64_t>((static_cast<Wide>(next()) * static_cast<std::uint64_t>(bound)) >> 64);
}

std::vector<std::int64_t> shuffled(std::int64_t count, std::uint64_t seed, std::int64_t epoch) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  Random random(seed, kOrders + static_cast<std::uint64_t>(epoch));
  for (std::int64_t i = count; i-- > 1;)
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.below(i + 1))]);
  return order;
}

void augmented(const Dataset& data, std::span<const std::int64_t> indices, const Normalisation& normalisation,
               const Augmentation& augmentation, std::uint64_t seed, std::int64_t step, std::int64_t first,
               std::span<float> out) {
  std::array<float, 256> values;
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = (static_cast<float>(i) / 255.0F - normalisation.mean) / normalisation.deviation;
  const auto size = elements(data.item);
  const bool image = data.item.size() == 3;
  const auto height = image ? data.item[1] : 1, width = image ? data.item[2] : size, plane = height * width;
  Random random(seed, kChanges + static_cast<std::uint64_t>(step));
  const auto draw = [&] {
    Change change;
    if (image && augmentation.shift > 0) {
      change.down = random.below(2 * augmentation.shift + 1) - augmentation.shift;
      change.right = random.below(2 * augmentation.shift + 1) - augmentation.shift;
    }
    if (image && augmentation.flip) change.mirrored = random.below(2) == 1;
    return change;
  };
  for (std::int64_t i = 0; i < first; ++i) draw();
  float* to = out.data();
  for (const auto index : indices) {
    const auto change = draw();
    const auto* from = data.pixels.data() + index * size;
    for (std::int64_t at = 0; at < size; at += plane, to += plane)
      move_plane(from + at, height, width, change, values, to);
  }
}

}  // namespace coppice::gpu
