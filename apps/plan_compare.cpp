#include "apps/plan_compare.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/table.hpp"
#include "collectives/builtin.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {
namespace {

using collectives::Operation;
using collectives::Planner;
using collectives::to_string;

constexpr Planner kPlanners[] = {Planner::exact, Planner::mwu, Planner::rs_ag, Planner::rings, Planner::best_ring};

runtime::Expected<Comparison> compare_one(const collectives::Topology& topology, Operation operation) {
  Comparison comparison{.topology = topology.name, .hosts = {}, .operation = operation, .bound = 0, .entries = {}};
  for (const int host : collectives::hosts(topology)) {
    comparison.hosts.push_back(topology.nodes[static_cast<std::size_t>(host)].id);
  }
  for (const Planner planner : kPlanners) {
    collectives::PlanRequest request;
    request.operation = operation;
    request.planner = planner;
    const auto begun = std::chrono::steady_clock::now();
    const auto plan = collectives::make_plan(topology, request);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    Comparison::Entry& entry = comparison.entries.emplace_back();
    entry.planner = planner;
    if (!plan && plan.error().code != collectives::ErrorCode::not_planned) {
      return runtime::bad_input(runtime::one_line(plan.error().what));
    }
    if (!plan) continue;
    comparison.bound = plan->bound;
    entry.planned = true;
    entry.rate = plan->rate;
    entry.trees = plan->trees.size();
    for (const auto& tree : plan->trees) entry.depth = std::max(entry.depth, collectives::depth(tree));
    entry.milliseconds = seconds * 1e3;
  }
  return comparison;
}

std::string joined(const std::vector<std::string>& names) {
  constexpr std::size_t kShownMax = 8;
  std::string text;
  for (std::size_t at = 0; at < std::min(names.size(), kShownMax); ++at) text += (at == 0 ? "" : " ") + names[at];
  return names.size() > kShownMax ? std::to_string(names.size()) + " hosts" : text;
}

// "24/7 (1.000, 7 trees, depth 4)": rate, and what the exact rate is of it.
std::string cell(const Comparison& comparison, const Comparison::Entry& entry) {
  if (!entry.planned) return "-";
  const double ratio = collectives::Rational(comparison.entries.front().rate / entry.rate).get_d();
  std::string text = to_string(entry.rate);
  if (text.size() > 12) text = fixed(entry.rate.get_d(), 4);
  return text + " (" + fixed(ratio, 3) + "; " + std::to_string(entry.trees) + ", " + std::to_string(entry.depth) + ")";
}

// Of exact ÷ rival over all rows of an operation where the rival has a plan: geometric mean, most, in how many above 1.
std::string summary(const std::vector<Comparison>& comparisons) {
  std::map<std::pair<Operation, Planner>, std::vector<double>> ratios;
  std::map<Operation, int> rows;
  for (const Comparison& comparison : comparisons) {
    ++rows[comparison.operation];
    for (const auto& entry : comparison.entries) {
      if (entry.planner == Planner::exact || !entry.planned) continue;
      ratios[{comparison.operation, entry.planner}].push_back(
          collectives::Rational(comparison.entries.front().rate / entry.rate).get_d());
    }
  }
  std::string text;
  for (const auto& [key, list] : ratios) {
    double logs = 0;
    for (const double ratio : list) logs += std::log(ratio);
    const auto above = std::ranges::count_if(list, [](double ratio) { return ratio > 1 + 1e-12; });
    text += std::string(name(key.first)) + ", exact / " + std::string(name(key.second)) + ": mean " +
            fixed(std::exp(logs / static_cast<double>(list.size())), 3) + ", most " +
            fixed(*std::ranges::max_element(list), 3) + ", above 1 in " + std::to_string(above) + " of " +
            std::to_string(list.size()) + " (no plan in " +
            std::to_string(rows[key.first] - static_cast<int>(list.size())) + ")\n";
  }
  return text;
}

}  // namespace

runtime::Expected<std::vector<Comparison>> compare(const collectives::Topology& topology,
                                                   const std::vector<Operation>& operations, bool allocations) {
  std::vector<collectives::Topology> parts = {topology};
  if (allocations) {
    const auto hosts = collectives::hosts(topology);
    constexpr std::size_t kHostsMax = 10;
    if (hosts.size() > kHostsMax || hosts.size() != topology.nodes.size()) {
      return runtime::bad_input("--allocations: for machines of up to 10 GPUs without switches");
    }
    parts.clear();
    for (const auto& chosen : collectives::allocation_classes(topology, 3, static_cast<int>(hosts.size()))) {
      parts.push_back(collectives::without_others(topology, chosen));
    }
  }
  std::vector<Comparison> comparisons;
  for (const Operation operation : operations) {
    for (const auto& part : parts) {
      auto compared = compare_one(part, operation);
      if (!compared) return tl::unexpected(compared.error());
      comparisons.push_back(*std::move(compared));
    }
  }
  return comparisons;
}

nlohmann::json to_json(const std::vector<Comparison>& comparisons) {
  auto rows = nlohmann::json::array();
  for (const Comparison& comparison : comparisons) {
    auto planners = nlohmann::json::object();
    for (const auto& entry : comparison.entries) {
      auto& object = planners[std::string(name(entry.planner))];
      if (!entry.planned) continue;  // null
      object = {{"rate", to_string(entry.rate)},
                {"ratio", collectives::Rational(comparison.entries.front().rate / entry.rate).get_d()},
                {"trees", entry.trees},
                {"depth", entry.depth},
                {"milliseconds", entry.milliseconds}};
    }
    rows.push_back({{"topology", comparison.topology},
                    {"op", name(comparison.operation)},
                    {"hosts", comparison.hosts},
                    {"bound", to_string(comparison.bound)},
                    {"planners", std::move(planners)}});
  }
  return rows;
}

std::string to_text(const std::vector<Comparison>& comparisons) {
  std::vector<std::vector<std::string>> rows = {{"hosts", "op", "exact", "mwu", "rs_ag", "rings", "best_ring"}};
  for (const Comparison& comparison : comparisons) {
    std::vector<std::string>& row = rows.emplace_back();
    row = {joined(comparison.hosts), std::string(name(comparison.operation))};
    for (const auto& entry : comparison.entries) row.push_back(cell(comparison, entry));
  }
  return "rate (exact / it; trees, depth)\n" + table(rows) + "\n" + summary(comparisons);
}

}  // namespace coppice::apps
