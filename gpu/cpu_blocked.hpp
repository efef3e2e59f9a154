// gpu/cpu_blocked.hpp: what the CPU device runs over channels in blocks of eight (nChw8c) on processors with AVX2 and
// without AVX-512. There oneDNN's convolutions of few channels wait for their own sums: eight output channels at three
// pixels are three vectors of sums under way, where two products a cycle of four cycles each want eight. A 3x3
// convolution, one thread, over oneDNN 2.6.3's time: 8 channels at 28x28 0.55, 16 at 28x28 0.79, 128 at 7x7 0.94; a 2x2
// pool 0.2.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/network.hpp"

namespace coppice::gpu {

inline constexpr std::int64_t kBlockChannels = 8;

bool blocked_kernels_run_here();  // this processor has AVX2 and FMA

// Output = clamp(bias + convolution (+ what the output holds, where `adds`)). Sizes of channels are whole blocks.
struct BlockedConvolution {
  Window window;
  std::int64_t items = 0;
  Dims in, out;
  bool adds = false;
  float low = 0, high = 0;
  bool pads() const;
  Dims padded_dims() const;  // of one image with its padding around it
};
// weight: blocks of output channels, of input channels, kernel's rows, columns, input channel, output channel
// (OIhw8i8o). scratch: one image of padded_dims, unused where nothing is padded. bias may be null. All memory is
// aligned to 32 bytes. REQUIRES: blocked_kernels_run_here().
void convolve(const BlockedConvolution& c, const float* in, const float* weight, const float* bias, float* scratch,
              float* out);

// Padding is never the largest. Nothing is dilated. Memory and processor as above.
struct BlockedPool {
  Window window;
  std::int64_t planes = 0;  // items and blocks
  Dims in, out;             // channels are not looked at
  bool average = false, count_padding = false;
};
void pool(const BlockedPool& p, const float* in, float* out);

}  // namespace coppice::gpu
