#include "collectives/topology.hpp"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

constexpr std::size_t kDenominatorBitsMax = 4096;

tl::unexpected<Error> error(ErrorCode code, std::string what) { return tl::unexpected(Error{code, std::move(what)}); }

Expected<void> validate_nodes(const Topology& topology) {
  if (topology.nodes.size() > kNodesMax) {
    return error(ErrorCode::malformed, numbered("more than ", kNodesMax) + " nodes");
  }
  std::unordered_set<std::string_view> seen;
  bool has_host = false;
  for (const Node& node : topology.nodes) {
    if (node.id.empty()) return error(ErrorCode::malformed, "a node has an empty id");
    if (node.id.size() > kNameBytesMax || node.server.size() > kNameBytesMax)
      return error(ErrorCode::malformed, "node " + in_quotes(node.id) + ": id too long");
    if (!seen.insert(node.id).second)
      return error(ErrorCode::duplicate_node, "two nodes are named " + in_quotes(node.id));
    has_host = has_host || !node.is_switch;
  }
  if (!has_host) return error(ErrorCode::malformed, "there is no host among the nodes");
  return {};
}

std::string named(std::size_t link) { return numbered("link ", link); }

Expected<void> validate_link(const Topology& topology, std::size_t index) {
  const Link& link = topology.links[index];
  const int count = static_cast<int>(topology.nodes.size());
  for (const int end : {link.from, link.to}) {
    if (end < 0 || end >= count) {
      return error(ErrorCode::unknown_node, named(index) + numbered(": there is no node ", end));
    }
  }
  const std::string ends = named(index) + ", " + in_quotes(topology.nodes[static_cast<std::size_t>(link.from)].id) +
                           " to " + in_quotes(topology.nodes[static_cast<std::size_t>(link.to)].id);
  if (link.from == link.to) return error(ErrorCode::malformed, ends + ": joins a node to itself");
  if (sgn(link.capacity) <= 0) return error(ErrorCode::bad_capacity, ends + ": capacity must be above zero");
  if (!within_digits_max(link.capacity)) {
    return error(ErrorCode::bad_capacity, ends + ": capacity has too many digits");
  }
  for (const auto& text : {std::optional(link.kind), link.from_address, link.to_address}) {
    if (text && text->size() > kNameBytesMax) return error(ErrorCode::malformed, ends + ": a text is too long");
  }
  return {};
}

}  // namespace

Expected<void> validate(const Topology& topology) {
  if (topology.name.size() > kNameBytesMax || topology.unit.size() > kNameBytesMax) {
    return error(ErrorCode::malformed, "the topology's name or unit is too long");
  }
  if (auto nodes = validate_nodes(topology); !nodes) return nodes;
  if (topology.links.size() > kLinksMax) {
    return error(ErrorCode::malformed, numbered("more than ", kLinksMax) + " links");
  }
  mpz_class common = 1;
  for (std::size_t index = 0; index < topology.links.size(); ++index) {
    if (auto link = validate_link(topology, index); !link) return link;
    common = lcm(common, topology.links[index].capacity.get_den());
    if (mpz_sizeinbase(common.get_mpz_t(), 2) > kDenominatorBitsMax) {
      return error(ErrorCode::bad_capacity, named(index) + ": the capacities have too many different denominators");
    }
  }
  return {};
}

Topology single_switch(const std::vector<std::string>& hosts) {
  Topology topology{.name = "single switch", .unit = "links", .nodes = {}, .links = {}};
  std::string middle = "switch";
  while (std::ranges::find(hosts, middle) != hosts.end()) middle += '_';
  const int centre = static_cast<int>(hosts.size());
  for (int host = 0; host < centre; ++host) {
    topology.nodes.push_back({.id = hosts[static_cast<std::size_t>(host)], .is_switch = false});
    Link link;
    link.from = host;
    link.to = centre;
    link.capacity = 1;
    topology.links.push_back(std::move(link));
  }
  topology.nodes.push_back({.id = std::move(middle), .is_switch = true});
  return topology;
}

