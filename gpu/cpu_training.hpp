// gpu/cpu_training.hpp: training on oneDNN; gpu/cpu_device.cpp hands it out.
#pragma once

#include <dnnl.hpp>
#include <memory>

#include "gpu/training.hpp"

namespace coppice::gpu {

// Errors: shape_mismatch, unsupported_operator, device_failed.
Expected<std::unique_ptr<TrainableNet>> make_cpu_training(const dnnl::engine& engine, int threads, const Network& net,
                                                          const TrainingOptions& options);

}  // namespace coppice::gpu
