// gpu/cuda_kernels.hpp: jobs on the GPU. Plain C++17, since nvcc compiles it too.
#pragma once

#include <type_traits>
#include <utility>

#include "gpu/cuda_jobs.hpp"
#include "gpu/cuda_peer_jobs.hpp"
#include "gpu/cuda_training_jobs.hpp"

namespace coppice::gpu {

// Puts a job onto a stream. For every job there is.
template <class Job>
cudaError_t launch(const Job& job, cudaStream_t stream);

// Whether a job sums up, or takes one number at a time.
template <class Job, class = void>
struct SumsUp : std::false_type {};
template <class Job>
struct SumsUp<Job, std::void_t<decltype(std::declval<Job>().terms())>> : std::true_type {};

// Every job there is.
// clang-format off
#define COPPICE_EACH_JOB(X)                                                                                  \
  X(Pointwise) X(SquareRoots) X(Strided) X(DirectConvolution) X(PoolGradient) X(ClampGradient) X(RunningNorm) X(NormApply)  \
  X(NormGradient) X(Descent) X(Pool) X(RowProducts) X(RepeatedSum) X(BiasGradient) X(BatchStatistics)        \
  X(NormGradientSums) X(Combine) X(Average)
// clang-format on

}  // namespace coppice::gpu
