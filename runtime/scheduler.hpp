// runtime/scheduler.hpp: maps a planned tree to the relay actors that carry it: one a node.
#pragma once

#include <string>
#include <vector>

#include "actors/messages.hpp"
#include "runtime/cluster.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

// The chain of relays for a broadcast of `bytes` from the gateway to `members`: the gateway first, parents before
// children. The topology is the cluster's file, or one switch between all hosts when it names none.
// Errors: a topology file that is wrong or does not reach a member.
Expected<std::vector<actors::RelayNode>> plan_relays(const Cluster& cluster, const std::vector<std::string>& members,
                                                     std::size_t bytes);

// By block, who may head it, best first: its workers in order of what it costs to carry an item from the gateway to the
// head and from there to the block's other workers, by the least sums of 1 / capacity. Of equals those come first at whose
// address the fewest blocks before have their head, so that a machine that is lost takes few heads along; then the file's
// order. The gateway comes last, or alone where the cluster says so. REQUIRES: cluster.code.blocks > 0.
// Errors: those of plan_relays.
Expected<std::vector<std::vector<int>>> place_heads(const Cluster& cluster);

}  // namespace coppice::runtime
