#include "gpu/distill.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

namespace coppice::gpu {
namespace {

constexpr int kBatch = 100;
constexpr int kCalibrationRounds = 300;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

unexpected<Error> mismatch(const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); }

std::size_t outputs_of(const Ensemble& ensemble) {
  std::size_t count = 0;
  for (const auto& net : ensemble.outputs) count += net.size();
  return count;
}

// For each class, at which of the ensemble's outputs its score is.
std::vector<std::size_t> columns_of(const Ensemble& ensemble, int classes) {
  std::vector<std::size_t> columns(at(classes), 0);
  std::size_t column = 0;
  for (const auto& net : ensemble.outputs)
    for (const int c : net) columns[at(c)] = column++;
  return columns;
}

class EnsembleLoss {
 public:
  EnsembleLoss(std::vector<Ensemble> ensembles, int classes, std::shared_ptr<Teacher> teacher,
               const DistillOptions& options)
      : classes_(classes), teacher_(std::move(teacher)), options_(options) {
    for (const auto& ensemble : ensembles) {
      columns_.push_back(columns_of(ensemble, classes));
      for (auto& column : columns_.back()) column += width_;
      width_ += outputs_of(ensemble);
    }
  }

  Expected<double> operator()(const TrainingBatch& batch, std::span<const float> scores, std::span<float> gradients) {
    const auto items = batch.labels.size();
    std::span<const float> taught;
    if (teacher_) {
      auto answered = teacher_->scores(batch.images);
      if (!answered) return unexpected(answered.error());
      taught = *answered;
    }
    own_.resize(items * at(classes_));
    double loss = 0;
    for (const auto& columns : columns_) {
      for (std::size_t i = 0; i < items; ++i)
        for (std::size_t c = 0; c < columns.size(); ++c) own_[i * columns.size() + c] = scores[i * width_ + columns[c]];
      slopes_.assign(own_.size(), 0.0F);
      loss += cross_entropy(own_, batch.labels, classes_, slopes_, teacher_ ? options_.hard : 1);
      if (teacher_) loss += distillation(own_, taught, classes_, options_.temperature, slopes_, options_.soft);
      for (std::size_t i = 0; i < items; ++i)
        for (std::size_t c = 0; c < columns.size(); ++c)
          gradients[i * width_ + columns[c]] += slopes_[i * columns.size() + c];
    }
    return loss;
  }

 private:
  int classes_;
  std::shared_ptr<Teacher> teacher_;
  DistillOptions options_;
  std::vector<std::vector<std::size_t>> columns_;  // [ensemble][class]
  std::size_t width_ = 0;                          // outputs of all nets
  std::vector<float> own_, slopes_;
};

Dense* last_dense(Network& net) { return net.nodes.empty() ? nullptr : std::get_if<Dense>(&net.nodes.back().op); }

}  // namespace

Expected<std::shared_ptr<Teacher>> Teacher::make(Device& device, const Network& net, int batch) {
  auto compiled = device.compile(net, {batch});
  if (!compiled) return unexpected(compiled.error());
  auto teacher = std::make_shared<Teacher>();
  teacher->net_ = std::move(*compiled);
  teacher->scores_.resize(at(teacher->net_->output_elements()));
  return teacher;
}

Expected<std::span<const float>> Teacher::scores(std::span<const float> images) {
  if (auto ran = net_->run(images, scores_); !ran) return unexpected(ran.error());
  return scores_;
}

LossFunction ensemble_loss(std::vector<Ensemble> ensembles, int classes, std::shared_ptr<Teacher> teacher,
                           const DistillOptions& options) {
  return EnsembleLoss(std::move(ensembles), classes, std::move(teacher), options);
}

// ---- alone ---------------------------------------------------------------------------------------------------------

