// gpu/cuda_training_jobs.hpp: as gpu/cuda_jobs.hpp, what training needs besides: gradients, batch norms, descent.
#pragma once

#include "gpu/cuda_jobs.hpp"

namespace coppice::gpu {

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

// ---- sums over many terms -------------------------------------------------------------------------------------------

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

}  // namespace coppice::gpu
