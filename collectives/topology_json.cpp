// Topologies as JSON: everything in the document is checked before it is believed.
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "collectives/machine_files.hpp"
#include "collectives/text.hpp"
#include "collectives/topology.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;
using NodesById = std::unordered_map<std::string, int>;

// A topology nests three deep; what goes deeper is dropped while reading, before it costs memory.
constexpr int kDepthMax = 16;

tl::unexpected<Error> malformed(std::string what) {
  return tl::unexpected(Error{ErrorCode::malformed, std::move(what)});
}

// The text at the key, or nothing where the key is absent.
Expected<std::optional<std::string>> text_at(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) return std::optional<std::string>{};
  if (!found->is_string()) return malformed(where + ": \"" + key + "\" must be a string");
  return std::optional<std::string>(found->get<std::string>());
}

Expected<bool> flag_at(const json& object, const char* key, bool otherwise, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) return otherwise;
  if (!found->is_boolean()) return malformed(where + ": \"" + key + "\" must be true or false");
  return found->get<bool>();
}

Expected<Node> parse_node(const json& object, std::size_t index) {
  const std::string where = numbered("node ", index);
  if (!object.is_object()) return malformed(where + " must be an object");
  auto id = text_at(object, "id", where);
  if (!id) return tl::unexpected(id.error());
  if (!*id) return malformed(where + " has no \"id\"");
  const auto is_switch = flag_at(object, "switch", false, where);
  if (!is_switch) return tl::unexpected(is_switch.error());
  auto server = text_at(object, "server", where);
  if (!server) return tl::unexpected(server.error());
  return Node{.id = **std::move(id), .is_switch = *is_switch, .server = (*std::move(server)).value_or("")};
}

Expected<int> end_at(const json& object, const char* key, const NodesById& nodes, const std::string& where) {
  const auto id = text_at(object, key, where);
  if (!id) return tl::unexpected(id.error());
  if (!*id) return malformed(where + " has no \"" + key + "\"");
  const auto found = nodes.find(**id);
  if (found == nodes.end()) {
    return tl::unexpected(Error{ErrorCode::unknown_node, where + ": there is no node " + in_quotes(**id)});
  }
  return found->second;
}

Expected<Link> parse_link(const json& object, std::size_t index, const NodesById& nodes) {
  std::string where = numbered("link ", index);
  if (!object.is_object()) return malformed(where + " must be an object");
  Link link;
  for (auto [key, end] : {std::pair{"from", &link.from}, std::pair{"to", &link.to}}) {
    const auto node = end_at(object, key, nodes, where);
    if (!node) return tl::unexpected(node.error());
    *end = *node;
    where += (end == &link.from ? ", " : " to ") + in_quotes(object.at(key).get_ref<const std::string&>());
  }
  const auto capacity = object.find("capacity");
  if (capacity == object.end()) return tl::unexpected(Error{ErrorCode::bad_capacity, where + " has no \"capacity\""});
  auto value = rational_of(*capacity);
  if (!value) return tl::unexpected(Error{ErrorCode::bad_capacity, where + ": capacity: " + value.error().what});
  link.capacity = *std::move(value);
  const auto duplex = flag_at(object, "duplex", true, where);
  if (!duplex) return tl::unexpected(duplex.error());
  link.duplex = *duplex;
  auto kind = text_at(object, "kind", where);
  if (!kind) return tl::unexpected(kind.error());
  link.kind = (*std::move(kind)).value_or("");
  for (auto [key, address] : {std::pair{"from_address", &link.from_address}, {"to_address", &link.to_address}}) {
    auto text = text_at(object, key, where);
    if (!text) return tl::unexpected(text.error());
    *address = *std::move(text);
  }
  return link;
}

Expected<const json*> array_at(const json& document, const char* key, std::size_t size_max) {
  const auto found = document.find(key);
  if (found == document.end() || !found->is_array()) {
    return malformed(std::string("a topology needs an array \"") + key + "\"");
  }
  if (found->size() > size_max) return malformed(numbered("more than ", size_max) + " " + key);
  return &*found;
}

