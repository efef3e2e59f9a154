#include "gpu/slimming.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "gpu/trainer.hpp"

namespace coppice::gpu {
namespace {

// Of one core with AVX2 or better, running float32 at batch 1: only their ratio matters, and that roughly.
constexpr double kLayerMicroseconds = 2.0, kOtherMicroseconds = 0.7, kMultiplyAddsPerMicrosecond = 8e4;
constexpr int kBatch = 50;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

unexpected<Error> mismatch(const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); }

std::vector<Slimmable::Part> parts_of(const std::vector<Channel>& channels) {
  std::vector<Slimmable::Part> parts;
  for (const auto& channel : channels) {
    auto part = std::ranges::find(parts, channel.set, &Slimmable::Part::set);
    if (part == parts.end()) part = parts.insert(part, {channel.set, 0});
    ++part->channels;
  }
  return parts;
}

// How many of a value's channels are left. REQUIRES: sets lose channels evenly over the values that show part of them.
double left(const Slimmable& of, const SubnetShape& shape, int value) {
  double sum = 0;
  for (const auto& part : of.parts[at(value)])
    sum += static_cast<double>(part.channels * shape.width[at(part.set)]) /
           static_cast<double>(of.graph.sets[at(part.set)].width);
  return sum;
}

std::vector<bool> alive(const Slimmable& of, const SubnetShape& shape) {
  std::vector<bool> out(of.net.nodes.size(), true);
  for (std::size_t b = 0; b < of.blocks.size(); ++b)
    if (shape.gone[b])
      for (const int node : of.blocks[b].nodes) out[at(node)] = false;
  return out;
}

bool is_free(const Operator& op) {  // taken up by the layer before
  return std::holds_alternative<BatchNorm>(op) || std::holds_alternative<Relu>(op) || std::holds_alternative<Clip>(op) ||
         std::holds_alternative<Add>(op) || std::holds_alternative<Flatten>(op) || std::holds_alternative<Identity>(op) ||
         std::holds_alternative<Constant>(op);
}

}  // namespace

Expected<Slimmable> slimmable(Network net) {
  auto graph = channel_graph(net);
  if (!graph) return unexpected(graph.error());
  auto shapes = infer_shapes(net);
  std::vector<Block> removable;
  for (auto& block : blocks(net))
    if (graph->values[at(block.in)] == graph->values[at(block.out)]) removable.push_back(std::move(block));
  std::vector<std::vector<Slimmable::Part>> parts;
  for (const auto& channels : graph->values) parts.push_back(parts_of(channels));
  return Slimmable{std::move(net), std::move(*graph), std::move(removable), std::move(*shapes), std::move(parts)};
}

SubnetShape whole_shape(const Slimmable& of) {
  SubnetShape shape{{}, std::vector<bool>(of.blocks.size(), false)};
  for (const auto& set : of.graph.sets) shape.width.push_back(set.width);
  return shape;
}

Cost cost(const Slimmable& of, const SubnetShape& shape, int classes) {
  Cost sum;
  const auto here = alive(of, shape);
  const auto last = of.net.nodes.size() - 1;
  for (std::size_t i = 0; i < of.net.nodes.size(); ++i) {
    const auto& node = of.net.nodes[i];
    if (!here[i] || is_free(node.op)) continue;
    double products = 0;
    if (const auto* c = std::get_if<Convolution>(&node.op)) {
      const auto& out = of.shapes[i + 1];
      const auto ins = left(of, shape, node.inputs[0]), outs = left(of, shape, static_cast<int>(i) + 1);
      const auto groups = c->groups == 1 ? 1.0 : outs;  // others than depthwise are pinned; theirs is near enough
      products = ins * outs / groups * static_cast<double>(c->window.kernel_h * c->window.kernel_w * out[1] * out[2]);
    } else if (std::holds_alternative<Dense>(node.op)) {
      const auto ins = left(of, shape, node.inputs[0]) * static_cast<double>(of.graph.spread[at(node.inputs[0])]);
      products = ins * (i == last ? classes : left(of, shape, static_cast<int>(i) + 1));
    } else {
      sum.microseconds += kOtherMicroseconds;
      continue;
    }
    sum.multiply_adds += products;
    sum.microseconds += kLayerMicroseconds + products / kMultiplyAddsPerMicrosecond;
  }
  return sum;
}

Kept dearest(const Slimmable& of, const SubnetShape& shape, const std::vector<std::vector<double>>& importance) {
  Kept kept;
  for (std::size_t s = 0; s < of.graph.sets.size(); ++s) {
    const auto width = of.graph.sets[s].width;
    std::vector<std::int64_t> order(at(width));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater<>{}, [&](std::int64_t c) { return importance[s][at(c)]; });
    kept.emplace_back(at(width), false);
    for (std::int64_t i = 0; i < shape.width[s]; ++i) kept[s][at(order[at(i)])] = true;
  }
  return kept;
}

