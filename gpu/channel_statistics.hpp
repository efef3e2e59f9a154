// gpu/channel_statistics.hpp: what every channel of a trained net does for every class, in one pass over the data.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/channels.hpp"
#include "gpu/dataset.hpp"
#include "gpu/device.hpp"

namespace coppice::gpu {

// Taken where a ReLU or clip ends a channel's way, or where it is made if none does.
struct ChannelStatistics {
  using PerChannel = std::vector<std::vector<std::vector<double>>>;  // [set][class][channel], means over the class's items
  std::vector<std::int64_t> items;                                   // [class]
  PerChannel zeros;      // share of |a| <= 0.005: APoZ (Hu et al. 2016; sensAI's threshold)
  PerChannel magnitude;  // mean |a|
  PerChannel taylor;     // |sum over pixels of a d loss / d a|: first-order change of the loss (Molchanov et al. 2019)
  std::vector<std::vector<double>> features;  // [class][what the last dense layer reads]
};

struct StatisticsOptions {
  int batch = 100;
  Normalisation normalisation;
  std::function<void(std::int64_t done, std::int64_t all)> progress;
};

// The loss of the Taylor scores is cross-entropy. Errors: shape_mismatch, device_failed, unsupported_operator.
Expected<ChannelStatistics> channel_statistics(Device& device, const Network& net, const ChannelGraph& graph,
                                               const Dataset& data, std::span<const std::int64_t> items,
                                               const StatisticsOptions& options);

enum class Ranking : std::uint8_t { taylor, magnitude, apoz, random };
Expected<Ranking> ranking_of(std::string_view name);
std::string name(Ranking ranking);

// [set][channel], the more the dearer, for the classes of one group taken together. Within a set the scores of taylor
// and magnitude are divided by their root mean square, so that layers compare.
std::vector<std::vector<double>> importance(const ChannelStatistics& statistics, const std::vector<int>& classes,
                                            Ranking ranking, std::uint64_t seed);

}  // namespace coppice::gpu
