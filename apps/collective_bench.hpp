// apps/collective_bench.hpp: how fast a collective operation is on a cluster's links, beside what they can carry.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "runtime/communicator.hpp"

namespace coppice::apps {

struct CollectiveLoad {
  collectives::Operation operation = collectives::Operation::allreduce;
  collectives::Element element = collectives::Element::float32;
  collectives::Reduction reduction = collectives::Reduction::sum;
  std::string root;                 // host; empty: the first
  std::vector<std::int64_t> bytes;  // of whole buffers, one after another
  int repeat = 5;
  int warm_up = 1;   // at least, and until the number of chunks is settled
};

// One rank's part: every rank of the group runs it with the same load. Each repetition begins with new contents and a
// barrier, lasts as long as its slowest rank, and is checked element by element. The document is the same at each rank:
// one object a size, in the words of `coppice bench collective --json`. hops: switched on during each repetition's call.
runtime::Expected<nlohmann::json> run_collective(runtime::Communicator& group, const runtime::Cluster& cluster,
                                                 const CollectiveLoad& load, actors::HopLog* hops = nullptr);

// Columns of nccl-tests, the bound and what part of it was reached.
std::string collective_table(const nlohmann::json& runs);

}  // namespace coppice::apps
