// collectives/simulate.hpp: how long transfers take on a topology, chunk by chunk, by the α-β model of its links.
//
// A transfer goes along a path of links: it begins when what it waits for has arrived, passes each link when that is free,
// holds it for bytes ÷ capacity, and arrives a latency after its last byte is through. Links serve in the order in which
// transfers reach them; switches pass on what they have begun to receive, and keep what has to wait, up to a
// queue's size. Source: Hockney 1994 (α-β); cut-through at switches.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/plan.hpp"

namespace coppice::collectives {

struct Transfer {
  std::vector<int> path;  // nodes, from the sender to the receiver
  double bytes = 0;
  std::vector<int> after;  // indices of transfers that must have arrived
};

struct LinkModel {
  double latency_s = 0;         // α
  double unit_bytes_per_s = 1;  // of a capacity of 1: 1 ÷ β
  double overhead_bytes = 0;    // that every transfer takes on every link beside its own: heads of frames
  // That may wait for a link at a switch; whoever would send more sends something else first, since hosts have a
  // connection for each way and one that stands still holds up no other.
  double queue_bytes = 256 << 10;
};

// Seconds until all have arrived. REQUIRES: paths along links of the topology; `after` without cycles.
double simulate(const Topology& topology, const std::vector<Transfer>& transfers, const LinkModel& model);

// Of a plan, each tree's share in chunks as schedule.hpp cuts it, at most chunks_max a tree. REQUIRES: verified.
std::vector<Transfer> transfers_of(const Plan& plan, std::int64_t bytes, const LinkModel& model, int chunks_max = 256);

// As program.hpp cuts it: every tree's share into about so many chunks, none above kChunkBytesMax.
std::vector<Transfer> transfers_in_chunks(const Plan& plan, std::int64_t bytes, std::int64_t chunks);

// What MPI libraries do for an allreduce among the hosts in their order, each message along a shortest way, the widest
// among equals. Sources: Thakur, Rabenseifner and Gropp, Optimization of Collective Communication Operations in MPICH,
// 2005.
enum class Classic : std::uint8_t { ring, recursive_doubling, rabenseifner };

// Recursive doubling and Rabenseifner's halve and double among the largest power of two of hosts; the others hand their
// data to a neighbour before and have it back after. REQUIRES: connected.
std::vector<Transfer> classic_allreduce(Classic classic, const Topology& topology, std::int64_t bytes);

}  // namespace coppice::collectives
