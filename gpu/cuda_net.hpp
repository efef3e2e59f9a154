// gpu/cuda_net.hpp: a net on the GPU, for inference.
#pragma once

#include <memory>

#include "gpu/cuda_plugin.hpp"
#include "gpu/device.hpp"

namespace coppice::gpu {

// REQUIRES: shapes are the net's. Throws Fault.
std::unique_ptr<CompiledNet> make_cuda_net(int ordinal, Precision precision, const Network& net,
                                           const std::vector<Dims>& shapes, const CompileOptions& options);

}  // namespace coppice::gpu
