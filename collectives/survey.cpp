#include "collectives/survey.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "collectives/tournament.hpp"

namespace coppice::collectives {
namespace {

constexpr double kGood = 0.95;     // of what is expected: then nobody disturbed it
constexpr double kTooGood = 1.03;  // of what is declared: measured once more, since links carry what they carry
constexpr int kTotalTimes = 2;
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

int host_of(const std::vector<SurveyHost>& hosts, const std::string& name) {
  const auto found = std::ranges::find(hosts, name, &SurveyHost::name);
  return found == hosts.end() ? -1 : static_cast<int>(found - hosts.begin());
}

// Switches that are joined by links between switches, but for one link: the least of each part's nodes, by node.
std::vector<int> segments(const Topology& topology, int without) {
  std::vector<int> of(topology.nodes.size());
  std::iota(of.begin(), of.end(), 0);
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < topology.links.size(); ++i) {
      const auto& link = topology.links[i];
      const auto from = static_cast<std::size_t>(link.from), to = static_cast<std::size_t>(link.to);
      if (static_cast<int>(i) == without || !topology.nodes[from].is_switch || !topology.nodes[to].is_switch) continue;
      if (of[from] == of[to]) continue;
      of[from] = of[to] = std::min(of[from], of[to]);
      changed = true;
    }
  }
  return of;
}

}  // namespace

Survey::Survey(std::vector<SurveyHost> hosts, std::optional<Topology> declared, SurveyOptions options)
    : hosts_(std::move(hosts)), declared_(std::move(declared)), options_(std::move(options)) {
  const int n = static_cast<int>(hosts_.size());
  for (int from = 0; from < n; ++from) {
    for (int to = 0; to < n; ++to) {
      if (from == to) continue;
      Finding finding;
      finding.measure = {Measure::Kind::rate, from, to, "", ""};
      findings_.push_back(std::move(finding));
    }
  }
  if (declared_) {
    if (const auto unit = unit_bytes_per_s(declared_->unit)) {
      unit_name_ = declared_->unit;
      unit_ = unit->get_d();
    }
    add_links();
  } else {
    rated_.resize(findings_.size());
    std::iota(rated_.begin(), rated_.end(), 0);
    for (int host = 0; host < n; ++host) ports_.push_back({host, -1, "", -1});
  }
  plan(Phase::latency);
}

void Survey::add_links() {
  const bool is_rate = unit_bytes_per_s(declared_->unit).has_value();
  for (std::size_t i = 0; i < declared_->links.size(); ++i) {
    const auto& link = declared_->links[i];
    const auto& from = declared_->nodes[static_cast<std::size_t>(link.from)];
    const auto& to = declared_->nodes[static_cast<std::size_t>(link.to)];
    if (from.is_switch && to.is_switch) continue;
    const int a = host_of(hosts_, from.id), b = host_of(hosts_, to.id);
    if ((!from.is_switch && a < 0) || (!to.is_switch && b < 0)) {
      notes_.push_back("link " + from.id + " to " + to.id + ": one of its hosts is not in the cluster; as declared");
      continue;
    }
    const auto here = link.from_address.value_or(""), there = link.to_address.value_or("");
    if (from.is_switch || to.is_switch) {
      ports_.push_back(from.is_switch ? Port{b, static_cast<int>(i), there, link.from}
                                      : Port{a, static_cast<int>(i), here, link.to});
      continue;
    }
    if (here.empty() || there.empty())
      notes_.push_back("link " + from.id + " to " + to.id + ": without addresses of its own; measured by its hosts'");
    for (const bool back : {false, true}) {
      if (back && !link.duplex) continue;
      Finding finding;
      finding.measure = {Measure::Kind::rate, back ? b : a, back ? a : b, back ? there : here, back ? here : there};
      finding.link = static_cast<int>(i);
      finding.declared = is_rate ? link.capacity.get_d() * unit_ : 0;
      rated_.push_back(static_cast<int>(findings_.size()));
      findings_.push_back(std::move(finding));
    }
  }
}

int Survey::pair(int from, int to) const {
  return from * (static_cast<int>(hosts_.size()) - 1) + to - (to > from ? 1 : 0);
}

// ---- what is next ----------------------------------------------------------------------------------------------------

std::optional<SurveyRound> Survey::next() {
  while (queue_.empty()) {
    if (phase_ == Phase::over) return std::nullopt;
    phase_ = static_cast<Phase>(static_cast<int>(phase_) + 1);
    plan(phase_);
  }
  out_ = std::move(queue_.front());
  queue_.pop_front();
  return out_->round;
}

