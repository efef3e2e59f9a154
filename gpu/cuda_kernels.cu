#include <cmath>

#include "gpu/cuda_kernels.hpp"

namespace coppice::gpu {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffU;

unsigned blocks(long long threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

__global__ void pointwise(Pointwise job) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= static_cast<unsigned>(job.count)) return;
  const unsigned c = i / static_cast<unsigned>(job.inner) % static_cast<unsigned>(job.channels);
  float value = job.in[i];
  if (job.scale) value *= job.scale[c];
  if (job.shift) value += job.shift[c];
  if (job.other) value += job.other[i];
  job.out[i] = job.relu ? fmaxf(value, 0.0F) : value;
}

// A group of lanes for each output: one for small windows, a warp for large ones (global pools).
template <unsigned lanes>
__global__ void pool(Pool job) {
  const unsigned output = blockIdx.x * (kThreads / lanes) + threadIdx.x / lanes;
  const unsigned plane_size = static_cast<unsigned>(job.out_h) * static_cast<unsigned>(job.out_w);
  if (output >= static_cast<unsigned>(job.planes) * plane_size) return;  // the whole group leaves
  const unsigned plane = output / plane_size;
  const int top = static_cast<int>(output % plane_size) / job.out_w * job.stride_h - job.pad_top;
  const int left = static_cast<int>(output % plane_size) % job.out_w * job.stride_w - job.pad_left;
  const int y = max(top, 0), x = max(left, 0);
  const int wide = max(min(left + job.kernel_w, job.in_w) - x, 0);
  const int area = wide * max(min(top + job.kernel_h, job.in_h) - y, 0);
  const float* from = job.in + static_cast<size_t>(plane) * job.in_h * job.in_w;
  float value = job.average ? 0.0F : -INFINITY;
  for (int i = static_cast<int>(threadIdx.x % lanes); i < area; i += static_cast<int>(lanes)) {
    const float pixel = from[static_cast<size_t>(y + i / wide) * job.in_w + x + i % wide];
    value = job.average ? value + pixel : fmaxf(value, pixel);
  }
  for (unsigned step = lanes / 2; step > 0; step /= 2) {
    const float theirs = __shfl_xor_sync(kAllLanes, value, static_cast<int>(step));
    value = job.average ? value + theirs : fmaxf(value, theirs);
  }
  if (job.average)
    value /= job.count_padding ? static_cast<float>(job.kernel_h) * static_cast<float>(job.kernel_w)
                               : static_cast<float>(area);
  if (threadIdx.x % lanes == 0) job.out[output] = value;
}

__global__ void pad(Pad job) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  const unsigned plane_size = static_cast<unsigned>(job.out_h) * static_cast<unsigned>(job.out_w);
  if (i >= static_cast<unsigned>(job.planes) * plane_size) return;
  const int y = static_cast<int>(i % plane_size) / job.out_w - job.pad_top;
  const int x = static_cast<int>(i % plane_size) % job.out_w - job.pad_left;
  const bool inside = y >= 0 && y < job.in_h && x >= 0 && x < job.in_w;
  job.out[i] = inside ? job.in[(static_cast<size_t>(i / plane_size) * job.in_h + y) * job.in_w + x] : 0.0F;
}

__global__ void row_products(RowProducts job) {
  const unsigned output = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  const unsigned features = static_cast<unsigned>(job.out_features);
  if (output >= static_cast<unsigned>(job.items) * features) return;  // the whole warp leaves
  const unsigned feature = output % features;
  const float* in = job.in + static_cast<size_t>(output / features) * job.in_features;
  const float* weight = job.weight + static_cast<size_t>(feature) * job.in_features;
  float sum = 0.0F;
  for (int i = static_cast<int>(threadIdx.x % kWarp); i < job.in_features; i += static_cast<int>(kWarp))
    sum += in[i] * weight[i];
  for (unsigned step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, static_cast<int>(step));
  if (threadIdx.x % kWarp != 0) return;
  if (job.bias) sum += job.bias[feature];
  job.out[output] = job.relu ? fmaxf(sum, 0.0F) : sum;
}

}  // namespace

cudaError_t launch(const Pointwise& job, cudaStream_t stream) {
  pointwise<<<blocks(job.count), kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

cudaError_t launch(const Pool& job, cudaStream_t stream) {
  const long long outputs = static_cast<long long>(job.planes) * job.out_h * job.out_w;
  if (static_cast<long long>(job.kernel_h) * job.kernel_w >= static_cast<long long>(kWarp))
    pool<kWarp><<<blocks(outputs * kWarp), kThreads, 0, stream>>>(job);
  else
    pool<1><<<blocks(outputs), kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

cudaError_t launch(const Pad& job, cudaStream_t stream) {
  pad<<<blocks(static_cast<long long>(job.planes) * job.out_h * job.out_w), kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

cudaError_t launch(const RowProducts& job, cudaStream_t stream) {
  row_products<<<blocks(static_cast<long long>(job.items) * job.out_features * kWarp), kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

}  // namespace coppice::gpu
