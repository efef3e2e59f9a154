#include "gpu/channel_statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <utility>

#include "gpu/trainer.hpp"
#include "gpu/training.hpp"

namespace coppice::gpu {
namespace {

constexpr double kZero = 0.005;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

bool ends_in_relu(const Operator& op) { return std::holds_alternative<Relu>(op) || std::holds_alternative<Clip>(op); }

// The values to read: the outputs of all ReLUs, and of what makes the sets that no ReLU shows.
std::vector<int> points_of(const Network& net, const ChannelGraph& graph) {
  std::vector<bool> shown(graph.sets.size(), false);
  std::vector<int> points;
  for (std::size_t i = 0; i < net.nodes.size(); ++i)
    if (ends_in_relu(net.nodes[i].op)) {
      points.push_back(static_cast<int>(i) + 1);
      for (const auto& channel : graph.values[i + 1]) shown[at(channel.set)] = true;
    }
  for (std::size_t s = 0; s < graph.sets.size(); ++s)
    if (!shown[s] && !graph.sets[s].pinned)
      for (const int producer : graph.sets[s].producers) points.push_back(producer + 1);
  std::ranges::sort(points);
  points.erase(std::unique(points.begin(), points.end()), points.end());
  return points;
}

class Pass {
 public:
  Pass(const Network& net, const ChannelGraph& graph, std::vector<Dims> shapes, TrainableNet& runs, int batch,
       std::int64_t classes)
      : net_(net), graph_(graph), shapes_(std::move(shapes)), runs_(runs), batch_(batch), classes_(classes) {
    out_.items.assign(at(classes), 0);
    out_.features.resize(at(classes));
    for (auto* sums : {&out_.zeros, &out_.magnitude, &out_.taylor})
      for (const auto& set : graph.sets)
        sums->emplace_back(at(classes), std::vector<double>(at(set.width), 0.0));
    points_ = points_of(net, graph);
    points_of_set_.assign(graph.sets.size(), 0);
    for (const int point : points_) {
      std::vector<bool> here(graph.sets.size(), false);
      for (const auto& channel : graph.values[at(point)]) here[at(channel.set)] = true;
      for (std::size_t s = 0; s < here.size(); ++s) points_of_set_[s] += here[s];
    }
  }

  // Of the `labels.size()` first items of the batch; the rest is there to fill it.
  Expected<void> add(std::span<const float> images, std::span<const std::uint16_t> labels) {
    scores_.resize(at(batch_ * classes_));
    gradients_.assign(scores_.size(), 0.0F);
    if (auto ran = runs_.forward(images, scores_, Mode::evaluate); !ran) return ran;
    const auto rows = labels.size() * at(classes_);
    // Of the sum over items, not their mean: each item's own gradient is what counts.
    cross_entropy(std::span(scores_).first(rows), labels, static_cast<int>(classes_), std::span(gradients_).first(rows),
                  static_cast<float>(labels.size()));
    if (auto ran = runs_.backward(gradients_); !ran) return ran;
    for (const auto label : labels) ++out_.items[label];
    for (const int point : points_)
      if (auto ok = add_point(point, labels); !ok) return ok;
    return add_features(labels);
  }

  ChannelStatistics finish() {
    for (auto* sums : {&out_.zeros, &out_.magnitude, &out_.taylor})
      for (std::size_t s = 0; s < sums->size(); ++s)
        for (std::size_t c = 0; c < at(classes_); ++c)
          for (double& value : (*sums)[s][c])
            value /= static_cast<double>(std::max<std::int64_t>(out_.items[c], 1) * std::max(points_of_set_[s], 1));
    for (std::size_t c = 0; c < at(classes_); ++c)
      for (double& value : out_.features[c]) value /= static_cast<double>(std::max<std::int64_t>(out_.items[c], 1));
    return std::move(out_);
  }

 private:
  Expected<void> add_point(int point, std::span<const std::uint16_t> labels) {
    const auto& channels = graph_.values[at(point)];
    const auto each = elements(shapes_[at(point)]);
    const auto pixels = each / std::ssize(channels);
    value_.resize(at(batch_ * each));
    slope_.resize(value_.size());
    if (auto read = runs_.read_value(point, value_); !read) return read;
    if (auto read = runs_.read_value_gradient(point, slope_); !read) return read;
    for (std::size_t item = 0; item < labels.size(); ++item)
      for (std::size_t c = 0; c < channels.size(); ++c) {
        const auto from = item * at(each) + c * at(pixels);
        double zeros = 0, magnitude = 0, taylor = 0;
        for (auto i = from; i < from + at(pixels); ++i) {
          const double a = std::abs(static_cast<double>(value_[i]));
          zeros += a <= kZero ? 1 : 0;
          magnitude += a;
          taylor += static_cast<double>(value_[i]) * slope_[i];
        }
        const auto set = at(channels[c].set), channel = at(channels[c].index);
        out_.zeros[set][labels[item]][channel] += zeros / static_cast<double>(pixels);
        out_.magnitude[set][labels[item]][channel] += magnitude / static_cast<double>(pixels);
        out_.taylor[set][labels[item]][channel] += std::abs(taylor);
      }
    return {};
  }

