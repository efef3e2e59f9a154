// collectives/topology.hpp: who can send to whom, and how fast.
//
// Nodes are hosts, which compute, and switches, which forward and never compute. A link has one capacity for each
// direction that it carries: traffic of one direction does not slow the other. Parallel links of a pair add up.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "collectives/error.hpp"
#include "collectives/rational.hpp"

namespace coppice::collectives {

inline constexpr int kNodesMax = 4096;
inline constexpr int kLinksMax = 1'000'000;
inline constexpr int kNameBytesMax = 256;  // of a node's id, a unit, a kind, an address
inline constexpr std::size_t kTopologyBytesMax = std::size_t{16} << 20;

struct Node {
  std::string id;
  bool is_switch = false;
  // The machine that it is part of, where that is known: what is inside of one is planned before what is between them.
  std::string server = {};
  bool operator==(const Node&) const = default;
};

struct Link {
  int from = -1;  // index into Topology::nodes
  int to = -1;
  Rational capacity;   // of one direction, in Topology::unit; > 0
  std::string kind;    // free text: "tcp", "nvlink"; empty when nothing is known
  bool duplex = true;  // to -> from has the same capacity of its own; false: this link carries from -> to only
  // The ends of this very link; traffic planned on it uses them. Nothing: any address of the host.
  std::optional<std::string> from_address;
  std::optional<std::string> to_address;
  bool operator==(const Link&) const = default;
};

struct Topology {
  std::string name;
  std::string unit;  // of every capacity: "Mbit/s"; any text, see unit_bytes_per_s
  std::vector<Node> nodes;
  std::vector<Link> links;
  bool operator==(const Topology&) const = default;
};

// What every function here holds a topology to. Being connected is not part of it: that depends on who takes part.
// Errors: malformed (no host, a self-link, more than kNodesMax nodes or kLinksMax links, a text that is empty where it
// must not be or beyond kNameBytesMax), duplicate_node, unknown_node, bad_capacity (also: the denominators' least
// common multiple takes more than 4096 bits, which no measured network needs and exact planning would crawl on).
Expected<void> validate(const Topology& topology);

// The format is in the handbook of `coppice plan`: {"name", "unit", "nodes": [{"id", "switch", "server"}],
// "links": [{"from", "to", "capacity", "kind", "duplex", "from_address", "to_address"}]}. Keys that are not known are
// left alone, so that files may carry notes. The result is valid. Errors: those of validate, and malformed.
Expected<Topology> parse_topology(const nlohmann::json& document);

// A topology in the format above, a topology that NCCL or RCCL wrote (XML) or the table of `nvidia-smi topo -m`, told
// apart by what is in the file. Errors: those of parse_topology, and unreadable; files beyond kTopologyBytesMax are not
// read.
Expected<Topology> load_topology(const std::filesystem::path& path);

// parse_topology gives back an equal topology.
nlohmann::json to_json(const Topology& topology);

// The default when nothing is known of the network: each host has one link of capacity 1, unit "links", to one switch
// "switch" (with '_' appended while a host has that name). REQUIRES: hosts differ from one another.
Topology single_switch(const std::vector<std::string>& hosts);

std::optional<int> find_node(const Topology& topology, std::string_view id);
std::vector<int> hosts(const Topology& topology);  // ascending

// The topology as it is when so much is left of what goes from -> to directly, over all its links together; 0: nothing.
Topology with_capacity(const Topology& topology, int from, int to, const Rational& capacity);

// The same of the one link whose ends have these addresses; of all where no link of the pair has them.
Topology with_link_capacity(const Topology& topology, int from, int to, const std::string& from_address,
                            const std::string& to_address, const Rational& capacity);

// The links that carry from -> to directly, ascending; and the first, whose addresses a sender may use.
std::vector<int> links_between(const Topology& topology, int from, int to);
std::optional<int> link_between(const Topology& topology, int from, int to);

// The addresses of the link's ends when it is taken from this node; empty where it has none.
std::pair<std::string, std::string> addresses_from(const Link& link, int node);

// Bytes a second of one of the unit: "bit/s" and "B/s" with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti before them.
// Nothing for any other text, such as "links": such capacities compare only with one another.
std::optional<Rational> unit_bytes_per_s(std::string_view unit);

}  // namespace coppice::collectives
