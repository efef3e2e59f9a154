// What the two halves of tests/gpu/cuda_fake.hpp share.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/gpu/cuda_fake.hpp"

namespace coppice::gpu::fake {

using Work = std::function<void()>;

bool fails(const std::string& call);  // counts it
void lend(const void* what);          // a handle or memory
void give_back(const void* what);     // aborts where it is not lent
bool is_lent(const void* what);
void enqueue(cudaStream_t stream, const Work& work);  // now into its capture, or later

}  // namespace coppice::gpu::fake
