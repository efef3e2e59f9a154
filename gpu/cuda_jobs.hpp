// gpu/cuda_jobs.hpp: what one thread of each of our kernels does, as code for both the GPU and the CPU: tests run the
// same lines where there is no GPU. gpu/cuda_kernels.cu puts them on the GPU; gpu/cuda_training_jobs.hpp has more.
//
// A job says what is done for each of so many numbers (size, operator()), or for each of so many outputs that are sums
// or maxima over many terms (outputs, terms, start, take, merge, finish). Plain C++17, since nvcc compiles it too.
// Counts fit an int: the nets see to it. Arithmetic is float32, whatever numbers are kept in.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>

#ifdef __CUDACC__
#define COPPICE_BOTH __host__ __device__ __forceinline__
#else
#define COPPICE_BOTH inline
#endif

namespace coppice::gpu {

// Numbers on the GPU.
struct Reals {
  void* data;
  bool half;  // float16 rather than float32
  COPPICE_BOTH float get(unsigned i) const {
    return half ? __half2float(static_cast<const __half*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  COPPICE_BOTH void set(unsigned i, float value) const {
    if (half)
      static_cast<__half*>(data)[i] = __float2half(value);
    else
      static_cast<float*>(data)[i] = value;
  }
};

struct Bounds {  // of a ReLU or a clip; infinite where there is none
  float low, high;
  // What is not a number stays so.
  COPPICE_BOTH float clamp(float value) const { return value < low ? low : value > high ? high : value; }
};

// Puts the number there, or adds it to what is there.
COPPICE_BOTH void give(const Reals& out, unsigned i, float value, bool add) {
  out.set(i, add ? out.get(i) + value : value);
}

// A batch of images; `last`: the channels of a pixel lie side by side (NHWC rather than NCHW).
struct Image {
  Reals reals;
  int batch, channels, height, width;
  bool last;
  struct Pixel {
    int n, c, y, x;
  };
  COPPICE_BOTH unsigned size() const {
    return static_cast<unsigned>(batch) * static_cast<unsigned>(channels) * static_cast<unsigned>(height) *
           static_cast<unsigned>(width);
  }
  COPPICE_BOTH unsigned index(int n, int c, int y, int x) const {
    return static_cast<unsigned>(last ? ((n * height + y) * width + x) * channels + c
                                      : ((n * channels + c) * height + y) * width + x);
  }
  COPPICE_BOTH Pixel pixel(unsigned i) const {
    const auto w = static_cast<unsigned>(width), h = static_cast<unsigned>(height), c = static_cast<unsigned>(channels);
    if (last)
      return {static_cast<int>(i / c / w / h), static_cast<int>(i % c), static_cast<int>(i / c / w % h),
              static_cast<int>(i / c % w)};
    return {static_cast<int>(i / w / h / c), static_cast<int>(i / w / h % c), static_cast<int>(i / w % h),
            static_cast<int>(i % w)};
  }
};

// ---- one number each -----------------------------------------------------------------------------------------------

// out = clamp(in * scale[c] + shift[c] + other); null pointers leave their terms out. In place is fine.
struct Pointwise {
  Reals in, other, out;
  const float *scale, *shift;
  int count, channels, inner;  // c = i / inner % channels
  Bounds bounds;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const unsigned c = i / static_cast<unsigned>(inner) % static_cast<unsigned>(channels);
    float value = in.get(i);
    if (scale) value *= scale[c];
    if (shift) value += shift[c];
    if (other.data) value += other.get(i);
    out.set(i, bounds.clamp(value));
  }
};

struct SquareRoots {
  Reals in, out;
  int count;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH void operator()(unsigned i) const { out.set(i, sqrtf(in.get(i))); }
};

constexpr int kAxesMax = 9;  // eight of an item, and the batch

// A block of numbers from one place to another, each at steps of its own along every axis: slices, joins,
// transpositions, shuffles, other layouts, other precisions, arithmetic with what is there, and the gradients of moves.
enum class Onto : unsigned char { put, add, subtract, multiply, divide };
struct Strided {
  Reals in, out;
  int count, axes;
  int dims[kAxesMax], from[kAxesMax], to[kAxesMax];  // sizes; steps in numbers, 0 where an axis is repeated
  int in_begin, out_begin;
  Onto onto;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH float combined(float there, float value) const {
    return onto == Onto::add        ? there + value
           : onto == Onto::subtract ? there - value
           : onto == Onto::multiply ? there * value
                                    : there / value;
  }
  COPPICE_BOTH void operator()(unsigned i) const {
    int source = in_begin, target = out_begin;
    for (int axis = axes - 1; axis >= 0; --axis) {
      const int at = static_cast<int>(i % static_cast<unsigned>(dims[axis]));
      i /= static_cast<unsigned>(dims[axis]);
      source += at * from[axis];
      target += at * to[axis];
    }
    const auto there = static_cast<unsigned>(target);
    const float value = in.get(static_cast<unsigned>(source));
    out.set(there, onto == Onto::put ? value : combined(out.get(there), value));
  }
};

// Any convolution, slowly: for what cuDNN takes in none of its ways. Weights lie as the images do.
struct DirectConvolution {
  Image in, out;
  Reals weight, other;
  const float* bias;
  int groups, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  Bounds bounds;
  COPPICE_BOTH unsigned size() const { return out.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const auto at = out.pixel(i);
    const int inner = in.channels / groups, first = at.c / (out.channels / groups) * inner;
    float sum = bias ? bias[at.c] : 0.0F;
    for (int ky = 0; ky < kernel_h; ++ky)
      for (int kx = 0; kx < kernel_w; ++kx) {
        const int y = at.y * stride_h - pad_top + ky * dilation_h, x = at.x * stride_w - pad_left + kx * dilation_w;
        if (y < 0 || y >= in.height || x < 0 || x >= in.width) continue;
        for (int c = 0; c < inner; ++c) {
          const int tap = in.last ? ((at.c * kernel_h + ky) * kernel_w + kx) * inner + c
                                  : ((at.c * inner + c) * kernel_h + ky) * kernel_w + kx;
          sum += in.reals.get(in.index(at.n, first + c, y, x)) * weight.get(static_cast<unsigned>(tap));
        }
      }
    if (other.data) sum += other.get(i);
    out.reals.set(i, bounds.clamp(sum));
  }
};

// What a pool looks at, with any window.
struct PoolWindow {
  int kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  bool average, count_padding;
  COPPICE_BOTH float divisor(int top, int left, int height, int width) const {
    if (count_padding) return static_cast<float>(kernel_h) * static_cast<float>(kernel_w);
    return static_cast<float>(taps(top, kernel_h, dilation_h, height)) *
           static_cast<float>(taps(left, kernel_w, dilation_w, width));
  }
  // How many of a kernel's taps lie on the image.
  COPPICE_BOTH static int taps(int begin, int kernel, int dilation, int size) {
    const int before = begin < 0 ? (-begin + dilation - 1) / dilation : 0;
    const int until = begin >= size ? 0 : (size - begin + dilation - 1) / dilation;
    return (until < kernel ? until : kernel) - before;
  }
};

// ---- sums and maxima over many terms -------------------------------------------------------------------------------

struct Sums {
  float a, b;
};

struct Adding {  // what most of them share
  COPPICE_BOTH Sums start() const { return {0.0F, 0.0F}; }
  COPPICE_BOTH void merge(Sums& sums, Sums other) const {
    sums.a += other.a;
    sums.b += other.b;
  }
};

// Any window, also one padded more on one side than on the other, which cuDNN's pooling does not take.
struct Pool {
  Image in, out;
  PoolWindow window;
  COPPICE_BOTH unsigned outputs() const { return out.size(); }
  COPPICE_BOTH unsigned terms() const {
    return static_cast<unsigned>(window.kernel_h) * static_cast<unsigned>(window.kernel_w);
  }
  COPPICE_BOTH Sums start() const { return {window.average ? 0.0F : -INFINITY, 0.0F}; }
  COPPICE_BOTH void merge(Sums& sums, Sums other) const {
    sums.a = window.average ? sums.a + other.a : fmaxf(sums.a, other.a);
  }
  COPPICE_BOTH void take(unsigned output, unsigned term, Sums& sums) const {
    const auto at = out.pixel(output);
    const int wide = window.kernel_w, tap = static_cast<int>(term);
    const int y = at.y * window.stride_h - window.pad_top + tap / wide * window.dilation_h;
    const int x = at.x * window.stride_w - window.pad_left + tap % wide * window.dilation_w;
    if (y >= 0 && y < in.height && x >= 0 && x < in.width)
      merge(sums, {in.reals.get(in.index(at.n, at.c, y, x)), 0.0F});
  }
  COPPICE_BOTH void finish(unsigned output, Sums sums) const {
    if (window.average) {
      const auto at = out.pixel(output);
      sums.a /= window.divisor(at.y * window.stride_h - window.pad_top, at.x * window.stride_w - window.pad_left,
                               in.height, in.width);
    }
    out.reals.set(output, sums.a);
  }
};

// out[n, o] = clamp(dot(in[n], weight[o]) + bias[o]); a null bias is left out. Right for few items, where reading the
// weights is all the work.
struct RowProducts : Adding {
  Reals in, weight, out;
  const float* bias;
  int items, in_features, out_features;
  Bounds bounds;
  COPPICE_BOTH unsigned outputs() const { return static_cast<unsigned>(items) * static_cast<unsigned>(out_features); }
  COPPICE_BOTH unsigned terms() const { return static_cast<unsigned>(in_features); }
  COPPICE_BOTH void take(unsigned output, unsigned term, Sums& sums) const {
    const auto features = static_cast<unsigned>(out_features);
    sums.a += in.get(output / features * terms() + term) * weight.get(output % features * terms() + term);
  }
  COPPICE_BOTH void finish(unsigned output, Sums sums) const {
    if (bias) sums.a += bias[output % static_cast<unsigned>(out_features)];
    out.set(output, bounds.clamp(sums.a));
  }
};

}  // namespace coppice::gpu
