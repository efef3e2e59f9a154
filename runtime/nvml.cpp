#include "runtime/nvml.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>

namespace coppice::runtime {
namespace {

// The few of NVML's entry points that are called, as its API reference has them: stable since driver 384.
struct PciInfo {
  char bus_id_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct Memory {
  unsigned long long total, free, used;
};
union Value {
  double as_double;
  unsigned as_unsigned;
  unsigned long long as_long;
};
struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency_us;
  int value_type, result;
  Value value;
};
using Device = void*;
constexpr unsigned kNvlinkSpeedCommon = 90;  // MB/s of each active link, one direction
constexpr unsigned kNvlinksMax = 18;
constexpr unsigned kGpusMax = 1'024;

std::string address_of(const PciInfo& pci) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%04x:%02x:%02x", pci.domain & 0xffffU, pci.bus & 0xffU, pci.device & 0xffU);
  return text.data();
}

class Nvml {
 public:
  Nvml() : library_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {}
  ~Nvml() {
    if (started_) call<int()>("nvmlShutdown");
    if (library_) ::dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  Expected<void> start() {
    if (!library_) return failed("NVML (libnvidia-ml.so.1) is not on this machine");
    const int result = call<int()>("nvmlInit_v2");
    if (result != 0) return failed("NVML does not start (its error " + std::to_string(result) + "): is the NVIDIA driver loaded?");
    started_ = true;
    return {};
  }
  // The library's own result; a function that this version has not is an error like another.
  template <class Signature, class... Arguments>
  int call(const char* name, Arguments... arguments) const {
    auto* function = reinterpret_cast<Signature*>(::dlsym(library_, name));
    return function ? function(arguments...) : -1;
  }

 private:
  void* library_;
  bool started_ = false;
};

std::vector<NvLink> nvlinks_of(const Nvml& nvml, Device device) {
  std::vector<NvLink> links;
  for (unsigned i = 0; i < kNvlinksMax; ++i) {
    unsigned active = 0;
    PciInfo pci{};
    if (nvml.call<int(Device, unsigned, unsigned*)>("nvmlDeviceGetNvLinkState", device, i, &active) != 0 || active == 0) continue;
    if (nvml.call<int(Device, unsigned, PciInfo*)>("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, i, &pci) != 0) continue;
    const auto to = address_of(pci);
    const auto known = std::ranges::find(links, to, &NvLink::to);
    if (known != links.end())
      ++known->count;
    else
      links.push_back({to, 1, 0});
  }
  if (links.empty()) return links;
  FieldValue speed{};
  speed.field = kNvlinkSpeedCommon;
  if (nvml.call<int(Device, int, FieldValue*)>("nvmlDeviceGetFieldValues", device, 1, &speed) == 0 && speed.result == 0)
    for (auto& link : links) link.gigabytes_per_s = speed.value.as_unsigned / 1e3;
  return links;
}

Gpu describe(const Nvml& nvml, Device device) {
  Gpu gpu;
  std::array<char, 96> name{};
  if (nvml.call<int(Device, char*, unsigned)>("nvmlDeviceGetName", device, name.data(), static_cast<unsigned>(name.size() - 1)) == 0)
    gpu.name = name.data();
  PciInfo pci{};
  if (nvml.call<int(Device, PciInfo*)>("nvmlDeviceGetPciInfo_v3", device, &pci) == 0) gpu.pci = address_of(pci);
  Memory memory{};
  if (nvml.call<int(Device, Memory*)>("nvmlDeviceGetMemoryInfo", device, &memory) == 0)
    gpu.memory_bytes = static_cast<std::int64_t>(memory.total);
  unsigned generation = 0, lanes = 0;
  if (nvml.call<int(Device, unsigned*)>("nvmlDeviceGetMaxPcieLinkGeneration", device, &generation) == 0)
    gpu.pcie_generation = static_cast<int>(generation);
  if (nvml.call<int(Device, unsigned*)>("nvmlDeviceGetMaxPcieLinkWidth", device, &lanes) == 0)
    gpu.pcie_lanes = static_cast<int>(lanes);
  gpu.links = nvlinks_of(nvml, device);
  return gpu;
}

}  // namespace

Expected<std::vector<Gpu>> nvidia_gpus() {
  Nvml nvml;
  if (auto started = nvml.start(); !started) return tl::unexpected(started.error());
  unsigned count = 0;
  if (nvml.call<int(unsigned*)>("nvmlDeviceGetCount_v2", &count) != 0) return failed("NVML does not say how many GPUs there are");
  std::vector<Gpu> gpus;
  for (unsigned i = 0; i < std::min(count, kGpusMax); ++i) {
    Device device = nullptr;
    if (nvml.call<int(unsigned, Device*)>("nvmlDeviceGetHandleByIndex_v2", i, &device) == 0) gpus.push_back(describe(nvml, device));
  }
  return gpus;
}

}  // namespace coppice::runtime
