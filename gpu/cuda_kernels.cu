#include "gpu/cuda_kernels.hpp"

namespace coppice::gpu {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
// From so many terms on, an output is added up by a warp, a small block and a large one rather than by one thread.
constexpr unsigned kFew = 32, kMany = 256, kVeryMany = 8'192;

unsigned blocks(unsigned long long threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

template <class Job>
__global__ void each(Job job, unsigned size) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i < size) job(i);
}

template <unsigned lanes, class Job>
__device__ Sums among_lanes(const Job& job, Sums sums) {
  for (unsigned step = lanes / 2; step > 0; step /= 2) {
    const Sums other{__shfl_xor_sync(kAllLanes, sums.a, static_cast<int>(step)),
                     __shfl_xor_sync(kAllLanes, sums.b, static_cast<int>(step))};
    job.merge(sums, other);
  }
  return sums;
}

// A group of lanes for each output: one for few terms, a warp for many.
template <unsigned lanes, class Job>
__global__ void sum_in_lanes(Job job, unsigned outputs, unsigned terms) {
  const unsigned output = blockIdx.x * (kThreads / lanes) + threadIdx.x / lanes;
  if (output >= outputs) return;  // the whole group leaves
  Sums sums = job.start();
  for (unsigned term = threadIdx.x % lanes; term < terms; term += lanes) job.take(output, term, sums);
  if (lanes > 1) sums = among_lanes<lanes>(job, sums);
  if (threadIdx.x % lanes == 0) job.finish(output, sums);
}

template <unsigned threads, class Job>
__global__ void sum_in_blocks(Job job, unsigned terms) {
  __shared__ Sums of_warps[threads / kWarp];
  Sums sums = job.start();
  for (unsigned term = threadIdx.x; term < terms; term += threads) job.take(blockIdx.x, term, sums);
  sums = among_lanes<kWarp>(job, sums);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sums;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  sums = threadIdx.x < threads / kWarp ? of_warps[threadIdx.x] : job.start();
  sums = among_lanes<kWarp>(job, sums);
  if (threadIdx.x == 0) job.finish(blockIdx.x, sums);
}

}  // namespace

template <class Job>
cudaError_t launch(const Job& job, cudaStream_t stream) {
  if constexpr (SumsUp<Job>::value) {
    constexpr unsigned kSmall = 128, kLarge = 1'024;
    const unsigned outputs = job.outputs(), terms = job.terms();
    if (terms >= kVeryMany)
      sum_in_blocks<kLarge><<<outputs, kLarge, 0, stream>>>(job, terms);
    else if (terms >= kMany)
      sum_in_blocks<kSmall><<<outputs, kSmall, 0, stream>>>(job, terms);
    else if (terms >= kFew)
      sum_in_lanes<kWarp>
          <<<blocks(static_cast<unsigned long long>(outputs) * kWarp), kThreads, 0, stream>>>(job, outputs, terms);
    else
      sum_in_lanes<1><<<blocks(outputs), kThreads, 0, stream>>>(job, outputs, terms);
  } else {
    each<<<blocks(job.size()), kThreads, 0, stream>>>(job, job.size());
  }
  return cudaGetLastError();
}

#define COPPICE_LAUNCH(Job) template cudaError_t launch(const Job& job, cudaStream_t stream);
COPPICE_EACH_JOB(COPPICE_LAUNCH)

}  // namespace coppice::gpu
