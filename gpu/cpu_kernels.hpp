// gpu/cpu_kernels.hpp: what the CPU device runs where oneDNN has nothing that fits. Plain loops, any processor.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// One channel of an image in some layout: floats from the start of its memory to its first pixel, from one pixel to the
// next and from one item to the next. Without memory (-1) it is all zeros: the padding of a blocked layout.
struct ChannelPlace {
  int memory = -1;
  std::ptrdiff_t offset = 0, pixel = 0, item = 0;
};

// A permutation of channels out of several images into one: what Slice, Concat and ChannelShuffle together come to.
struct ChannelCopy {
  std::vector<ChannelPlace> from, to;  // of each channel of the output; `memory` of `to` is not looked at
  std::int64_t items = 0, pixels = 0;
};
void copy_channels(const ChannelCopy& copy, std::span<const float* const> from, float* to);

// out[i] = first[i] (and second[i], added or otherwise) over all indices i of `dims`, each operand with floats a step
// along each axis.
// A step of 0 repeats. The result is held between low and high.
struct StridedSum {
  struct Operand {
    std::ptrdiff_t offset = 0;
    std::vector<std::ptrdiff_t> steps;
  };
  Dims dims;
  Operand out, first, second;
};
void add_strided(const StridedSum& sum, const float* first, const float* second, float* out, float low, float high);
void combine_strided(Arithmetic::Kind kind, const StridedSum& of, const float* first, const float* second, float* out,
                     float low, float high);
void copy_strided(const StridedSum& copy, const float* from, float* out);

// A convolution over plain layouts, for shapes that oneDNN would send through a matrix product that takes memory from
// the heap. Output = clamp(bias + convolution (+ what the output holds, where `adds`)). Of images or volumes.
struct PlainConvolution {
  Window window;
  std::int64_t items = 0, groups = 1;
  Dims in, out;
  bool adds = false;
  float low = 0, high = 0;
};
// `bias` may be null.
void convolve(const PlainConvolution& c, const float* in, const float* weight, const float* bias, float* out);

// For each pixel of the output, the pixels of the input under a window's taps, one after another; zeros beyond the
// edge. Both images keep a pixel's channels together.
struct ColumnCopy {
  struct Tap {
    std::int64_t y, x;
  };
  Window window;
  std::vector<Tap> taps;  // those of the kernel that are wanted
  std::int64_t items = 0;
  Dims in, out;
};
void copy_columns(const ColumnCopy& copy, const float* in, float* out);

// Of images or volumes in plain layouts; padding is never the largest.
struct PlainPool {
  Window window;
  std::int64_t channels = 0;  // of all items
  Dims in, out;
  bool average = false, count_padding = false;
};
void pool(const PlainPool& p, const float* in, float* out);

// The steps of a dense array in row-major order.
std::vector<std::ptrdiff_t> row_major(const Dims& dims);

}  // namespace coppice::gpu
