#include "gpu/device.hpp"

#include <dlfcn.h>

#include <charconv>
#include <filesystem>
#include <optional>

#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {
namespace {

unexpected<Error> unavailable(const std::string& what) {
  return unexpected(Error{ErrorCode::device_unavailable, what});
}

Expected<std::unique_ptr<Device>> make_cuda_device(int ordinal, Precision precision) {
  std::error_code ignored;
  const auto here = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  void* plugin = nullptr;
  std::string why;
  for (const auto& place : {(here / kCudaPluginFile).string(), (here / "../lib/coppice" / kCudaPluginFile).string(),
                            std::string(kCudaPluginFile)}) {
    // Never unloaded: the driver keeps threads of its own.
    plugin = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (plugin) break;
    if (const char* text = ::dlerror(); text && std::filesystem::exists(place)) why = text;
  }
  if (!plugin)
    return unavailable(why.empty() ? std::string("device cuda: ") + kCudaPluginFile +
                                         " is not beside the program: build where nvcc is, or use device cpu"
                                   : "device cuda: " + why);
  const auto make = reinterpret_cast<CudaDeviceEntry>(::dlsym(plugin, kCudaPluginEntry));
  if (!make) return unavailable(std::string("device cuda: ") + kCudaPluginFile + " is of another version");
  std::string fault;
  std::unique_ptr<Device> device(make(ordinal, precision, &fault));
  if (!device) return unavailable("device cuda:" + std::to_string(ordinal) + ": " + fault);
  return device;
}

// Takes a precision's name off the end of what stands after "cuda:"; none where it is no name of one.
std::optional<Precision> precision_of(std::string_view& ordinal) {
  const auto colon = ordinal.find(':');
  if (colon == std::string_view::npos) return Precision::float32;
  const auto name = ordinal.substr(colon + 1);
  ordinal = ordinal.substr(0, colon);
  if (name == "tf32") return Precision::tf32;
  if (name == "fp16") return Precision::float16;
  return {};
}

}  // namespace

Expected<std::unique_ptr<Device>> make_device(std::string_view spec, const CpuOptions& cpu) {
  if (spec == "cpu") return make_cpu_device(cpu);
  if (spec.starts_with("cuda:")) {
    auto digits = spec.substr(5);
    const auto precision = precision_of(digits);
    int ordinal = -1;
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
    if (precision && fault == std::errc{} && end == digits.data() + digits.size() && ordinal >= 0)
      return make_cuda_device(ordinal, *precision);
  }
  return unavailable("device " + std::string(spec) + ": expected cpu or cuda:N, or cuda:N:tf32 or cuda:N:fp16");
}

}  // namespace coppice::gpu
