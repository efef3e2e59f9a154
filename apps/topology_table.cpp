#include "apps/topology_table.hpp"

#include <nlohmann/json.hpp>
#include <vector>

#include "apps/table.hpp"

namespace coppice::apps {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string number(const nlohmann::json& entry, const char* key, int digits) {
  return entry.contains(key) && entry[key].is_number() ? fixed(entry[key].get<double>(), digits) : "-";
}

std::string deviation(const nlohmann::json& entry) {
  if (!entry.contains("declared") || !entry["rate"].is_number()) return "-";
  const double off = 100 * (entry["rate"].get<double>() / entry["declared"].get<double>() - 1);
  return (off > 0 ? "+" : "") + fixed(off, 1);
}

std::string remark(const nlohmann::json& entry) {
  if (entry.contains("fault")) return entry["fault"];
  std::string text = entry["disturbed"].get<bool>() ? number(entry, "in_company", 1) + " in company" : "";
  if (!entry["settled"].get<bool>() && !entry["rate"].is_null()) text += text.empty() ? "unsteady" : ", unsteady";
  return text;
}

std::string findings_table(const nlohmann::json& findings, const std::string& unit) {
  Rows rows{{"from to", "least us", "median us", unit, "declared", "off %", "remark"}};
  for (const auto& entry : findings) {
    auto ends = entry["from"].get<std::string>() + " " + entry["to"].get<std::string>();
    if (entry.contains("to_address")) ends += " over " + entry["to_address"].get<std::string>();
    const bool answered = !entry.contains("fault");
    rows.push_back({ends, answered ? number(entry, "least_us", 0) : "-", answered ? number(entry, "median_us", 0) : "-",
                    number(entry, "rate", 2), number(entry, "declared", 2), deviation(entry), remark(entry)});
  }
  return table(rows);
}

std::string links_table(const collectives::Topology& topology) {
  Rows rows{{"link", topology.unit, "kind", "directions"}};
  for (const auto& link : topology.links)
    rows.push_back({topology.nodes[static_cast<std::size_t>(link.from)].id + " " + topology.nodes[static_cast<std::size_t>(link.to)].id,
                    fixed(link.capacity.get_d(), 2), link.kind, link.duplex ? "both" : "one"});
  return table(rows);
}

}  // namespace

std::string survey_table(const nlohmann::json& survey) {
  const auto& probe = survey["probe"];
  const std::string unit = survey["unit"];
  std::string text = findings_table(probe["pairs"], unit);
  if (!probe["links"].empty()) text += "\n" + findings_table(probe["links"], unit);
  if (!probe["totals"].empty()) {
    Rows rows{{"total of", unit, "declared", "off %"}};
    for (const auto& total : probe["totals"])
      rows.push_back({total["what"], number(total, "rate", 2), number(total, "declared", 2), deviation(total)});
    text += "\n" + table(rows);
  }
  if (const auto topology = collectives::parse_topology(survey))
    text += "\nTopology (" + probe["shape"].get<std::string>() + "):\n" + links_table(*topology);
  for (const auto& note : probe["notes"]) text += note.get<std::string>() + "\n";
  return text;
}

std::string machine_table(const runtime::MachineFacts& facts, const collectives::Topology& topology) {
  Rows rows{{facts.name, ""}};
  const auto count = [&](const char* what, int number) { rows.push_back({what, std::to_string(number)}); };
  count("packages", facts.packages);
  count("NUMA nodes", facts.numa_nodes);
  count("cores", facts.cores);
  count("hardware threads", facts.threads);
  constexpr double kGibibyte = 1 << 30;
  rows.push_back({"memory GiB", fixed(static_cast<double>(facts.memory_bytes) / kGibibyte, 1)});
  for (const auto& device : facts.devices)
    if (device.network) rows.push_back({"network card " + device.name, device.pci.empty() ? "-" : device.pci});
  for (const auto& gpu : facts.gpus)
    rows.push_back({gpu.name + ", " + fixed(static_cast<double>(gpu.memory_bytes) / kGibibyte, 1) + " GiB", gpu.pci});
  std::string text = table(rows);
  if (!topology.links.empty()) text += "\n" + links_table(topology);
  for (const auto& what : facts.unseen) text += "not seen: " + what + "\n";
  return text;
}

}  // namespace coppice::apps
