// collectives/survey.hpp: what to measure between hosts, in which rounds, and what topology comes out of it. Pure: whoever
// carries it out asks for a round, measures what is in it all at once, and hands the figures back.
//
//   latency   every ordered pair, and every link that has addresses of its own
//   rates     with a declared topology, each of its links between hosts, over its own addresses; without one, every pair.
//             In rounds in which no host takes part twice (tournament.hpp), one direction after the other. What measures of
//             a round share beyond their hosts nobody knows, so that a figure counts only if it is as good as it can be:
//             within 5 % of what is declared, or of what both hosts are known to reach with others. Everything else is
//             measured again by itself and for longer, and that counts. What hosts reach alone is measured first, so
//             that there is something to compare with.
//   totals    of each port of a switch: to all others of the segment at once, and from them
//   trunks    between switches: from the hosts of one side to those of the other, all at once
//             Totals and trunks that are off what is declared, or below what a pair reached, are measured once more.
// Whatever fails is tried once more.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "collectives/infer.hpp"
#include "collectives/measure.hpp"
#include "collectives/topology.hpp"

namespace coppice::collectives {

struct SurveyHost {
  std::string name, address;
};

struct SurveyOptions {
  bool alone = false;  // every rate is measured by itself: slower, and sure
  std::string name = {};  // of the topology that comes out of it
};

struct SurveyRound {
  std::string what;         // for a person: "rates, round 2 of 6"
  std::vector<Measure> measures;
};

// One direction between two hosts.
struct Finding {
  Measure measure;
  int link = -1;            // of the declared topology; -1: hosts' own addresses
  double declared = 0;      // bytes/s; 0: nothing is declared
  double company = 0, alone = 0;  // bytes/s; 0: not measured so
  bool settled = true;
  double least_us = 0, median_us = 0;
  std::string fault;
  double bytes_per_s() const { return alone > 0 ? alone : company; }
  // It was slower in company: it shares a link, or a processor, with another of its round.
  bool disturbed() const { return company > 0 && alone > 1.05 * company; }
};

// What a port of a switch, or a trunk, carried in one direction.
struct Total {
  std::string what;   // "h0 to all", "all to h0", "s0 to s1"
  int host = -1;      // -1: a trunk
  int link = -1;      // of the declared topology
  bool outward = true;  // of a port: leaving the host; of a link between switches: from -> to
  double declared = 0, bytes_per_s = 0;
  int times = 0;  // that it has been measured
  std::string fault;
};

struct SurveyReport {
  Topology topology;             // what was measured; hosts without a figure have no links
  std::string shape;             // "declared", or what was inferred: "star", "cables", "racks"
  std::vector<Finding> findings;
  std::vector<Total> totals;
  std::vector<std::string> notes;   // what a reader of the topology must know
  std::vector<std::string> faults;  // what could not be measured, and why
};

class Survey {
 public:
  // declared: parallel links and switches as it has them, every host among its nodes. Its unit is kept where it is a rate;
  // otherwise rates are in Mbit/s.
  Survey(std::vector<SurveyHost> hosts, std::optional<Topology> declared, SurveyOptions options);

  // Nothing: all is measured. After each round take() must have its figures, in the order of its measures.
  std::optional<SurveyRound> next();
  void take(const std::vector<Measured>& figures);
  // REQUIRES: next() gave nothing.
  SurveyReport report() const;

 private:
  enum class Phase { latency, latency_again, anchors, rates, again, totals, trunks, over };
  struct Queued {
    SurveyRound round;
    std::vector<int> findings;  // of each measure; none: they all add up to `total`
    int total = -1;
  };
  struct Port {  // of a host, at a switch
    int host = -1, link = -1;
    std::string address;
    int at = -1;  // the switch, a node of the declared topology
  };
  void plan(Phase phase);
  void plan_latency(bool again);
  void plan_again();
  void plan_totals();
  void plan_declared_trunks();
  void plan_racks();
  void queue_total(Total total, const std::vector<Port>& from, const std::vector<Port>& to);
  void queue_rounds(const std::string& what, Measure::Kind kind, std::vector<int> findings);
  void queue_alone(const std::string& what, Measure::Kind kind, const std::vector<int>& findings);
  void add_links();
  std::vector<Port> ports_beside(const Port& port, bool outward) const;
  bool carries(const Port& port, bool outward) const;
  int pair(int from, int to) const;  // the finding of hosts' own addresses
  double expected(const Finding& finding) const;
  bool in_doubt(const Finding& finding) const;
  bool in_doubt(const Total& total) const;
  void take_total(const Queued& round, const std::vector<Measured>& figures);
  HostRates host_rates() const;
  Topology measured_links(SurveyReport& report) const;
  Topology inferred(SurveyReport& report) const;

  std::vector<SurveyHost> hosts_;
  std::optional<Topology> declared_;
  SurveyOptions options_;
  std::string unit_name_ = "Mbit/s";
  double unit_ = 125'000;  // bytes/s in one of it
  Phase phase_ = Phase::latency;
  std::deque<Queued> queue_;
  std::optional<Queued> out_;
  std::vector<Finding> findings_;  // first every ordered pair by hosts' own addresses
  std::vector<int> rated_;         // findings whose rates are wanted
  std::vector<Port> ports_;
  std::vector<Total> totals_;
  std::vector<std::string> notes_;
};

// The topology file, with notes under keys of their own that readers of topologies leave alone: "probe" holds every figure.
nlohmann::json to_json(const SurveyReport& report, const std::vector<SurveyHost>& hosts);

// One line for each: who, what, and why. Empty: all was measured.
std::string in_words(const std::vector<std::string>& faults);

}  // namespace coppice::collectives
