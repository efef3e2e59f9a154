// Fewer nodes, equal function: what every device does before it compiles a net.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "gpu/network.hpp"

namespace coppice::gpu {
namespace {

// ---- moves that undo or repeat one another ----

bool reshapes(const Node& node) {
  return std::holds_alternative<Reshape>(node.op) || std::holds_alternative<Flatten>(node.op);
}
// The numbers in memory stay as they are.
bool keeps_order(const Node& node) { return reshapes(node) || std::holds_alternative<Identity>(node.op); }

bool in_order(const std::vector<int>& axes) { return std::is_sorted(axes.begin(), axes.end()); }

// Channels apart in groups, groups and channels swapped, and together again: how ONNX says ChannelShuffle.
std::optional<std::int64_t> shuffled_groups(const Dims& image, const Dims& apart, const std::vector<int>& order) {
  std::vector<int> swapped(apart.size());
  std::iota(swapped.begin(), swapped.end(), 0);
  if (image.size() != 3 || apart.size() < 2 || apart[0] * apart[1] != image[0]) return std::nullopt;
  std::swap(swapped[0], swapped[1]);
  return order == swapped ? std::optional(apart[0]) : std::nullopt;
}

// Every value by the operator that says most: what only keeps the order reads past others of its kind, what changes
// nothing is an Identity, three moves that shuffle channels are one. Nodes that this leaves unread stay for later.
class Moves {
 public:
  Moves(Network& net, const std::vector<Dims>& shapes) : net_(net), shapes_(shapes) {}

  void rewrite() {
    for (std::size_t i = 0; i < net_.nodes.size(); ++i) {
      Node& node = net_.nodes[i];
      if (elements(shapes_[i + 1]) == 0) {  // known as it is, whatever is read for it
        node = {node.name, Constant{shapes_[i + 1], {}}, {}};
        continue;
      }
      if (std::holds_alternative<Concat>(node.op))
        std::erase_if(node.inputs, [&](int input) { return elements(shape(input)) == 0; });
      if (reshapes(node)) {
        while (const Node* before = maker(node.inputs.front())) {
          if (!keeps_order(*before)) break;
          node.inputs = before->inputs;
        }
        if (const auto groups = shuffles(node, shapes_[i + 1])) {
          const Node& transpose = *maker(node.inputs.front());
          node = {node.name, ChannelShuffle{*groups}, maker(transpose.inputs.front())->inputs};
        }
      }
      if (changes_nothing(node, shapes_[i + 1])) node.op = Identity{};
    }
  }

 private:
  const Node* maker(int value) const { return value == 0 ? nullptr : &net_.nodes[static_cast<std::size_t>(value) - 1]; }
  const Dims& shape(int value) const { return shapes_[static_cast<std::size_t>(value)]; }

  std::optional<std::int64_t> shuffles(const Node& last, const Dims& made) const {
    const Node* middle = maker(last.inputs.front());
    const auto* transpose = middle ? std::get_if<Transpose>(&middle->op) : nullptr;
    const Node* first = transpose ? maker(middle->inputs.front()) : nullptr;
    if (!first || !keeps_order(*first) || shape(first->inputs.front()) != made) return std::nullopt;
    return shuffled_groups(made, shape(middle->inputs.front()), transpose->order);
  }

  bool changes_nothing(const Node& node, const Dims& made) const {
    if (node.inputs.size() != 1) return false;
    if (const auto* transpose = std::get_if<Transpose>(&node.op)) return in_order(transpose->order);
    if (const auto* shuffle = std::get_if<ChannelShuffle>(&node.op))
      return shuffle->groups == 1 || shuffle->groups == made[0];
    const bool moves =
        reshapes(node) || std::holds_alternative<Slice>(node.op) || std::holds_alternative<Concat>(node.op);
    return moves && shape(node.inputs.front()) == made;
  }

  Network& net_;
  const std::vector<Dims>& shapes_;
};

Network with_plain_moves(Network net) {
  if (const auto shapes = infer_shapes(net)) Moves(net, *shapes).rewrite();
  return net;
}

// ---- batch norms ----

// The layer's output goes through the norm: one factor and one shift for each output channel.
template <class Layer>
void fold(Layer& layer, std::size_t outputs, const BatchNorm& norm) {
  const auto per_output = layer.weight.size() / outputs;
  layer.bias.resize(outputs, 0.0F);
  for (std::size_t o = 0; o < outputs; ++o) {
    const double factor = norm.scale[o] / std::sqrt(static_cast<double>(norm.variance[o]) + norm.epsilon);
    for (std::size_t i = o * per_output; i < (o + 1) * per_output; ++i)
      layer.weight[i] = static_cast<float>(layer.weight[i] * factor);
    layer.bias[o] = static_cast<float>((static_cast<double>(layer.bias[o]) - norm.mean[o]) * factor + norm.shift[o]);
  }
}

// Whether the operator took the norm up.
bool folded(Operator& before, const BatchNorm& norm) {
  if (auto* conv = std::get_if<Convolution>(&before)) {
    fold(*conv, static_cast<std::size_t>(conv->out_channels), norm);
    return true;
  }
  if (auto* dense = std::get_if<Dense>(&before)) {
    fold(*dense, static_cast<std::size_t>(dense->out_features), norm);
    return true;
  }
  return false;
}

}  // namespace

Network without_idle_nodes(Network net) {
  std::vector<bool> needed(net.nodes.size() + 1, false);
  needed.back() = true;
  for (std::size_t i = net.nodes.size(); i-- > 0;)
    if (needed[i + 1])
      for (const int input : net.nodes[i].inputs) needed[static_cast<std::size_t>(input)] = true;

  Network out{std::move(net.name), std::move(net.input), {}};
  std::vector<int> renamed{0};  // old value -> new value
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    Node& node = net.nodes[i];
    for (int& input : node.inputs) input = renamed[static_cast<std::size_t>(input)];
    const bool only_node = i + 1 == net.nodes.size() && out.nodes.empty();  // a net has at least one
    if (needed[i + 1] && (!std::holds_alternative<Identity>(node.op) || only_node)) {
      out.nodes.push_back(std::move(node));
      renamed.push_back(static_cast<int>(out.nodes.size()));
    } else {
      renamed.push_back(needed[i + 1] ? node.inputs.front() : -1);
    }
  }
  return out;
}

Network simplified(Network given) {
  Network net = without_idle_nodes(with_plain_moves(std::move(given)));
  std::vector<int> readers(net.nodes.size() + 1, 0);
  for (const auto& node : net.nodes)
    for (const int input : node.inputs) ++readers[static_cast<std::size_t>(input)];

  Network out{std::move(net.name), std::move(net.input), {}};
  std::vector<int> renamed{0};
  for (auto& node : net.nodes) {
    const auto old_source =
        node.inputs.empty() ? 0 : static_cast<std::size_t>(node.inputs.front());  // 0: nothing to fold into
    for (int& input : node.inputs) input = renamed[static_cast<std::size_t>(input)];
    const int source = node.inputs.empty() ? 0 : node.inputs.front();
    const auto* norm = std::get_if<BatchNorm>(&node.op);
    if (norm && source > 0 && readers[old_source] == 1 &&
        folded(out.nodes[static_cast<std::size_t>(source) - 1].op, *norm)) {
      renamed.push_back(source);
      continue;
    }
    out.nodes.push_back(std::move(node));
    renamed.push_back(static_cast<int>(out.nodes.size()));
  }
  return out;
}

}  // namespace coppice::gpu
