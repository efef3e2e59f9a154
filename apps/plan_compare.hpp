// apps/plan_compare.hpp: the exact plan beside what the rival planners make of the same topology.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "collectives/planner.hpp"
#include "runtime/error.hpp"

namespace coppice::apps {

struct Comparison {
  std::string topology;
  std::vector<std::string> hosts;
  collectives::Operation operation;
  struct Entry {
    collectives::Planner planner;
    bool planned = false;  // a rival may have no plan: no ring, switches
    collectives::Rational rate;
    std::size_t trees = 0;
    int depth = 0;
    double milliseconds = 0;
  };
  collectives::Rational bound;
  std::vector<Entry> entries;  // the exact planner's first
};

// Every operation that rivals plan (or the one asked for) on the topology; with `allocations` on each class of 3 or
// more of its hosts that links alone tell apart.
runtime::Expected<std::vector<Comparison>> compare(const collectives::Topology& topology,
                                                   const std::vector<collectives::Operation>& operations,
                                                   bool allocations);

nlohmann::json to_json(const std::vector<Comparison>& comparisons);
std::string to_text(const std::vector<Comparison>& comparisons);

}  // namespace coppice::apps
