#include "gpu/training.hpp"

namespace coppice::gpu {

Expected<std::unique_ptr<TrainableNet>> Device::compile_training(const Network& net, const TrainingOptions&) {
  return unexpected(Error{ErrorCode::unsupported_operator, net.name + ": device " + name() + " does not train"});
}

}  // namespace coppice::gpu
