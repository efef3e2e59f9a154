// collectives/hybrid.hpp: one operation over two kinds of links that are planned apart, as NVLink and PCIe are. Pure.
//
// Each kind has trees of its own, and carries so much of the buffer that both are done at the same time, though the second
// begins later by what switching to it costs. Source: Blink (MLSys 2020), section 4.2.
#pragma once

#include <optional>
#include <string>

#include "collectives/planner.hpp"
#include "collectives/schedule.hpp"

namespace coppice::collectives {

struct HybridRequest {
  std::string first, second;  // kinds of links
  double switching_s = 0;     // before the second can carry anything (Blink's T_dpa)
  // Of the buffer, in 0..1, over the second kind; nothing: as much as equalises both. For sweeps.
  std::optional<double> second_share = {};
  // Where nothing has to be switched, as between TCP links: the trees of the second kind wait as long as if there had.
  bool emulate = false;
};

struct HybridPlan {
  Plan first, second;
  Topology first_links, second_links;  // of one kind each
  HybridSplit split;                   // of `bytes`
  double waits_s = 0;
};

// Errors: those of make_plan, naming the kind; malformed: the two kinds are one, no link is of a kind, a unit whose speed
// is not known, a share outside 0..1, or a cost of switching outside 0..10 s.
Expected<HybridPlan> plan_hybrid(const Topology& topology, const PlanRequest& request, const HybridRequest& hybrid,
                                 double bytes);

// "pcie:1" as on the command line: the second kind and milliseconds of switching. Nothing: it is not of that form.
std::optional<HybridRequest> hybrid_of(const std::string& first, const std::string& text);

}  // namespace coppice::collectives
