#include "gpu/network.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <utility>

namespace coppice::gpu {
namespace {

constexpr std::int64_t kElementsMax = std::int64_t{1} << 31;
constexpr std::int64_t kWindowMax = 65'536;  // pixels

unexpected<Error> mismatch(const Node& node, const std::string& why) {
  return unexpected(Error{ErrorCode::shape_mismatch, "node " + node.name + ": " + why});
}

std::int64_t size(const std::vector<float>& values) { return static_cast<std::int64_t>(values.size()); }

// Whether a tensor of these sizes may be: the product is only taken when this holds. That of some of an empty one's
// axes stays in bounds too.
bool in_bounds(const Dims& dims) {
  std::int64_t product = 1;
  for (const auto dim : dims) {
    if (dim < 0 || dim > kElementsMax / product) return false;
    product *= std::max<std::int64_t>(dim, 1);
  }
  return !dims.empty() && dims.size() <= 8;
}

// Output pixels along one axis; none when the window does not fit.
std::int64_t extent(std::int64_t in, const WindowAxis& axis) {
  const auto padded = in + axis.before + axis.after;
  return padded < axis.span() ? 0 : (padded - axis.span()) / axis.stride + 1;
}

WindowAxis depth(const Window& w) { return {w.kernel_d, w.stride_d, w.pad_front, w.pad_back, w.dilation_d}; }

struct Inference {
  const Node& node;
  const std::vector<Dims>& known;

  const Dims& in(std::size_t i = 0) const { return known[static_cast<std::size_t>(node.inputs[i])]; }

