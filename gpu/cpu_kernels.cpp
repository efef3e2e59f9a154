#include "gpu/cpu_kernels.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

namespace coppice::gpu {
namespace {

constexpr std::size_t kTogether = 16;  // channels at a time: a line of the cache in layouts that keep channels together

// Calls visit(offsets of the operands) for every index of all axes but the last.
template <class Visit>
void walk(const StridedSum& sum, Visit visit) {
  std::ptrdiff_t out = sum.out.offset, first = sum.first.offset, second = sum.second.offset;
  const bool two = !sum.second.steps.empty();
  std::array<std::int64_t, 16> at{};
  const std::size_t outer = sum.dims.size() - 1;
  for (;;) {
    visit(out, first, second);
    std::size_t axis = outer;
    for (;;) {
      if (axis-- == 0) return;
      out += sum.out.steps[axis];
      first += sum.first.steps[axis];
      if (two) second += sum.second.steps[axis];
      if (++at[axis] < sum.dims[axis]) break;
      out -= sum.dims[axis] * sum.out.steps[axis];
      first -= sum.dims[axis] * sum.first.steps[axis];
      if (two) second -= sum.dims[axis] * sum.second.steps[axis];
      at[axis] = 0;
    }
  }
}

// The loop that matters is compiled for several processors where the compiler and the loader can choose among them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define COPPICE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define COPPICE_CLONES
#endif

COPPICE_CLONES void add_scaled(float* __restrict to, const float* __restrict from, float factor, std::ptrdiff_t count,
                               std::ptrdiff_t stride) {
  if (stride == 1)
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] += factor * from[i];
  else
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] += factor * from[i * stride];
}

struct Range {
  std::int64_t begin, end;
};

// The outputs whose tap at `at` pixels from the window's start, pad subtracted, lies within `size` pixels.
Range inside(std::int64_t at, std::int64_t stride, std::int64_t size, std::int64_t outputs) {
  const auto begin = at >= 0 ? 0 : (-at + stride - 1) / stride;
  const auto end = size <= at ? 0 : (size - at + stride - 1) / stride;
  return {std::min(begin, outputs), std::max(std::min(begin, outputs), std::min(end, outputs))};
}

// One channel; that of an image is one plane.
struct Planes {
  std::int64_t depth, height, width;

  explicit Planes(const Dims& dims)
      : depth(dims.size() == 4 ? dims[1] : 1), height(dims.end()[-2]), width(dims.back()) {}
  std::int64_t pixels() const { return height * width; }  // of a plane
};

// Adds one plane of the kernel over one plane of the input to one plane of the output.
void convolve_plane(const Window& w, const Planes& from, const Planes& to, const float* in, const float* weight,
                    float* out) {
  for (std::int64_t ky = 0; ky < w.kernel_h; ++ky) {
    const auto top = ky * w.dilation_h - w.pad_top;
    const auto rows = inside(top, w.stride_h, from.height, to.height);
    for (std::int64_t kx = 0; kx < w.kernel_w; ++kx) {
      const auto left = kx * w.dilation_w - w.pad_left;
      const auto columns = inside(left, w.stride_w, from.width, to.width);
      if (columns.begin == columns.end) continue;
      for (std::int64_t y = rows.begin; y < rows.end; ++y)
        add_scaled(out + y * to.width + columns.begin,
                   in + (y * w.stride_h + top) * from.width + columns.begin * w.stride_w + left,
                   weight[ky * w.kernel_w + kx], columns.end - columns.begin, w.stride_w);
    }
  }
}

// Adds one channel of one item to one of the output. A volume's is a sum over planes: each plane of the kernel meets
// each plane of the input just as over an image, so that one inner loop serves both.
void convolve_channel(const Window& w, const Planes& from, const Planes& to, const float* in, const float* weight,
                      float* out) {
  for (std::int64_t kz = 0; kz < w.kernel_d; ++kz, weight += w.kernel_h * w.kernel_w) {
    const auto front = kz * w.dilation_d - w.pad_front;
    const auto planes = inside(front, w.stride_d, from.depth, to.depth);
    for (std::int64_t z = planes.begin; z < planes.end; ++z)
      convolve_plane(w, from, to, in + (z * w.stride_d + front) * from.pixels(), weight, out + z * to.pixels());
  }
}

}  // namespace

void convolve(const PlainConvolution& c, const float* in, const float* weight, const float* bias, float* out) {
  const Planes from(c.in), to(c.out);
  const std::int64_t in_channel = from.depth * from.pixels(), out_channel = to.depth * to.pixels();
  const std::int64_t group_in = c.in[0] / c.groups, group_out = c.out[0] / c.groups;
  for (std::int64_t n = 0; n < c.items; ++n)
    for (std::int64_t o = 0; o < c.out[0]; ++o) {
      float* sums = out + (n * c.out[0] + o) * out_channel;
      if (!c.adds) std::fill_n(sums, out_channel, 0.0F);
      for (std::int64_t i = 0; i < group_in; ++i)
        convolve_channel(c.window, from, to, in + (n * c.in[0] + o / group_out * group_in + i) * in_channel,
                         weight + (o * group_in + i) * c.window.taps(), sums);
      const float shift = bias ? bias[o] : 0.0F;
      for (std::int64_t i = 0; i < out_channel; ++i) sums[i] = std::min(std::max(sums[i] + shift, c.low), c.high);
    }
}

