// The program's side of the seam: finds and loads the plug-in.
#include "gpu/cuda_plugin.hpp"

#include <dlfcn.h>

#include <filesystem>

namespace coppice::gpu {

Expected<void*> cuda_plugin_entry(const char* name) {
  const auto unavailable = [](const std::string& what) {
    return unexpected(Error{ErrorCode::device_unavailable, "device cuda: " + what});
  };
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
    return unavailable(why.empty() ? std::string(kCudaPluginFile) +
                                         " is not beside the program: build where nvcc is, or use device cpu"
                                   : why);
  void* const entry = ::dlsym(plugin, name);
  if (!entry) return unavailable(std::string(kCudaPluginFile) + " is of another version");
  return entry;
}

Expected<std::unique_ptr<PeerGroup>> open_peer_group(std::span<const int> ordinals) {
  const auto entry = cuda_plugin_entry(kCudaPeersEntry);
  if (!entry) return unexpected(entry.error());
  std::string fault;
  std::unique_ptr<PeerGroup> group(
      reinterpret_cast<CudaPeersEntry>(*entry)(ordinals.data(), static_cast<int>(ordinals.size()), &fault));
  if (!group) return unexpected(Error{ErrorCode::device_unavailable, "devices cuda: " + fault});
  return group;
}

}  // namespace coppice::gpu
