#include "gpu/channels.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <utility>

namespace coppice::gpu {
namespace {

unexpected<Error> mismatch(const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); }

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// ---- following channels --------------------------------------------------------------------------------------------

// Units of channels that live and die together, found by uniting.
class Units {
 public:
  int make(int producer) {
    parents_.push_back(static_cast<int>(parents_.size()));
    producers_.push_back({producer});
    pinned_.push_back(false);
    return parents_.back();
  }
  int find(int unit) {
    while (parents_[at(unit)] != unit) unit = parents_[at(unit)] = parents_[at(parents_[at(unit)])];
    return unit;
  }
  void unite(int a, int b) {
    a = find(a);
    b = find(b);
    if (a == b) return;
    if (producers_[at(a)].size() < producers_[at(b)].size()) std::swap(a, b);
    parents_[at(b)] = a;
    producers_[at(a)].merge(producers_[at(b)]);
    pinned_[at(a)] = pinned_[at(a)] || pinned_[at(b)];
  }
  void pin(int unit) { pinned_[at(find(unit))] = true; }
  bool pinned(int unit) { return pinned_[at(find(unit))]; }
  const std::set<int>& producers(int unit) { return producers_[at(find(unit))]; }

 private:
  std::vector<int> parents_;
  std::vector<std::set<int>> producers_;
  std::vector<bool> pinned_;
};

bool is_depthwise(const Convolution& c, std::int64_t in_channels) {
  return c.groups == in_channels && c.out_channels == in_channels;
}

using Channels = std::vector<int>;  // units, of one value

// What one node does to the channels it reads.
struct Follow {
  Units& units;
  const std::vector<Channels>& known;
  const std::vector<Dims>& shapes;
  std::vector<std::int64_t>& spread;
  const Node& node;
  int index;

  const Channels& in(std::size_t i = 0) const { return known[at(node.inputs[i])]; }
  std::int64_t& out_spread() const { return spread[at(index) + 1]; }
  Channels made(std::int64_t count) const {
    Channels out;
    for (std::int64_t i = 0; i < count; ++i) out.push_back(units.make(index));
    return out;
  }
  void pin(const Channels& channels) const {
    for (const int unit : channels) units.pin(unit);
  }
  Channels passed() const {
    out_spread() = spread[at(node.inputs[0])];
    return in();
  }
  // Tied to their places: nothing of the input or the output may go.
  Channels pinned() const {
    for (std::size_t i = 0; i < node.inputs.size(); ++i) pin(in(i));
    Channels out = made(shapes[at(index) + 1][0]);
    pin(out);
    return out;
  }

  Channels operator()(const Convolution& c) const {
    if (c.groups == 1) return made(c.out_channels);
    if (!is_depthwise(c, std::ssize(in()))) return pinned();
    const Channels out = made(c.out_channels);
    for (std::size_t i = 0; i < out.size(); ++i) units.unite(out[i], in()[i]);
    return out;
  }
  Channels operator()(const Dense& d) const { return made(d.out_features); }
  Channels operator()(const BatchNorm&) const { return passed(); }
  Channels operator()(const Relu&) const { return passed(); }
  Channels operator()(const Clip&) const { return passed(); }
  Channels operator()(const MaxPool&) const { return passed(); }
  Channels operator()(const AveragePool&) const { return passed(); }
  Channels operator()(const GlobalAveragePool&) const { return passed(); }
  Channels operator()(const Identity&) const { return passed(); }
  Channels operator()(const Flatten&) const {
    Channels out = passed();
    const Dims& dims = shapes[at(node.inputs[0])];
    for (std::size_t i = 1; i < dims.size(); ++i) out_spread() *= dims[i];
    return out;
  }
  Channels operator()(const Add&) const {
    if (shapes[at(node.inputs[0])] != shapes[at(node.inputs[1])]) return pinned();
    for (std::size_t i = 0; i < in().size(); ++i) units.unite(in(0)[i], in(1)[i]);
    return passed();
  }
  Channels operator()(const Concat& c) const {
    Channels out;
    if (c.axis != 0) return pinned();
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      if (spread[at(node.inputs[i])] != spread[at(node.inputs[0])]) return pinned();
      out.insert(out.end(), in(i).begin(), in(i).end());
    }
    out_spread() = spread[at(node.inputs[0])];
    return out;
  }
  Channels operator()(const Slice& s) const {
    if (s.axis != 0) return passed();
    if (spread[at(node.inputs[0])] != 1) return pinned();
    return {in().begin() + s.begin, in().begin() + s.end};
  }
  Channels operator()(const ChannelShuffle& s) const {
    // A shuffle of fewer channels is another permutation: what goes through one stays.
    pin(in());
    Channels out;
    const auto per_group = std::ssize(in()) / s.groups;
    for (std::int64_t i = 0; i < std::ssize(in()); ++i)
      out.push_back(in()[at(i % s.groups * per_group + i / s.groups)]);
    return out;
  }
  Channels operator()(const Reshape&) const { return pinned(); }
  Channels operator()(const Transpose&) const { return pinned(); }
  Channels operator()(const Constant&) const { return pinned(); }
  Channels operator()(const Arithmetic&) const { return pinned(); }
  Channels operator()(const SquareRoot&) const { return passed(); }
};

