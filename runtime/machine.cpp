#include "runtime/machine.hpp"

#include <hwloc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>

#include "collectives/infer.hpp"

namespace coppice::runtime {
namespace {

using Loaded = std::unique_ptr<struct hwloc_topology, void (*)(hwloc_topology_t)>;

std::string address_of(const hwloc_obj_attr_u::hwloc_pcidev_attr_s& pci) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%04x:%02x:%02x", pci.domain & 0xffffU, pci.bus & 0xffU, pci.dev & 0xffU);
  return text.data();
}

// Of the device's own link and those of the bridges above it. 0: one of them is not known.
double narrowest(hwloc_obj_t device) {
  double least = device->attr->pcidev.linkspeed;
  for (hwloc_obj_t above = device->parent; above && least > 0; above = above->parent) {
    if (above->type != HWLOC_OBJ_BRIDGE || above->attr->bridge.upstream_type != HWLOC_OBJ_BRIDGE_PCI) continue;
    least = std::min(least, static_cast<double>(above->attr->bridge.upstream.pci.linkspeed));
  }
  return least;
}

int numa_node_of(hwloc_topology_t topology, hwloc_obj_t device) {
  const auto near = hwloc_get_non_io_ancestor_obj(topology, device);
  const int node = near && near->nodeset ? hwloc_bitmap_first(near->nodeset) : 0;
  for (int i = 0; i < hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE); ++i)
    if (static_cast<int>(hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i))->os_index) == node) return i;
  return 0;
}

PciDevice at_bus(hwloc_topology_t topology, hwloc_obj_t device) {
  PciDevice found;
  found.numa_node = numa_node_of(topology, device);
  if (device->type == HWLOC_OBJ_PCI_DEVICE) {
    found.pci = address_of(device->attr->pcidev);
    found.gigabytes_per_s = narrowest(device);
  }
  return found;
}

std::vector<PciDevice> devices_of(hwloc_topology_t topology) {
  constexpr unsigned kDisplay = 0x03;  // the PCI class of GPUs, whatever they show
  std::vector<PciDevice> devices;
  for (hwloc_obj_t card = nullptr; (card = hwloc_get_next_osdev(topology, card));) {
    if (card->attr->osdev.type != HWLOC_OBJ_OSDEV_NETWORK) continue;
    auto found = at_bus(topology, card->parent);
    found.name = card->name;
    found.network = true;
    devices.push_back(std::move(found));
  }
  for (hwloc_obj_t device = nullptr; (device = hwloc_get_next_pcidev(topology, device));) {
    if (device->attr->pcidev.class_id >> 8 != kDisplay) continue;
    auto found = at_bus(topology, device);
    found.name = "gpu " + found.pci;
    devices.push_back(std::move(found));
  }
  return devices;
}

// GB/s of one lane, one direction, after its coding (PCI Express base specification, per generation).
double lane(int generation) {
  constexpr std::array<double, 7> kLanes{0, 0.25, 0.5, 0.985, 1.969, 3.938, 7.563};
  return generation > 0 && generation < static_cast<int>(kLanes.size()) ? kLanes[static_cast<std::size_t>(generation)] : 0;
}

class Builder {
 public:
  Builder(const MachineFacts& facts, std::vector<std::string>& unseen) : facts_(facts), unseen_(unseen) {
    topology_.name = facts.name;
    topology_.unit = "GB/s";
  }

