#include "gpu/lower.hpp"

#include <cmath>
#include <utility>

namespace coppice::gpu {
namespace {

Dims as_image(const Dims& dims) { return dims.size() == 1 ? Dims{dims[0], 1, 1} : dims; }

Convolution as_convolution(const Dense& dense) { return {Window{}, dense.out_features, 1, dense.weight, dense.bias}; }

Convolution as_convolution(const BatchNorm& norm) {
  Convolution out;
  out.out_channels = out.groups = static_cast<std::int64_t>(norm.scale.size());
  for (std::size_t i = 0; i < norm.scale.size(); ++i) {
    const float factor = norm.scale[i] / std::sqrt(norm.variance[i] + norm.epsilon);
    out.weight.push_back(factor);
    out.bias.push_back(norm.shift[i] - norm.mean[i] * factor);
  }
  return out;
}

class Lowering {
 public:
  Lowering(Network net, std::vector<Dims> shapes) : net_(std::move(net)), shapes_(std::move(shapes)) {
    readers_.assign(shapes_.size(), 0);
    for (const auto& node : net_.nodes)
      for (const int input : node.inputs) ++readers_[static_cast<std::size_t>(input)];
    ++readers_.back();  // the caller
    buffer_of_.assign(shapes_.size(), -1);
    step_of_.assign(shapes_.size(), -1);
  }

  Lowered lowered() {
    buffer_of_[0] = new_buffer(shapes_[0]);
    for (std::size_t i = 0; i < net_.nodes.size(); ++i) {
      node_ = &net_.nodes[i];
      value_ = i + 1;
      std::visit([this](auto& op) { take(op); }, net_.nodes[i].op);
    }
    out_.output = buffer_of_.back();
    out_.output_dims = shapes_.back();
    return std::move(out_);
  }

 private:
  std::size_t input(std::size_t i = 0) const { return static_cast<std::size_t>(node_->inputs[i]); }
  Dims in() const { return as_image(shapes_[input()]); }
  int new_buffer(const Dims& dims) {
    out_.buffers.push_back(elements(dims));
    return static_cast<int>(out_.buffers.size()) - 1;
  }
  template <class Op>
  void emit(Op op) {
    buffer_of_[value_] = new_buffer(shapes_[value_]);
    step_of_[value_] = static_cast<int>(out_.steps.size());
    out_.steps.push_back({std::move(op), in(), as_image(shapes_[value_]), buffer_of_[input()], buffer_of_[value_], -1, false});
  }
  void alias() {
    buffer_of_[value_] = buffer_of_[input()];
    step_of_[value_] = readers_[input()] == 1 ? step_of_[input()] : -1;
  }
  // The step that makes this value, when nobody but the current node reads it.
  LoweredStep* only_for_us(std::size_t value) {
    const int step = step_of_[value];
    return step < 0 || readers_[value] != 1 ? nullptr : &out_.steps[static_cast<std::size_t>(step)];
  }

  void take(Convolution& op) { emit(std::move(op)); }
  void take(const BatchNorm& op) { emit(as_convolution(op)); }
  void take(const Dense& op) { emit(as_convolution(op)); }
  void take(const MaxPool& op) { emit(op); }
  void take(const AveragePool& op) { emit(op); }
  void take(const GlobalAveragePool&) { emit(AveragePool{{in()[1], in()[2], 1, 1, 0, 0, 0, 0}, false}); }
  void take(const Flatten&) { alias(); }
  void take(const Identity&) { alias(); }

  void take(const Relu& op) {
    auto* before = only_for_us(input());
    if (!before || (!std::holds_alternative<Convolution>(before->op) && !std::holds_alternative<Add>(before->op)))
      return emit(op);
    before->relu = true;
    alias();
  }

  void take(const Add& op) {
    // The last step is taken only, so that the other operand is there already.
    for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
      auto* before = only_for_us(input(i));
      const int other = buffer_of_[input(1 - i)];
      if (!before || before != &out_.steps.back() || !std::holds_alternative<Convolution>(before->op) || before->relu ||
          before->addend >= 0 || before->target == other)
        continue;
      before->addend = other;
      buffer_of_[value_] = before->target;
      step_of_[value_] = step_of_[input(i)];
      return;
    }
    emit(op);
    out_.steps.back().addend = buffer_of_[input(1)];
  }

  Network net_;
  std::vector<Dims> shapes_;
  std::vector<int> readers_;    // of each value
  std::vector<int> buffer_of_;  // each value's
  std::vector<int> step_of_;    // that makes the value; none when others read it under another name
  Lowered out_;
  const Node* node_ = nullptr;
  std::size_t value_ = 0;  // that the current node makes
};

}  // namespace

Expected<Lowered> lower(const Network& given) {
  if (auto valid = infer_shapes(given); !valid) return unexpected(valid.error());
  Network net = simplified(given);
  auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  for (const auto& dims : *shapes)
    if (dims.size() != 1 && dims.size() != 3)
      return unexpected(
          Error{ErrorCode::shape_mismatch, net.name + ": only images and vectors are run, not " + to_string(dims)});
  return Lowering(std::move(net), std::move(*shapes)).lowered();
}

}  // namespace coppice::gpu
