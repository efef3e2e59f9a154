// runtime/device_topology.hpp: what is between the GPUs of this machine, as copies between them take it. Pure.
#pragma once

#include <string>
#include <vector>

#include "collectives/topology.hpp"
#include "runtime/machine.hpp"

namespace coppice::runtime {

struct DeviceTopology {
  collectives::Topology topology;
  std::vector<int> nodes;  // of each device
  std::string assumed;     // what nobody knows and was taken to be so, in one line; empty: nothing
};

// pci: of each device, as Gpu::pci. A copy between two GPUs takes their NVLinks where they have any, and nobody can send
// it by the bus instead: so where NVLinks join all of them, these alone are planned. Otherwise buses too, by which
// processors' memory passes on what it does not compute. Where that joins them neither, or a device is not known: one
// switch between them all. GPUs that are none of the devices pass nothing on. REQUIRES: devices differ; at least one.
DeviceTopology topology_between(const MachineFacts& facts, const std::vector<std::string>& pci);

}  // namespace coppice::runtime
