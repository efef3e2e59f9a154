// gpu/decompose.hpp: one trained net as small ones, a group of classes each (sensAI, Wang et al., MLSys 2021).
//
// Statistics of every channel for every class in one pass; groups by likeness; for each group the width and depth that
// its classes need within the budget. The nets that come out hold the base's own weights and have yet to be retrained
// (gpu/distill.hpp).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "gpu/channel_statistics.hpp"
#include "gpu/class_groups.hpp"
#include "gpu/slimming.hpp"

namespace coppice::gpu {

struct DecomposeOptions {
  int groups = 5;
  ClassGroups given;  // in place of similar classes, where not empty
  Budget budget;      // of each sub-net
  Ranking ranking = Ranking::taylor;
  bool depth = true;  // whether whole blocks may go
  std::uint64_t seed = 0;
  std::int64_t statistics_items = 10'000, sensitivity_items = 400;  // at most so many of the training items
  Normalisation normalisation;
  std::function<void(const std::string& stage, std::int64_t done, std::int64_t all)> progress;
};

// What a group of classes needs of each channel and block, whatever the budget.
struct GroupStudy {
  std::vector<int> classes;
  std::vector<std::vector<double>> importance;  // [set][channel]
  Sensitivity sensitivity;
};

// What is measured of a base net, once for every budget.
struct Anatomy {
  Slimmable base;
  ChannelStatistics statistics;
  std::vector<GroupStudy> groups;
};

// Errors: shape_mismatch (groups that are no partition), device_failed, unsupported_operator. The budget's multiple
// counts here, its shares do not.
Expected<Anatomy> dissect(Device& device, const Network& base, const Dataset& data,
                          std::span<const std::int64_t> items, const DecomposeOptions& options);

// Of any classes from the same statistics, e.g. all of them: for the whole net of a sub-net's compute, which is what
// class parallelism is measured against.
Expected<GroupStudy> study_group(Device& device, const Anatomy& of, const std::vector<int>& classes,
                                 const Dataset& data, std::span<const std::int64_t> items,
                                 const DecomposeOptions& options);

struct Subnet {
  std::vector<int> classes;
  SubnetShape shape;
  Kept kept;  // what is left of the base, for the overlap map
  Network net;
};

// Errors: shape_mismatch (a budget out of reach).
Expected<Subnet> slim_for(const Anatomy& of, const GroupStudy& group, const Budget& budget);
Expected<std::vector<Subnet>> subnets_of(const Anatomy& of, const Budget& budget);  // one for each group

struct Decomposition {
  Anatomy anatomy;
  std::vector<Subnet> subnets;
};

// All of it, for one budget.
Expected<Decomposition> decompose(Device& device, const Network& base, const Dataset& data,
                                  std::span<const std::int64_t> items, const DecomposeOptions& options);

// Convolutions that no norm follows get one that changes nothing, from the statistics of the items: nets whose norms
// were folded away retrain badly. Names are made unique on the way.
Expected<Network> with_norms(Device& device, const Network& net, const Dataset& data,
                             std::span<const std::int64_t> items, const Normalisation& normalisation);

// The same architecture with new weights: He-normal convolutions and dense layers, fresh norms.
Network reinitialised(Network net, std::uint64_t seed);

}  // namespace coppice::gpu
