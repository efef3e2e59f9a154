// The CPU device: a net as a list of prepared steps, mostly oneDNN's primitives, over one arena.
//
// Compiling (gpu/cpu_compiler.hpp) folds batch norms, fuses convolutions with the residual sum and the activation after
// them, lets oneDNN choose every layout and reorders weights ahead. Running (gpu/cpu_net.hpp) executes the list:
// nothing is looked up and nothing is allocated; only the caller's two buffers are put in their places.
#include <omp.h>

#include <dnnl.hpp>
#include <utility>

#include "gpu/cpu_compiler.hpp"
#include "gpu/cpu_training.hpp"
#include "gpu/device.hpp"

namespace coppice::gpu {
namespace {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : engine_(dnnl::engine::kind::cpu, 0), threads_(threads) {}
  std::string name() const override { return "cpu"; }

  Expected<std::unique_ptr<CompiledNet>> compile(const Network& given, const CompileOptions& options) override {
    if (options.batch < 1 || options.batch > 65'536)
      return unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
    if (auto valid = infer_shapes(given); !valid) return unexpected(valid.error());
    const Network net = simplified(given);
    const auto shapes = infer_shapes(net);
    if (!shapes) return unexpected(shapes.error());
    try {
      omp_set_num_threads(threads_);  // primitives are made for a number of threads
      return std::make_unique<CpuNet>(engine_, threads_, compile_for_cpu(net, *shapes, options.batch, engine_));
    } catch (const dnnl::error& fault) {
      return unexpected(Error{ErrorCode::device_failed, net.name + ": oneDNN: " + fault.what()});
    }
  }

  Expected<std::unique_ptr<TrainableNet>> compile_training(const Network& net, const TrainingOptions& options) override {
    return make_cpu_training(net, options, options.threads > 0 ? options.threads : threads_);
  }

 private:
  dnnl::engine engine_;
  int threads_;
};

}  // namespace

Expected<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options) {
  if (options.threads < 1 || options.threads > 1'024)
    return unexpected(
        Error{ErrorCode::device_unavailable, "the CPU cannot run " + std::to_string(options.threads) + " threads"});
  try {
    return std::make_unique<CpuDevice>(options.threads);
  } catch (const dnnl::error& fault) {
    return unexpected(Error{ErrorCode::device_unavailable, std::string("oneDNN: ") + fault.what()});
  }
}

}  // namespace coppice::gpu
