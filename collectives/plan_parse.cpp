// Plans from JSON, ours or anyone's: everything is checked before it is believed, and verify.hpp judges what is left.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "collectives/plan.hpp"
#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;

tl::unexpected<Error> malformed(std::string what) {
  return tl::unexpected(Error{ErrorCode::malformed, std::move(what)});
}

class Reader {
 public:
  Reader(const json& document, const Topology& topology) : document_(document), topology_(topology) {
    for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
      nodes_.emplace(topology.nodes[node].id, static_cast<int>(node));
    }
  }

  Expected<Plan> run() {
    if (!document_.is_object()) return malformed("a plan must be a JSON object");
    Plan plan;
    plan.topology = topology_.name;
    plan.unit = topology_.unit;
    const auto word = document_.find("op");
    if (word == document_.end() || !word->is_string()) return malformed("a plan needs its \"op\"");
    const auto operation = operation_of(word->get_ref<const std::string&>());
    if (!operation) return malformed("there is no operation " + in_quotes(word->get_ref<const std::string&>()));
    plan.operation = *operation;
    for (auto [key, number] : {std::pair{"rate", &plan.rate}, std::pair{"bound", &plan.bound}}) {
      auto value = number_at(document_, key, "the plan");
      if (!value) return tl::unexpected(value.error());
      *number = *std::move(value);
    }
    if (auto read = participants(plan); !read) return tl::unexpected(read.error());
    if (auto read = trees(plan); !read) return tl::unexpected(read.error());
    const auto certificate = document_.find("certificate");
    if (certificate == document_.end() || !certificate->is_object())
      return malformed("a plan needs its \"certificate\"");
    auto proof = certificate_of(*certificate);
    if (!proof) return tl::unexpected(proof.error());
    plan.certificate = *std::move(proof);
    return plan;
  }

 private:
  Expected<int> node(const json& id, const std::string& where) const {
    if (!id.is_string()) return malformed(where + ": a node is named by a string");
    const auto found = nodes_.find(id.get_ref<const std::string&>());
    if (found == nodes_.end()) {
      return tl::unexpected(
          Error{ErrorCode::unknown_node, where + ": there is no node " + in_quotes(id.get_ref<const std::string&>())});
    }
    return found->second;
  }

  Expected<int> node_at(const json& object, const char* key, const std::string& where) const {
    const auto found = object.find(key);
    if (found == object.end()) return malformed(where + " has no \"" + key + "\"");
    return node(*found, where);
  }

  Expected<std::vector<int>> nodes_of(const json& list, const std::string& where) const {
    if (!list.is_array()) return malformed(where + " must be an array of nodes");
    std::vector<int> nodes;
    for (const json& id : list) {
      const auto known = node(id, where);
      if (!known) return tl::unexpected(known.error());
      nodes.push_back(*known);
    }
    return nodes;
  }

  static Expected<Rational> number_at(const json& object, const char* key, const std::string& where) {
    const auto found = object.find(key);
    if (found == object.end()) return malformed(where + " has no \"" + key + "\"");
    return number(*found, where);
  }

  // Rates and prices are sums and quotients of capacities: more digits than a capacity may have, but not without end.
  static Expected<Rational> number(const json& value, const std::string& where) {
    constexpr std::size_t kTextMax = 8192;
    if (!value.is_string()) {
      auto plain = rational_of(value);
      if (!plain) return malformed(where + ": " + plain.error().what);
      return plain;
    }
    const std::string& text = value.get_ref<const std::string&>();
    const auto slash = text.find('/');
    const auto digits = [](std::string_view part) {
      return !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    };
    const std::string_view above = std::string_view(text).substr(text.starts_with('-') ? 1 : 0);
    const bool whole = slash == std::string::npos && digits(above);
    const bool fraction = slash != std::string::npos && digits(above.substr(0, above.find('/'))) &&
                          digits(std::string_view(text).substr(slash + 1));
    if (text.size() > kTextMax || (!whole && !fraction))
      return malformed(where + ": " + in_quotes(text) + " is no fraction");
    Rational parsed;
    if (fraction && mpz_class(text.substr(slash + 1)) == 0) return malformed(where + ": a zero below the line");
    parsed.set_str(text, 10);
    parsed.canonicalize();
    return parsed;
  }

  Expected<void> participants(Plan& plan) const {
    plan.participants = hosts(topology_);
    const auto named = document_.find("participants");
    if (named == document_.end()) return {};
    auto list = nodes_of(*named, "\"participants\"");
    if (!list) return tl::unexpected(list.error());
    std::ranges::sort(*list);
    plan.participants = *std::move(list);
    return {};
  }

  Expected<std::vector<int>> links_of(const json& list, const std::string& where) const {
    const auto known = [&](const json& link) {
      if (!link.is_number_integer() || (!link.is_number_unsigned() && link.get<std::int64_t>() < 0)) return false;
      return link.get<std::uint64_t>() < topology_.links.size();
    };
    if (!list.is_array() || !std::ranges::all_of(list, known))
      return malformed(where + ": an edge's \"links\" are indices of the topology's links, one a hop");
    return list.get<std::vector<int>>();
  }

  Expected<std::vector<TreeEdge>> edges(const json& list, const std::string& where) const {
    if (!list.is_array()) return malformed(where + ": edges must be an array");
    std::vector<TreeEdge> edges;
    for (const json& object : list) {
      if (!object.is_object()) return malformed(where + ": an edge must be an object");
      const auto from = node_at(object, "from", where + ", an edge");
      if (!from) return tl::unexpected(from.error());
      const auto to = node_at(object, "to", where + ", an edge");
      if (!to) return tl::unexpected(to.error());
      TreeEdge edge{*from, *to, {*from, *to}};
      if (const auto path = object.find("path"); path != object.end()) {
        auto nodes = nodes_of(*path, where + ", a path");
        if (!nodes) return tl::unexpected(nodes.error());
        edge.path = *std::move(nodes);
      }
      if (const auto links = object.find("links"); links != object.end()) {
        auto read = links_of(*links, where);
        if (!read) return tl::unexpected(read.error());
        edge.links = *std::move(read);
      }
      edges.push_back(std::move(edge));
    }
    return edges;
  }

  Expected<void> trees(Plan& plan) const {
    const auto list = document_.find("trees");
    if (list == document_.end() || !list->is_array()) return malformed("a plan needs its \"trees\"");
    for (const json& object : *list) {
      const std::string where = numbered("tree ", plan.trees.size());
      if (!object.is_object()) return malformed(where + " must be an object");
      Tree tree;
      auto rate = number_at(object, "rate", where);
      if (!rate) return tl::unexpected(rate.error());
      tree.rate = *std::move(rate);
      const auto root = node_at(object, "root", where);
      if (!root) return tl::unexpected(root.error());
      tree.root = *root;
      for (auto [key, edges_of] : {std::pair{"edges", &tree.edges}, std::pair{"reduce_edges", &tree.reduce_edges}}) {
        const auto found = object.find(key);
        if (found == object.end()) continue;
        auto read = edges(*found, where);
        if (!read) return tl::unexpected(read.error());
        *edges_of = *std::move(read);
      }
      if (object.contains("for")) {
        const auto target = node_at(object, "for", where);
        if (!target) return tl::unexpected(target.error());
        tree.target = *target;
      }
      plan.trees.push_back(std::move(tree));
    }
    return {};
  }

  Expected<Certificate> certificate_of(const json& object) const {
    const std::string kind =
        object.contains("kind") && object["kind"].is_string() ? object["kind"].get<std::string>() : "";
    if (kind == "cut") {
      auto nodes = nodes_of(object.value("nodes", json()), "the cut's \"nodes\"");
      if (!nodes) return tl::unexpected(nodes.error());
      return Certificate(Cut{*std::move(nodes)});
    }
    if (kind == "partition") return partition_of(object.value("parts", json()));
    if (kind == "dual") return dual_of(object);
    return malformed("there is no certificate of the kind " + in_quotes(kind));
  }

  Expected<Certificate> partition_of(const json& list) const {
    if (!list.is_array()) return malformed("the partition's \"parts\" must be an array");
    Partition partition;
    for (const json& part : list) {
      auto nodes = nodes_of(part, "a part of the partition");
      if (!nodes) return tl::unexpected(nodes.error());
      partition.parts.push_back(*std::move(nodes));
    }
    return Certificate(std::move(partition));
  }

  Expected<std::vector<WeightedSet>> sets_of(const json& list) const {
    if (!list.is_array()) return malformed("the dual's sets must be an array");
    std::vector<WeightedSet> sets;
    for (const json& object : list) {
      if (!object.is_object()) return malformed("a set of the dual must be an object");
      auto nodes = nodes_of(object.value("nodes", json()), "a set of the dual");
      if (!nodes) return tl::unexpected(nodes.error());
      auto weight = number_at(object, "weight", "a set of the dual");
      if (!weight) return tl::unexpected(weight.error());
      sets.push_back({*std::move(nodes), *std::move(weight)});
    }
    return sets;
  }

  Expected<Certificate> dual_of(const json& object) const {
    Dual dual;
    for (auto [key, sets] : {std::pair{"out", &dual.out}, std::pair{"in", &dual.in}}) {
      auto read = sets_of(object.value(key, json::array()));
      if (!read) return tl::unexpected(read.error());
      *sets = *std::move(read);
    }
    const json prices = object.value("price", json::array());
    if (!prices.is_array()) return malformed("the dual's \"price\" must be an array");
    for (const json& entry : prices) {
      if (!entry.is_array() || entry.size() != 3) return malformed("a price is [from, to, price]");
      const auto from = node(entry[0], "a price");
      if (!from) return tl::unexpected(from.error());
      const auto to = node(entry[1], "a price");
      if (!to) return tl::unexpected(to.error());
      auto price = number(entry[2], "a price");
      if (!price) return tl::unexpected(price.error());
      dual.price.push_back({*from, *to, *std::move(price)});
    }
    const json switches = object.value("switch", json::object());
    if (!switches.is_object()) return malformed("the dual's \"switch\" must be an object");
    for (const auto& [id, pair] : switches.items()) {
      const auto known = node(id, "a potential");
      if (!known) return tl::unexpected(known.error());
      if (!pair.is_array() || pair.size() != 2) return malformed("a potential is a pair of numbers");
      auto out = number(pair[0], "a potential");
      if (!out) return tl::unexpected(out.error());
      auto in = number(pair[1], "a potential");
      if (!in) return tl::unexpected(in.error());
      dual.switches.push_back({*known, *std::move(out), *std::move(in)});
    }
    return Certificate(std::move(dual));
  }

  const json& document_;
  const Topology& topology_;
  std::unordered_map<std::string, int> nodes_;
};

}  // namespace

Expected<Plan> parse_plan(const json& document, const Topology& topology) { return Reader(document, topology).run(); }

}  // namespace coppice::collectives
