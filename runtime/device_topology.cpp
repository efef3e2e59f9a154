#include "runtime/device_topology.hpp"

#include <algorithm>
#include <optional>

#include "collectives/plan.hpp"

namespace coppice::runtime {
namespace {

using collectives::Topology;

// Whether data reaches all of them from the first.
bool joins(const Topology& topology, const std::vector<int>& nodes) {
  return collectives::plan_broadcast(topology, nodes.front(), {.participants = nodes}).has_value();
}

}  // namespace

DeviceTopology topology_between(const MachineFacts& facts, const std::vector<std::string>& pci) {
  std::vector<std::string> unseen, names;
  DeviceTopology out{.topology = topology_of(facts, unseen), .nodes = {}, .assumed = {}};
  std::optional<std::string> unknown;
  for (const auto& address : pci) {
    const auto gpu = std::ranges::find(facts.gpus, address, &Gpu::pci);
    if (gpu == facts.gpus.end()) {
      unknown = address;
      names.push_back("gpu " + address);
      continue;
    }
    names.push_back("gpu" + std::to_string(gpu - facts.gpus.begin()));
    out.nodes.push_back(*collectives::find_node(out.topology, names.back()));
  }
  if (!unknown) {
    Topology& buses = out.topology;
    for (auto& node : buses.nodes) node.is_switch = node.is_switch || node.id.starts_with("numa");
    Topology nvlinks = buses;
    std::erase_if(nvlinks.links, [](const collectives::Link& link) { return link.kind != "nvlink"; });
    if (joins(nvlinks, out.nodes)) {
      out.topology = std::move(nvlinks);
      return out;
    }
    if (joins(buses, out.nodes)) return out;
  }
  out.assumed = unknown ? "NVML knows no GPU at " + *unknown : "no links are known that join all of the GPUs";
  out.assumed += ": one switch between them is assumed";
  out.topology = collectives::single_switch(names);
  out.nodes = collectives::hosts(out.topology);
  return out;
}

}  // namespace coppice::runtime