void Survey::plan(Phase phase) {
  const auto n = static_cast<int>(hosts_.size());
  std::vector<int> wanted;
  for (const int finding : rated_)
    if (findings_[static_cast<std::size_t>(finding)].fault.empty()) wanted.push_back(finding);
  switch (phase) {
    case Phase::latency: return plan_latency();
    case Phase::anchors: {  // what each host reaches, as the sender once and as the receiver once
      if (declared_ || options_.alone || n < 3) return;
      std::vector<int> ring;
      for (int host = 0; host < n; ++host)
        if (const int next = pair(host, (host + 1) % n); findings_[static_cast<std::size_t>(next)].fault.empty()) ring.push_back(next);
      return queue_alone("rates alone", Measure::Kind::rate, ring);
    }
    case Phase::rates: {
      if (options_.alone) return queue_alone("rates alone", Measure::Kind::rate, wanted);
      std::erase_if(wanted, [&](int finding) { return findings_[static_cast<std::size_t>(finding)].alone > 0; });
      return queue_rounds("rates", Measure::Kind::rate, wanted);
    }
    case Phase::again: return plan_again();
    case Phase::totals: return plan_totals();
    case Phase::trunks: return declared_ ? plan_declared_trunks() : plan_racks();
    case Phase::over: return;
  }
}

void Survey::plan_latency() {
  std::vector<int> all;
  for (std::size_t i = 0; i < findings_.size(); ++i) {
    const auto& measure = findings_[i].measure;
    if (findings_[i].link < 0 || !measure.from_address.empty() || !measure.to_address.empty()) all.push_back(static_cast<int>(i));
  }
  queue_rounds("latencies", Measure::Kind::latency, all);
}

void Survey::plan_again() {
  std::vector<int> again;
  for (const int index : rated_) {
    const auto& finding = findings_[static_cast<std::size_t>(index)];
    if (finding.fault.empty() && in_doubt(finding)) again.push_back(index);
  }
  queue_alone("rates alone, again", Measure::Kind::long_rate, again);
}

void Survey::plan_totals() {
  if (!declared_ && hosts_.size() < 3) return;
  const bool is_rate = declared_ && unit_bytes_per_s(declared_->unit).has_value();
  for (const auto& port : ports_) {
    for (const bool outward : {true, false}) {
      if (!carries(port, outward)) continue;
      Total total;
      const auto& name = hosts_[static_cast<std::size_t>(port.host)].name;
      total.what = outward ? name + " to all" : "all to " + name;
      total.host = port.host;
      total.link = port.link;
      total.outward = outward;
      if (is_rate) total.declared = declared_->links[static_cast<std::size_t>(port.link)].capacity.get_d() * unit_;
      const auto others = ports_beside(port, outward);
      if (outward)
        queue_total(std::move(total), std::vector(others.size(), port), others);
      else
        queue_total(std::move(total), others, std::vector(others.size(), port));
    }
  }
}

void Survey::plan_declared_trunks() {
  const bool is_rate = unit_bytes_per_s(declared_->unit).has_value();
  for (std::size_t i = 0; i < declared_->links.size(); ++i) {
    const auto& link = declared_->links[i];
    const auto& from = declared_->nodes[static_cast<std::size_t>(link.from)];
    const auto& to = declared_->nodes[static_cast<std::size_t>(link.to)];
    if (!from.is_switch || !to.is_switch) continue;
    const auto side = segments(*declared_, static_cast<int>(i));
    const int left = side[static_cast<std::size_t>(link.from)], right = side[static_cast<std::size_t>(link.to)];
    if (left == right) {
      notes_.push_back("link " + from.id + " to " + to.id + ": there is another way between these switches; as declared");
      continue;
    }
    for (const bool back : {false, true}) {
      if (back && !link.duplex) continue;
      std::vector<Port> near, far;
      for (const auto& port : ports_) {
        const int at = side[static_cast<std::size_t>(port.at)];
        if (at == (back ? right : left) && carries(port, true)) near.push_back(port);
        if (at == (back ? left : right) && carries(port, false)) far.push_back(port);
      }
      Total total;
      total.what = back ? to.id + " to " + from.id : from.id + " to " + to.id;
      total.link = static_cast<int>(i);
      total.outward = !back;
      if (is_rate) total.declared = link.capacity.get_d() * unit_;
      queue_total(std::move(total), near, far);
    }
  }
}

