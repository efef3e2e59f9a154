// The CUDA device on the made-up CUDA.
#pragma once

#include <memory>
#include <string>

#include "gpu/cuda_plugin.hpp"
#include "tests/gpu/cuda_fake.hpp"

extern "C" coppice::gpu::Device* coppice_cuda_device_v2(int ordinal, coppice::gpu::Precision precision,
                                                        std::string* why);

namespace coppice::gpu {

inline std::unique_ptr<Device> cuda(Precision precision = Precision::float32) {
  std::string why;
  return std::unique_ptr<Device>(coppice_cuda_device_v2(0, precision, &why));
}

}  // namespace coppice::gpu