// Units that the same layers make become one set.
void gather_sets(const Network& net, Units& units, const std::vector<Channels>& channels, ChannelGraph& graph) {
  std::map<std::pair<std::set<int>, bool>, int> set_of_producers;
  std::map<int, Channel> place;  // of a unit
  for (std::size_t value = 0; value < channels.size(); ++value)
    for (const int any : channels[value]) {
      const int unit = units.find(any);
      if (!place.contains(unit)) {
        const auto& producers = units.producers(unit);
        const auto key = std::pair(producers, units.pinned(unit));
        const auto [found, fresh] = set_of_producers.try_emplace(key, static_cast<int>(graph.sets.size()));
        if (fresh) {
          ChannelSet set{"input", {}, 0, key.second};
          for (const int node : producers)
            if (node >= 0) set.producers.push_back(node);
          if (!set.producers.empty()) set.name = net.nodes[at(set.producers.front())].name;
          graph.sets.push_back(std::move(set));
        }
        place[unit] = {found->second, graph.sets[at(found->second)].width++};
      }
      graph.values[value].push_back(place[unit]);
    }
}

// ---- the net without some of them ----------------------------------------------------------------------------------

std::vector<std::int64_t> chosen(const std::vector<Channel>& channels, const Kept& kept) {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < channels.size(); ++i)
    if (kept[at(channels[i].set)][at(channels[i].index)]) out.push_back(static_cast<std::int64_t>(i));
  return out;
}

using Places = std::vector<std::int64_t>;

std::vector<float> picked(const std::vector<float>& values, const Places& places) {
  std::vector<float> out;
  if (values.empty()) return out;
  for (const auto place : places) out.push_back(values[at(place)]);
  return out;
}

struct Narrow {
  const ChannelGraph& graph;
  const Kept& kept;
  Node& node;
  std::size_t value;  // that the node makes

  std::size_t source() const { return at(node.inputs[0]); }
  Places outs() const { return chosen(graph.values[value], kept); }
  Places ins() const { return chosen(graph.values[source()], kept); }

