// collectives/servers.hpp: allreduce in three phases where hosts sit in servers: in each, between them, in each. Private.
#pragma once

#include "collectives/situation.hpp"

namespace coppice::collectives {

// Two servers or more among those who take part (Node::server), each host in one.
bool has_servers(const Situation& situation);

// Part j of the buffer is reduced inside every server to its j-th host, allreduced among the j-th hosts over the links
// between servers, and broadcast inside every server. The phases of different parts overlap, so a plan of three phases is one
// of trees: the inner trees hung on the outer one. Rates are as high as the fullest link allows. Empty: no such plan was found.
// Source: Blink (MLSys 2020), section 3.5.
std::vector<Tree> three_phase_trees(const Situation& situation);

}  // namespace coppice::collectives