LossFunction alone_loss(std::vector<int> group) {
  return [group = std::move(group), own = std::vector<std::uint16_t>{}](
             const TrainingBatch& batch, std::span<const float> scores, std::span<float> gradients) mutable -> Expected<double> {
    own.clear();
    for (const auto label : batch.labels) {
      const auto found = std::ranges::find(group, static_cast<int>(label));
      own.push_back(found == group.end() ? 0 : static_cast<std::uint16_t>(found - group.begin() + 1));
    }
    if (group.size() > 1)
      return cross_entropy(scores, own, static_cast<int>(group.size()) + 1, gradients);
    // binary_cross_entropy takes the class whose logit should be high: 0 is the only one, 1 is none of them.
    for (auto& label : own) label = label == 1 ? 0 : 1;
    return binary_cross_entropy(scores, own, 1, gradients);
  };
}

std::vector<std::int64_t> balanced_items(const Dataset& data, std::span<const std::int64_t> items,
                                         const std::vector<int>& group) {
  std::vector<std::int64_t> out;
  std::vector<std::vector<std::int64_t>> of_class(group.size());
  for (const auto index : items) {
    const auto found = std::ranges::find(group, static_cast<int>(data.labels[at(index)]));
    if (found == group.end())
      out.push_back(index);
    else
      of_class[at(found - group.begin())].push_back(index);
  }
  const auto others = out.empty() ? items.size() : out.size();
  for (const auto& own : of_class)
    for (std::size_t i = 0; i < others && !own.empty(); ++i) out.push_back(own[i % own.size()]);
  return out;
}

Expected<Network> with_other(Network net, std::uint64_t seed) {
  auto* scores = last_dense(net);
  if (!scores) return mismatch(net.name + ": its last node is no dense layer that scores classes");
  if (scores->out_features == 1) return net;
  const auto width = std::ssize(scores->weight) / scores->out_features;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw(0.0F, 0.01F);
  std::vector<float> other(at(width));
  for (float& value : other) value = draw(random);
  scores->weight.insert(scores->weight.begin(), other.begin(), other.end());
  if (!scores->bias.empty()) scores->bias.insert(scores->bias.begin(), scores->bias.front());
  ++scores->out_features;
  return net;
}

Expected<Network> without_other(Network net) {
  auto* scores = last_dense(net);
  if (!scores) return mismatch(net.name + ": its last node is no dense layer that scores classes");
  if (scores->out_features == 1) return net;
  const auto width = at(std::ssize(scores->weight) / scores->out_features);
  // log p(c) - log p(other) = z_c - z_other: a difference of rows.
  for (auto i = width; i < scores->weight.size(); ++i) scores->weight[i] -= scores->weight[i % width];
  scores->weight.erase(scores->weight.begin(), scores->weight.begin() + static_cast<std::ptrdiff_t>(width));
  if (!scores->bias.empty()) {
    for (std::size_t i = 1; i < scores->bias.size(); ++i) scores->bias[i] -= scores->bias.front();
    scores->bias.erase(scores->bias.begin());
  }
  --scores->out_features;
  return net;
}

// ---- what they answer ----------------------------------------------------------------------------------------------

Expected<std::vector<float>> scores_of(Device& device, const Network& net, const Dataset& data,
                                       std::span<const std::int64_t> items, const Normalisation& normalisation) {
  auto compiled = device.compile(net, {kBatch});
  if (!compiled) return unexpected(compiled.error());
  if ((*compiled)->input_elements() != kBatch * elements(data.item))
    return mismatch(net.name + ": takes " + to_string(net.input) + ", the data is " + to_string(data.item));
  const auto size = at(elements(data.item)), each = at((*compiled)->output_elements()) / kBatch;
  std::vector<float> images(kBatch * size, 0.0F), scores(kBatch * each), out;
  out.reserve(items.size() * each);
  for (std::size_t begin = 0; begin < items.size(); begin += kBatch) {
    const auto count = std::min<std::size_t>(kBatch, items.size() - begin);
    for (std::size_t i = 0; i < count; ++i)
      item(data, items[begin + i], normalisation, std::span(images).subspan(i * size, size));
    if (auto ran = (*compiled)->run(images, scores); !ran) return unexpected(ran.error());
    out.insert(out.end(), scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(count * each));
  }
  return out;
}

