// gpu/cpu_compiler.hpp: from a net to the steps that the CPU device runs.
#pragma once

#include "gpu/cpu_net.hpp"

namespace coppice::gpu {

// Steps for one engine, batch size and the number of threads that OpenMP is set to. Throws dnnl::error.
// REQUIRES: the net is simplified; shapes as infer_shapes gives them.
CpuProgram compile_for_cpu(const Network& net, const std::vector<Dims>& shapes, int batch, const dnnl::engine& engine);

}  // namespace coppice::gpu
