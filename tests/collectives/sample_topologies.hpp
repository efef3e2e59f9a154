// Topologies that the tests of collectives/ share.
#pragma once

#include <string>
#include <vector>

#include "collectives/topology.hpp"

namespace coppice::collectives::testing {

// "h3". Appending: GCC 12 warns wrongly of `"h" + std::to_string(3)` (its bug 105651).
inline std::string numbered(const char* before, long number) {
  std::string text = before;
  text += std::to_string(number);
  return text;
}

struct Joined {
  int from;
  int to;
  int capacity;
};

// Hosts h0, h1, … and duplex links between them.
inline Topology direct(int hosts, const std::vector<Joined>& links) {
  Topology topology{.name = "direct", .unit = "links", .nodes = {}, .links = {}};
  for (int host = 0; host < hosts; ++host) topology.nodes.push_back({numbered("h", host), false});
  for (const Joined& joined : links) {
    Link link;
    link.from = joined.from;
    link.to = joined.to;
    link.capacity = joined.capacity;
    topology.links.push_back(link);
  }
  return topology;
}

// Two complete graphs of four GPUs and a perfect matching between them (DGX-1P).
inline Topology dgx_1p() {
  return direct(8, {{0, 1, 1},
                    {0, 2, 1},
                    {0, 3, 1},
                    {1, 2, 1},
                    {1, 3, 1},
                    {2, 3, 1},
                    {4, 5, 1},
                    {4, 6, 1},
                    {4, 7, 1},
                    {5, 6, 1},
                    {5, 7, 1},
                    {6, 7, 1},
                    {0, 4, 1},
                    {1, 5, 1},
                    {2, 6, 1},
                    {3, 7, 1}});
}

// One Hamiltonian cycle of double links and one of single links (DGX-1V).
inline std::vector<Joined> dgx_1v_links() {
  return {{0, 3, 2}, {0, 4, 2}, {1, 2, 2}, {1, 5, 2}, {2, 3, 2}, {4, 7, 2}, {5, 6, 2}, {6, 7, 2},
          {0, 1, 1}, {0, 2, 1}, {1, 3, 1}, {2, 6, 1}, {3, 7, 1}, {4, 5, 1}, {4, 6, 1}, {5, 7, 1}};
}

inline Topology dgx_1v() { return direct(8, dgx_1v_links()); }

// The first `gpus` of a DGX-1V, the others cut away.
inline Topology dgx_1v_fragment(int gpus) {
  std::vector<Joined> links;
  for (const Joined& link : dgx_1v_links()) {
    if (link.from < gpus && link.to < gpus) links.push_back(link);
  }
  return direct(gpus, links);
}

inline Topology star(int hosts, const Rational& capacity, const std::string& unit) {
  std::vector<std::string> names;
  for (int host = 0; host < hosts; ++host) names.push_back(numbered("h", host));
  Topology topology = single_switch(names);
  topology.unit = unit;
  for (Link& link : topology.links) link.capacity = capacity;
  return topology;
}

// Two racks of four hosts at 400 behind a switch each, and a trunk of 100 between the switches.
inline constexpr const char* kTwoRacks = R"({
  "name": "two racks", "unit": "Mbit/s",
  "nodes": [{"id": "a0"}, {"id": "a1"}, {"id": "a2"}, {"id": "a3"}, {"id": "b0"}, {"id": "b1"}, {"id": "b2"},
            {"id": "b3"}, {"id": "s0", "switch": true}, {"id": "s1", "switch": true}],
  "links": [{"from": "a0", "to": "s0", "capacity": "400"}, {"from": "a1", "to": "s0", "capacity": "400"},
            {"from": "a2", "to": "s0", "capacity": "400"}, {"from": "a3", "to": "s0", "capacity": "400"},
            {"from": "b0", "to": "s1", "capacity": "400"}, {"from": "b1", "to": "s1", "capacity": "400"},
            {"from": "b2", "to": "s1", "capacity": "400"}, {"from": "b3", "to": "s1", "capacity": "400"},
            {"from": "s0", "to": "s1", "capacity": 100, "kind": "trunk"}]})";

// Every kind of field: a fraction, a decimal, a number, one direction only, addresses, a parallel pair.
inline constexpr const char* kMixed = R"({
  "name": "mixed", "unit": "Gbit/s", "note": "left alone",
  "nodes": [{"id": "h0"}, {"id": "h1", "switch": false}, {"id": "h2"}, {"id": "sw", "switch": true}],
  "links": [{"from": "h0", "to": "sw", "capacity": "25/2", "kind": "tcp"},
            {"from": "sw", "to": "h1", "capacity": "12.5", "duplex": true},
            {"from": "h2", "to": "sw", "capacity": 7},
            {"from": "h0", "to": "h1", "capacity": 0.1, "kind": "nvlink", "duplex": false,
             "from_address": "10.77.0.1", "to_address": "10.77.0.2"},
            {"from": "h0", "to": "h1", "capacity": "1e1"}]})";

}  // namespace coppice::collectives::testing
