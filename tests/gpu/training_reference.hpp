// What a net in training must give, in double precision: a batch through the definitions, with the batch norms of either
// mode, and gradients by differences.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "gpu/training.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu::reference {

using Batch = std::vector<Values>;  // [batch][item]

// The mean and the biased variance of every channel over a batch.
struct Statistics {
  std::vector<double> mean, variance;
};

inline Statistics statistics_of(const Batch& batch, std::size_t channels) {
  Statistics out{std::vector<double>(channels, 0.0), std::vector<double>(channels, 0.0)};
  const auto pixels = batch.front().size() / channels;
  const double count = static_cast<double>(pixels * batch.size());
  for (const auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) out.mean[i / pixels] += item[i] / count;
  for (const auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) {
      const double off = item[i] - out.mean[i / pixels];
      out.variance[i / pixels] += off * off / count;
    }
  return out;
}

inline Batch normalised(const BatchNorm& norm, Batch batch, Mode mode) {
  const auto channels = norm.scale.size(), pixels = batch.front().size() / channels;
  Statistics s{{norm.mean.begin(), norm.mean.end()}, {norm.variance.begin(), norm.variance.end()}};
  if (mode == Mode::train) s = statistics_of(batch, channels);
  for (auto& item : batch)
    for (std::size_t i = 0; i < item.size(); ++i) {
      const auto c = i / pixels;
      item[i] = (item[i] - s.mean[c]) / std::sqrt(s.variance[c] + norm.epsilon) * norm.scale[c] + norm.shift[c];
    }
  return batch;
}

inline Batch to_batch(std::span<const float> flat, std::size_t items) {
  Batch out;
  const auto size = flat.size() / items;
  for (std::size_t i = 0; i < items; ++i) {
    const auto item = flat.subspan(i * size, size);
    out.emplace_back(item.begin(), item.end());
  }
  return out;
}
inline std::vector<float> flattened(const Batch& batch) {
  std::vector<float> out;
  for (const auto& item : batch)
    for (const double value : item) out.push_back(static_cast<float>(value));
  return out;
}

// A small change to one number: of a value (0 is the input) while a batch goes through.
struct Nudge {
  int value = 0;
  std::size_t item = 0, element = 0;
  double by = 0;
};

// Every value of the net: [value][batch][item].
inline std::vector<Batch> all_values(const Network& net, std::span<const float> input, Mode mode,
                                     const std::optional<Nudge>& nudge = {}) {
  const auto shapes = *infer_shapes(net);
  const auto items = input.size() / static_cast<std::size_t>(elements(net.input));
  std::vector<Batch> values;
  const auto add = [&](Batch value) {
    if (nudge && nudge->value == std::ssize(values)) value[nudge->item][nudge->element] += nudge->by;
    values.push_back(std::move(value));
  };
  add(to_batch(input, items));
  for (std::size_t n = 0; n < net.nodes.size(); ++n) {
    const auto& node = net.nodes[n];
    if (const auto* norm = std::get_if<BatchNorm>(&node.op)) {
      add(normalised(*norm, values[static_cast<std::size_t>(node.inputs[0])], mode));
      continue;
    }
    Batch out;
    for (std::size_t item = 0; item < items; ++item) {
      std::vector<const Values*> in;
      std::vector<Dims> from;
      for (const int index : node.inputs) {
        in.push_back(&values[static_cast<std::size_t>(index)][item]);
        from.push_back(shapes[static_cast<std::size_t>(index)]);
      }
      const Dims first = from.empty() ? Dims{} : from.front();
      out.push_back(std::visit(Forward{in, from, first, shapes[n + 1]}, node.op));
    }
    add(std::move(out));
  }
  return values;
}

// ---- gradients -----------------------------------------------------------------------------------------------------

struct Case {
  Network net;
  std::vector<float> input, score_gradients;  // [batch, item], [batch, outputs]
  Mode mode = Mode::train;
};

// The loss whose gradients are given: the sum of all scores, each times its weight.
inline double loss(const Case& c, const Network& net, const std::optional<Nudge>& nudge = {}) {
  const auto values = all_values(net, c.input, c.mode, nudge);
  double sum = 0;
  std::size_t i = 0;
  for (const auto& item : values.back())
    for (const double score : item) sum += score * c.score_gradients[i++];
  return sum;
}

// Visits the arrays in the order of TrainingState::weights; running statistics as nothing to be learned.
template <class Visit>
void each_parameter(Network& net, const Visit& visit) {
  for (auto& node : net.nodes) {
    if (auto* c = std::get_if<Convolution>(&node.op)) {
      visit(c->weight, true);
      visit(c->bias, true);
    } else if (auto* d = std::get_if<Dense>(&node.op)) {
      visit(d->weight, true);
      visit(d->bias, true);
    } else if (auto* b = std::get_if<BatchNorm>(&node.op)) {
      visit(b->scale, true);
      visit(b->shift, true);
      visit(b->mean, false);
      visit(b->variance, false);
    }
  }
}

// d f / d x by differences; none where a kink of a ReLU, a bound or a maximum is there, which makes the two sides
// differ, or nearby, which makes wide and narrow ones differ. What a float was really moved by counts.
template <class Number, class Function>
std::optional<double> slope(Number& x, const Function& f) {
  const Number before = x;
  struct Point {
    double x, f;
  };
  const auto moved = [&](double by) {
    x = static_cast<Number>(static_cast<double>(before) + by);
    const Point point{static_cast<double>(x), f()};
    x = before;
    return point;
  };
  const auto between = [](Point a, Point b) { return (b.f - a.f) / (b.x - a.x); };
  constexpr double kWide = 0x1p-17, kNarrow = 0x1p-19;
  const auto here = moved(0), low = moved(-kNarrow), high = moved(kNarrow);
  const double down = between(low, here), up = between(here, high), narrow = between(low, high);
  if (std::abs(up - down) > 5e-3 * std::max({std::abs(up), std::abs(down), 1e-2})) return {};
  if (std::abs(between(moved(-kWide), moved(kWide)) - narrow) >= 1e-4 * std::max(1.0, std::abs(narrow))) return {};
  return narrow;
}

// Of a weight of `net`, which is the case's.
inline std::optional<double> slope(const Case& c, const Network& net, float& weight) {
  return slope(weight, [&] { return loss(c, net); });
}

// Of one number of a value.
inline std::optional<double> slope(const Case& c, Nudge nudge) {
  return slope(nudge.by, [&] { return loss(c, c.net, nudge); });
}

}  // namespace coppice::gpu::reference
