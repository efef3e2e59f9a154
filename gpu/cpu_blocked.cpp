#include "gpu/cpu_blocked.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace coppice::gpu {
namespace {

constexpr std::int64_t kBlock = kBlockChannels;

}  // namespace

bool BlockedConvolution::pads() const {
  return window.pad_top + window.pad_left + window.pad_bottom + window.pad_right > 0;
}

Dims BlockedConvolution::padded_dims() const {
  return {in[0], in[1] + window.pad_top + window.pad_bottom, in[2] + window.pad_left + window.pad_right};
}

#if defined(__x86_64__)
namespace {

// Steps through the padded image and the weights, in floats.
struct Walk {
  std::int64_t blocks, kernel_h, kernel_w;       // of input channels; of the kernel
  std::int64_t plane, row, column, next_column;  // of the image: a block on; taps down and right; output pixels right
  std::int64_t weights;                          // of one block of output channels
  std::int64_t out_plane;                        // a block of output channels on
  bool adds;
  float low, high;
};

// `Blocks` blocks of output channels at `Pixels` pixels of a row: all sums stay in registers.
// Stride: of the columns, 0 for any; a number that the compiler knows leaves its multiples to the processor's
// addressing.
template <int Blocks, int Pixels, int Stride>
__attribute__((target("avx2,fma"))) void tile(const Walk& w, const float* in, const float* weight, const float* bias,
                                              float* out) {
  const std::int64_t next = Stride > 0 ? Stride * kBlock : w.next_column;
  __m256 sums[Blocks][Pixels];
#pragma GCC unroll 16
  for (int b = 0; b < Blocks; ++b) {
    const __m256 first = bias ? _mm256_load_ps(bias + b * kBlock) : _mm256_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < Pixels; ++p)
      sums[b][p] = w.adds ? _mm256_add_ps(first, _mm256_load_ps(out + b * w.out_plane + p * kBlock)) : first;
  }
  for (std::int64_t block = 0; block < w.blocks; ++block, in += w.plane)
    for (std::int64_t y = 0; y < w.kernel_h; ++y)
      for (std::int64_t x = 0; x < w.kernel_w; ++x) {
        const float* from = in + y * w.row + x * w.column;
#pragma GCC unroll 8
        for (int i = 0; i < kBlock; ++i, weight += kBlock) {
          __m256 by[Blocks];
#pragma GCC unroll 16
          for (int b = 0; b < Blocks; ++b) by[b] = _mm256_load_ps(weight + b * w.weights);
#pragma GCC unroll 16
          for (int p = 0; p < Pixels; ++p) {
            const __m256 value = _mm256_broadcast_ss(from + p * next + i);
#pragma GCC unroll 16
            for (int b = 0; b < Blocks; ++b) sums[b][p] = _mm256_fmadd_ps(value, by[b], sums[b][p]);
          }
        }
      }
  const __m256 low = _mm256_set1_ps(w.low), high = _mm256_set1_ps(w.high);
#pragma GCC unroll 16
  for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 16
    for (int p = 0; p < Pixels; ++p)
      _mm256_store_ps(out + b * w.out_plane + p * kBlock, _mm256_min_ps(high, _mm256_max_ps(low, sums[b][p])));
}

using Tile = void (*)(const Walk&, const float*, const float*, const float*, float*);

template <int Blocks, int Stride, int... Pixels>
constexpr std::array<Tile, sizeof...(Pixels)> tiles_of(std::integer_sequence<int, Pixels...>) {
  return {tile<Blocks, Pixels + 1, Stride>...};
}
// [blocks - 1][pixels - 1], as many as there are registers for.
constexpr std::size_t kBlocksMost = 3;
using Kernels = std::array<std::span<const Tile>, kBlocksMost>;
template <int Stride>
constexpr auto kOneBlock = tiles_of<1, Stride>(std::make_integer_sequence<int, 14>());
template <int Stride>
constexpr auto kTwoBlocks = tiles_of<2, Stride>(std::make_integer_sequence<int, 6>());
template <int Stride>
constexpr auto kThreeBlocks = tiles_of<3, Stride>(std::make_integer_sequence<int, 4>());
template <int Stride>
constexpr Kernels kKernels{kOneBlock<Stride>, kTwoBlocks<Stride>, kThreeBlocks<Stride>};

