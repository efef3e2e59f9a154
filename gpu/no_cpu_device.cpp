// Stands in for cpu_device.cpp where oneDNN is not.
#include "gpu/device.hpp"

namespace coppice::gpu {

Expected<std::unique_ptr<Device>> make_cpu_device(const CpuOptions&) {
  return unexpected(Error{ErrorCode::device_unavailable, "device cpu: this build has no oneDNN"});
}

}  // namespace coppice::gpu
