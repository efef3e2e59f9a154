// gpu/cpu_training.hpp: nets that learn on the CPU, by oneDNN.
#pragma once

#include <memory>

#include "gpu/training.hpp"

namespace coppice::gpu {

// threads: of each forward, backward and update. Errors: shape_mismatch, unsupported_operator
// (check_learnable), device_failed.
Expected<std::unique_ptr<TrainableNet>> make_cpu_training(const Network& net, const TrainingOptions& options,
                                                          int threads);

}  // namespace coppice::gpu
