// gpu/cpu_net.hpp: a compiled net on the CPU: a list of prepared steps over one arena.
#pragma once

#include <dnnl.h>

#include <dnnl.hpp>
#include <functional>
#include <memory>
#include <vector>

#include "gpu/device.hpp"

namespace coppice::gpu {

struct CpuStep {  // a primitive of oneDNN, or a kernel of ours
  dnnl::primitive primitive;
  std::vector<dnnl_exec_arg_t> arguments;  // point to memories that the net keeps
  std::function<void()> kernel;
};

struct CallerView {  // of the caller's input or output
  dnnl::memory data;
  std::size_t offset = 0;  // bytes
};

// Memory on large pages where the system has them: the weights of a large net are read from end to end in every run.
// Measured: 4 to 5 % of VGG19's time (80 MB of weights), nothing for nets of a few megabytes.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t bytes);
  std::byte* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(std::byte* bytes) const;
  };
  std::unique_ptr<std::byte, Free> bytes_;
};

// What the compiler hands over.
struct CpuProgram {
  std::int64_t input_count = 0, output_count = 0;
  std::vector<CpuStep> steps;
  std::vector<dnnl::memory> kept;          // whatever steps point to
  std::vector<std::vector<float>> values;  // of constants
  AlignedBytes memory;                     // weights, arena and scratchpad
  std::vector<CallerView> input_views, output_views;
};

class CpuNet final : public CompiledNet {
 public:
  CpuNet(dnnl::engine engine, int threads, CpuProgram program);

  std::int64_t input_elements() const override { return program_.input_count; }
  std::int64_t output_elements() const override { return program_.output_count; }
  Expected<void> run(std::span<const float> input, std::span<float> output) override;

 private:
  dnnl_status_t execute(std::span<const float> input, std::span<float> output);

  dnnl::engine engine_;
  dnnl::stream stream_;
  int threads_;
  CpuProgram program_;
};

}  // namespace coppice::gpu
