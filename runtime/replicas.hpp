// runtime/replicas.hpp: what a data-parallel training needs of its other replicas (gpu/replicas.hpp), as collective
// operations.
#pragma once

#include <memory>

#include "gpu/replicas.hpp"
#include "runtime/communicator.hpp"

namespace coppice::runtime {

// Ranks are the group's, which must outlive the replicas. Errors name the call and the rank that is missing.
std::unique_ptr<gpu::ReplicaGroup> replicas_over(Communicator& group);

}  // namespace coppice::runtime