Expected<Network> slimmed(const Slimmable& of, const SubnetShape& shape, const Kept& kept,
                          const std::vector<int>& classes) {
  auto narrow = narrowed(of.net, of.graph, kept);
  if (!narrow) return narrow;
  std::vector<Block> gone;
  for (std::size_t b = 0; b < of.blocks.size(); ++b)
    if (shape.gone[b]) gone.push_back(of.blocks[b]);
  return for_classes(without(std::move(*narrow), gone), classes);
}

// ---- sensitivity ---------------------------------------------------------------------------------------------------

namespace {

Expected<double> mean_loss(Device& device, const Network& net, std::span<const float> images,
                           const std::vector<std::uint16_t>& labels) {
  auto compiled = device.compile(net, {kBatch});
  if (!compiled) return unexpected(compiled.error());
  const auto each = at((*compiled)->input_elements()), out = at((*compiled)->output_elements());
  std::vector<float> scores(out), ignored(out);
  double sum = 0;
  for (std::size_t begin = 0; begin < labels.size(); begin += kBatch) {
    if (auto ran = (*compiled)->run(images.subspan(begin / kBatch * each, each), scores); !ran)
      return unexpected(ran.error());
    const auto count = std::min<std::size_t>(kBatch, labels.size() - begin);
    const auto part = out / kBatch * count;
    sum += static_cast<double>(count) * cross_entropy(std::span(scores).first(part), std::span(labels).subspan(begin, count),
                                                      static_cast<int>(out / kBatch), std::span(ignored).first(part));
  }
  return sum / static_cast<double>(labels.size());
}

// Half, a quarter, an eighth, rounded up to the multiple.
std::vector<std::int64_t> ladder(std::int64_t width, int multiple) {
  std::vector<std::int64_t> out;
  for (const int part : {2, 4, 8}) {
    const auto rung = (width / part + multiple - 1) / multiple * multiple;
    if (rung > 0 && rung < width && (out.empty() || rung < out.back())) out.push_back(rung);
  }
  return out;
}

}  // namespace

Expected<Sensitivity> sensitivity(Device& device, const Slimmable& of, const std::vector<std::vector<double>>& importance,
                                  const Dataset& data, std::span<const std::int64_t> items,
                                  const SensitivityOptions& options) {
  const auto size = at(elements(data.item));
  std::vector<float> images((items.size() + kBatch - 1) / kBatch * kBatch * size, 0.0F);
  std::vector<std::uint16_t> labels;
  for (std::size_t i = 0; i < items.size(); ++i) {
    item(data, items[i], options.normalisation, std::span(images).subspan(i * size, size));
    labels.push_back(data.labels[at(items[i])]);
  }
  std::vector<int> all(at(of.shapes.back()[0]));
  std::iota(all.begin(), all.end(), 0);
  const auto loss_of = [&](const SubnetShape& shape) -> Expected<double> {
    const auto net = slimmed(of, shape, dearest(of, shape, importance), all);
    if (!net) return unexpected(net.error());
    return mean_loss(device, *net, images, labels);
  };
  const auto whole = loss_of(whole_shape(of));
  if (!whole) return unexpected(whole.error());

  Sensitivity out;
  const auto steps = std::ssize(of.graph.sets) + std::ssize(of.blocks);
  std::int64_t done = 0;
  for (std::size_t s = 0; s < of.graph.sets.size(); ++s) {
    const auto& set = of.graph.sets[s];
    out.sets.push_back({{set.width, 0.0}});
    for (const auto rung : set.pinned ? std::vector<std::int64_t>{} : ladder(set.width, options.multiple)) {
      auto shape = whole_shape(of);
      shape.width[s] = rung;
      const auto loss = loss_of(shape);
      if (!loss) return unexpected(loss.error());
      out.sets.back().push_back({rung, std::max(*loss - *whole, out.sets.back().back().loss)});
    }
    if (options.progress) options.progress(++done, steps);
  }
  for (std::size_t b = 0; b < of.blocks.size(); ++b) {
    auto shape = whole_shape(of);
    shape.gone[b] = true;
    const auto loss = loss_of(shape);
    if (!loss) return unexpected(loss.error());
    out.blocks.push_back(std::max(*loss - *whole, 0.0));
    if (options.progress) options.progress(++done, steps);
  }
  return out;
}

// ---- budget --------------------------------------------------------------------------------------------------------

