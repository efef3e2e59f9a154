// collectives/splitting.hpp: switches taken out of a graph without loss to any cut that counts. Private.
//
// A switch forwards: what enters it must leave it. Pairs of one arc into it and one out of it are replaced by an arc
// that passes it, as much at a time as leaves every host able to receive all demands, until nothing passes it
// otherwise. That always succeeds where no more can leave a switch than can enter it. Sources: Mader, Konstruktion
// aller n-fach kantenzusammenhängenden Digraphen, 1982; Frank, Connections in Combinatorial Optimization, 2011 (rooted
// form); ForestColl, 2024, section 5.3 (weights).
#pragma once

#include <optional>
#include <vector>

#include "collectives/packing.hpp"

namespace coppice::collectives {

template <class Value>
struct Passage {
  PackArc<Value> arc;     // from host to host
  std::vector<int> path;  // from, the switches in order, to
};

// hosts: those that take part; no other node but switches has arcs. `evenly`: first spreads what passes a switch over
// all pairs, no more than that for each pair, and only then without bound. 0: as much as possible for each pair in
// turn. Nothing where the demands cannot be met or a switch could not be taken out.
template <class Value>
std::optional<std::vector<Passage<Value>>> split_switches(const std::vector<char>& is_switch,
                                                          const std::vector<int>& hosts,
                                                          const std::vector<PackArc<Value>>& arcs,
                                                          const std::vector<Value>& demand, const Value& evenly);

}  // namespace coppice::collectives
