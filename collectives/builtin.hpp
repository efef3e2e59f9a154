// collectives/builtin.hpp: models of known machines and of networks of a given shape.
//
// Capacities of one direction. GPUs are g0, g1, …; in boxes b0.g0, …; hosts of networks h0, h1, …. Boxes are told by
// Node::server. Sources: NVIDIA's and AMD's `topo -m` outputs and NCCL issue 671 (DGX-1V), ForestColl's topologies.py
// (DGX A100, MI250), NCCL's model constants.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/topology.hpp"

namespace coppice::collectives {

// dgx-1p and dgx-1v: in NVLinks (20 and 25 GB/s each). dgx-1v-pcie, dgx-2, dgx-a100[xB], h100[xB], mi250[xB],
// two-racks[xH], fat-tree-K, torus-AxB[xC…], random-N[-SEED], star-N, complete-N, ring-N: see builtin_names. Errors:
// malformed (no such name, or a size that no topology may have).
Expected<Topology> builtin_topology(std::string_view name);

// One line a name: the pattern and what it stands for.
std::vector<std::pair<std::string, std::string>> builtin_names();

Topology dgx_1p();
Topology dgx_1v();

// The topology with these hosts only, and the links between them and switches. REQUIRES: hosts of it.
Topology without_others(const Topology& topology, const std::vector<int>& hosts);

// What a scheduler can hand out of a machine: connected sets of `from` to `to` hosts, one of each class that links
// alone tell apart (weighted isomorphism). REQUIRES: no switches, at most 16 hosts.
std::vector<std::vector<int>> allocation_classes(const Topology& topology, int from, int to);

struct RandomShape {
  int hosts = 8;
  int switches = 0;
  bool symmetric = true;
  int capacity_max = 10;    // whole numbers from 1, over denominator_max
  int denominator_max = 1;  // each capacity's denominator is drawn up to this
  double density = 0.4;     // share of all pairs that are linked, beyond a random tree that joins all
};

// Connected: from every host to every other. Switches balanced where symmetric.
Topology random_topology(const RandomShape& shape, std::uint32_t seed);

}  // namespace coppice::collectives
