#include "gpu/cuda_handles.hpp"

#include <algorithm>
#include <limits>

namespace coppice::gpu {
namespace {

constexpr int kCapabilityMin = 75;

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw Fault(ErrorCode::device_failed, std::string(call) + ": " + cudaGetErrorString(status));
}

void check(cudnnStatus_t status, const char* call) {
  if (status != CUDNN_STATUS_SUCCESS)
    throw Fault(ErrorCode::device_failed, std::string(call) + ": " + cudnnGetErrorString(status));
}

std::string why_not(int ordinal) {
  int count = 0;
  const auto status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0)
    return std::string("no NVIDIA driver or GPU here (") +
           (status != cudaSuccess ? cudaGetErrorString(status) : "0 devices") + ")";
  if (ordinal < 0 || ordinal >= count) return "the GPUs here are cuda:0 to cuda:" + std::to_string(count - 1);
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal), "cudaDeviceGetAttribute");
  if (major * 10 + minor < kCapabilityMin)
    return "its compute capability is " + std::to_string(major) + "." + std::to_string(minor) + ", 7.5 is needed";
  return "";
}

int narrow(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max())
    throw Fault(ErrorCode::shape_mismatch, std::to_string(value) + " is more than the GPU's libraries count to");
  return static_cast<int>(value);
}

DeviceMemory device_memory(std::size_t bytes) {
  void* made = nullptr;
  check(cudaMalloc(&made, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  return DeviceMemory(made);
}

PinnedMemory pinned_memory(std::size_t bytes) {
  void* made = nullptr;
  check(cudaHostAlloc(&made, std::max<std::size_t>(bytes, 1), cudaHostAllocDefault), "cudaHostAlloc");
  return PinnedMemory(made);
}

Lane::Lane(int ordinal) : ordinal_(ordinal) {
  check(cudaSetDevice(ordinal), "cudaSetDevice");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_.reset(stream);
  cudnnHandle_t cudnn = nullptr;
  check(cudnnCreate(&cudnn), "cudnnCreate");
  cudnn_.reset(cudnn);
  check(cudnnSetStream(cudnn, stream), "cudnnSetStream");
}

void Lane::settle() const noexcept {
  // Of this thread, which may be another than the one that compiled.
  static_cast<void>(cudaSetDevice(ordinal_));
  static_cast<void>(cudaStreamSynchronize(stream()));
}

void Lane::reserve(std::size_t bytes) {
  if (bytes <= workspace_bytes_) return;
  wait();
  workspace_.reset();
  workspace_bytes_ = 0;
  workspace_ = device_memory(bytes);
  workspace_bytes_ = bytes;
}

DeviceMemory Lane::upload(const void* bytes, std::size_t count) const {
  auto out = device_memory(count);
  // On the stream that reads it: a plain cudaMemcpy may return while a small copy is still on its way.
  check(cudaMemcpyAsync(out.get(), bytes, count, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  wait();
  return out;
}

DeviceMemory Lane::zeros(std::size_t bytes) const {
  auto out = device_memory(bytes);
  check(cudaMemsetAsync(out.get(), 0, bytes, stream()), "cudaMemsetAsync");
  return out;
}

}  // namespace coppice::gpu
