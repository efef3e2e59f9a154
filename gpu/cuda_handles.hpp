// gpu/cuda_handles.hpp: what CUDA and cuDNN lend, given back by itself; their failures as one kind of exception.
//
// Inside the plug-in only: what leaves it is an Error.
#pragma once

#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "gpu/error.hpp"

namespace coppice::gpu {

struct Fault : std::runtime_error {
  Fault(ErrorCode c, const std::string& what) : std::runtime_error(what), code(c) {}
  ErrorCode code;
};

// Throw a Fault that names the call.
void check(cudaError_t status, const char* call);
void check(cudnnStatus_t status, const char* call);

// Why a device of this number cannot be used, in one line; empty: it can. Throws Fault.
std::string why_not(int ordinal);

// The value as the libraries count; a Fault where it is too large.
int narrow(std::int64_t value);

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    static_cast<void>(destroy(handle));  // nothing is left to be done about a failure here
  }
};
template <class T, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Destroy<destroy>>;

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using ReadyGraph = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owned<void*, cudaFree>;
using PinnedMemory = Owned<void*, cudaFreeHost>;
using Cudnn = Owned<cudnnHandle_t, cudnnDestroy>;
using TensorShape = Owned<cudnnTensorDescriptor_t, cudnnDestroyTensorDescriptor>;
using FilterShape = Owned<cudnnFilterDescriptor_t, cudnnDestroyFilterDescriptor>;
using ConvolutionShape = Owned<cudnnConvolutionDescriptor_t, cudnnDestroyConvolutionDescriptor>;
using BackendPart = Owned<cudnnBackendDescriptor_t, cudnnBackendDestroyDescriptor>;

DeviceMemory device_memory(std::size_t bytes);
PinnedMemory pinned_memory(std::size_t bytes);

// One stream with its cuDNN handle and the memory that cuDNN's algorithms work in: of one net alone, since a handle
// serves one thread at a time, and nets on streams of their own share the GPU.
class Lane {
 public:
  explicit Lane(int ordinal);
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() { settle(); }

  cudaStream_t stream() const { return stream_.get(); }
  cudnnHandle_t cudnn() const { return cudnn_.get(); }
  void* workspace() const { return workspace_.get(); }  // one for all steps, since they run one after another
  void reserve(std::size_t bytes);                      // moves the workspace where it must grow
  void wait(const char* for_what = "cudaStreamSynchronize") const { check(cudaStreamSynchronize(stream()), for_what); }
  // Waits for what runs, whatever came of it: before its memory goes.
  void settle() const noexcept;
  // Device memory with these bytes in it, ready to be read.
  DeviceMemory upload(const void* bytes, std::size_t count) const;
  DeviceMemory zeros(std::size_t bytes) const;

 private:
  int ordinal_;
  Stream stream_;  // first made, last destroyed
  Cudnn cudnn_;
  DeviceMemory workspace_;
  std::size_t workspace_bytes_ = 0;
};

// Forgets the latest refusal, which is not the next call's error.
inline void forget_refusal() { static_cast<void>(cudaGetLastError()); }

// What enqueue puts on the stream, as one graph to be replayed; none where that is refused: then the steps are to be
// enqueued one by one. Runs it once.
template <class Enqueue>
ReadyGraph captured(const Lane& lane, const Enqueue& enqueue) {
  ReadyGraph out;
  // Of this thread alone: other nets may be compiled or run meanwhile.
  if (cudaStreamBeginCapture(lane.stream(), cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
    bool whole = true;
    try {
      enqueue();
    } catch (const Fault&) {
      whole = false;
    }
    cudaGraph_t made = nullptr;
    whole = cudaStreamEndCapture(lane.stream(), &made) == cudaSuccess && whole;
    const Graph graph(made);
    cudaGraphExec_t ready = nullptr;
    if (whole && cudaGraphInstantiateWithFlags(&ready, made, 0) == cudaSuccess) out.reset(ready);
    if (out &&
        (cudaGraphLaunch(ready, lane.stream()) != cudaSuccess || cudaStreamSynchronize(lane.stream()) != cudaSuccess))
      out.reset();
  }
  forget_refusal();
  return out;
}

}  // namespace coppice::gpu
