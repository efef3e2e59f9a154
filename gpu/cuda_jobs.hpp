// gpu/cuda_jobs.hpp: what one thread of each of our kernels does, as code for both the GPU and the CPU: tests run the
// same lines where there is no GPU. gpu/cuda_kernels.cu puts them on the GPU.
//
// A job says what is done for each of so many numbers (size, operator()), or for each of so many outputs that are sums
// or maxima over many terms (outputs, terms, start, take, merge, finish). Plain C++17, since nvcc compiles it too.
// Counts fit an int: the nets see to it. Arithmetic is float32, whatever numbers are kept in.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <type_traits>
#include <utility>

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
  COPPICE_BOTH float clamp(float value) const { return fminf(fmaxf(value, low), high); }
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

constexpr int kAxesMax = 9;  // eight of an item, and the batch

// A block of numbers from one place to another, each at steps of its own along every axis: slices, joins,
// transpositions, shuffles, other layouts, other precisions, and the gradients of all of these.
struct Strided {
  Reals in, out;
  int count, axes;
  int dims[kAxesMax], from[kAxesMax], to[kAxesMax];  // sizes; steps in numbers, 0 where an axis is repeated
  int in_begin, out_begin;
  bool add;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH void operator()(unsigned i) const {
    int source = in_begin, target = out_begin;
    for (int axis = axes - 1; axis >= 0; --axis) {
      const int at = static_cast<int>(i % static_cast<unsigned>(dims[axis]));
      i /= static_cast<unsigned>(dims[axis]);
      source += at * from[axis];
      target += at * to[axis];
    }
    give(out, static_cast<unsigned>(target), in.get(static_cast<unsigned>(source)), add);
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

// One pixel's share of the gradients of all windows that it lies in: no two threads write one place.
struct PoolGradient {
  Image in, gradient_in, gradient_out;
  PoolWindow window;
  bool add;
  // The first window along an axis that reaches the place.
  COPPICE_BOTH static int first(int place, int kernel, int stride, int dilation) {
    const int least = place - (kernel - 1) * dilation;
    return least <= 0 ? 0 : (least + stride - 1) / stride;
  }
  COPPICE_BOTH bool is_maximum(int n, int c, int top, int left, int y, int x) const {
    float best = 0;
    int best_y = -1, best_x = -1;
    for (int ky = 0; ky < window.kernel_h; ++ky)
      for (int kx = 0; kx < window.kernel_w; ++kx) {
        const int v = top + ky * window.dilation_h, u = left + kx * window.dilation_w;
        if (v < 0 || v >= in.height || u < 0 || u >= in.width) continue;
        const float value = in.reals.get(in.index(n, c, v, u));
        if (best_y >= 0 && !(value > best)) continue;  // of equal ones the first
        best = value;
        best_y = v;
        best_x = u;
      }
    return best_y == y && best_x == x;
  }
  COPPICE_BOTH unsigned size() const { return in.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const auto at = in.pixel(i);
    const auto& w = window;
    const int down = at.y + w.pad_top, right = at.x + w.pad_left;
    float sum = 0;
    for (int y = first(down, w.kernel_h, w.stride_h, w.dilation_h); y < gradient_out.height && y * w.stride_h <= down;
         ++y) {
      if ((down - y * w.stride_h) % w.dilation_h != 0) continue;
      for (int x = first(right, w.kernel_w, w.stride_w, w.dilation_w);
           x < gradient_out.width && x * w.stride_w <= right; ++x) {
        if ((right - x * w.stride_w) % w.dilation_w != 0) continue;
        const int top = y * w.stride_h - w.pad_top, left = x * w.stride_w - w.pad_left;
        const float share = gradient_out.reals.get(gradient_out.index(at.n, at.c, y, x));
        if (w.average)
          sum += share / w.divisor(top, left, in.height, in.width);
        else if (is_maximum(at.n, at.c, top, left, at.y, at.x))
          sum += share;
      }
    }
    give(gradient_in.reals, i, sum, add);
  }
};

// Of a ReLU or a clip: nothing passes at a bound or beyond it.
struct ClampGradient {
  Reals in, gradient_out, gradient_in;
  int count;
  Bounds bounds;
  bool add;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const float value = in.get(i);
    give(gradient_in, i, value > bounds.low && value < bounds.high ? gradient_out.get(i) : 0.0F, add);
  }
};

// What a batch norm in training keeps between its kernels, [channels] each.
struct NormState {
  float *mean, *inverse;  // of this batch, or the running ones: 1 / sqrt(variance + epsilon)
  float *sum, *product;   // of the output's gradients, and of these times the normalised input
  float *running_mean, *running_variance;
  const float *scale, *shift;
  int batch, channels, inner;
  float epsilon;
  COPPICE_BOTH unsigned terms() const { return static_cast<unsigned>(batch) * static_cast<unsigned>(inner); }
  COPPICE_BOTH unsigned size() const { return terms() * static_cast<unsigned>(channels); }
  COPPICE_BOTH unsigned index(unsigned c, unsigned term) const {
    const auto width = static_cast<unsigned>(inner);
    return (term / width * static_cast<unsigned>(channels) + c) * width + term % width;
  }
  COPPICE_BOTH unsigned channel(unsigned i) const {
    return i / static_cast<unsigned>(inner) % static_cast<unsigned>(channels);
  }
};

struct RunningNorm {  // for each channel: the running statistics count
  NormState state;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(state.channels); }
  COPPICE_BOTH void operator()(unsigned c) const {
    state.mean[c] = state.running_mean[c];
    state.inverse[c] = 1.0F / sqrtf(state.running_variance[c] + state.epsilon);
  }
};

