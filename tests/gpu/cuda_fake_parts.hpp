// What the parts of tests/gpu/cuda_fake.hpp share.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/gpu/cuda_fake.hpp"

namespace coppice::gpu::fake {

using Work = std::function<void()>;
using Guard = std::lock_guard<std::recursive_mutex>;

std::recursive_mutex& mutex();         // nets run on several threads
bool fails(const std::string& call);   // counts it
cudaError_t refused(cudaError_t why);  // what this thread's next cudaGetLastError says too
void lend(const void* what);           // a handle or memory
void give_back(const void* what);      // aborts where it is not lent
bool is_lent(const void* what);
void enqueue(cudaStream_t stream, const Work& work);  // now into its capture, or later
void run_all(cudaStream_t stream);                    // and whatever it waits for
void run_everything();
void forget_devices();              // there are two again, as reset() has it
int device_of(const void* memory);  // -1: it is none of a device's

// One record of an event.
struct Mark {
  cudaStream_t stream = nullptr;
  bool over = false;
};
struct Item {
  Work work;                          // none: nothing but the wait
  std::shared_ptr<Mark> before = {};  // must be over first
};

}  // namespace coppice::gpu::fake

struct CUstream_st {
  int device = 0;
  std::deque<coppice::gpu::fake::Item> queue;
  struct CUgraph_st* capture = nullptr;
};
struct CUgraph_st {
  std::vector<coppice::gpu::fake::Work> works;
};