void Survey::plan_racks() {
  if (hosts_.size() < 3) return;
  const auto found = infer(host_rates());
  if (found.shape != Shape::racks) return;
  const std::size_t trunks = found.racks.size() == 2 ? 1 : found.racks.size();
  for (std::size_t rack = 0; rack < trunks; ++rack) {
    std::vector<Port> inside, outside;
    for (const auto& port : ports_)
      (std::ranges::find(found.racks[rack], port.host) != found.racks[rack].end() ? inside : outside).push_back(port);
    const auto name = "rack " + std::to_string(rack);
    Total out, in;
    out.what = name + " to all";
    in.what = "all to " + name;
    in.outward = false;
    queue_total(std::move(out), inside, outside);
    queue_total(std::move(in), outside, inside);
  }
}

bool Survey::carries(const Port& port, bool outward) const {
  if (port.link < 0) return true;
  const auto& link = declared_->links[static_cast<std::size_t>(port.link)];
  return link.duplex || (link.to == port.at) == outward;
}

// One port of each other host that is reached from here (outward) or reaches it, without another host between.
std::vector<Survey::Port> Survey::ports_beside(const Port& port, bool outward) const {
  const auto segment = declared_ ? segments(*declared_, -1) : std::vector<int>();
  std::map<int, Port> found;
  for (const auto& other : ports_) {
    if (other.host == port.host || !carries(other, !outward)) continue;
    if (declared_ && segment[static_cast<std::size_t>(other.at)] != segment[static_cast<std::size_t>(port.at)]) continue;
    found.emplace(other.host, other);
  }
  std::vector<Port> out;
  for (const auto& [host, other] : found) out.push_back(other);
  return out;
}

// from[i] to to[i]; the shorter list goes round.
void Survey::queue_total(Total total, const std::vector<Port>& from, const std::vector<Port>& to) {
  Queued queued;
  const std::size_t flows = from.empty() || to.empty() ? 0 : std::max(from.size(), to.size());
  for (std::size_t i = 0; i < flows; ++i) {
    const auto& a = from[i % from.size()];
    const auto& b = to[i % to.size()];
    if (a.host == b.host || !findings_[static_cast<std::size_t>(pair(a.host, b.host))].fault.empty()) continue;
    queued.round.measures.push_back({Measure::Kind::share, a.host, b.host, a.address, b.address});
  }
  if (queued.round.measures.empty()) {
    notes_.push_back(total.what + ": no two hosts are there to measure it by" + (total.link >= 0 ? "; as declared" : ""));
    return;
  }
  queued.total = static_cast<int>(totals_.size());
  queued.round.what = "total of " + total.what;
  totals_.push_back(std::move(total));
  queue_.push_back(std::move(queued));
}

void Survey::queue_rounds(const std::string& what, Measure::Kind kind, std::vector<int> findings) {
  std::map<std::pair<int, int>, std::size_t> place;
  const auto order = tournament(static_cast<int>(hosts_.size()));
  for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = i;
  const auto ends = [&](int finding) {
    const auto& measure = findings_[static_cast<std::size_t>(finding)].measure;
    return std::pair(std::min(measure.from, measure.to), std::max(measure.from, measure.to));
  };
  std::ranges::stable_sort(findings, {}, [&](int finding) { return place[ends(finding)]; });
  std::vector<std::vector<int>> rounds;
  for (const bool back : {false, true}) {
    std::vector<int> some;
    std::vector<std::pair<int, int>> pairs;
    for (const int finding : findings) {
      const auto& measure = findings_[static_cast<std::size_t>(finding)].measure;
      if ((measure.from > measure.to) != back) continue;
      some.push_back(finding);
      pairs.push_back(ends(finding));
    }
    for (const auto& round : disjoint_rounds(pairs)) {
      rounds.emplace_back();
      for (const int i : round) rounds.back().push_back(some[static_cast<std::size_t>(i)]);
    }
  }
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    Queued queued;
    queued.round.what = what + ", round " + std::to_string(i + 1) + " of " + std::to_string(rounds.size());
    for (const int finding : rounds[i]) {
      queued.round.measures.push_back(findings_[static_cast<std::size_t>(finding)].measure);
      queued.round.measures.back().kind = kind;
    }
    queued.findings = rounds[i];
    queue_.push_back(std::move(queued));
  }
}

void Survey::queue_alone(const std::string& what, Measure::Kind kind, const std::vector<int>& findings) {
  for (std::size_t i = 0; i < findings.size(); ++i) {
    Queued queued;
    queued.round.what = what + ", " + std::to_string(i + 1) + " of " + std::to_string(findings.size());
    queued.round.measures.push_back(findings_[static_cast<std::size_t>(findings[i])].measure);
    queued.round.measures.back().kind = kind;
    queued.findings = {findings[i]};
    queue_.push_back(std::move(queued));
  }
}

