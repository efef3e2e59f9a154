// gpu/cuda_plugin.hpp: the seam between the program and the CUDA plug-in, which alone links CUDA and cuDNN.
#pragma once

#include <string>

#include "gpu/device.hpp"

namespace coppice::gpu {

inline constexpr const char* kCudaPluginFile = "libcoppice_cuda.so";
inline constexpr const char* kCudaPluginEntry = "coppice_cuda_device_v2";

// The plug-in's one entry. Gives a device that the caller owns, or nothing and a line that says why. The program and
// its plug-in come from one build: C++ objects cross here.
using CudaDeviceEntry = Device* (*)(int ordinal, Precision precision, std::string* why);

}  // namespace coppice::gpu