void copy_columns(const ColumnCopy& copy, const float* in, float* out) {
  const auto& w = copy.window;
  const std::int64_t channels = copy.in[0], row = copy.in[2] * channels;
  const auto pixel = [&](const float* image, std::int64_t top, std::int64_t left) {
    for (const auto& tap : copy.taps) {
      const auto y = top + tap.y * w.dilation_h, x = left + tap.x * w.dilation_w;
      if (y >= 0 && x >= 0 && y < copy.in[1] && x < copy.in[2])
        std::copy_n(image + y * row + x * channels, channels, out);
      else
        std::fill_n(out, channels, 0.0F);
      out += channels;
    }
  };
  for (std::int64_t n = 0; n < copy.items; ++n)
    for (std::int64_t y = 0; y < copy.out[1]; ++y)
      for (std::int64_t x = 0; x < copy.out[2]; ++x)
        pixel(in + n * copy.in[1] * row, y * w.stride_h - w.pad_top, x * w.stride_w - w.pad_left);
}

void pool(const PlainPool& p, const float* in, float* out) {
  const auto& w = p.window;
  const Planes from(p.in), to(p.out);
  const auto at = [&](std::int64_t z, std::int64_t y, std::int64_t x) {
    const auto front = z * w.stride_d - w.pad_front, top = y * w.stride_h - w.pad_top,
               left = x * w.stride_w - w.pad_left;
    float best = -std::numeric_limits<float>::infinity(), sum = 0, count = 0;
    for (std::int64_t k = front; k < front + w.kernel_d * w.dilation_d; k += w.dilation_d)
      for (std::int64_t i = top; i < top + w.kernel_h * w.dilation_h; i += w.dilation_h)
        for (std::int64_t j = left; j < left + w.kernel_w * w.dilation_w; j += w.dilation_w) {
          const bool within = k >= 0 && i >= 0 && j >= 0 && k < from.depth && i < from.height && j < from.width;
          if (within || p.count_padding) ++count;
          if (!within) continue;
          const float value = in[(k * from.height + i) * from.width + j];
          best = std::max(best, value);
          sum += value;
        }
    return p.average ? sum / count : best;
  };
  for (std::int64_t channel = 0; channel < p.channels; ++channel, in += from.depth * from.pixels())
    for (std::int64_t z = 0; z < to.depth; ++z)
      for (std::int64_t y = 0; y < to.height; ++y)
        for (std::int64_t x = 0; x < to.width; ++x) *out++ = at(z, y, x);
}

void copy_channels(const ChannelCopy& copy, std::span<const float* const> from, float* to) {
  static constexpr float kZero = 0;
  for (std::size_t begin = 0; begin < copy.to.size(); begin += kTogether) {
    const std::size_t count = std::min(kTogether, copy.to.size() - begin);
    for (std::int64_t n = 0; n < copy.items; ++n) {
      std::array<const float*, kTogether> source{};
      std::array<std::ptrdiff_t, kTogether> step{};
      std::array<float*, kTogether> target{};
      for (std::size_t i = 0; i < count; ++i) {
        const auto &in = copy.from[begin + i], &out = copy.to[begin + i];
        source[i] = in.memory < 0 ? &kZero : from[static_cast<std::size_t>(in.memory)] + in.offset + n * in.item;
        step[i] = in.memory < 0 ? 0 : in.pixel;
        target[i] = to + out.offset + n * out.item;
      }
      const std::ptrdiff_t stride = copy.to[begin].pixel;  // one layout has one
      for (std::ptrdiff_t p = 0; p < copy.pixels; ++p)
        for (std::size_t i = 0; i < count; ++i) target[i][p * stride] = source[i][p * step[i]];
    }
  }
}

template <class Made>  // of two numbers
void each_pair(const StridedSum& of, const float* first, const float* second, float* out, float low, float high, Made made) {
  const auto to = of.out.steps.back(), a = of.first.steps.back(), b = of.second.steps.back();
  const std::ptrdiff_t count = of.dims.back();
  walk(of, [&](std::ptrdiff_t at_out, std::ptrdiff_t at_first, std::ptrdiff_t at_second) {
    for (std::ptrdiff_t i = 0; i < count; ++i)
      out[at_out + i * to] = std::min(std::max(made(first[at_first + i * a], second[at_second + i * b]), low), high);
  });
}

void add_strided(const StridedSum& sum, const float* first, const float* second, float* out, float low, float high) {
  each_pair(sum, first, second, out, low, high, std::plus());
}

void combine_strided(Arithmetic::Kind kind, const StridedSum& of, const float* first, const float* second, float* out,
                     float low, float high) {
  const auto with = [&](auto made) { each_pair(of, first, second, out, low, high, made); };
  switch (kind) {
    case Arithmetic::Kind::subtract:
      return with(std::minus());
    case Arithmetic::Kind::multiply:
      return with(std::multiplies());
    case Arithmetic::Kind::divide:
      return with(std::divides());
  }
}

void copy_strided(const StridedSum& copy, const float* from, float* out) {
  const auto to = copy.out.steps.back(), a = copy.first.steps.back();
  const std::ptrdiff_t count = copy.dims.back();
  walk(copy, [&](std::ptrdiff_t at_out, std::ptrdiff_t at_first, std::ptrdiff_t) {
    for (std::ptrdiff_t i = 0; i < count; ++i) out[at_out + i * to] = from[at_first + i * a];
  });
}

std::vector<std::ptrdiff_t> row_major(const Dims& dims) {
  std::vector<std::ptrdiff_t> steps(dims.size(), 1);
  for (std::size_t axis = dims.size(); axis-- > 1;) steps[axis - 1] = steps[axis] * dims[axis];
  return steps;
}

}  // namespace coppice::gpu
