// gpu/cuda_plugin.hpp: the seam between the program and the CUDA plug-in, which alone links CUDA and cuDNN.
#pragma once

#include <string>

#include "gpu/device.hpp"
#include "gpu/peer_group.hpp"

namespace coppice::gpu {

inline constexpr const char* kCudaPluginFile = "libcoppice_cuda.so";
inline constexpr const char* kCudaPluginEntry = "coppice_cuda_device_v2";
inline constexpr const char* kCudaPeersEntry = "coppice_cuda_peers_v1";

// The plug-in's entries. Each gives an object that the caller owns, or nothing and a line that says why. The program
// and its plug-in come from one build: C++ objects cross here.
using CudaDeviceEntry = Device* (*)(int ordinal, Precision precision, std::string* why);
using CudaPeersEntry = PeerGroup* (*)(const int* ordinals, int count, std::string* why);

// An entry of the plug-in, which is loaded first if need be. Errors: device_unavailable, saying what is missing.
Expected<void*> cuda_plugin_entry(const char* name);

}  // namespace coppice::gpu
