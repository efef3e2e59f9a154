// Fewer nodes, equal function: what every device does before it compiles a net.
#include <cmath>
#include <utility>

#include "gpu/network.hpp"

namespace coppice::gpu {
namespace {

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
  Network net = without_idle_nodes(std::move(given));
  std::vector<int> readers(net.nodes.size() + 1, 0);
  for (const auto& node : net.nodes)
    for (const int input : node.inputs) ++readers[static_cast<std::size_t>(input)];

  Network out{std::move(net.name), std::move(net.input), {}};
  std::vector<int> renamed{0};
  for (auto& node : net.nodes) {
    const auto old_source = node.inputs.empty() ? 0 : static_cast<std::size_t>(node.inputs.front());  // 0: nothing to fold into
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
