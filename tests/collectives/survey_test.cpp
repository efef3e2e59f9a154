#include "collectives/survey.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "collectives/planner.hpp"

namespace coppice::collectives {
namespace {

// A network that shares its links out fairly: every flow of a round gets the same until a link is full (max-min). A route
// is the names of the one-way links that a flow takes.
struct Net {
  std::map<std::string, double> capacity;  // bytes/s
  std::function<std::vector<std::string>(const Measure&)> route;

  std::vector<double> rates(const std::vector<Measure>& flows) const {
    std::vector<double> rate(flows.size(), 0);
    std::vector<bool> fixed(flows.size(), false);
    auto left = capacity;
    for (;;) {
      std::map<std::string, int> users;
      for (std::size_t i = 0; i < flows.size(); ++i)
        if (!fixed[i])
          for (const auto& link : route(flows[i])) ++users[link];
      if (users.empty()) return rate;
      double step = INFINITY;
      for (const auto& [link, count] : users) step = std::min(step, left.at(link) / count);
      for (std::size_t i = 0; i < flows.size(); ++i)
        if (!fixed[i]) rate[i] += step;
      for (const auto& [link, count] : users) left[link] -= step * count;
      for (std::size_t i = 0; i < flows.size(); ++i)
        for (const auto& link : route(flows[i]))
          if (left.at(link) < 1e-6 * capacity.at(link)) fixed[i] = true;
    }
  }
};

std::vector<SurveyHost> hosts_of(int count) {
  std::vector<SurveyHost> hosts;
  for (int i = 0; i < count; ++i) hosts.push_back({"h" + std::to_string(i), "10.0.0." + std::to_string(i + 1)});
  return hosts;
}

struct Run {
  SurveyReport report;
  int rounds = 0, rate_measures = 0;
};

using Fault = std::function<std::string(const Measure&)>;

// By what a figure is wrong, as on a machine that is busy elsewhere.
using Noise = std::function<double(const Measure&)>;

Run carry_out(Survey survey, const Net& net, const Fault& fault = [](const Measure&) { return std::string(); },
              const Noise& noise = [](const Measure&) { return 1; }) {
  Run run;
  while (const auto round = survey.next()) {
    const auto rates = net.rates(round->measures);
    std::vector<Measured> figures;
    std::set<int> busy;
    for (std::size_t i = 0; i < round->measures.size(); ++i) {
      const auto& measure = round->measures[i];
      Measured figure;
      figure.fault = fault(measure);
      if (measure.kind == Measure::Kind::latency) {
        figure.least_us = 100;
        figure.median_us = 120;
      } else if (figure.fault.empty()) {
        figure.bytes_per_s = rates[i] * noise(measure);
      }
      if (measure.kind != Measure::Kind::share) {
        EXPECT_TRUE(busy.insert(measure.from).second && busy.insert(measure.to).second) << round->what;
      }
      run.rate_measures += measure.kind == Measure::Kind::rate || measure.kind == Measure::Kind::long_rate;
      figures.push_back(figure);
    }
    ++run.rounds;
    survey.take(figures);
  }
  run.report = survey.report();
  EXPECT_TRUE(validate(run.report.topology)) << run.report.shape;
  const auto back = parse_topology(to_json(run.report, hosts_of(16)));
  EXPECT_TRUE(back && *back == run.report.topology);
  return run;
}

constexpr double kMbit = 125'000;

std::string port(const char* way, int host) { return way + std::to_string(host); }

Net star(const std::vector<double>& up, const std::vector<double>& down) {
  Net net;
  for (std::size_t i = 0; i < up.size(); ++i) {
    net.capacity[port("up", static_cast<int>(i))] = up[i] * kMbit;
    net.capacity[port("down", static_cast<int>(i))] = down[i] * kMbit;
  }
  net.route = [](const Measure& m) { return std::vector{port("up", m.from), port("down", m.to)}; };
  return net;
}

// Capacity of what goes from -> to directly.
Rational between(const Topology& topology, const std::string& from, const std::string& to) {
  Rational sum;
  const int a = find_node(topology, from).value(), b = find_node(topology, to).value();
  for (const auto& link : topology.links)
    if ((link.from == a && link.to == b) || (link.duplex && link.from == b && link.to == a)) sum += link.capacity;
  return sum;
}

TEST(Survey, AStarIsFoundWithEachHostsTwoDirections) {
  const auto run = carry_out(Survey(hosts_of(4), std::nullopt, {.name = "lan"}), star({100, 100, 50, 100}, {100, 100, 100, 25}));
  EXPECT_EQ(run.report.shape, "star");
  const auto& topology = run.report.topology;
  EXPECT_EQ(topology.unit, "Mbit/s");
  EXPECT_EQ(between(topology, "h0", "switch"), 100);
  EXPECT_EQ(between(topology, "switch", "h0"), 100);
  EXPECT_EQ(between(topology, "h2", "switch"), 50);
  EXPECT_EQ(between(topology, "switch", "h2"), 100);
  EXPECT_EQ(between(topology, "h3", "switch"), 100);
  EXPECT_EQ(between(topology, "switch", "h3"), 25);
  EXPECT_TRUE(run.report.faults.empty());
  PlanRequest request{.operation = Operation::allreduce};
  EXPECT_TRUE(make_plan(topology, request));
}

TEST(Survey, HostsFasterThanAnyOneOtherAreSeenByTheirTotals) {
  const auto run = carry_out(Survey(hosts_of(4), std::nullopt, {}), star({200, 100, 100, 100}, {200, 100, 100, 100}));
  EXPECT_EQ(between(run.report.topology, "h0", "switch"), 200);
  EXPECT_EQ(between(run.report.topology, "switch", "h0"), 200);
  EXPECT_EQ(between(run.report.topology, "h1", "switch"), 100);
}

TEST(Survey, CablesOfTheirOwnAreFoundBetweenEveryTwo) {
  Net net;
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b) net.capacity[port("l", 10 * a + b)] = (a + b) * 10 * kMbit;
  net.route = [](const Measure& m) { return std::vector{port("l", 10 * m.from + m.to)}; };
  const auto run = carry_out(Survey(hosts_of(4), std::nullopt, {}), net);
  EXPECT_EQ(run.report.shape, "cables");
  EXPECT_EQ(run.report.topology.links.size(), 6U);
  EXPECT_EQ(between(run.report.topology, "h2", "h3"), 50);
  EXPECT_EQ(run.report.topology.links[0].from_address, "10.0.0.1");
}

// Eight hosts on two switches: in company four flows meet on the trunk and each gets a quarter of it.
Net two_racks() {
  auto net = star(std::vector<double>(8, 400), std::vector<double>(8, 400));
  net.capacity["trunk0"] = net.capacity["trunk1"] = 100 * kMbit;
  net.route = [](const Measure& m) {
    std::vector route{port("up", m.from), port("down", m.to)};
    if (m.from / 4 != m.to / 4) route.push_back(port("trunk", m.from / 4));
    return route;
  };
  return net;
}

TEST(Survey, WhatMeetsOnATrunkIsMeasuredAgainAlone) {
  const auto run = carry_out(Survey(hosts_of(8), std::nullopt, {}), two_racks());
  EXPECT_EQ(run.report.shape, "racks");
  for (const auto& finding : run.report.findings) {
    const bool across = finding.measure.from / 4 != finding.measure.to / 4;
    EXPECT_NEAR(finding.bytes_per_s() / kMbit, across ? 100 : 400, 0.1);
    EXPECT_TRUE(!across || finding.disturbed() || finding.company == 0);
  }
  EXPECT_EQ(between(run.report.topology, "switch0", "switch1"), 100);
  EXPECT_EQ(between(run.report.topology, "switch1", "switch0"), 100);
  EXPECT_EQ(between(run.report.topology, "h5", "switch1"), 400);
}

TEST(Survey, ABusThatAllShareIsNotTakenForWhatCompanyLeftOfIt) {
  Net net;
  net.capacity["bus"] = 100 * kMbit;
  net.route = [](const Measure&) { return std::vector<std::string>{"bus"}; };
  const auto run = carry_out(Survey(hosts_of(6), std::nullopt, {}), net);
  for (const auto& finding : run.report.findings) EXPECT_NEAR(finding.bytes_per_s() / kMbit, 100, 0.1);
}

TEST(Survey, AnUndisturbedSwitchIsNotMeasuredAgain) {
  const auto run = carry_out(Survey(hosts_of(8), std::nullopt, {}), star(std::vector<double>(8, 100), std::vector<double>(8, 100)));
  EXPECT_EQ(run.rate_measures, 8 * 7);
  // Latencies 14 rounds, each host alone 8, pairs at most 14, totals 16.
  EXPECT_LE(run.rounds, 14 + 8 + 14 + 16);
  const auto alone = carry_out(Survey(hosts_of(8), std::nullopt, {.alone = true, .name = ""}), star(std::vector<double>(8, 100), std::vector<double>(8, 100)));
  EXPECT_EQ(alone.rounds, 14 + 56 + 16);
}

Topology declared(const nlohmann::json& links, const std::string& unit = "Mbit/s") {
  auto nodes = nlohmann::json::array();
  for (const char* id : {"h0", "h1", "h2", "h3"}) nodes.push_back({{"id", id}});
  for (const char* id : {"s0", "s1"}) nodes.push_back({{"id", id}, {"switch", true}});
  return parse_topology({{"name", "lab"}, {"unit", unit}, {"nodes", nodes}, {"links", links}}).value();
}

nlohmann::json cable(const char* from, const char* to, const char* capacity, const char* here, const char* there) {
  return {{"from", from}, {"to", to}, {"capacity", capacity}, {"kind", "tcp"}, {"from_address", here}, {"to_address", there}};
}

TEST(Survey, DeclaredLinksAreMeasuredOverTheirOwnAddressesInBothDirections) {
  const auto topology = declared({cable("h0", "h1", "400", "a", "b"), cable("h1", "h2", "200", "c", "d"), cable("h2", "h3", "100", "e", "f"),
                                  cable("h0", "h1", "50", "g", "h")});
  Net net;
  net.capacity = {{"ab", 300 * kMbit}, {"ba", 400 * kMbit}, {"cd", 200 * kMbit}, {"dc", 200 * kMbit}, {"ef", 99.5 * kMbit}, {"fe", 101 * kMbit},
                  {"gh", 50 * kMbit}, {"hg", 50 * kMbit}, {"", 1 * kMbit}};
  net.route = [](const Measure& m) { return std::vector{m.from_address + m.to_address}; };
  const auto run = carry_out(Survey(hosts_of(4), topology, {}), net);
  EXPECT_EQ(run.report.shape, "declared");
  const auto& measured = run.report.topology;
  EXPECT_EQ(measured.name, "lab");
  EXPECT_EQ(between(measured, "h0", "h1"), 300 + 50);
  EXPECT_EQ(between(measured, "h1", "h0"), 400 + 50);
  EXPECT_EQ(between(measured, "h1", "h2"), 200);
  // 99.5 and 101 are one rate.
  ASSERT_EQ(measured.links.size(), 5U);
  EXPECT_EQ(measured.links[3].capacity, 101);
  EXPECT_TRUE(measured.links[3].duplex);
  for (const auto& link : measured.links) EXPECT_TRUE(link.from_address && link.to_address);
  for (const auto& finding : run.report.findings) {
    if (finding.link == 0 && finding.measure.from == 0) { EXPECT_GT(finding.alone, 0); }  // below what is declared: again
    if (finding.link == 2) { EXPECT_EQ(finding.alone, 0); }                               // as declared: company did no harm
    EXPECT_EQ(finding.bytes_per_s() > 0, finding.link >= 0);                       // hosts' own addresses: latency only
  }
}

TEST(Survey, PortsAndTrunksOfDeclaredSwitchesAreMeasuredByTotals) {
  auto links = nlohmann::json::array();
  for (const char* host : {"h0", "h1"})
    links.push_back({{"from", host}, {"to", "s0"}, {"capacity", "100"}, {"from_address", std::string("x") + host}});
  for (const char* host : {"h2", "h3"})
    links.push_back({{"from", "s1"}, {"to", host}, {"capacity", "100"}, {"to_address", std::string("x") + host}});
  links.push_back({{"from", "s0"}, {"to", "s1"}, {"capacity", "40"}});
  auto net = star({90, 100, 100, 100}, {100, 100, 80, 100});
  net.capacity["trunk0"] = 30 * kMbit;
  net.capacity["trunk1"] = 40 * kMbit;
  net.route = [](const Measure& m) {
    std::vector route{port("up", m.from), port("down", m.to)};
    if (m.from / 2 != m.to / 2) route.push_back(port("trunk", m.from / 2));
    return route;
  };
  const auto run = carry_out(Survey(hosts_of(4), declared(links), {}), net);
  const auto& measured = run.report.topology;
  EXPECT_EQ(between(measured, "h0", "s0"), 90);
  EXPECT_EQ(between(measured, "s0", "h0"), 100);
  EXPECT_EQ(between(measured, "s1", "h2"), 80);
  EXPECT_EQ(between(measured, "h2", "s1"), 100);
  EXPECT_EQ(between(measured, "s0", "s1"), 30);
  EXPECT_EQ(between(measured, "s1", "s0"), 40);
}

TEST(Survey, AHostThatDoesNotAnswerCostsOnlyItsOwnFigures) {
  const auto h2_is_dead = [](const Measure& m) { return m.from == 2 || m.to == 2 ? std::string("h2 does not answer") : std::string(); };
  const auto run = carry_out(Survey(hosts_of(4), std::nullopt, {}), star({100, 100, 100, 100}, {100, 100, 100, 100}), h2_is_dead);
  EXPECT_EQ(run.report.faults.size(), 6U);
  EXPECT_NE(run.report.faults[0].find("h0 to h2: h2 does not answer"), std::string::npos);
  EXPECT_EQ(between(run.report.topology, "h0", "switch"), 100);
  EXPECT_EQ(between(run.report.topology, "h2", "switch"), 0);
}

TEST(Survey, WhatFailsOnceIsTriedOnceMore) {
  for (const auto failing : {Measure::Kind::latency, Measure::Kind::rate, Measure::Kind::share}) {
    std::set<std::pair<int, int>> failed;
    const auto once = [&](const Measure& m) {
      return m.kind == failing && failed.insert({m.from, m.to}).second ? std::string("lost") : std::string();
    };
    const auto run = carry_out(Survey(hosts_of(4), std::nullopt, {}), star({100, 100, 100, 100}, {100, 100, 100, 100}), once);
    EXPECT_TRUE(run.report.faults.empty()) << in_words(run.report.faults);
    EXPECT_EQ(run.report.shape, "star");
    for (const auto& finding : run.report.findings) EXPECT_NEAR(finding.bytes_per_s() / kMbit, 100, 0.1);
  }
}

TEST(Survey, WhatIsOffIsMeasuredOnceMore) {
  auto links = nlohmann::json::array({cable("h0", "h1", "100", "a", "b"), cable("h2", "h3", "100", "c", "d")});
  for (const char* host : {"h0", "h1", "h2"}) links.push_back({{"from", host}, {"to", "s0"}, {"capacity", "100"}, {"from_address", host}});
  Net net;
  for (const char* link : {"ab", "ba", "cd", "dc"}) net.capacity[link] = 100 * kMbit;
  for (int host = 0; host < 4; ++host) net.capacity[port("up", host)] = net.capacity[port("down", host)] = 100 * kMbit;
  net.route = [](const Measure& m) {
    if (m.from_address.size() == 1) return std::vector{m.from_address + m.to_address};
    return std::vector{port("up", m.from), port("down", m.to)};
  };
  // The first figure of each link and total is wrong, too high or too low.
  std::map<std::pair<std::string, int>, int> times;
  const auto first_is_wrong = [&](const Measure& m) {
    const auto key = std::pair(m.from_address + m.to_address, static_cast<int>(m.kind == Measure::Kind::share));
    return times[key]++ == 0 ? (m.from % 2 == 0 ? 1.2 : 0.7) : 1.0;
  };
  const auto run = carry_out(Survey(hosts_of(4), declared(links), {}), net, [](const Measure&) { return std::string(); }, first_is_wrong);
  for (const auto& finding : run.report.findings) {
    if (finding.link >= 0) { EXPECT_NEAR(finding.bytes_per_s() / kMbit, 100, 0.1); }
  }
  EXPECT_EQ(between(run.report.topology, "h0", "h1"), 100);
  for (const auto& total : run.report.totals) EXPECT_NEAR(total.bytes_per_s / kMbit, 100, 10.1) << total.what;
}

TEST(Infer, RatesAreRoundedToThreeDigits) {
  EXPECT_EQ(rounded(98.76), Rational(494, 5));
  EXPECT_EQ(rounded(1234567), 1230000);
  EXPECT_EQ(rounded(0.012345), Rational(123, 10000));
  EXPECT_EQ(rounded(999.6), 1000);
  EXPECT_EQ(rounded(100), 100);
}

TEST(Infer, RatesThatAreCloseAreOne) {
  const auto rates = common_rates({100, 50, 101, NAN, 99.5, 103, 0});
  EXPECT_EQ(rates[0], 100);
  EXPECT_EQ(rates[2], 100);
  EXPECT_EQ(rates[4], 100);
  EXPECT_EQ(rates[1], 50);
  EXPECT_EQ(rates[5], 103);
  EXPECT_TRUE(std::isnan(rates[3]));
  EXPECT_EQ(rates[6], 0);
}

}  // namespace
}  // namespace coppice::collectives