  // The window's axes, in bounds, over an image or a volume.
  Expected<std::vector<WindowAxis>> sliding(const Window& w) const {
    if (in().size() != 3 && in().size() != 4)
      return mismatch(node, "needs an image or a volume, has " + to_string(in()));
    if (in().size() == 3 && depth(w) != WindowAxis{})
      return mismatch(node, "its window has a depth, its input of " + to_string(in()) + " has none");
    auto over = axes(w, in());
    for (const auto& axis : over)
      if (!axis.in_bounds()) return mismatch(node, "its window is out of bounds");
    return over;
  }
  Expected<Dims> windowed(const std::vector<WindowAxis>& over, std::int64_t channels) const {
    Dims out{channels};
    for (std::size_t i = 0; i < over.size(); ++i) {
      out.push_back(extent(in()[i + 1], over[i]));
      if (out.back() < 1) return mismatch(node, "its window does not fit " + to_string(in()));
    }
    return out;
  }
  Expected<Dims> pooled(const Window& w) const {
    const auto over = sliding(w);
    if (!over) return unexpected(over.error());
    for (std::size_t i = 0; i < over->size(); ++i) {
      const auto& axis = (*over)[i];
      if (std::max(axis.before, axis.after) >= axis.span())
        return mismatch(node, "its padding is not smaller than its window");
      if (axis.before + axis.after > 0 && axis.dilation > in()[i + 1])
        return mismatch(node, "its window leaps over " + to_string(in()));
    }
    return windowed(*over, in()[0]);
  }
  Expected<Dims> operator()(const Convolution& c) const {
    const auto over = sliding(c.window);
    if (!over) return unexpected(over.error());
    if (c.groups < 1 || c.out_channels < 1 || in()[0] % c.groups != 0 || c.out_channels % c.groups != 0)
      return mismatch(node, std::to_string(c.groups) + " groups do not divide its channels");
    Dims weight{c.out_channels, in()[0] / c.groups};
    for (const auto& axis : *over) weight.push_back(axis.kernel);
    if (!in_bounds(weight) || size(c.weight) != elements(weight) || (!c.bias.empty() && size(c.bias) != c.out_channels))
      return mismatch(node, "its weights do not fit an input of " + to_string(in()));
    return windowed(*over, c.out_channels);
  }
  Expected<Dims> operator()(const BatchNorm& b) const {
    for (const auto* v : {&b.scale, &b.shift, &b.mean, &b.variance})
      if (size(*v) != in()[0]) return mismatch(node, "its statistics do not fit " + to_string(in()));
    return in();
  }
  Expected<Dims> operator()(const Relu&) const { return in(); }
  Expected<Dims> operator()(const Clip& c) const {
    if (!(c.low <= c.high)) return mismatch(node, "its lower bound is above its upper one");
    return in();
  }
  Expected<Dims> operator()(const MaxPool& p) const { return pooled(p.window); }
  Expected<Dims> operator()(const AveragePool& p) const { return pooled(p.window); }
  Expected<Dims> operator()(const GlobalAveragePool&) const {
    if (in().size() != 3) return mismatch(node, "needs an image, has " + to_string(in()));
    return Dims{in()[0], 1, 1};
  }
  Expected<Dims> operator()(const Dense& d) const {
    if (in().size() != 1 || d.out_features < 1 || !in_bounds(Dims{d.out_features, in()[0]}) ||
        size(d.weight) != d.out_features * in()[0] || (!d.bias.empty() && size(d.bias) != d.out_features))
      return mismatch(node, "its weights do not fit an input of " + to_string(in()));
    return Dims{d.out_features};
  }
  Expected<Dims> operator()(const Flatten&) const { return Dims{elements(in())}; }
  Expected<Dims> operator()(const Add&) const { return repeated(); }
  Expected<Dims> operator()(const Arithmetic&) const { return repeated(); }
  Expected<Dims> operator()(const SquareRoot&) const { return in(); }
  // Of two inputs, each repeated along the axes of the other that it lacks.
  Expected<Dims> repeated() const {
    const Dims &a = in(0), &b = in(1);
    Dims out(std::max(a.size(), b.size()));
    for (std::size_t i = 0; i < out.size(); ++i) {  // from the last axis
      const auto of_a = i < a.size() ? a[a.size() - 1 - i] : 1, of_b = i < b.size() ? b[b.size() - 1 - i] : 1;
      if (of_a != of_b && of_a != 1 && of_b != 1)
        return mismatch(node, "its inputs of " + to_string(a) + " and " + to_string(b) + " do not fit");
      out[out.size() - 1 - i] = of_a == 1 ? of_b : of_a;
    }
    return out;
  }
  bool has_axis(int axis) const { return axis >= 0 && static_cast<std::size_t>(axis) < in().size(); }
  Expected<Dims> operator()(const Concat& c) const {
    if (!has_axis(c.axis)) return mismatch(node, "has no axis " + std::to_string(c.axis));
    const auto axis = static_cast<std::size_t>(c.axis);
    Dims out = in();
    for (std::size_t i = 1; i < node.inputs.size(); ++i) {
      Dims next = in(i);
      if (next.size() != out.size()) return mismatch(node, "joins " + to_string(out) + " and " + to_string(next));
      const auto sum = out[axis] + next[axis];  // each is below 2^31, and there are few
      out[axis] = next[axis] = sum;
      if (out != next || sum > kElementsMax) return mismatch(node, "joins " + to_string(out) + " and " + to_string(in(i)));
    }
    return out;
  }
  Expected<Dims> operator()(const Slice& s) const {
    if (!has_axis(s.axis)) return mismatch(node, "has no axis " + std::to_string(s.axis));
    Dims out = in();
    auto& size = out[static_cast<std::size_t>(s.axis)];
    if (s.begin < 0 || s.begin > s.end || s.end > size)
      return mismatch(node, "takes " + std::to_string(s.begin) + " to " + std::to_string(s.end) + " of " +
                                std::to_string(size));
    size = s.end - s.begin;
    return out;
  }
  Expected<Dims> operator()(const Reshape& r) const {
    if (!in_bounds(r.to) || elements(r.to) != elements(in()))
      return mismatch(node, "cannot make " + to_string(r.to) + " of " + to_string(in()));
    return r.to;
  }
  Expected<Dims> operator()(const Transpose& t) const {
    std::vector<bool> taken(in().size(), false);
    Dims out;
    for (const int axis : t.order) {
      if (!has_axis(axis) || taken[static_cast<std::size_t>(axis)]) return mismatch(node, "its order is no permutation");
      taken[static_cast<std::size_t>(axis)] = true;
      out.push_back(in()[static_cast<std::size_t>(axis)]);
    }
    if (out.size() != in().size()) return mismatch(node, "its order is no permutation");
    return out;
  }
  Expected<Dims> operator()(const ChannelShuffle& s) const {
    if (in().size() != 3 || s.groups < 1 || in()[0] % s.groups != 0)
      return mismatch(node, "cannot shuffle " + to_string(in()) + " in " + std::to_string(s.groups) + " groups");
    return in();
  }
  Expected<Dims> operator()(const Constant& c) const {
    if (!in_bounds(c.dims) || size(c.values) != elements(c.dims)) return mismatch(node, "its values do not fit its shape");
    return c.dims;
  }
  Expected<Dims> operator()(const Identity&) const { return in(); }
};

bool slides(const Operator& op) {
  return std::holds_alternative<Convolution>(op) || std::holds_alternative<MaxPool>(op) ||
         std::holds_alternative<AveragePool>(op);
}
unexpected<Error> not_taken(const Node& node, const std::string& what, const std::string& who) {
  return unexpected(Error{ErrorCode::unsupported_operator,
                          "node " + node.name + " (" + name(node.op) + "): " + what + ", which " + who + " does not take"});
}
// Whether the operator makes numbers out of several: of none it would have nothing to say.
bool needs_numbers(const Operator& op) {
  return slides(op) || std::holds_alternative<GlobalAveragePool>(op) || std::holds_alternative<Dense>(op) ||
         std::holds_alternative<BatchNorm>(op);
}

}  // namespace

bool WindowAxis::in_bounds() const {
  const auto within = [](std::int64_t value, std::int64_t least) { return value >= least && value <= kWindowMax; };
  return within(kernel, 1) && within(stride, 1) && within(dilation, 1) && within(before, 0) && within(after, 0);
}

std::vector<WindowAxis> axes(const Window& w, const Dims& value) {
  const WindowAxis height{w.kernel_h, w.stride_h, w.pad_top, w.pad_bottom, w.dilation_h},
      width{w.kernel_w, w.stride_w, w.pad_left, w.pad_right, w.dilation_w};
  return value.size() == 4 ? std::vector{depth(w), height, width} : std::vector{height, width};
}

std::int64_t elements(const Dims& dims) {
  std::int64_t product = 1;
  for (const auto dim : dims) product *= dim;
  return product;
}

std::string to_string(const Dims& dims) {
  std::string out;
  for (const auto dim : dims) out += (out.empty() ? "" : "x") + std::to_string(dim);
  return out.empty() ? "scalar" : out;
}

std::string name(const Operator& op) {
  constexpr std::array kNames{"Convolution", "BatchNorm", "Relu",   "Clip",    "MaxPool",   "AveragePool",
                              "GlobalAveragePool", "Dense", "Flatten", "Add",  "Concat",    "Slice",
                              "Reshape", "Transpose", "ChannelShuffle", "Constant", "Identity", "Arithmetic", "SquareRoot"};
  static_assert(kNames.size() == std::variant_size_v<Operator>);
  return kNames[op.index()];
}

Expected<Dims> infer_shape(const Node& node, const std::vector<Dims>& known) {
  const bool two = std::holds_alternative<Add>(node.op) || std::holds_alternative<Arithmetic>(node.op);
  const std::size_t arity = two                                         ? 2
                            : std::holds_alternative<Constant>(node.op) ? 0
                            : std::holds_alternative<Concat>(node.op)   ? std::clamp<std::size_t>(node.inputs.size(), 1, 4096)
                                                                        : 1;
  if (node.inputs.size() != arity) return mismatch(node, "takes " + std::to_string(arity) + " inputs");
  for (const int input : node.inputs)
    if (input < 0 || input >= static_cast<int>(known.size())) return mismatch(node, "reads a value that comes later");
  for (const int input : node.inputs)
    if (const Dims& dims = known[static_cast<std::size_t>(input)]; needs_numbers(node.op) && elements(dims) == 0)
      return mismatch(node, "has nothing to work on in " + to_string(dims));
  auto shape = std::visit(Inference{node, known}, node.op);
  if (shape && !in_bounds(*shape)) return mismatch(node, "its output is too large: " + to_string(*shape));
  return shape;
}

Expected<std::vector<Dims>> infer_shapes(const Network& net) {
  if (!in_bounds(net.input))
    return unexpected(Error{ErrorCode::shape_mismatch, "the net's input cannot be " + to_string(net.input)});
  if (net.nodes.empty()) return unexpected(Error{ErrorCode::shape_mismatch, "the net has no nodes"});
  std::vector<Dims> shapes{net.input};
  for (const auto& node : net.nodes) {
    auto shape = infer_shape(node, shapes);
    if (!shape) return unexpected(shape.error());
    shapes.push_back(std::move(*shape));
  }
  return shapes;
}

Expected<void> check_filled(const Network& net, const std::vector<Dims>& shapes, const std::string& who) {
  for (std::size_t i = 0; i < shapes.size(); ++i)
    if (elements(shapes[i]) == 0)
      return unexpected(Error{
          ErrorCode::unsupported_operator,
          (i == 0 ? "the net's input" : "node " + net.nodes[i - 1].name + " (" + name(net.nodes[i - 1].op) + ")") +
              ": an empty value of " + to_string(shapes[i]) + ", which " + who + " does not take"});
  return {};
}

Expected<void> check_ordinary(const Network& net, const std::vector<Dims>& shapes, const std::string& who) {
  for (const auto& node : net.nodes)
    if (slides(node.op) && shapes[static_cast<std::size_t>(node.inputs.front())].size() == 4)
      return not_taken(node, "three spatial axes", who);
  return check_filled(net, shapes, who);
}

Expected<void> check_learnable(const Network& net, const std::vector<Dims>& shapes, const std::string& who) {
  for (const auto& node : net.nodes)
    if (std::holds_alternative<Arithmetic>(node.op) || std::holds_alternative<SquareRoot>(node.op))
      return not_taken(node, "arithmetic", who);
  return check_ordinary(net, shapes, who);
}

std::int64_t multiply_adds(const Network& net) {
  const auto shapes = infer_shapes(net);
  std::int64_t sum = 0;
  if (!shapes) return sum;
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    const auto& out = (*shapes)[i + 1];
    if (const auto* c = std::get_if<Convolution>(&net.nodes[i].op)) sum += size(c->weight) * (elements(out) / out[0]);
    if (const auto* d = std::get_if<Dense>(&net.nodes[i].op)) sum += size(d->weight);
  }
  return sum;
}

