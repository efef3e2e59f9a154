#include "gpu/decompose.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "gpu/training.hpp"

namespace coppice::gpu {
namespace {

constexpr int kNormBatch = 100;
constexpr std::size_t kNormItems = 1'000;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// A sample without repetition; the same for a seed.
std::vector<std::int64_t> sampled(std::span<const std::int64_t> items, std::int64_t most, std::uint64_t seed) {
  std::vector<std::int64_t> out;
  std::mt19937_64 random(seed);
  std::ranges::sample(items, std::back_inserter(out), most, random);
  return out;
}

// Half of the group's classes, half of the others: what the sub-net will be asked.
std::vector<std::int64_t> sampled_for(const std::vector<int>& classes, const Dataset& data,
                                      std::span<const std::int64_t> items, std::int64_t most, std::uint64_t seed) {
  std::vector<std::int64_t> own, other;
  for (const auto index : items)
    (std::ranges::find(classes, static_cast<int>(data.labels[at(index)])) == classes.end() ? other : own).push_back(index);
  auto out = sampled(own, other.empty() ? most : most / 2, seed);
  const auto rest = sampled(other, most - std::ssize(out), seed);
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

}  // namespace

Expected<GroupStudy> study_group(Device& device, const Anatomy& of, const std::vector<int>& classes,
                                 const Dataset& data, std::span<const std::int64_t> items,
                                 const DecomposeOptions& options) {
  auto scores = importance(of.statistics, classes, options.ranking, options.seed + at(classes.front()));
  const auto asked = sampled_for(classes, data, items, options.sensitivity_items, options.seed);
  const SensitivityOptions how{options.normalisation, options.budget.multiple, nullptr};
  auto worth = sensitivity(device, of.base, scores, data, asked, how);
  if (!worth) return unexpected(worth.error());
  return GroupStudy{classes, std::move(scores), std::move(*worth)};
}

Expected<Anatomy> dissect(Device& device, const Network& base, const Dataset& data,
                          std::span<const std::int64_t> items, const DecomposeOptions& options) {
  const auto told = [&](const std::string& stage) {
    return [&options, stage](std::int64_t done, std::int64_t all) {
      if (options.progress) options.progress(stage, done, all);
    };
  };
  auto slim = slimmable(base);
  if (!slim) return unexpected(slim.error());
  if (!options.depth) slim->blocks.clear();
  Anatomy out{std::move(*slim), {}, {}};
  const auto seen = sampled(items, options.statistics_items, options.seed);
  auto statistics = channel_statistics(device, base, out.base.graph, data, seen,
                                       {100, options.normalisation, told("statistics of channels")});
  if (!statistics) return unexpected(statistics.error());
  out.statistics = std::move(*statistics);

  const int classes = static_cast<int>(out.base.shapes.back()[0]);
  auto groups = options.given.empty() ? similar_groups(out.statistics.features, options.groups, options.seed)
                                      : Expected<ClassGroups>(options.given);
  if (!groups) return unexpected(groups.error());
  if (auto good = check_groups(*groups, classes); !good) return unexpected(good.error());
  const auto tell = told("width and depth of sub-nets");
  for (const auto& group : *groups) {
    auto studied = study_group(device, out, group, data, items, options);
    if (!studied) return unexpected(studied.error());
    out.groups.push_back(std::move(*studied));
    tell(std::ssize(out.groups), std::ssize(*groups));
  }
  return out;
}

Expected<Subnet> slim_for(const Anatomy& of, const GroupStudy& group, const Budget& budget) {
  auto shape = fit_budget(of.base, group.sensitivity, budget, static_cast<int>(group.classes.size()));
  if (!shape) return unexpected(shape.error());
  auto kept = dearest(of.base, *shape, group.importance);
  auto net = slimmed(of.base, *shape, kept, group.classes);
  if (!net) return unexpected(net.error());
  return Subnet{group.classes, std::move(*shape), std::move(kept), std::move(*net)};
}

Expected<std::vector<Subnet>> subnets_of(const Anatomy& of, const Budget& budget) {
  std::vector<Subnet> out;
  for (const auto& group : of.groups) {
    auto subnet = slim_for(of, group, budget);
    if (!subnet) return unexpected(subnet.error());
    subnet->net.name = "subnet" + std::to_string(out.size());
    out.push_back(std::move(*subnet));
  }
  return out;
}

Expected<Decomposition> decompose(Device& device, const Network& base, const Dataset& data,
                                  std::span<const std::int64_t> items, const DecomposeOptions& options) {
  auto anatomy = dissect(device, base, data, items, options);
  if (!anatomy) return unexpected(anatomy.error());
  auto subnets = subnets_of(*anatomy, options.budget);
  if (!subnets) return unexpected(subnets.error());
  return Decomposition{std::move(*anatomy), std::move(*subnets)};
}

// ---- norms ---------------------------------------------------------------------------------------------------------

namespace {

// Mean and variance of every channel of some values, over the items.
class Moments {
 public:
  Moments(TrainableNet& runs, const std::vector<int>& values, const std::vector<Dims>& shapes)
      : runs_(runs), values_(values), shapes_(shapes), sums_(values.size()), squares_(values.size()) {}

