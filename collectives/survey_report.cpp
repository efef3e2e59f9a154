#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "collectives/survey.hpp"

namespace coppice::collectives {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// One link, its directions in bytes/s: NaN is not there.
struct Rated {
  Link link;
  double forth = kUnknown, back = kUnknown;
};

// The links with their rates in the unit, close ones made one; a link whose directions differ is two.
std::vector<Link> links_of(const std::vector<Rated>& rated, double unit) {
  std::vector<double> rates;
  for (const auto& each : rated) {
    rates.push_back(each.forth / unit);
    rates.push_back(each.back / unit);
  }
  rates = common_rates(std::move(rates));
  std::vector<Link> links;
  for (std::size_t i = 0; i < rated.size(); ++i) {
    const double forth = rates[2 * i], back = rates[2 * i + 1];
    auto link = rated[i].link;
    link.duplex = forth == back;
    if (forth > 0) {
      link.capacity = rounded(forth);
      links.push_back(link);
    }
    if (link.duplex || !(back > 0)) continue;
    std::swap(link.from, link.to);
    std::swap(link.from_address, link.to_address);
    link.capacity = rounded(back);
    links.push_back(link);
  }
  return links;
}

std::string fresh_name(const Topology& topology, std::string name) {
  while (find_node(topology, name)) name += '_';
  return name;
}

int add_switch(Topology& topology, const std::string& name) {
  topology.nodes.push_back({.id = fresh_name(topology, name), .is_switch = true});
  return static_cast<int>(topology.nodes.size()) - 1;
}

Rated rated(int from, int to, double forth, double back) {
  Rated out{.link = {}, .forth = forth, .back = back};
  out.link.from = from;
  out.link.to = to;
  out.link.kind = "tcp";
  return out;
}

}  // namespace

// The declared topology at measured rates. What was tried in vain is left out, what was not tried stays as it is.
Topology Survey::measured_links(SurveyReport& report) const {
  report.shape = "declared";
  Topology topology = *declared_;
  const auto declared_unit = unit_bytes_per_s(declared_->unit);
  topology.unit = unit_name_;
  if (topology.name.empty()) topology.name = options_.name;
  std::vector<Rated> found(topology.links.size());
  std::vector<bool> tried(topology.links.size(), false);
  for (std::size_t i = 0; i < found.size(); ++i) found[i].link = topology.links[i];
  const auto note = [&](int link, bool forth, double rate) {
    auto& entry = found[static_cast<std::size_t>(link)];
    tried[static_cast<std::size_t>(link)] = true;
    if (rate > 0) (forth ? entry.forth : entry.back) = rate;
  };
  for (const auto& finding : findings_) {
    if (finding.link < 0) continue;
    const auto& from = topology.nodes[static_cast<std::size_t>(found[static_cast<std::size_t>(finding.link)].link.from)].id;
    note(finding.link, from == hosts_[static_cast<std::size_t>(finding.measure.from)].name, finding.fault.empty() ? finding.bytes_per_s() : 0);
  }
  for (const auto& total : totals_) {
    const auto& link = found[static_cast<std::size_t>(total.link)].link;
    // A port's link may be written from either end.
    const bool from_switch = topology.nodes[static_cast<std::size_t>(link.from)].is_switch;
    note(total.link, total.host >= 0 ? total.outward != from_switch : total.outward, total.bytes_per_s);
  }
  std::vector<Link> untouched;
  std::vector<Rated> measured;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (tried[i])
      measured.push_back(found[i]);
    else if (declared_unit)
      untouched.push_back(topology.links[i]);
    else
      report.notes.push_back("link " + std::to_string(i) + ": declared in \"" + declared_->unit + "\", which is no rate; left out");
  }
  topology.links = links_of(measured, unit_);
  topology.links.insert(topology.links.end(), untouched.begin(), untouched.end());
  return topology;
}