// ---- what came of it -------------------------------------------------------------------------------------------------

void Survey::take(const std::vector<Measured>& figures) {
  const auto round = std::move(*out_);
  out_.reset();
  if (round.total >= 0) return take_total(round, figures);
  for (std::size_t i = 0; i < figures.size(); ++i) {
    const auto& figure = figures[i];
    auto& finding = findings_[static_cast<std::size_t>(round.findings[i])];
    if (!figure.fault.empty()) {
      finding.fault = figure.fault;
    } else if (round.round.measures[i].kind == Measure::Kind::latency) {
      finding.least_us = figure.least_us;
      finding.median_us = figure.median_us;
    } else {
      (figures.size() == 1 ? finding.alone : finding.company) = figure.bytes_per_s;
      finding.settled = figure.settled;
    }
  }
}

void Survey::take_total(const Queued& round, const std::vector<Measured>& figures) {
  auto& total = totals_[static_cast<std::size_t>(round.total)];
  double sum = 0;
  std::string fault;
  for (const auto& figure : figures) {
    sum += figure.bytes_per_s;
    if (fault.empty()) fault = figure.fault;
  }
  // Flows that meet lose packets, and may all be backing off for a moment: what was reached once can be reached.
  const bool too_much = total.declared > 0 && total.bytes_per_s > total.declared;
  total.bytes_per_s = too_much ? sum : std::max(total.bytes_per_s, sum);
  total.fault = fault;
  if (++total.times < kTotalTimes && fault.empty() && in_doubt(total)) {
    queue_.push_back(round);
    if (total.times == 1) queue_.back().round.what += ", again";
  }
}

bool Survey::in_doubt(const Finding& finding) const {
  const double rate = finding.bytes_per_s();
  return !finding.settled || rate < kGood * expected(finding) || (finding.declared > 0 && rate > kTooGood * finding.declared);
}

bool Survey::in_doubt(const Total& total) const {
  if (total.declared > 0 && total.bytes_per_s > kTooGood * total.declared) return true;
  double reached = total.declared;
  for (const auto& finding : findings_)
    if (!declared_ && total.host >= 0 && (total.outward ? finding.measure.from : finding.measure.to) == total.host)
      reached = std::max(reached, finding.bytes_per_s());
  return total.bytes_per_s < kGood * reached;
}

double Survey::expected(const Finding& finding) const {
  if (declared_) return finding.declared > 0 ? finding.declared : std::numeric_limits<double>::infinity();
  double out = 0, in = 0;
  for (const auto& other : findings_) {
    if (other.measure.from == finding.measure.from) out = std::max(out, other.bytes_per_s());
    if (other.measure.to == finding.measure.to) in = std::max(in, other.bytes_per_s());
  }
  return std::min(out, in);
}

HostRates Survey::host_rates() const {
  const std::size_t n = hosts_.size();
  HostRates rates{std::vector(n, std::vector<double>(n, kUnknown)), std::vector<double>(n, kUnknown), std::vector<double>(n, kUnknown)};
  for (const auto& finding : findings_)
    if (finding.link < 0 && finding.bytes_per_s() > 0)
      rates.pair[static_cast<std::size_t>(finding.measure.from)][static_cast<std::size_t>(finding.measure.to)] = finding.bytes_per_s();
  for (const auto& total : totals_)
    if (total.host >= 0 && total.bytes_per_s > 0)
      (total.outward ? rates.out : rates.in)[static_cast<std::size_t>(total.host)] = total.bytes_per_s;
  return rates;
}

SurveyReport Survey::report() const {
  SurveyReport report;
  report.findings = findings_;
  report.totals = totals_;
  report.notes = notes_;
  const auto name = [&](int host) { return hosts_[static_cast<std::size_t>(host)].name; };
  int disturbed = 0;
  for (const auto& finding : findings_) {
    disturbed += finding.disturbed();
    if (!finding.fault.empty())
      report.faults.push_back(name(finding.measure.from) + " to " + name(finding.measure.to) + ": " + finding.fault);
  }
  for (const auto& total : totals_)
    if (!total.fault.empty()) report.faults.push_back("total of " + total.what + ": " + total.fault);
  if (disturbed > 0)
    report.notes.push_back(std::to_string(disturbed) + " of " + std::to_string(rated_.size()) +
                           " rates were lower while others were measured, which share something with them; those alone count");
  report.topology = declared_ ? measured_links(report) : inferred(report);
  return report;
}

}  // namespace coppice::collectives
