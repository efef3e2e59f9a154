// gpu/device.hpp: something that runs nets: oneDNN on the CPU, cuDNN in a plug-in, or a recording.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "gpu/error.hpp"
#include "gpu/network.hpp"

namespace coppice::gpu {

// A net compiled for one device and batch size. Owns its memory; run allocates nothing and looks nothing up.
// One caller at a time.
class CompiledNet {
 public:
  virtual ~CompiledNet() = default;
  virtual std::int64_t input_elements() const = 0;   // of the whole batch
  virtual std::int64_t output_elements() const = 0;  // of the whole batch
  // input: float32 NCHW [batch, input dims]; output: float32 [batch, output dims]. Errors: shape_mismatch,
  // device_failed.
  virtual Expected<void> run(std::span<const float> input, std::span<float> output) = 0;
  virtual std::string description() const { return {}; }  // how it runs, for people
};

struct CompileOptions {
  int batch = 1;
  // CUDA: takes the fastest of the ways in which a convolution can be run, rather than the one that cuDNN advises.
  // Compiling takes seconds, and two compilations may differ in the last bits of their scores.
  bool timed = false;
};

class TrainableNet;      // gpu/training.hpp
struct TrainingOptions;

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda:0", "cuda:0:tf32"
  virtual Expected<std::unique_ptr<CompiledNet>> compile(const Network& net, const CompileOptions& options) = 0;
  // The net as it is given, nothing folded. Errors: unsupported_operator where this device does not train.
  virtual Expected<std::unique_ptr<TrainableNet>> compile_training(const Network& net, const TrainingOptions& options);
};

struct CpuOptions {
  int threads = 1;  // of each run; more than there are free cores makes everything slower
};

Expected<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options);

// What convolutions and dense layers count in. Scores are float32 in any case.
enum class Precision : std::uint8_t {
  float32,  // never TF32: workers on CPUs and GPUs answer one request together, so their numbers must agree
  tf32,     // float32 tensors; products of 10 bits on tensor cores
  float16,  // weights and activations are float16, sums are float32; training is as with tf32
};

struct DeviceSpec {
  std::optional<int> ordinal;  // of a CUDA device; none: the CPU
  Precision precision = Precision::float32;
};
inline constexpr const char* kDeviceSpecs = "cpu, cuda:N, cuda:N:tf32 or cuda:N:fp16";
std::optional<DeviceSpec> parse_device(std::string_view spec);  // none where it is none of kDeviceSpecs

// "cpu" or "cuda:N", which counts in float32; "cuda:N:tf32" and "cuda:N:fp16" are faster and less exact. The CUDA
// plug-in (libcoppice_cuda.so) is looked for beside the program, then in the library path; it is loaded only when asked
// for. Errors: device_unavailable, saying what is missing.
Expected<std::unique_ptr<Device>> make_device(std::string_view spec, const CpuOptions& cpu);

}  // namespace coppice::gpu