std::optional<int> find_node(const Topology& topology, std::string_view id) {
  const auto found = std::ranges::find(topology.nodes, id, &Node::id);
  if (found == topology.nodes.end()) return std::nullopt;
  return static_cast<int>(found - topology.nodes.begin());
}

std::vector<int> hosts(const Topology& topology) {
  std::vector<int> found;
  for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
    if (!topology.nodes[node].is_switch) found.push_back(static_cast<int>(node));
  }
  return found;
}

namespace {

// The links that `chosen` wants carry so much from -> to together.
template <class Chosen>
Topology with_capacity_of(const Topology& topology, int from, int to, const Rational& capacity, const Chosen& chosen) {
  const auto carries = [&](const Link& link) {
    return ((link.from == from && link.to == to) || (link.duplex && link.from == to && link.to == from)) && chosen(link);
  };
  Rational before;
  for (const Link& link : topology.links)
    if (carries(link)) before += link.capacity;
  Topology out = topology;
  out.links.clear();
  for (const Link& link : topology.links) {
    if (!carries(link)) {
      out.links.push_back(link);
      continue;
    }
    const bool forwards = link.from == from;
    if (link.duplex) {  // the other way stays as it is
      Link back = link;
      back.duplex = false;
      if (forwards) {
        std::swap(back.from, back.to);
        std::swap(back.from_address, back.to_address);
      }
      out.links.push_back(back);
    }
    if (sgn(capacity) == 0) continue;
    Link way = link;
    way.duplex = false;
    if (!forwards) {
      std::swap(way.from, way.to);
      std::swap(way.from_address, way.to_address);
    }
    way.capacity = link.capacity * capacity / before;
    out.links.push_back(way);
  }
  return out;
}

}  // namespace

Topology with_capacity(const Topology& topology, int from, int to, const Rational& capacity) {
  return with_capacity_of(topology, from, to, capacity, [](const Link&) { return true; });
}

Topology with_link_capacity(const Topology& topology, int from, int to, const std::string& from_address,
                            const std::string& to_address, const Rational& capacity) {
  const auto is_it = [&](const Link& link) { return addresses_from(link, from) == std::pair(from_address, to_address); };
  const auto between = links_between(topology, from, to);
  const bool known = std::ranges::any_of(between, [&](int at) { return is_it(topology.links[static_cast<std::size_t>(at)]); });
  return with_capacity_of(topology, from, to, capacity, [&](const Link& link) { return !known || is_it(link); });
}

std::vector<int> links_between(const Topology& topology, int from, int to) {
  std::vector<int> found;
  for (std::size_t at = 0; at < topology.links.size(); ++at) {
    const Link& link = topology.links[at];
    if ((link.from == from && link.to == to) || (link.duplex && link.from == to && link.to == from))
      found.push_back(static_cast<int>(at));
  }
  return found;
}

std::optional<int> link_between(const Topology& topology, int from, int to) {
  const auto found = links_between(topology, from, to);
  return found.empty() ? std::nullopt : std::optional(found.front());
}

std::pair<std::string, std::string> addresses_from(const Link& link, int node) {
  const auto own = link.from == node ? link.from_address : link.to_address;
  const auto far = link.from == node ? link.to_address : link.from_address;
  return {own.value_or(""), far.value_or("")};
}

std::optional<Rational> unit_bytes_per_s(std::string_view unit) {
  Rational bytes = 1;
  if (unit.ends_with("bit/s")) {
    unit.remove_suffix(5);
    bytes = Rational(1, 8);
  } else if (unit.ends_with("B/s")) {
    unit.remove_suffix(3);
  } else {
    return std::nullopt;
  }
  const bool binary = unit.ends_with('i');
  if (binary) unit.remove_suffix(1);
  if (unit.empty()) return binary ? std::nullopt : std::optional(bytes);
  // Both "k" and "K" are in use for a thousand.
  constexpr std::array<std::string_view, 4> kPrefixes = {"kK", "M", "G", "T"};
  for (const std::string_view prefix : kPrefixes) {
    bytes *= binary ? 1024 : 1000;
    if (unit.size() == 1 && prefix.find(unit.front()) != std::string_view::npos) return bytes;
  }
  return std::nullopt;
}

}  // namespace coppice::collectives