  void operator()(Convolution& c) const {
    const auto per_tap = c.window.kernel_h * c.window.kernel_w;
    const Places out = outs(), in = ins();
    const auto all_in = std::ssize(graph.values[source()]);
    if (c.groups > 1 && !is_depthwise(c, all_in)) return;  // pinned: nothing has gone
    const Places rows = c.groups > 1 ? Places{0} : in;
    const auto in_each = all_in / c.groups;
    std::vector<float> weight;
    weight.reserve(out.size() * rows.size() * at(per_tap));
    for (const auto o : out)
      for (const auto i : rows) {
        const auto from = c.weight.begin() + (o * in_each + i) * per_tap;
        weight.insert(weight.end(), from, from + per_tap);
      }
    c.weight = std::move(weight);
    c.bias = picked(c.bias, out);
    if (c.groups > 1) c.groups = std::ssize(out);
    c.out_channels = std::ssize(out);
  }
  void operator()(Dense& d) const {
    const auto spread = graph.spread[source()];
    const auto width = std::ssize(graph.values[source()]) * spread;
    const Places out = outs(), in = ins();
    std::vector<float> weight;
    weight.reserve(out.size() * in.size() * at(spread));
    for (const auto o : out)
      for (const auto i : in) {
        const auto from = d.weight.begin() + o * width + i * spread;
        weight.insert(weight.end(), from, from + spread);
      }
    d.weight = std::move(weight);
    d.bias = picked(d.bias, out);
    d.out_features = std::ssize(out);
  }
  void operator()(BatchNorm& b) const {
    if (graph.spread[value] != 1) return narrow_spread(b);
    const Places out = outs();
    for (auto* statistic : {&b.scale, &b.shift, &b.mean, &b.variance}) *statistic = picked(*statistic, out);
  }
  void narrow_spread(BatchNorm& b) const {
    Places out;
    for (const auto channel : outs())
      for (std::int64_t i = 0; i < graph.spread[value]; ++i) out.push_back(channel * graph.spread[value] + i);
    for (auto* statistic : {&b.scale, &b.shift, &b.mean, &b.variance}) *statistic = picked(*statistic, out);
  }
  void operator()(Slice& s) const {
    if (s.axis != 0) return;
    const Places in = ins();
    s.begin = std::ranges::lower_bound(in, s.begin) - in.begin();
    s.end = std::ranges::lower_bound(in, s.end) - in.begin();
  }
  template <class Other>
  void operator()(Other&) const {}
};

}  // namespace

Expected<ChannelGraph> channel_graph(const Network& net) {
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  if (auto ok = check_learnable(net, *shapes, "narrowing"); !ok) return unexpected(ok.error());
  Units units;
  std::vector<Channels> channels(1);
  ChannelGraph graph;
  graph.spread.assign(shapes->size(), 1);
  graph.values.resize(shapes->size());
  for (std::int64_t i = 0; i < net.input[0]; ++i) {
    channels[0].push_back(units.make(-1));
    units.pin(channels[0].back());
  }
  for (std::size_t i = 0; i < net.nodes.size(); ++i)
    channels.push_back(std::visit(
        Follow{units, channels, *shapes, graph.spread, net.nodes[i], static_cast<int>(i)}, net.nodes[i].op));
  for (const int unit : channels.back()) units.pin(unit);
  gather_sets(net, units, channels, graph);
  return graph;
}

Expected<Network> narrowed(const Network& net, const ChannelGraph& graph, const Kept& kept) {
  if (kept.size() != graph.sets.size()) return mismatch(net.name + ": the channels to keep are of another net");
  for (std::size_t s = 0; s < kept.size(); ++s) {
    const auto& set = graph.sets[s];
    const auto count = std::ranges::count(kept[s], true);
    if (std::ssize(kept[s]) != set.width || count == 0 || (set.pinned && count != set.width))
      return mismatch(net.name + ": of the " + std::to_string(set.width) + " channels of " + set.name + ", " +
                      std::to_string(count) + " cannot be kept");
  }
  Network out = net;
  for (std::size_t i = 0; i < out.nodes.size(); ++i)
    std::visit(Narrow{graph, kept, out.nodes[i], i + 1}, out.nodes[i].op);
  if (const auto shapes = infer_shapes(out); !shapes) return unexpected(shapes.error());
  return out;
}

// ---- blocks --------------------------------------------------------------------------------------------------------

