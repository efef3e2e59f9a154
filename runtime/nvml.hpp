// runtime/nvml.hpp: the GPUs of this machine as NVIDIA's management library sees them. It is loaded when it is there; nothing
// is needed to build.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/error.hpp"

namespace coppice::runtime {

struct NvLink {
  std::string to;            // PCI address of the other end, as Gpu::pci, whatever it is: a GPU or an NVSwitch
  int count = 0;             // of links to that end
  double gigabytes_per_s = 0;  // of each, one direction; 0: not told
};

struct Gpu {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  std::string pci;   // "0000:17:00"
  std::int64_t memory_bytes = 0;
  int pcie_generation = 0, pcie_lanes = 0;  // the most that it and its slot can; 0: not told
  std::vector<NvLink> links;
};

// Errors: the library is not there, or will not start; the text says which.
Expected<std::vector<Gpu>> nvidia_gpus();

}  // namespace coppice::runtime