Expected<std::string> read_bounded(const std::filesystem::path& path) {
  const auto unreadable = [&](const std::string& why) {
    return tl::unexpected(Error{ErrorCode::unreadable, in_quotes(path.string()) + " " + why});
  };
  std::error_code failed;
  if (std::filesystem::is_directory(path, failed)) return unreadable("is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) return unreadable("cannot be opened");
  // Read in steps and count: a pipe or a device has no size to ask for beforehand.
  std::string text;
  std::vector<char> step(std::size_t{1} << 16);
  while (file.read(step.data(), static_cast<std::streamsize>(step.size())), file.gcount() > 0) {
    text.append(step.data(), static_cast<std::size_t>(file.gcount()));
    if (text.size() > kTopologyBytesMax) return unreadable("is larger than 16 MiB");
  }
  if (file.bad()) return unreadable("cannot be read");
  return text;
}

}  // namespace

Expected<Topology> parse_topology(const json& document) {
  if (!document.is_object()) return malformed("a topology must be a JSON object");
  Topology topology;
  for (auto [key, text] : {std::pair{"name", &topology.name}, std::pair{"unit", &topology.unit}}) {
    auto value = text_at(document, key, "topology");
    if (!value) return tl::unexpected(value.error());
    *text = (*std::move(value)).value_or("");
  }
  const auto nodes = array_at(document, "nodes", kNodesMax);
  if (!nodes) return tl::unexpected(nodes.error());
  const auto links = array_at(document, "links", kLinksMax);
  if (!links) return tl::unexpected(links.error());
  NodesById by_id;
  for (const json& object : **nodes) {
    auto node = parse_node(object, topology.nodes.size());
    if (!node) return tl::unexpected(node.error());
    by_id.emplace(node->id, static_cast<int>(topology.nodes.size()));
    topology.nodes.push_back(*std::move(node));
  }
  for (const json& object : **links) {
    auto link = parse_link(object, topology.links.size(), by_id);
    if (!link) return tl::unexpected(link.error());
    topology.links.push_back(*std::move(link));
  }
  if (auto valid = validate(topology); !valid) return tl::unexpected(valid.error());
  return topology;
}

Expected<Topology> load_topology(const std::filesystem::path& path) {
  const auto text = read_bounded(path);
  if (!text) return tl::unexpected(text.error());
  const std::string named = in_quotes(path.string());
  if (const auto read = machine_file_reader(*text)) {
    auto machine = read(*text, path.stem().string());
    if (!machine) return tl::unexpected(Error{machine.error().code, named + ": " + machine.error().what});
    return machine;
  }
  bool too_deep = false;
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kDepthMax;
    return depth <= kDepthMax;
  };
  json document;
  try {
    document = json::parse(*text, shallow);
  } catch (const json::exception& error) {
    // "…parse error at line 3, column 7: …", which may go on to repeat any amount of the file.
    const std::string_view what = error.what();
    const auto at = what.find("line ");
    const auto end = what.find(':', at == std::string_view::npos ? 0 : at);
    const bool placed = at != std::string_view::npos && end != std::string_view::npos;
    return malformed(named + " is not JSON" + (placed ? ": " + std::string(what.substr(at, end - at)) : ""));
  }
  if (too_deep) return malformed(named + " is nested too deeply");
  auto topology = parse_topology(document);
  if (!topology) return tl::unexpected(Error{topology.error().code, named + ": " + topology.error().what});
  return topology;
}

json to_json(const Topology& topology) {
  json nodes = json::array();
  for (const Node& node : topology.nodes) {
    json& object = nodes.emplace_back(json{{"id", node.id}});
    if (node.is_switch) object["switch"] = true;
    if (!node.server.empty()) object["server"] = node.server;
  }
  json links = json::array();
  for (const Link& link : topology.links) {
    json& object = links.emplace_back(json{{"from", topology.nodes[static_cast<std::size_t>(link.from)].id},
                                           {"to", topology.nodes[static_cast<std::size_t>(link.to)].id},
                                           {"capacity", to_string(link.capacity)}});
    if (!link.kind.empty()) object["kind"] = link.kind;
    if (!link.duplex) object["duplex"] = false;
    if (link.from_address) object["from_address"] = *link.from_address;
    if (link.to_address) object["to_address"] = *link.to_address;
  }
  return {{"name", topology.name}, {"unit", topology.unit}, {"nodes", std::move(nodes)}, {"links", std::move(links)}};
}

}  // namespace coppice::collectives
