#include "gpu/cpu_fusion.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace coppice::gpu {
namespace {

std::optional<Clamp> clamp_of(const Operator& op) {
  if (std::holds_alternative<Relu>(op)) return Clamp{0, std::numeric_limits<float>::infinity()};
  if (const auto* clip = std::get_if<Clip>(&op)) return Clamp{clip->low, clip->high};
  return std::nullopt;
}

class Fuser {
 public:
  Fuser(const Network& net, const std::vector<Dims>& shapes)
      : net_(net), shapes_(shapes), readers_(shapes.size()), fusions_(net.nodes.size()) {
    for (std::size_t i = 0; i < net.nodes.size(); ++i)
      for (const int input : net.nodes[i].inputs)
        readers_[static_cast<std::size_t>(input)].push_back(static_cast<int>(i));
  }

  std::vector<Fusion> run() && {
    std::vector<bool> taken(net_.nodes.size(), false);
    for (std::size_t i = 0; i < net_.nodes.size(); ++i) {
      if (taken[i]) continue;
      auto& fusion = fusions_[i];
      fusion.result = static_cast<int>(i) + 1;
      const auto& op = net_.nodes[i].op;
      if (std::holds_alternative<Convolution>(op)) take_sum(i, taken);
      if (std::holds_alternative<Convolution>(op) || std::holds_alternative<Dense>(op) ||
          std::holds_alternative<Add>(op) || std::holds_alternative<Arithmetic>(op) ||
          std::holds_alternative<BatchNorm>(op))
        take_clamp(fusion, taken);
    }
    return std::move(fusions_);
  }

 private:
  // The node that alone reads the value; -1 where there is none.
  int only_reader(int value) const {
    const auto& all = readers_[static_cast<std::size_t>(value)];
    return all.size() == 1 && value + 1 < static_cast<int>(shapes_.size()) ? all.front() : -1;
  }

  // A residual sum goes into the later of the two convolutions before it: the other operand is there by then.
  void take_sum(std::size_t i, std::vector<bool>& taken) {
    const int value = static_cast<int>(i) + 1, reader = only_reader(value);
    if (reader < 0) return;
    const auto& node = net_.nodes[static_cast<std::size_t>(reader)];
    if (!std::holds_alternative<Add>(node.op)) return;
    const int other = node.inputs.front() == value ? node.inputs.back() : node.inputs.front();
    if (other >= value || shapes_[static_cast<std::size_t>(other)] != shapes_[static_cast<std::size_t>(value)]) return;
    fusions_[i].addend = other;
    fusions_[i].result = reader + 1;
    taken[static_cast<std::size_t>(reader)] = true;
  }

  void take_clamp(Fusion& fusion, std::vector<bool>& taken) const {
    const int reader = only_reader(fusion.result);
    if (reader < 0) return;
    const auto clamp = clamp_of(net_.nodes[static_cast<std::size_t>(reader)].op);
    if (!clamp) return;
    fusion.clamp = *clamp;
    fusion.result = reader + 1;
    taken[static_cast<std::size_t>(reader)] = true;
  }

  const Network& net_;
  const std::vector<Dims>& shapes_;
  std::vector<std::vector<int>> readers_;  // nodes, once for each time that they read the value
  std::vector<Fusion> fusions_;
};

}  // namespace

std::vector<Fusion> fusions(const Network& net, const std::vector<Dims>& shapes) { return Fuser(net, shapes).run(); }

}  // namespace coppice::gpu