Topology Survey::inferred(SurveyReport& report) const {
  Topology topology;
  topology.name = options_.name;
  topology.unit = unit_name_;
  const int n = static_cast<int>(hosts_.size());
  for (const auto& host : hosts_) topology.nodes.push_back({.id = host.name});
  const auto rates = host_rates();
  const auto found = infer(rates);
  const auto at = [](const auto& list, int i) { return list[static_cast<std::size_t>(i)]; };
  std::vector<Rated> links;
  if (found.shape == Shape::cables) {
    report.shape = "cables";
    for (int a = 0; a < n; ++a) {
      for (int b = a + 1; b < n; ++b) {
        links.push_back(rated(a, b, at(at(rates.pair, a), b), at(at(rates.pair, b), a)));
        links.back().link.from_address = at(hosts_, a).address;
        links.back().link.to_address = at(hosts_, b).address;
      }
    }
  } else {
    report.shape = found.shape == Shape::star ? "star" : "racks";
    std::vector<int> switches;
    for (std::size_t rack = 0; rack < found.racks.size(); ++rack) {
      switches.push_back(add_switch(topology, found.racks.size() == 1 ? "switch" : "switch" + std::to_string(rack)));
      for (const int host : found.racks[rack]) {
        links.push_back(rated(host, switches.back(), at(found.up, host), at(found.down, host)));
        links.back().link.from_address = at(hosts_, host).address;
      }
    }
    const int core = switches.size() < 2 ? -1 : switches.size() == 2 ? switches[1] : add_switch(topology, "core");
    for (std::size_t rack = 0; rack + (switches.size() == 2 ? 1 : 0) < switches.size() && core >= 0; ++rack) {
      double out = kUnknown, in = kUnknown;
      for (const auto& total : totals_) {
        const auto name = "rack " + std::to_string(rack);
        if (total.host < 0 && total.what == name + " to all") out = total.bytes_per_s;
        if (total.host < 0 && total.what == "all to " + name) in = total.bytes_per_s;
      }
      links.push_back(rated(switches[rack], core, out, in));
    }
    report.notes.push_back("inferred from rates alone: one port a host, and nothing narrower between switches than was measured; "
                           "declare other networks in a topology file");
  }
  for (const auto& [a, b] : found.unexplained) {
    const double least = std::min(at(found.up, a), at(found.down, b)) / unit_, is = at(at(rates.pair, a), b) / unit_;
    report.notes.push_back(at(hosts_, a).name + " to " + at(hosts_, b).name + ": carries " + to_string(rounded(is)) + " " + unit_name_ +
                           " where this topology says " + to_string(rounded(least)) + "; something is between them that it does not have");
  }
  topology.links = links_of(links, unit_);
  return topology;
}

// ---- JSON ------------------------------------------------------------------------------------------------------------

nlohmann::json to_json(const SurveyReport& report, const std::vector<SurveyHost>& hosts) {
  const auto unit = unit_bytes_per_s(report.topology.unit);
  const double per = unit ? unit->get_d() : 1;
  const auto rate = [&](double bytes_per_s) {
    return bytes_per_s > 0 ? nlohmann::json(std::round(bytes_per_s / per * 1'000) / 1'000) : nlohmann::json();
  };
  auto document = to_json(report.topology);
  auto pairs = nlohmann::json::array(), links = nlohmann::json::array(), totals = nlohmann::json::array();
  for (const auto& finding : report.findings) {
    nlohmann::json entry{{"from", hosts[static_cast<std::size_t>(finding.measure.from)].name},
                         {"to", hosts[static_cast<std::size_t>(finding.measure.to)].name},
                         {"rate", rate(finding.bytes_per_s())},
                         {"in_company", rate(finding.company)},
                         {"alone", rate(finding.alone)},
                         {"disturbed", finding.disturbed()},
                         {"settled", finding.settled},
                         {"least_us", finding.least_us},
                         {"median_us", finding.median_us}};
    if (finding.declared > 0) entry["declared"] = rate(finding.declared);
    if (!finding.measure.from_address.empty()) entry["from_address"] = finding.measure.from_address;
    if (!finding.measure.to_address.empty()) entry["to_address"] = finding.measure.to_address;
    if (!finding.fault.empty()) entry["fault"] = finding.fault;
    (finding.link >= 0 ? links : pairs).push_back(std::move(entry));
  }
  for (const auto& total : report.totals) {
    nlohmann::json entry{{"what", total.what}, {"rate", rate(total.bytes_per_s)}};
    if (total.declared > 0) entry["declared"] = rate(total.declared);
    if (!total.fault.empty()) entry["fault"] = total.fault;
    totals.push_back(std::move(entry));
  }
  document["probe"] = {{"shape", report.shape}, {"pairs", pairs},           {"links", links},
                       {"totals", totals},      {"notes", report.notes},    {"faults", report.faults}};
  return document;
}

std::string in_words(const std::vector<std::string>& faults) {
  constexpr std::size_t kShown = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(faults.size(), kShown); ++i) text += (i > 0 ? "; " : "") + faults[i];
  if (faults.size() > kShown) text += "; and " + std::to_string(faults.size() - kShown) + " more, see \"faults\" of --json";
  return text;
}

}  // namespace coppice::collectives
