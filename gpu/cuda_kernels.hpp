// gpu/cuda_kernels.hpp: what runs between cuDNN's convolutions. All tensors are float32 NCHW on the GPU.
//
// Plain C++17, since nvcc compiles it too. Sizes fit an int: gpu/cuda_device.cpp sees to it.
#pragma once

#include <cuda_runtime_api.h>

namespace coppice::gpu {

// out[i] = in[i] * scale[c] + shift[c] + other[i], then ReLU; a null pointer leaves its term out. In place is fine.
struct Pointwise {
  const float *in, *scale, *shift, *other;
  float* out;
  int count, channels, inner;  // c = i / inner % channels
  bool relu;
};
cudaError_t launch(const Pointwise& job, cudaStream_t stream);

// Any window, also one padded more on one side than on the other, which cuDNN's pooling does not take.
struct Pool {
  const float* in;
  float* out;
  int planes, in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  bool average, count_padding;
};
cudaError_t launch(const Pool& job, cudaStream_t stream);

// Zeros around each plane: for convolutions that are padded more on one side than on the other.
struct Pad {
  const float* in;
  float* out;
  int planes, in_h, in_w, out_h, out_w, pad_top, pad_left;
};
cudaError_t launch(const Pad& job, cudaStream_t stream);

// out[n, o] = dot(in[n], weight[o]) + bias[o], then ReLU; a null bias is left out. A warp for each number: right for
// few items, where reading the weights is all the work.
struct RowProducts {
  const float *in, *weight, *bias;
  float* out;
  int items, in_features, out_features;
  bool relu;
};
cudaError_t launch(const RowProducts& job, cudaStream_t stream);

}  // namespace coppice::gpu