struct NormApply {
  NormState state;
  Reals in, out;
  COPPICE_BOTH unsigned size() const { return state.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const unsigned c = state.channel(i);
    out.set(i, (in.get(i) - state.mean[c]) * state.inverse[c] * state.scale[c] + state.shift[c]);
  }
};

struct NormGradient {
  NormState state;
  Reals in, gradient_out, gradient_in;
  bool own_statistics;  // of the batch, so that every number moves them
  bool add;
  COPPICE_BOTH unsigned size() const { return state.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    const unsigned c = state.channel(i);
    float value = gradient_out.get(i);
    if (own_statistics) {
      const float normal = (in.get(i) - state.mean[c]) * state.inverse[c];
      value -= (state.sum[c] + normal * state.product[c]) / static_cast<float>(state.terms());
    }
    give(gradient_in, i, value * state.inverse[c] * state.scale[c], add);
  }
};

enum class ParameterKind : unsigned char { fixed, plain, decayed };  // fixed: running statistics, and gaps

// One step of stochastic gradient descent over all parameters at once; see SgdStep.
struct Descent {
  float *weight, *gradient, *velocity, *average;  // average may be null
  const ParameterKind* kind;
  int count;
  float rate, momentum, weight_decay, average_decay;
  bool nesterov;
  COPPICE_BOTH unsigned size() const { return static_cast<unsigned>(count); }
  COPPICE_BOTH void operator()(unsigned i) const {
    float value = weight[i];
    if (kind[i] != ParameterKind::fixed) {
      float slope = gradient[i];
      if (kind[i] == ParameterKind::decayed) slope += weight_decay * value;
      const float v = momentum * velocity[i] + slope;
      velocity[i] = v;
      value -= rate * (nesterov ? slope + momentum * v : v);
      weight[i] = value;
    }
    gradient[i] = 0;
    if (average) average[i] = average_decay * average[i] + (1.0F - average_decay) * value;
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

// The gradient of what was repeated: of each number, the sum over the places where it stood.
struct RepeatedSum : Adding {
  Reals in, out;
  int kept_axes, repeated_axes;
  int kept[kAxesMax], kept_from[kAxesMax], repeated[kAxesMax], repeated_from[kAxesMax];  // sizes and steps in `in`
  int kept_count, repeated_count;
  bool add;
  COPPICE_BOTH unsigned outputs() const { return static_cast<unsigned>(kept_count); }
  COPPICE_BOTH unsigned terms() const { return static_cast<unsigned>(repeated_count); }
  COPPICE_BOTH static unsigned place(unsigned i, const int* dims, const int* steps, int axes) {
    unsigned out = 0;
    for (int axis = axes - 1; axis >= 0; --axis) {
      out += i % static_cast<unsigned>(dims[axis]) * static_cast<unsigned>(steps[axis]);
      i /= static_cast<unsigned>(dims[axis]);
    }
    return out;
  }
  COPPICE_BOTH void take(unsigned output, unsigned term, Sums& sums) const {
    sums.a += in.get(place(output, kept, kept_from, kept_axes) + place(term, repeated, repeated_from, repeated_axes));
  }
  COPPICE_BOTH void finish(unsigned output, Sums sums) const { give(out, output, sums.a, add); }
};

// A bias's gradient: the output's, summed over all that is not a channel.
struct BiasGradient : Adding {
  Reals in;
  float* out;
  int batch, channels, inner;
  COPPICE_BOTH unsigned outputs() const { return static_cast<unsigned>(channels); }
  COPPICE_BOTH unsigned terms() const { return static_cast<unsigned>(batch) * static_cast<unsigned>(inner); }
  COPPICE_BOTH void take(unsigned output, unsigned term, Sums& sums) const {
    const auto width = static_cast<unsigned>(inner);
    sums.a += in.get((term / width * static_cast<unsigned>(channels) + output) * width + term % width);
  }
  COPPICE_BOTH void finish(unsigned output, Sums sums) const { out[output] += sums.a; }
};

// Mean and variance of each channel of a batch in one reading; the running ones follow by a tenth.
struct BatchStatistics : Adding {
  NormState state;
  Reals in;
  COPPICE_BOTH unsigned outputs() const { return static_cast<unsigned>(state.channels); }
  COPPICE_BOTH unsigned terms() const { return state.terms(); }
  // Seen from the channel's first number: squares of large numbers would swallow a small variance.
  COPPICE_BOTH void take(unsigned c, unsigned term, Sums& sums) const {
    const float value = in.get(state.index(c, term)) - in.get(state.index(c, 0));
    sums.a += value;
    sums.b += value * value;
  }
  COPPICE_BOTH void finish(unsigned c, Sums sums) const {
    constexpr float kMomentum = 0.1F;
    const auto count = static_cast<float>(terms());
    const float shift = sums.a / count, mean = in.get(state.index(c, 0)) + shift;
    const float variance = fmaxf(sums.b / count - shift * shift, 0.0F);
    state.mean[c] = mean;
    state.inverse[c] = 1.0F / sqrtf(variance + state.epsilon);
    const float unbiased = variance * count / fmaxf(count - 1.0F, 1.0F);
    state.running_mean[c] += kMomentum * (mean - state.running_mean[c]);
    state.running_variance[c] += kMomentum * (unbiased - state.running_variance[c]);
  }
};

struct NormGradientSums : Adding {
  NormState state;
  Reals in, gradient_out;
  float *scale_gradient, *shift_gradient;
  COPPICE_BOTH unsigned outputs() const { return static_cast<unsigned>(state.channels); }
  COPPICE_BOTH unsigned terms() const { return state.terms(); }
  COPPICE_BOTH void take(unsigned c, unsigned term, Sums& sums) const {
    const unsigned i = state.index(c, term);
    const float gradient = gradient_out.get(i);
    sums.a += gradient;
    sums.b += gradient * (in.get(i) - state.mean[c]) * state.inverse[c];
  }
  COPPICE_BOTH void finish(unsigned c, Sums sums) const {
    state.sum[c] = sums.a;
    state.product[c] = sums.b;
    shift_gradient[c] += sums.a;
    scale_gradient[c] += sums.b;
  }
};

// ---- all of them ---------------------------------------------------------------------------------------------------

template <class Job, class = void>
struct SumsUp : std::false_type {};
template <class Job>
struct SumsUp<Job, std::void_t<decltype(std::declval<Job>().terms())>> : std::true_type {};

// clang-format off
#define COPPICE_EACH_JOB(X)                                                                                           \
  X(Pointwise) X(Strided) X(DirectConvolution) X(PoolGradient) X(ClampGradient) X(RunningNorm) X(NormApply)           \
  X(NormGradient) X(Descent) X(Pool) X(RowProducts) X(RepeatedSum) X(BiasGradient) X(BatchStatistics) X(NormGradientSums)
// clang-format on

}  // namespace coppice::gpu