Expected<std::vector<float>> ensemble_scores(Device& device, std::span<const Network> nets, const Ensemble& ensemble,
                                             int classes, const Dataset& data, std::span<const std::int64_t> items,
                                             const Normalisation& normalisation) {
  if (nets.size() != ensemble.outputs.size())
    return mismatch(std::to_string(nets.size()) + " nets for " + std::to_string(ensemble.outputs.size()) + " groups");
  std::vector<float> out(items.size() * at(classes), 0.0F);
  for (std::size_t n = 0; n < nets.size(); ++n) {
    const auto own = scores_of(device, nets[n], data, items, normalisation);
    if (!own) return own;
    const auto& group = ensemble.outputs[n];
    if (own->size() != items.size() * group.size())
      return mismatch(nets[n].name + ": does not give a score for each of its " + std::to_string(group.size()) + " classes");
    for (std::size_t i = 0; i < items.size(); ++i)
      for (std::size_t j = 0; j < group.size(); ++j) out[i * at(classes) + at(group[j])] = (*own)[i * group.size() + j];
  }
  return out;
}

double accuracy_percent(std::span<const float> scores, int classes, const Dataset& data,
                        std::span<const std::int64_t> items) {
  std::int64_t right = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto row = scores.subspan(i * at(classes), at(classes));
    right += std::ranges::max_element(row) - row.begin() == data.labels[at(items[i])] ? 1 : 0;
  }
  return items.empty() ? 0 : 100.0 * static_cast<double>(right) / static_cast<double>(items.size());
}

Expected<void> calibrate(std::span<Network> nets, const Ensemble& ensemble, std::span<const float> scores, int classes,
                         const Dataset& data, std::span<const std::int64_t> items) {
  const auto k = ensemble.outputs.size();
  std::vector<std::size_t> net_of(at(classes), 0);
  for (std::size_t n = 0; n < k; ++n)
    for (const int c : ensemble.outputs[n]) net_of[at(c)] = n;
  std::vector<double> factor(k, 1.0), shift(k, 0.0), z(at(classes)), factor_slope(k), shift_slope(k);
  std::vector<double> factor_squares(k, 1e-12), shift_squares(k, 1e-12);
  double spread = 0;  // shifts are sought on the scale of the scores
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto [low, high] = std::ranges::minmax(scores.subspan(i * z.size(), z.size()));
    spread += (high - low) / static_cast<double>(items.size());
  }
  for (int round = 0; round < kCalibrationRounds; ++round) {
    std::ranges::fill(factor_slope, 0.0);
    std::ranges::fill(shift_slope, 0.0);
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto row = scores.subspan(i * z.size(), z.size());
      double top = -1e300, sum = 0;
      for (std::size_t c = 0; c < z.size(); ++c) {
        z[c] = factor[net_of[c]] * row[c] + shift[net_of[c]];
        top = std::max(top, z[c]);
      }
      for (const double value : z) sum += std::exp(value - top);
      for (std::size_t c = 0; c < z.size(); ++c) {
        const double slope = std::exp(z[c] - top) / sum - (data.labels[at(items[i])] == c ? 1 : 0);
        factor_slope[net_of[c]] += slope * row[c];
        shift_slope[net_of[c]] += slope;
      }
    }
    // Adagrad: convex, two numbers a net, no rate to be tuned to the scale of the scores.
    for (std::size_t n = 0; n < k; ++n) {
      factor_squares[n] += factor_slope[n] * factor_slope[n];
      shift_squares[n] += shift_slope[n] * shift_slope[n];
      factor[n] = std::max(0.01, factor[n] - 0.3 * factor_slope[n] / std::sqrt(factor_squares[n]));
      shift[n] -= 0.3 * spread * shift_slope[n] / std::sqrt(shift_squares[n]);
    }
  }
  for (std::size_t n = 0; n < k; ++n) {
    auto* dense = last_dense(nets[n]);
    if (!dense) return mismatch(nets[n].name + ": its last node is no dense layer that scores classes");
    dense->bias.resize(at(dense->out_features), 0.0F);
    for (float& value : dense->weight) value = static_cast<float>(value * factor[n]);
    for (float& value : dense->bias) value = static_cast<float>(value * factor[n] + shift[n]);
  }
  return {};
}

}  // namespace coppice::gpu
