// collectives/schedule.hpp: how a buffer is divided among a plan's trees, into chunks, and over two kinds of links.
// Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/chunk.hpp"
#include "collectives/plan.hpp"

namespace coppice::collectives {

struct TreeSchedule {
  std::int64_t offset = 0;  // of this tree's share in the whole buffer
  std::int64_t bytes = 0;
  Chunking chunking;
  int depth = 0;       // hops that a chunk takes, to the root and back for an allreduce
  double seconds = 0;  // as the pipeline predicts
};

struct Schedule {
  std::vector<TreeSchedule> trees;  // the plan's, in order
  double seconds = 0;               // of the slowest
};

struct ScheduleOptions {
  std::int64_t bytes = 0;       // the whole buffer
  double latency_s = 0;         // of one chunk on one hop
  double unit_bytes_per_s = 1;  // what a rate of 1 is
};

// Shares go by the trees' rates; where every root has its own part, first by parts of the same size. Each tree's number
// of chunks is the one that makes its pipeline fastest. Sources: Blink (MLSys 2020), section 4.1; chunk.hpp.
Schedule schedule(const Plan& plan, const ScheduleOptions& options);

// Two kinds of links that cannot be used at once without a cost, as when PCIe is added to NVLink: bytes for each so
// that both are done at the same time. Source: Blink (MLSys 2020), section 4.2; equal times of D_P / B_P + T and D_N /
// B_N.
struct HybridSplit {
  double first_bytes = 0;
  double second_bytes = 0;  // 0 where switching costs more than the second kind gains
  double seconds = 0;
};
HybridSplit hybrid_split(double bytes, double first_bytes_per_s, double second_bytes_per_s, double switching_s);

// The topology with links of this kind only.
Topology of_kind(const Topology& topology, std::string_view kind);

}  // namespace coppice::collectives