  Expected<void> add_features(std::span<const std::uint16_t> labels) {
    const int source = net_.nodes.back().inputs.front();
    const auto width = at(elements(shapes_[at(source)]));
    value_.resize(at(batch_) * width);
    if (auto read = runs_.read_value(source, value_); !read) return read;
    for (std::size_t item = 0; item < labels.size(); ++item) {
      auto& sum = out_.features[labels[item]];
      sum.resize(width, 0.0);
      for (std::size_t i = 0; i < width; ++i) sum[i] += value_[item * width + i];
    }
    return {};
  }

  const Network& net_;
  const ChannelGraph& graph_;
  std::vector<Dims> shapes_;
  TrainableNet& runs_;
  int batch_;
  std::int64_t classes_;
  std::vector<int> points_, points_of_set_;
  std::vector<float> scores_, gradients_, value_, slope_;
  ChannelStatistics out_;
};

}  // namespace

Expected<ChannelStatistics> channel_statistics(Device& device, const Network& net, const ChannelGraph& graph,
                                               const Dataset& data, std::span<const std::int64_t> items,
                                               const StatisticsOptions& options) {
  auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  if (net.input != data.item || !std::holds_alternative<Dense>(net.nodes.back().op))
    return unexpected(Error{ErrorCode::shape_mismatch,
                            net.name + ": takes " + to_string(net.input) + " and ends in " + name(net.nodes.back().op) +
                                "; a classifier of " + to_string(data.item) + " that ends in a dense layer is needed"});
  const auto classes = shapes->back()[0];
  for (const auto index : items)
    if (data.labels[at(index)] >= classes)
      return unexpected(Error{ErrorCode::shape_mismatch, net.name + ": scores " + std::to_string(classes) +
                                                             " classes, the data has a label " +
                                                             std::to_string(data.labels[at(index)])});
  auto runs = device.compile_training(net, {options.batch});
  if (!runs) return unexpected(runs.error());
  Pass pass(net, graph, std::move(*shapes), **runs, options.batch, classes);

  const auto size = at(elements(data.item));
  std::vector<float> images(at(options.batch) * size, 0.0F);
  for (std::size_t begin = 0; begin < items.size(); begin += at(options.batch)) {
    const auto part = items.subspan(begin, std::min(items.size() - begin, at(options.batch)));
    std::vector<std::uint16_t> labels;
    for (std::size_t i = 0; i < part.size(); ++i) {
      item(data, part[i], options.normalisation, std::span(images).subspan(i * size, size));
      labels.push_back(data.labels[at(part[i])]);
    }
    if (auto ok = pass.add(images, labels); !ok) return unexpected(ok.error());
    if (options.progress) options.progress(static_cast<std::int64_t>(begin + part.size()), std::ssize(items));
  }
  return pass.finish();
}

namespace {
constexpr std::array<std::pair<const char*, Ranking>, 4> kRankings{{{"taylor", Ranking::taylor},
                                                                    {"magnitude", Ranking::magnitude},
                                                                    {"apoz", Ranking::apoz},
                                                                    {"random", Ranking::random}}};
}  // namespace

Expected<Ranking> ranking_of(std::string_view name) {
  for (const auto& [known, ranking] : kRankings)
    if (name == known) return ranking;
  return unexpected(Error{ErrorCode::malformed, "ranking " + std::string(name) + ": expected taylor, magnitude, apoz or random"});
}

std::string name(Ranking ranking) {
  for (const auto& [known, value] : kRankings)
    if (value == ranking) return known;
  return "";
}

std::vector<std::vector<double>> importance(const ChannelStatistics& statistics, const std::vector<int>& classes,
                                            Ranking ranking, std::uint64_t seed) {
  const auto& source = ranking == Ranking::taylor      ? statistics.taylor
                       : ranking == Ranking::magnitude ? statistics.magnitude
                                                       : statistics.zeros;
  std::mt19937_64 random(seed);
  std::vector<std::vector<double>> out;
  for (const auto& set : source) {
    std::vector<double> scores(set.empty() ? 0 : set.front().size(), 0.0);
    for (std::size_t channel = 0; channel < scores.size(); ++channel) {
      for (const int c : classes) scores[channel] += set[at(c)][channel] / static_cast<double>(classes.size());
      if (ranking == Ranking::apoz) scores[channel] = 1 - scores[channel];
      if (ranking == Ranking::random) scores[channel] = static_cast<double>(random() >> 11);
    }
    double squares = 0;
    for (const double score : scores) squares += score * score;
    if (squares > 0 && ranking != Ranking::apoz)
      for (double& score : scores) score /= std::sqrt(squares / static_cast<double>(scores.size()));
    out.push_back(std::move(scores));
  }
  return out;
}

}  // namespace coppice::gpu