namespace {

bool is_pointwise(const Operator& op) {
  return std::holds_alternative<BatchNorm>(op) || std::holds_alternative<Relu>(op) || std::holds_alternative<Clip>(op);
}

constexpr std::size_t kBlockNodesMax = 64;

// Goes backwards from `out` until all ways there begin at one value of the same shape.
bool find_block(const Network& net, const std::vector<Dims>& shapes, const std::vector<std::vector<int>>& readers,
                int out, Block& block) {
  std::set<int, std::greater<>> frontier{out};
  std::set<int> inside;
  bool convolves = false;
  while (inside.size() < kBlockNodesMax) {
    const int value = *frontier.begin();
    if (frontier.size() == 1 && value != out && convolves && shapes[at(value)] == shapes[at(out)]) {
      block = {net.nodes[at(out) - 1].name, value, out, {inside.begin(), inside.end()}};
      return true;
    }
    if (value == 0) return false;
    frontier.erase(frontier.begin());
    const auto leaves = [&](int reader) { return reader + 1 != out && !inside.contains(reader); };
    if (value != out && std::ranges::any_of(readers[at(value)], leaves)) return false;
    inside.insert(value - 1);
    const auto& node = net.nodes[at(value) - 1];
    convolves = convolves || std::holds_alternative<Convolution>(node.op);
    frontier.insert(node.inputs.begin(), node.inputs.end());
    if (frontier.empty()) return false;
  }
  return false;
}

}  // namespace

std::vector<Block> blocks(const Network& net) {
  const auto shapes = infer_shapes(net);
  std::vector<Block> out;
  if (!shapes) return out;
  std::vector<std::vector<int>> readers(shapes->size());
  for (std::size_t i = 0; i < net.nodes.size(); ++i)
    for (const int input : net.nodes[i].inputs) readers[at(input)].push_back(static_cast<int>(i));
  for (int value = 1; value < static_cast<int>(shapes->size()) - 1; ++value) {
    const auto& next = readers[at(value)];
    if (next.size() == 1 && is_pointwise(net.nodes[at(next.front())].op)) continue;  // the norm and ReLU go with it
    Block block;
    if (!find_block(net, *shapes, readers, value, block)) continue;
    // The branch of a residual block alone: without it the block would double its input.
    const auto adds_both = [&](int reader) {
      const auto& node = net.nodes[at(reader)];
      return std::holds_alternative<Add>(node.op) && std::ranges::count(node.inputs, block.in) > 0;
    };
    if (std::ranges::none_of(next, adds_both)) out.push_back(std::move(block));
  }
  return out;
}

Network without(Network net, const std::vector<Block>& gone) {
  std::vector<int> renamed(net.nodes.size() + 1);
  std::iota(renamed.begin(), renamed.end(), 0);
  for (const auto& block : gone) renamed[at(block.out)] = block.in;
  for (std::size_t value = 1; value < renamed.size(); ++value)  // a block's way in comes before its way out
    renamed[value] = renamed[at(renamed[value])];
  for (auto& node : net.nodes)
    for (int& input : node.inputs) input = renamed[at(input)];
  return without_idle_nodes(std::move(net));
}

Expected<Network> for_classes(Network net, const std::vector<int>& classes) {
  auto* scores = net.nodes.empty() ? nullptr : std::get_if<Dense>(&net.nodes.back().op);
  if (!scores || scores->out_features < 1) return mismatch(net.name + ": its last node is no dense layer that scores classes");
  if (classes.empty()) return mismatch(net.name + ": no classes to score");
  const auto width = std::ssize(scores->weight) / scores->out_features;
  Dense picked_rows{std::ssize(classes), {}, {}};
  for (const int c : classes) {
    if (c < 0 || c >= scores->out_features)
      return mismatch(net.name + ": it scores " + std::to_string(scores->out_features) + " classes, there is no class " +
                      std::to_string(c));
    const auto row = scores->weight.begin() + c * width;
    picked_rows.weight.insert(picked_rows.weight.end(), row, row + width);
    if (!scores->bias.empty()) picked_rows.bias.push_back(scores->bias[at(c)]);
  }
  *scores = std::move(picked_rows);
  return net;
}

}  // namespace coppice::gpu