  collectives::Topology run() {
    for (int i = 0; i < facts_.numa_nodes; ++i) add("numa" + std::to_string(i), false);
    if (facts_.numa_nodes > 1) unseen_.push_back("the rates between the " + std::to_string(facts_.numa_nodes) + " NUMA nodes: no library tells them");
    for (std::size_t i = 0; i < facts_.gpus.size(); ++i) {
      const auto& gpu = facts_.gpus[i];
      const int node = add("gpu" + std::to_string(i), false);
      const auto slot = std::ranges::find(facts_.devices, gpu.pci, &PciDevice::pci);
      // A link that idles is slow, and hwloc reads it as it is now: what it can be is NVML's to say.
      const double rate = lane(gpu.pcie_generation) * gpu.pcie_lanes;
      attach(node, slot == facts_.devices.end() ? 0 : slot->numa_node,
             rate > 0 || slot == facts_.devices.end() ? rate : slot->gigabytes_per_s);
    }
    for (const auto& device : facts_.devices) {
      if (!gpu_at(device.pci).empty()) continue;
      if (device.network)
        attach(add(device.name, true), device.numa_node, device.gigabytes_per_s);
      else
        unseen_.push_back(device.name + ": a display device of which NVML knows nothing; left out");
    }
    for (const auto& gpu : facts_.gpus) join(gpu);
    return std::move(topology_);
  }

 private:
  int add(std::string id, bool is_switch) {
    topology_.nodes.push_back({.id = std::move(id), .is_switch = is_switch, .server = facts_.name});
    return static_cast<int>(topology_.nodes.size()) - 1;
  }
  std::string gpu_at(const std::string& pci) const {
    for (std::size_t i = 0; i < facts_.gpus.size(); ++i)
      if (!pci.empty() && facts_.gpus[i].pci == pci) return "gpu" + std::to_string(i);
    return "";
  }
  void link(int from, int to, double rate, const char* kind) {
    collectives::Link link;
    link.from = from;
    link.to = to;
    link.capacity = collectives::rounded(rate);
    link.kind = kind;
    topology_.links.push_back(std::move(link));
  }
  void attach(int node, int numa_node, double rate) {
    if (rate > 0 && numa_node < facts_.numa_nodes)
      link(node, numa_node, rate, "pcie");
    else
      unseen_.push_back("the bus of " + topology_.nodes[static_cast<std::size_t>(node)].id + ": its rate");
  }
  void join(const Gpu& gpu) {
    const auto own = gpu_at(gpu.pci);
    for (const auto& end : gpu.links) {
      const auto other = gpu_at(end.to);
      if (!other.empty() && other <= own) continue;  // seen from both ends: once is enough
      if (end.gigabytes_per_s <= 0) {
        unseen_.push_back("the rate of the NVLinks of " + own);
        continue;
      }
      const std::string id = other.empty() ? "nvswitch" : other;
      const auto node = collectives::find_node(topology_, id);
      link(*collectives::find_node(topology_, own), node ? *node : add(id, true), end.count * end.gigabytes_per_s, "nvlink");
    }
  }
  const MachineFacts& facts_;
  std::vector<std::string>& unseen_;
  collectives::Topology topology_;
};

}  // namespace

Expected<MachineFacts> this_machine() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return failed("hwloc cannot be used here");
  const Loaded topology(raw, hwloc_topology_destroy);
  hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  if (hwloc_topology_load(raw) != 0) return failed("hwloc cannot read this machine; is /sys mounted?");
  MachineFacts facts;
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') std::snprintf(name.data(), name.size(), "machine");
  facts.name = name.data();
  facts.packages = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_PACKAGE));
  facts.numa_nodes = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_NUMANODE));
  facts.cores = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_CORE));
  facts.threads = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_PU));
  facts.memory_bytes = static_cast<std::int64_t>(hwloc_get_root_obj(raw)->total_memory);
  facts.devices = devices_of(raw);
  if (std::ranges::none_of(facts.devices, &PciDevice::network)) facts.unseen.push_back("network cards: hwloc sees none");
  auto gpus = nvidia_gpus();
  if (gpus)
    facts.gpus = std::move(*gpus);
  else
    facts.unseen.push_back("GPUs: " + gpus.error().what);
  return facts;
}

collectives::Topology topology_of(const MachineFacts& facts, std::vector<std::string>& unseen) {
  return Builder(facts, unseen).run();
}

}  // namespace coppice::runtime
