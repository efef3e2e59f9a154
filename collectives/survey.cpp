#include "collectives/survey.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

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

// ---- what came of it -------------------------------------------------------------------------------------------------

void Survey::take(const std::vector<Measured>& figures) {
  const auto round = std::move(*out_);
  out_.reset();
  if (round.total >= 0) return take_total(round, figures);
  for (std::size_t i = 0; i < figures.size(); ++i) {
    const auto& figure = figures[i];
    auto& finding = findings_[static_cast<std::size_t>(round.findings[i])];
    finding.fault = figure.fault;
    if (!figure.fault.empty()) continue;
    if (round.round.measures[i].kind == Measure::Kind::latency) {
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
  if (fault.empty() || total.times == 0) total.fault = fault;
  if (++total.times < kTotalTimes && (!fault.empty() || in_doubt(total))) {
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
