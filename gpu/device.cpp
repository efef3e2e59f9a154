#include "gpu/device.hpp"

#include <dlfcn.h>

#include <charconv>
#include <filesystem>

#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {
namespace {

unexpected<Error> unavailable(const std::string& what) {
  return unexpected(Error{ErrorCode::device_unavailable, what});
}

Expected<std::unique_ptr<Device>> make_cuda_device(int ordinal) {
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
  std::unique_ptr<Device> device(make(ordinal, &fault));
  if (!device) return unavailable("device cuda:" + std::to_string(ordinal) + ": " + fault);
  return device;
}

}  // namespace

Expected<std::unique_ptr<Device>> make_device(std::string_view spec, const CpuOptions& cpu) {
  if (spec == "cpu") return make_cpu_device(cpu);
  if (spec.starts_with("cuda:")) {
    int ordinal = -1;
    const auto digits = spec.substr(5);
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
    if (fault == std::errc{} && end == digits.data() + digits.size() && ordinal >= 0) return make_cuda_device(ordinal);
  }
  return unavailable("device " + std::string(spec) + ": expected cpu or cuda:N");
}

}  // namespace coppice::gpu
