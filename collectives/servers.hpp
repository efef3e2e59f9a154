// collectives/servers.hpp: plans in phases where hosts sit in servers: in each, between them, in each. Private.
#pragma once

#include "collectives/situation.hpp"

namespace coppice::collectives {

// Two servers or more among those who take part (Node::server), each host in one, and some with more than one.
bool has_servers(const Situation& situation);

// Allreduce: part j of the buffer is reduced inside every server to its j-th host, allreduced among the j-th hosts over
// the links between servers, and broadcast inside every server. Broadcast: part j leaves the root's server by its j-th
// host. Allgather: every host's part goes to the hosts of its own number, and from each through its server. The phases
// of different parts overlap, so a plan of phases is one of trees: inner trees hung on outer ones. Rates are as high as
// the fullest link allows. Empty: no such plan was found, or the operation is a scatter. Source: Blink (MLSys 2020),
// section 3.5.
std::vector<Tree> three_phase_trees(const Situation& situation);

}  // namespace coppice::collectives