  Expected<void> add() {
    for (std::size_t v = 0; v < values_.size(); ++v) {
      const Dims& dims = shapes_[at(values_[v])];
      const auto channels = at(dims[0]), pixels = at(elements(dims)) / channels;
      numbers_.resize(kNormBatch * channels * pixels);
      if (auto read = runs_.read_value(values_[v], numbers_); !read) return read;
      sums_[v].resize(channels, 0.0);
      squares_[v].resize(channels, 0.0);
      for (std::size_t i = 0; i < numbers_.size(); ++i) {
        const auto c = i / pixels % channels;
        sums_[v][c] += numbers_[i];
        squares_[v][c] += static_cast<double>(numbers_[i]) * numbers_[i];
      }
    }
    ++batches_;
    return {};
  }
  BatchNorm norm(std::size_t v) const {
    BatchNorm out;
    const auto pixels = static_cast<double>(elements(shapes_[at(values_[v])]) / shapes_[at(values_[v])][0]);
    const double count = pixels * kNormBatch * batches_;
    for (std::size_t c = 0; c < sums_[v].size(); ++c) {
      const double mean = sums_[v][c] / count, variance = std::max(squares_[v][c] / count - mean * mean, 0.0);
      out.mean.push_back(static_cast<float>(mean));
      out.variance.push_back(static_cast<float>(variance));
      out.scale.push_back(std::sqrt(out.variance.back() + out.epsilon));
      out.shift.push_back(out.mean.back());
    }
    return out;
  }

 private:
  TrainableNet& runs_;
  const std::vector<int>& values_;
  const std::vector<Dims>& shapes_;
  std::vector<std::vector<double>> sums_, squares_;
  std::vector<float> numbers_;
  int batches_ = 0;
};

Network with_unique_names(Network net) {
  std::map<std::string, int> seen;
  for (auto& node : net.nodes)
    if (const int times = seen[node.name]++; times > 0 || node.name.empty()) node.name += "#" + std::to_string(times);
  return net;
}

}  // namespace

Expected<Network> with_norms(Device& device, const Network& given, const Dataset& data,
                             std::span<const std::int64_t> items, const Normalisation& normalisation) {
  const Network net = with_unique_names(given);
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  std::vector<bool> normed(shapes->size(), false);
  for (const auto& node : net.nodes)
    if (std::holds_alternative<BatchNorm>(node.op)) normed[at(node.inputs[0])] = true;
  std::vector<int> bare;
  for (std::size_t i = 0; i < net.nodes.size(); ++i)
    if (std::holds_alternative<Convolution>(net.nodes[i].op) && !normed[i + 1]) bare.push_back(static_cast<int>(i) + 1);
  if (bare.empty()) return net;

  auto runs = device.compile_training(net, {kNormBatch});
  if (!runs) return unexpected(runs.error());
  Moments moments(**runs, bare, *shapes);
  const auto size = at(elements(data.item));
  std::vector<float> images(kNormBatch * size), scores(at((*runs)->output_elements()));
  for (std::size_t begin = 0; begin == 0 || begin + kNormBatch <= std::min(items.size(), kNormItems); begin += kNormBatch) {
    for (std::size_t i = 0; i < kNormBatch; ++i)
      item(data, items[(begin + i) % items.size()], normalisation, std::span(images).subspan(i * size, size));
    if (auto ran = (*runs)->forward(images, scores, Mode::evaluate); !ran) return unexpected(ran.error());
    if (auto added = moments.add(); !added) return unexpected(added.error());
  }

  Network out{net.name, net.input, {}};
  std::vector<int> renamed{0};
  for (std::size_t i = 0, b = 0; i < net.nodes.size(); ++i) {
    Node node = net.nodes[i];
    for (int& input : node.inputs) input = renamed[at(input)];
    out.nodes.push_back(std::move(node));
    if (b < bare.size() && bare[b] == static_cast<int>(i) + 1) {
      out.nodes.push_back({out.nodes.back().name + ".norm", moments.norm(b++), {static_cast<int>(out.nodes.size())}});
    }
    renamed.push_back(static_cast<int>(out.nodes.size()));
  }
  return out;
}

Network reinitialised(Network net, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&](std::vector<float>& weight, std::int64_t outputs) {
    std::normal_distribution<float> normal(
        0.0F, std::sqrt(2.0F * static_cast<float>(outputs) / static_cast<float>(std::max<std::size_t>(weight.size(), 1))));
    for (float& value : weight) value = normal(random);
  };
  for (auto& node : net.nodes) {
    if (auto* c = std::get_if<Convolution>(&node.op)) {
      draw(c->weight, c->out_channels);
      std::ranges::fill(c->bias, 0.0F);
    } else if (auto* d = std::get_if<Dense>(&node.op)) {
      draw(d->weight, d->out_features);
      std::ranges::fill(d->bias, 0.0F);
    } else if (auto* b = std::get_if<BatchNorm>(&node.op)) {
      std::ranges::fill(b->scale, 1.0F);
      std::ranges::fill(b->shift, 0.0F);
      std::ranges::fill(b->mean, 0.0F);
      std::ranges::fill(b->variance, 1.0F);
    }
  }
  return net;
}

}  // namespace coppice::gpu
