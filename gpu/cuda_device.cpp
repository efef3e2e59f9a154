// The CUDA device: the plug-in's entry, and errors where faults were.
#include "gpu/cuda_handles.hpp"
#include "gpu/cuda_net.hpp"
#include "gpu/cuda_plugin.hpp"
#include "gpu/cuda_training.hpp"

namespace coppice::gpu {
namespace {

constexpr int kBatchMax = 65'536;

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, Precision precision) : ordinal_(ordinal), precision_(precision) {}
  std::string name() const override {
    return "cuda:" + std::to_string(ordinal_) +
           (precision_ == Precision::tf32      ? ":tf32"
            : precision_ == Precision::float16 ? ":fp16"
                                               : "");
  }

  Expected<std::unique_ptr<CompiledNet>> compile(const Network& given, const CompileOptions& options) override {
    if (const auto sound = infer_shapes(given); !sound) return unexpected(sound.error());
    return made<CompiledNet>(simplified(given), options, make_cuda_net);
  }
  Expected<std::unique_ptr<TrainableNet>> compile_training(const Network& net,
                                                           const TrainingOptions& options) override {
    return made<TrainableNet>(net, options, make_cuda_training);
  }

 private:
  template <class Net, class Options, class Make>
  Expected<std::unique_ptr<Net>> made(const Network& net, const Options& options, const Make& make) const {
    if (options.batch < 1 || options.batch > kBatchMax)
      return unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
    const auto shapes = infer_shapes(net);
    if (!shapes) return unexpected(shapes.error());
    const auto taken = std::is_same_v<Net, TrainableNet> ? check_learnable(net, *shapes, "training on a CUDA device")
                                                         : check_ordinary(net, *shapes, "a CUDA device");
    if (!taken) return unexpected(taken.error());
    try {
      return make(ordinal_, precision_, net, *shapes, options);
    } catch (const Fault& fault) {
      return unexpected(Error{fault.code, net.name + ": " + name() + ": " + fault.what()});
    }
  }

  int ordinal_;
  Precision precision_;
};

}  // namespace
}  // namespace coppice::gpu

extern "C" __attribute__((visibility("default"))) coppice::gpu::Device* coppice_cuda_device_v2(
    int ordinal, coppice::gpu::Precision precision, std::string* why) {
  using namespace coppice::gpu;
  try {
    if (*why = why_not(ordinal); !why->empty()) return nullptr;
    check(cudaSetDevice(ordinal), "cudaSetDevice");
    check(cudaFree(nullptr), "cudaFree");  // starts the device: what is wrong with it shows here
    return new CudaDevice(ordinal, precision);
  } catch (const std::exception& fault) {
    *why = fault.what();
    return nullptr;
  }
}
