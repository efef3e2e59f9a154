#include <algorithm>
#include <map>
#include <numeric>

#include "collectives/survey.hpp"
#include "collectives/tournament.hpp"

// Which measures the survey wants, phase by phase.

namespace coppice::collectives {
namespace {

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

void Survey::plan(Phase phase) {
  const auto n = static_cast<int>(hosts_.size());
  std::vector<int> wanted;
  for (const int finding : rated_)
    if (findings_[static_cast<std::size_t>(finding)].fault.empty()) wanted.push_back(finding);
  switch (phase) {
    case Phase::latency: return plan_latency(false);
    case Phase::latency_again: return plan_latency(true);
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

void Survey::plan_latency(bool again) {
  std::vector<int> all;
  for (std::size_t i = 0; i < findings_.size(); ++i)
    if (!again || !findings_[i].fault.empty()) all.push_back(static_cast<int>(i));
  queue_rounds(again ? "latencies, again" : "latencies", Measure::Kind::latency, all);
}

void Survey::plan_again() {
  std::vector<int> again;
  for (const int index : rated_) {
    const auto& finding = findings_[static_cast<std::size_t>(index)];
    if (finding.median_us > 0 && (!finding.fault.empty() || in_doubt(finding))) again.push_back(index);
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

}  // namespace coppice::collectives