std::int64_t tiles_in(std::int64_t width, std::span<const Tile> kernels) {
  const auto most = static_cast<std::int64_t>(kernels.size());
  return (width + most - 1) / most;
}

struct Part {
  std::int64_t begin, size;
};
// Tile t of a row that is cut as equally as can be.
Part part(std::int64_t width, std::int64_t tiles, std::int64_t t) {
  const auto begin = t * width / tiles;
  return {begin, (t + 1) * width / tiles - begin};
}

// Half cycles that a row costs a block: two products or two loads begin in one cycle, and a sum is ready for its next
// product after four.
double cost_of_row(std::int64_t width, std::int64_t blocks, std::span<const Tile> kernels) {
  const auto tiles = tiles_in(width, kernels);
  std::int64_t cost = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const auto pixels = part(width, tiles, t).size;
    cost += std::max({blocks * pixels, blocks + pixels, std::int64_t{8}});
  }
  return static_cast<double>(cost) / static_cast<double>(blocks);
}

// Blocks of output channels that are counted together, of at most so many.
std::size_t blocks_together(std::int64_t width, std::int64_t most, const Kernels& kernels) {
  std::size_t best = 1;
  for (std::size_t blocks = 2; blocks <= kBlocksMost && static_cast<std::int64_t>(blocks) <= most; ++blocks) {
    const auto cost = [&](std::size_t b) { return cost_of_row(width, static_cast<std::int64_t>(b), kernels[b - 1]); };
    if (cost(blocks) < cost(best)) best = blocks;
  }
  return best;
}

// Rows and columns of zeros around each block of one item.
void pad(const BlockedConvolution& c, const float* in, float* padded) {
  const auto& w = c.window;
  const std::int64_t row = c.in[2] * kBlock, left = w.pad_left * kBlock, right = w.pad_right * kBlock;
  const std::int64_t whole = left + row + right;
  for (std::int64_t block = 0; block < c.in[0] / kBlock; ++block) {
    padded = std::fill_n(padded, w.pad_top * whole, 0.0F);
    for (std::int64_t y = 0; y < c.in[1]; ++y, in += row) {
      padded = std::fill_n(padded, left, 0.0F);
      padded = std::copy_n(in, row, padded);
      padded = std::fill_n(padded, right, 0.0F);
    }
    padded = std::fill_n(padded, w.pad_bottom * whole, 0.0F);
  }
}

// The pixels of the output, of a row or a column, whose tap at `at` (padding subtracted) lies within `size` pixels.
Part within(std::int64_t at, std::int64_t stride, std::int64_t size, std::int64_t outputs) {
  const auto begin = at >= 0 ? 0 : (-at + stride - 1) / stride;
  const auto end = size <= at ? 0 : std::min((size - at + stride - 1) / stride, outputs);
  return {begin, std::max<std::int64_t>(end - begin, 0)};
}

// One tap of the window, for pixels of a row that are `step` floats apart in the input.
template <bool Average>
__attribute__((target("avx2,fma"))) void take(float* to, const float* from, std::int64_t pixels, std::int64_t step) {
  for (std::int64_t x = 0; x < pixels; ++x, to += kBlock, from += step) {
    const __m256 held = _mm256_load_ps(to), value = _mm256_load_ps(from);
    _mm256_store_ps(to, Average ? _mm256_add_ps(held, value) : _mm256_max_ps(held, value));
  }
}