namespace {

// Between the measured widths, along straight lines; below the narrowest, along the last one.
double loss_at(const std::vector<Sensitivity::Level>& levels, std::int64_t width) {
  if (levels.size() < 2) return 0;
  std::size_t i = 1;
  while (i + 1 < levels.size() && levels[i].width > width) ++i;
  const auto &wide = levels[i - 1], &narrow = levels[i];
  const double along = static_cast<double>(wide.width - width) / static_cast<double>(wide.width - narrow.width);
  return wide.loss + along * (narrow.loss - wide.loss);
}

// The next width below that is a multiple; 0 when there is none.
std::int64_t below(std::int64_t width, int multiple) { return (width - 1) / multiple * multiple; }

class Fitter {
 public:
  Fitter(const Slimmable& of, const Sensitivity& sensitivity, const Budget& budget, int classes)
      : of_(of), sensitivity_(sensitivity), budget_(budget), classes_(classes), shape_(whole_shape(of)) {
    // Compared with the whole net as it is, all of its classes scored.
    const auto whole = cost(of, shape_, static_cast<int>(of.shapes.back()[0]));
    products_ = budget.multiply_adds * whole.multiply_adds;
    microseconds_ = budget.latency * whole.microseconds;
    even_ = even();
    for (const auto width : even_.width) {
      const double share = budget.evenness * static_cast<double>(width);
      least_.push_back(std::max<std::int64_t>(1, std::llround(std::ceil(share - 1e-9))));
    }
  }

  const SubnetShape& even_one() const { return even_; }

  Expected<SubnetShape> run() {
    for (;;) {
      now_ = cost(of_, shape_, classes_);
      if (now_.multiply_adds <= products_ && now_.microseconds <= microseconds_) return shape_;
      best_.reset();
      for (std::size_t s = 0; s < of_.graph.sets.size(); ++s) try_narrower(s);
      for (std::size_t b = 0; b < of_.blocks.size(); ++b) try_without(b);
      if (!best_) return cannot();
      shape_ = best_->shape;
    }
  }

 private:
  struct Move {
    SubnetShape shape;
    double price = 0;
  };
  SubnetShape even() const {
    const auto sets = of_.graph.sets.size();
    const auto at_share = [&](double share) {
      auto shape = whole_shape(of_);
      for (std::size_t s = 0; s < sets; ++s) {
        const auto& set = of_.graph.sets[s];
        if (set.pinned) continue;
        const auto fitting = static_cast<std::int64_t>(share * static_cast<double>(set.width) + 1e-9) / budget_.multiple;
        shape.width[s] = std::min(set.width, std::max<std::int64_t>(1, fitting) * budget_.multiple);
      }
      return shape;
    };
    constexpr int kShares = 256;
    for (int share = kShares; share > 0; --share) {
      auto shape = at_share(static_cast<double>(share) / kShares);
      const auto takes = cost(of_, shape, classes_);
      if (takes.multiply_adds <= products_ && takes.microseconds <= microseconds_) return shape;
    }
    return at_share(0);
  }
  void consider(SubnetShape shape, double loss) {
    const auto then = cost(of_, shape, classes_);
    // What is still too much decides what counts as saved.
    double saved = 0;
    if (now_.multiply_adds > products_) saved += (now_.multiply_adds - then.multiply_adds) / products_;
    if (now_.microseconds > microseconds_) saved += (now_.microseconds - then.microseconds) / microseconds_;
    if (saved <= 0) return;
    const double price = (loss + 1e-6) / saved;
    if (!best_ || price < best_->price) best_ = Move{std::move(shape), price};
  }
  void try_narrower(std::size_t s) {
    const auto to = below(shape_.width[s], budget_.multiple);
    if (of_.graph.sets[s].pinned || to < least_[s]) return;
    const auto& levels = sensitivity_.sets[s];
    auto shape = shape_;
    shape.width[s] = to;
    consider(std::move(shape), loss_at(levels, to) - loss_at(levels, shape_.width[s]));
  }
  void try_without(std::size_t b) {
    if (shape_.gone[b]) return;
    auto shape = shape_;
    shape.gone[b] = true;
    consider(std::move(shape), sensitivity_.blocks[b]);
  }
  unexpected<Error> cannot() const {
    const auto whole = cost(of_, whole_shape(of_), static_cast<int>(of_.shapes.back()[0]));
    return mismatch(of_.net.name + ": slimmed as far as it goes it takes " +
                    std::to_string(now_.multiply_adds / whole.multiply_adds) + " of the multiply-adds and about " +
                    std::to_string(now_.microseconds / whole.microseconds) + " of the time; the budget is " +
                    std::to_string(budget_.multiply_adds) + " and " + std::to_string(budget_.latency));
  }

  const Slimmable& of_;
  const Sensitivity& sensitivity_;
  const Budget& budget_;
  int classes_;
  SubnetShape shape_, even_;
  std::vector<std::int64_t> least_;  // [set]
  Cost now_;
  double products_ = 0, microseconds_ = 0;
  std::optional<Move> best_;
};

}  // namespace

Expected<SubnetShape> fit_budget(const Slimmable& of, const Sensitivity& sensitivity, const Budget& budget, int classes) {
  if (!(budget.multiply_adds > 0) || !(budget.latency > 0) || budget.multiple < 1)
    return mismatch("a budget is more than nothing");
  if (!(budget.evenness >= 0 && budget.evenness <= 1)) return mismatch("evenness is a share, 0 to 1");
  return Fitter(of, sensitivity, budget, classes).run();
}

SubnetShape even_shape(const Slimmable& of, const Budget& budget, int classes) {
  return Fitter(of, {}, budget, classes).even_one();
}

}  // namespace coppice::gpu
