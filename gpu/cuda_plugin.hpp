// gpu/cuda_plugin.hpp: the seam between the program and the CUDA plug-in, which alone links CUDA and cuDNN.
#pragma once

#include <cstdint>
#include <string>

#include "gpu/device.hpp"

namespace coppice::gpu {

// What convolutions and dense layers count in. Scores are float32 in any case.
enum class Precision : std::uint8_t {
  float32,  // never TF32: workers on CPUs and GPUs answer one request together, so their numbers must agree
  tf32,     // float32 tensors; products of 10 bits on tensor cores
  float16,  // weights and activations are float16, sums are float32; training is as with tf32
};

inline constexpr const char* kCudaPluginFile = "libcoppice_cuda.so";
inline constexpr const char* kCudaPluginEntry = "coppice_cuda_device_v2";

// The plug-in's one entry. Gives a device that the caller owns, or nothing and a line that says why. The program and
// its plug-in come from one build: C++ objects cross here.
using CudaDeviceEntry = Device* (*)(int ordinal, Precision precision, std::string* why);

}  // namespace coppice::gpu