// One row of the output, below `top` of the input.
void pool_row(const BlockedPool& p, const float* in, std::int64_t top, float* out) {
  const auto& w = p.window;
  const auto first = std::max<std::int64_t>(top, 0), last = std::min(top + w.kernel_h, p.in[1]);
  std::fill_n(out, p.out[2] * kBlock, p.average ? 0.0F : -std::numeric_limits<float>::infinity());
  for (auto y = first; y < last; ++y)
    for (std::int64_t kx = 0; kx < w.kernel_w; ++kx) {
      const auto left = kx - w.pad_left;
      const auto [begin, pixels] = within(left, w.stride_w, p.in[2], p.out[2]);
      (p.average ? take<true> : take<false>)(out + begin * kBlock,
                                             in + (y * p.in[2] + begin * w.stride_w + left) * kBlock, pixels,
                                             w.stride_w * kBlock);
    }
  if (!p.average) return;
  for (std::int64_t x = 0; x < p.out[2]; ++x, out += kBlock) {
    const auto left = x * w.stride_w - w.pad_left;
    const auto columns = std::min(left + w.kernel_w, p.in[2]) - std::max<std::int64_t>(left, 0);
    const auto count = static_cast<float>(p.count_padding ? w.kernel_h * w.kernel_w : (last - first) * columns);
    for (std::int64_t c = 0; c < kBlock; ++c) out[c] /= count;
  }
}

}  // namespace

bool blocked_kernels_run_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

void convolve(const BlockedConvolution& c, const float* in, const float* weight, const float* bias, float* scratch,
              float* out) {
  const auto& w = c.window;
  const auto padded = c.padded_dims();
  const std::int64_t width = padded[2] * kBlock;
  const Walk walk{.blocks = c.in[0] / kBlock,
                  .kernel_h = w.kernel_h,
                  .kernel_w = w.kernel_w,
                  .plane = padded[1] * width,
                  .row = w.dilation_h * width,
                  .column = w.dilation_w * kBlock,
                  .next_column = w.stride_w * kBlock,
                  .weights = c.in[0] * w.kernel_h * w.kernel_w * kBlock,
                  .out_plane = c.out[1] * c.out[2] * kBlock,
                  .adds = c.adds,
                  .low = c.low,
                  .high = c.high};
  const auto& kernels = w.stride_w == 1 ? kKernels<1> : kKernels<0>;
  const std::int64_t blocks = c.out[0] / kBlock;
  for (std::int64_t n = 0; n < c.items; ++n) {
    const float* image = in + n * c.in[0] * c.in[1] * c.in[2];
    if (c.pads()) {
      pad(c, image, scratch);
      image = scratch;
    }
    for (std::int64_t block = 0; block < blocks;) {
      const auto together = blocks_together(c.out[2], blocks - block, kernels);
      const auto& sizes = kernels[together - 1];
      const auto tiles = tiles_in(c.out[2], sizes);
      for (std::int64_t y = 0; y < c.out[1]; ++y) {
        float* const to = out + ((n * blocks + block) * c.out[1] + y) * c.out[2] * kBlock;
        const float* const from = image + y * w.stride_h * width;
        for (std::int64_t t = 0; t < tiles; ++t) {
          const auto [begin, pixels] = part(c.out[2], tiles, t);
          sizes[static_cast<std::size_t>(pixels - 1)](walk, from + begin * walk.next_column,
                                                      weight + block * walk.weights,
                                                      bias ? bias + block * kBlock : nullptr, to + begin * kBlock);
        }
      }
      block += static_cast<std::int64_t>(together);
    }
  }
}

void pool(const BlockedPool& p, const float* in, float* out) {
  for (std::int64_t plane = 0; plane < p.planes; ++plane, in += p.in[1] * p.in[2] * kBlock)
    for (std::int64_t y = 0; y < p.out[1]; ++y, out += p.out[2] * kBlock)
      pool_row(p, in, y * p.window.stride_h - p.window.pad_top, out);
}

#else

bool blocked_kernels_run_here() { return false; }
void convolve(const BlockedConvolution&, const float*, const float*, const float*, float*, float*) {}
void pool(const BlockedPool&, const float*, float*) {}

#endif

}  // namespace coppice::gpu
