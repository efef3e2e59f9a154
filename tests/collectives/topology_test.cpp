#include "collectives/topology.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "collectives/plan.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

using nlohmann::json;

// The code of the error, with a check that its message is one line of fair length; nothing when it was read.
std::optional<ErrorCode> fault(const json& document) {
  const auto topology = parse_topology(document);
  if (topology) return std::nullopt;
  EXPECT_FALSE(topology.error().what.empty());
  EXPECT_LT(topology.error().what.size(), 400U);
  EXPECT_EQ(topology.error().what.find('\n'), std::string::npos);
  return topology.error().code;
}

json two_hosts() {
  return {{"name", "pair"},
          {"unit", "Mbit/s"},
          {"nodes", {{{"id", "h0"}}, {{"id", "h1"}}}},
          {"links", {{{"from", "h0"}, {"to", "h1"}, {"capacity", "200"}}}}};
}

json with_link(const char* key, const json& value) {
  json document = two_hosts();
  document["links"][0][key] = value;
  return document;
}

class File {
 public:
  explicit File(const std::string& text)
      : path_(std::filesystem::temp_directory_path() / (testing::numbered("topology_test.", std::random_device{}()))) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(Topology, ReadsEveryField) {
  const Topology topology = parse_topology(json::parse(testing::kMixed)).value();
  EXPECT_EQ(topology.name, "mixed");
  EXPECT_EQ(topology.unit, "Gbit/s");
  ASSERT_EQ(topology.nodes.size(), 4U);
  EXPECT_FALSE(topology.nodes[1].is_switch);
  EXPECT_TRUE(topology.nodes[3].is_switch);
  EXPECT_EQ(hosts(topology), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(find_node(topology, "sw"), 3);
  EXPECT_EQ(find_node(topology, "nobody"), std::nullopt);
  ASSERT_EQ(topology.links.size(), 5U);
  EXPECT_EQ(topology.links[0].capacity, Rational(25, 2));
  EXPECT_EQ(topology.links[1].capacity, Rational(25, 2));
  EXPECT_EQ(topology.links[2].capacity, 7);
  EXPECT_EQ(topology.links[3].capacity, Rational(1, 10));
  EXPECT_EQ(topology.links[4].capacity, 10);
  EXPECT_EQ(topology.links[0].kind, "tcp");
  EXPECT_TRUE(topology.links[0].duplex);
  EXPECT_FALSE(topology.links[3].duplex);
  EXPECT_EQ(topology.links[3].from_address, "10.77.0.1");
  EXPECT_EQ(topology.links[3].to_address, "10.77.0.2");
  EXPECT_EQ(topology.links[0].from_address, std::nullopt);
}

TEST(Topology, ReadsBackWhatItWrites) {
  for (const Topology& topology :
       {parse_topology(json::parse(testing::kMixed)).value(), parse_topology(json::parse(testing::kTwoRacks)).value(),
        testing::dgx_1v(), single_switch({"a", "b", "c"}), single_switch({"alone"})}) {
    EXPECT_EQ(parse_topology(json::parse(to_json(topology).dump())).value(), topology) << topology.name;
  }
}

TEST(Topology, WritesOnlyWhatIsNotTheDefault) {
  const json document = to_json(parse_topology(two_hosts()).value());
  EXPECT_EQ(document, two_hosts());
}

TEST(Topology, FindsTheLinkOfADirection) {
  const Topology topology = parse_topology(json::parse(testing::kMixed)).value();
  EXPECT_EQ(link_between(topology, 0, 1), 3);
  EXPECT_EQ(link_between(topology, 1, 0), 4);  // link 3 carries one direction only
  EXPECT_EQ(link_between(topology, 1, 3), 1);
  EXPECT_EQ(link_between(topology, 1, 2), std::nullopt);
}

TEST(Topology, NamesEveryFault) {
  using enum ErrorCode;
  EXPECT_EQ(fault(two_hosts()), std::nullopt);
  EXPECT_EQ(fault(json()), malformed);
  EXPECT_EQ(fault(json::array()), malformed);
  EXPECT_EQ(fault(json::object()), malformed);
  for (const char* key : {"nodes", "links"}) {
    json document = two_hosts();
    document.erase(key);
    EXPECT_EQ(fault(document), malformed) << key;
    document[key] = json::object();
    EXPECT_EQ(fault(document), malformed) << key;
    document[key] = json::array({1});
    EXPECT_EQ(fault(document), malformed) << key;
  }
  for (const char* key : {"name", "unit"}) {
    json document = two_hosts();
    document[key] = 1;
    EXPECT_EQ(fault(document), malformed) << key;
    document[key] = std::string(kNameBytesMax + 1, 'x');
    EXPECT_EQ(fault(document), malformed) << key;
  }
  for (const json& node : {json{{"switch", true}}, json{{"id", 3}}, json{{"id", ""}}, json{{"id", "x"}, {"switch", 1}},
                           json{{"id", std::string(kNameBytesMax + 1, 'x')}}}) {
    json document = two_hosts();
    document["nodes"].push_back(node);
    EXPECT_EQ(fault(document), malformed) << node;
  }
  json document = two_hosts();
  document["nodes"].push_back({{"id", "h0"}, {"switch", true}});
  EXPECT_EQ(fault(document), duplicate_node);
  document = two_hosts();
  for (json& node : document["nodes"]) node["switch"] = true;
  EXPECT_EQ(fault(document), malformed);
  EXPECT_EQ(fault({{"nodes", json::array()}, {"links", json::array()}}), malformed);
}

TEST(Topology, NamesEveryFaultOfALink) {
  using enum ErrorCode;
  for (const char* key : {"from", "to"}) {
    EXPECT_EQ(fault(with_link(key, "nobody")), unknown_node);
    EXPECT_EQ(fault(with_link(key, 0)), malformed);
    json document = two_hosts();
    document["links"][0].erase(key);
    EXPECT_EQ(fault(document), malformed);
  }
  EXPECT_EQ(fault(with_link("to", "h0")), malformed);
  for (const json& capacity : {json(0), json(-1), json(0.0), json("0"), json("-25/2"), json("0/7"), json("1/0"),
                               json("fast"), json(""), json(), json(true), json::array(), json(1e300), json(1e-300),
                               json(std::string(1000, '7')), json("1/" + std::string(1000, '7'))}) {
    EXPECT_EQ(fault(with_link("capacity", capacity)), bad_capacity) << capacity;
  }
  json document = two_hosts();
  document["links"][0].erase("capacity");
  EXPECT_EQ(fault(document), bad_capacity);
  for (const char* key : {"kind", "from_address", "to_address"}) {
    EXPECT_EQ(fault(with_link(key, 1)), malformed) << key;
    EXPECT_EQ(fault(with_link(key, std::string(kNameBytesMax + 1, 'x'))), malformed) << key;
  }
  EXPECT_EQ(fault(with_link("duplex", "yes")), malformed);
  const auto named = parse_topology(with_link("capacity", "0"));
  EXPECT_EQ(named.error().what, "link 0, 'h0' to 'h1': capacity must be above zero");
}

TEST(Topology, KeepsHostileNamesToOneLine) {
  EXPECT_EQ(fault(with_link("to", "a\nb\r\x01" + std::string(200, 'x'))), ErrorCode::unknown_node);
}

TEST(Topology, BoundsTheNodesAndLinks) {
  json document = two_hosts();
  for (int node = 2; node < kNodesMax; ++node) document["nodes"].push_back({{"id", testing::numbered("n", node)}});
  EXPECT_EQ(fault(document), std::nullopt);
  document["nodes"].push_back({{"id", "one more"}});
  EXPECT_EQ(fault(document), ErrorCode::malformed);
  document = two_hosts();
  document["links"] = json::array();
  document["links"].get_ref<json::array_t&>().resize(std::size_t{kLinksMax} + 1);
  EXPECT_EQ(fault(document), ErrorCode::malformed);
}

TEST(Topology, RefusesCapacitiesWithNoUsableCommonDenominator) {
  json document = two_hosts();
  mpz_class denominator;
  mpz_ui_pow_ui(denominator.get_mpz_t(), 10, kDigitsMax - 1);
  for (int link = 0; link < 100; ++link) {
    mpz_nextprime(denominator.get_mpz_t(), denominator.get_mpz_t());
    document["links"].push_back({{"from", "h0"}, {"to", "h1"}, {"capacity", "1/" + denominator.get_str()}});
  }
  EXPECT_EQ(fault(document), ErrorCode::bad_capacity);
}

TEST(Topology, ChecksThoseMadeByHand) {
  Topology topology = testing::dgx_1p();
  EXPECT_TRUE(validate(topology));
  topology.links[3].to = 8;
  EXPECT_EQ(validate(topology).error().code, ErrorCode::unknown_node);
  topology.links[3].to = -1;
  EXPECT_EQ(validate(topology).error().code, ErrorCode::unknown_node);
}

TEST(Topology, LoadsAFile) {
  const File file(testing::kTwoRacks);
  EXPECT_EQ(load_topology(file.path()).value(), parse_topology(json::parse(testing::kTwoRacks)).value());
}

TEST(Topology, SaysWhatIsWrongWithAFile) {
  const auto code = [](const std::string& text) { return load_topology(File(text).path()).error().code; };
  EXPECT_EQ(load_topology("/no/such/file").error().code, ErrorCode::unreadable);
  EXPECT_EQ(load_topology(std::filesystem::temp_directory_path()).error().code, ErrorCode::unreadable);
  EXPECT_EQ(load_topology("/dev/zero").error().code, ErrorCode::unreadable);
  EXPECT_EQ(code(""), ErrorCode::malformed);
  EXPECT_EQ(code("{\"nodes\": ["), ErrorCode::malformed);
  EXPECT_EQ(code("{} {}"), ErrorCode::malformed);
  EXPECT_EQ(code(std::string(kTopologyBytesMax + 1, ' ')), ErrorCode::unreadable);
  EXPECT_EQ(code(std::string(kTopologyBytesMax, '[')), ErrorCode::malformed);
  EXPECT_EQ(code(std::string(100, '[') + std::string(100, ']')), ErrorCode::malformed);
  EXPECT_EQ(code("{\"nodes\": [{\"id\": \"\xff\"}], \"links\": []}"), ErrorCode::malformed);
  const File file("{\n  \"nodes\": oops\n}");
  const auto broken = load_topology(file.path());
  EXPECT_NE(broken.error().what.find("line 2, column"), std::string::npos) << broken.error().what;
}

TEST(Topology, SurvivesMutations) {
  for (unsigned seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(testing::numbered("seed ", seed));
    std::mt19937 rng(seed);
    const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(rng); };
    std::string text = seed % 2 == 0 ? testing::kTwoRacks : testing::kMixed;
    for (std::size_t times = 1 + below(4); times > 0; --times) {
      const std::size_t at = below(text.size());
      switch (below(4)) {
        case 0:
          text[at] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(at, 1 + below(12));
          break;
        case 2:
          text.insert(at, text.substr(below(text.size()), below(40)));
          break;
        default:
          text[at] = "0123456789-/.e\"{}[],:"[below(21)];
          break;
      }
    }
    const json document = json::parse(text, nullptr, false);
    const auto topology = parse_topology(document);
    if (!topology) continue;
    EXPECT_TRUE(validate(*topology));
    EXPECT_EQ(parse_topology(to_json(*topology)).value(), *topology);
    if (const auto plan = plan_broadcast(*topology, 0)) {
      EXPECT_LE(plan->rate, plan->bound);
      EXPECT_FALSE(to_json(*plan, *topology, 0).dump().empty());
    }
  }
}

// Mutations of the document, which reach what mutations of the text seldom parse far enough to reach.
TEST(Topology, SurvivesMisplacedValues) {
  const json document = json::parse(testing::kMixed);
  const json flat = document.flatten();
  const std::vector<json> values = {nullptr, true, 0, -1, 1e308, "", "h0", "sw", "1/0", json::array(), json::object()};
  for (const auto& [pointer, unused] : flat.items()) {
    for (const json& value : values) {
      json mutated = document;
      mutated[json::json_pointer(pointer)] = value;
      const auto topology = parse_topology(mutated);
      if (!topology) continue;
      EXPECT_TRUE(validate(*topology));
      if (const auto plan = plan_broadcast(*topology, 0)) {
        EXPECT_LE(plan->rate, plan->bound);
      }
    }
  }
}

TEST(SingleSwitch, JoinsEveryHostByOneUnit) {
  const Topology topology = single_switch({"a", "switch"});
  EXPECT_TRUE(validate(topology));
  ASSERT_EQ(topology.nodes.size(), 3U);
  EXPECT_EQ(topology.nodes[2], (Node{"switch_", true}));
  ASSERT_EQ(topology.links.size(), 2U);
  EXPECT_EQ(topology.links[0].capacity, 1);
  EXPECT_EQ(single_switch({"a"}).nodes[1].id, "switch");
}

TEST(Units, KnowTheirBytes) {
  EXPECT_EQ(unit_bytes_per_s("Mbit/s"), 125000);
  EXPECT_EQ(unit_bytes_per_s("Gbit/s"), 125000000);
  EXPECT_EQ(unit_bytes_per_s("bit/s"), Rational(1, 8));
  EXPECT_EQ(unit_bytes_per_s("kbit/s"), 125);
  EXPECT_EQ(unit_bytes_per_s("GB/s"), 1000000000);
  EXPECT_EQ(unit_bytes_per_s("MiB/s"), 1048576);
  EXPECT_EQ(unit_bytes_per_s("B/s"), 1);
  for (const char* unit : {"", "links", "iB/s", "XB/s", "Mbit", "mbit/s", "MMB/s", "s"}) {
    EXPECT_EQ(unit_bytes_per_s(unit), std::nullopt) << unit;
  }
}

}  // namespace
}  // namespace coppice::collectives
