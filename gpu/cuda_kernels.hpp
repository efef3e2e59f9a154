// gpu/cuda_kernels.hpp: the jobs of gpu/cuda_jobs.hpp on the GPU. Plain C++17, since nvcc compiles it too.
#pragma once

#include "gpu/cuda_jobs.hpp"

namespace coppice::gpu {

// Puts a job onto a stream. For every job there is.
template <class Job>
cudaError_t launch(const Job& job, cudaStream_t stream);

}  // namespace coppice::gpu
