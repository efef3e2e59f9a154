// collectives/machine_files.hpp: topologies of one machine as other programs write them.
//
// Capacities are those of NCCL's own model, in GB/s a direction: what its XML and nvidia-smi say is how many links of
// which kind there are, not how fast they are.
#pragma once

#include <string>
#include <string_view>

#include "collectives/topology.hpp"

namespace coppice::collectives {

// What NCCL_TOPO_DUMP_FILE and RCCL's topo_expl write: <system> of <cpu>, <pci>, <gpu>, <nvlink>, <xgmi>, <nic>, <net>.
// GPUs become hosts g0, g1, … by their "dev"; PCIe switches, CPUs, NVSwitches and network cards become switches.
// Kinds: nvlink, xgmi, pcie, qpi, net. Sources: NCCL 2.30 src/graph/topo.h (speeds), xml.cc (format).
// Errors: malformed, naming the element; those of validate.
Expected<Topology> read_nccl_xml(std::string_view text, const std::string& name);

// The table of `nvidia-smi topo -m`. Where every pair has more NVLinks than a GPU has for all its peers, they end at a
// switch. Errors: malformed, naming row and column; those of validate.
Expected<Topology> read_smi_table(std::string_view text, const std::string& name);

// Which of the two the text is for; null: neither.
using MachineFileReader = Expected<Topology> (*)(std::string_view text, const std::string& name);
MachineFileReader machine_file_reader(std::string_view text);

}  // namespace coppice::collectives