std::int64_t parameters(const Network& net) {
  std::int64_t sum = 0;
  for (const auto& node : net.nodes) {
    if (const auto* c = std::get_if<Convolution>(&node.op)) sum += size(c->weight) + size(c->bias);
    if (const auto* d = std::get_if<Dense>(&node.op)) sum += size(d->weight) + size(d->bias);
    if (const auto* b = std::get_if<BatchNorm>(&node.op)) sum += size(b->scale) + size(b->shift);
  }
  return sum;
}

Network vgg(Dims input, const std::vector<int>& widths, int classes, std::uint64_t seed) {
  Network net{"vgg", input, {}};
  std::mt19937_64 random(seed);
  const auto normal = [&](std::int64_t count, std::int64_t fan_in) {
    std::normal_distribution<float> draw(0.0F, std::sqrt(2.0F / static_cast<float>(fan_in)));
    std::vector<float> out(static_cast<std::size_t>(count));
    for (auto& value : out) value = draw(random);
    return out;
  };
  const auto push = [&](const std::string& name, Operator op) {
    net.nodes.push_back({name, std::move(op), {static_cast<int>(net.nodes.size())}});
  };
  std::int64_t channels = input[0], height = input[1], width = input[2];
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const std::int64_t out = widths[i];
    const auto number = std::to_string(i);
    Convolution conv{{3, 3, 1, 1, 1, 1, 1, 1}, out, 1, normal(out * channels * 9, channels * 9), {}};
    push("conv" + number, std::move(conv));
    BatchNorm norm;
    norm.scale.assign(static_cast<std::size_t>(out), 1.0F);
    norm.shift.assign(static_cast<std::size_t>(out), 0.0F);
    norm.mean = norm.shift;
    norm.variance = norm.scale;
    push("norm" + number, std::move(norm));
    push("relu" + number, Relu{});
    if (i % 2 == 1) {
      push("pool" + number, MaxPool{{2, 2, 2, 2, 0, 0, 0, 0}});
      height /= 2;
      width /= 2;
    }
    channels = out;
  }
  push("flatten", Flatten{});
  const auto features = channels * height * width;
  push("scores", Dense{classes, normal(classes * features, features),
                       std::vector<float>(static_cast<std::size_t>(classes), 0.0F)});
  return net;
}

}  // namespace coppice::gpu
