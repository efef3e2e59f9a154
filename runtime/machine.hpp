// runtime/machine.hpp: what is inside this machine: processors and memory, network cards and GPUs, and the buses between.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/topology.hpp"
#include "runtime/nvml.hpp"

namespace coppice::runtime {

struct PciDevice {
  std::string name;  // of a network card "eth0"; of a GPU that nothing names "gpu 0000:17:00"
  std::string pci;   // "0000:17:00"; empty: it is on no PCI bus
  bool network = false;
  int numa_node = 0;
  double gigabytes_per_s = 0;  // of the narrowest bus between it and its processors, one direction; 0: not seen
};

// What hwloc and NVML tell; nothing in it is guessed.
struct MachineFacts {
  std::string name;
  int packages = 0, numa_nodes = 0, cores = 0, threads = 0;
  std::int64_t memory_bytes = 0;
  std::vector<PciDevice> devices;
  std::vector<Gpu> gpus;  // NVML's
  std::vector<std::string> unseen;
};

// Errors: hwloc cannot read this machine. What is missing is said in `unseen`.
Expected<MachineFacts> this_machine();

// GPUs and NUMA nodes are hosts, since they compute; network cards and NVSwitches are switches. Unit GB/s. A bus whose rate
// is not known is no link. What a reader must know beyond that is added to `unseen`. Pure.
collectives::Topology topology_of(const MachineFacts& facts, std::vector<std::string>& unseen);

}  // namespace coppice::runtime
