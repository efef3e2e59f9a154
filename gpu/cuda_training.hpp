// gpu/cuda_training.hpp: a net on the GPU, for training.
#pragma once

#include <memory>

#include "gpu/cuda_plugin.hpp"
#include "gpu/training.hpp"

namespace coppice::gpu {

// REQUIRES: shapes are the net's. Throws Fault.
std::unique_ptr<TrainableNet> make_cuda_training(int ordinal, Precision precision, const Network& net,
                                                 const std::vector<Dims>& shapes, const TrainingOptions& options);

}  // namespace coppice::gpu
