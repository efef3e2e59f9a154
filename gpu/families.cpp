#include "gpu/families.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <random>
#include <string>
#include <utility>

namespace coppice::gpu {
namespace {

constexpr std::int64_t kSmallMax = 64;  // pixels a side: CIFAR's stems up to here

enum class Activation : std::uint8_t { none, relu, relu6 };

struct Layer {  // a convolution with its norm
  std::int64_t out = 0, kernel = 3, stride = 1, groups = 1;
  Activation activation = Activation::relu;
};

// Appends layers and keeps the shape of every value; values are named by their indices, as in Network.
class Grower {
 public:
  Grower(std::string_view name, const Dims& input, int classes, std::uint64_t seed, double width)
      : net_{std::string(name), input, {}}, shapes_{input}, classes_(classes), width_(width), random_(seed) {}

  bool small() const { return net_.input[1] <= kSmallMax && net_.input[2] <= kSmallMax; }
  const Dims& shape(int value) const { return shapes_[static_cast<std::size_t>(value)]; }
  std::int64_t channels(int value) const { return shape(value)[0]; }

  // The nearest multiple of 8, one more where that would lose over a tenth.
  std::int64_t scaled(std::int64_t published) const {
    if (width_ == 1) return published;
    const double wanted = static_cast<double>(published) * width_;
    auto out = std::max<std::int64_t>(8, static_cast<std::int64_t>(wanted + 4) / 8 * 8);
    if (static_cast<double>(out) < 0.9 * wanted) out += 8;
    return out;
  }

  int push(const std::string& name, Operator op, std::vector<int> inputs) {
    Node node{name, std::move(op), std::move(inputs)};
    auto shape = infer_shape(node, shapes_);
    if (!shape && !fault_) fault_ = shape.error();
    // After a fault the net is not given out; growing on with a shape that holds keeps the builders free of checks.
    shapes_.push_back(shape ? std::move(*shape) : shapes_.front());
    net_.nodes.push_back(std::move(node));
    return static_cast<int>(net_.nodes.size());
  }

  // Same padding, so that a stride of 1 keeps the size.
  int layer(const std::string& name, int in, const Layer& l) {
    const auto fan_in = channels(in) / l.groups * l.kernel * l.kernel, pad = l.kernel / 2;
    Convolution conv{{l.kernel, l.kernel, l.stride, l.stride, pad, pad, pad, pad}, l.out, l.groups, {}, {}};
    conv.weight = normal(l.out * fan_in, fan_in);
    int value = push(name, std::move(conv), {in});
    const std::vector<float> ones(static_cast<std::size_t>(l.out), 1.0F), zeros(ones.size(), 0.0F);
    value = push(name + ".norm", BatchNorm{ones, zeros, zeros, ones}, {value});
    if (l.activation == Activation::relu) value = push(name + ".relu", Relu{}, {value});
    if (l.activation == Activation::relu6) value = push(name + ".relu6", Clip{0, 6}, {value});
    return value;
  }
  int dense(const std::string& name, int in, std::int64_t out) {
    const auto features = channels(in);
    return push(name, Dense{out, normal(out * features, features), std::vector<float>(static_cast<std::size_t>(out))},
                {in});
  }
  int max_pool(int in) { return push("pool", MaxPool{{3, 3, 2, 2, 1, 1, 1, 1}}, {in}); }
  // The mean of every channel, then the scores.
  void head(int in) {
    const int mean = push("mean", GlobalAveragePool{}, {in});
    scores(push("flatten", Flatten{}, {mean}));
  }
  void scores(int in) { dense("scores", in, classes_); }

  Expected<Network> finish() {
    if (fault_) return unexpected(Error{fault_->code, net_.name + ": " + fault_->what});
    return std::move(net_);
  }

 private:
  std::vector<float> normal(std::int64_t count, std::int64_t fan_in) {
    std::normal_distribution<float> draw(0.0F, std::sqrt(2.0F / static_cast<float>(fan_in)));
    std::vector<float> out(static_cast<std::size_t>(count));
    for (auto& value : out) value = draw(random_);
    return out;
  }

  Network net_;
  std::vector<Dims> shapes_;
  int classes_;
  double width_;
  std::mt19937_64 random_;
  std::optional<Error> fault_;
};

// ---- VGG ----

void vgg(Grower& g, const std::vector<int>& layers) {
  constexpr std::array<std::int64_t, 5> kWidths{64, 128, 256, 512, 512};
  int value = 0;
  for (std::size_t stage = 0; stage < layers.size(); ++stage) {
    const std::string name = "stage" + std::to_string(stage + 1);
    for (int i = 0; i < layers[stage]; ++i)
      value = g.layer(name + "." + std::to_string(i), value, {g.scaled(kWidths[stage])});
    if (g.shape(value)[1] > 1 && g.shape(value)[2] > 1)
      value = g.push(name + ".pool", MaxPool{{2, 2, 2, 2, 0, 0, 0, 0}}, {value});
  }
  value = g.push("flatten", Flatten{}, {value});
  for (int i = 1; i <= 2 && !g.small(); ++i) {
    const std::string name = "dense" + std::to_string(i);
    value = g.dense(name, value, g.scaled(4'096));
    value = g.push(name + ".relu", Relu{}, {value});
  }
  g.scores(value);
}

// ---- ResNet ----

// To `width` channels, or 4 * width of a bottleneck; around it the input, through a 1x1 layer where sizes differ.
int residual(Grower& g, const std::string& name, int in, std::int64_t width, std::int64_t stride, bool bottleneck) {
  const auto out = bottleneck ? 4 * width : width;
  int value = in;
  if (bottleneck) {
    value = g.layer(name + ".reduce", value, {width, 1});
    value = g.layer(name + ".conv", value, {width, 3, stride});
    value = g.layer(name + ".expand", value, {out, 1, 1, 1, Activation::none});
  } else {
    value = g.layer(name + ".conv1", value, {width, 3, stride});
    value = g.layer(name + ".conv2", value, {out, 3, 1, 1, Activation::none});
  }
  if (stride != 1 || g.channels(in) != out) in = g.layer(name + ".shortcut", in, {out, 1, stride, 1, Activation::none});
  return g.push(name + ".relu", Relu{}, {g.push(name + ".add", Add{}, {value, in})});
}

// Each stage but the first halves the image and doubles the channels.
void residual_stages(Grower& g, int value, std::int64_t width, const std::vector<int>& blocks, bool bottleneck) {
  for (std::size_t stage = 0; stage < blocks.size(); ++stage, width *= 2)
    for (int i = 0; i < blocks[stage]; ++i)
      value = residual(g, "stage" + std::to_string(stage + 1) + "." + std::to_string(i), value, g.scaled(width),
                       stage > 0 && i == 0 ? 2 : 1, bottleneck);
  g.head(value);
}

void imagenet_resnet(Grower& g, const std::vector<int>& blocks, bool bottleneck) {
  int value = g.layer("stem", 0, {g.scaled(64), g.small() ? 3 : 7, g.small() ? 1 : 2});
  if (!g.small()) value = g.max_pool(value);
  residual_stages(g, value, 64, blocks, bottleneck);
}

void basic_resnet(Grower& g, const std::vector<int>& blocks) { imagenet_resnet(g, blocks, false); }
void bottleneck_resnet(Grower& g, const std::vector<int>& blocks) { imagenet_resnet(g, blocks, true); }

void cifar_resnet(Grower& g, const std::vector<int>& depths) {
  const int depth = depths.front();
  const int blocks = (depth - 2) / 6;
  residual_stages(g, g.layer("stem", 0, {g.scaled(16)}), 16, {blocks, blocks, blocks}, depth >= 44);
}

// ---- MobileNetV2 ----

int inverted_residual(Grower& g, const std::string& name, int in, std::int64_t expansion, std::int64_t out,
                      std::int64_t stride) {
  const auto hidden = expansion * g.channels(in);
  int value = in;
  if (expansion != 1) value = g.layer(name + ".expand", value, {hidden, 1, 1, 1, Activation::relu6});
  value = g.layer(name + ".depthwise", value, {hidden, 3, stride, hidden, Activation::relu6});
  value = g.layer(name + ".project", value, {out, 1, 1, 1, Activation::none});
  return stride == 1 && g.channels(in) == out ? g.push(name + ".add", Add{}, {in, value}) : value;
}

void mobilenet_v2(Grower& g, const std::vector<int>& blocks) {
  struct Stage {
    std::int64_t expansion, channels, stride;
  };
  const std::int64_t early = g.small() ? 1 : 2;
  const std::array<Stage, 7> stages{
      {{1, 16, 1}, {6, 24, early}, {6, 32, 2}, {6, 64, 2}, {6, 96, 1}, {6, 160, 2}, {6, 320, 1}}};
  int value = g.layer("stem", 0, {g.scaled(32), 3, early, 1, Activation::relu6});
  for (std::size_t s = 0; s < stages.size(); ++s)
    for (int i = 0; i < blocks[s]; ++i)
      value = inverted_residual(g, "stage" + std::to_string(s + 1) + "." + std::to_string(i), value,
                                stages[s].expansion, g.scaled(stages[s].channels), i == 0 ? stages[s].stride : 1);
  g.head(g.layer("last", value, {g.scaled(1'280), 1, 1, 1, Activation::relu6}));
}

// ---- ShuffleNetV2 ----

// Half of the channels pass by; the other half, or all where the size is halved, go through a depthwise bottleneck.
int shuffle_unit(Grower& g, const std::string& name, int in, std::int64_t half, std::int64_t stride) {
  int beside = in, value = in;
  if (stride == 1) {
    beside = g.push(name + ".beside", Slice{0, 0, half}, {in});
    value = g.push(name + ".through", Slice{0, half, 2 * half}, {in});
  } else {
    const auto all = g.channels(in);
    beside = g.layer(name + ".beside.depthwise", beside, {all, 3, stride, all, Activation::none});
    beside = g.layer(name + ".beside.project", beside, {half, 1});
  }
  value = g.layer(name + ".expand", value, {half, 1});
  value = g.layer(name + ".depthwise", value, {half, 3, stride, half, Activation::none});
  value = g.layer(name + ".project", value, {half, 1});
  return g.push(name + ".shuffle", ChannelShuffle{2}, {g.push(name + ".concat", Concat{0}, {beside, value})});
}

void shufflenet_v2(Grower& g, const std::vector<int>& units) {
  constexpr std::array<std::int64_t, 3> kHalves{58, 116, 232};  // of each stage's channels
  int value = g.layer("stem", 0, {g.scaled(24), 3, g.small() ? 1 : 2});
  if (!g.small()) value = g.max_pool(value);
  for (std::size_t s = 0; s < units.size(); ++s)
    for (int i = 0; i < units[s]; ++i)
      value = shuffle_unit(g, "stage" + std::to_string(s + 2) + "." + std::to_string(i), value, g.scaled(kHalves[s]),
                           i == 0 ? 2 : 1);
  g.head(g.layer("last", value, {g.scaled(1'024), 1}));
}

// ---- by name ----

struct Family {
  std::string_view name;
  void (*grow)(Grower&, const std::vector<int>&);
  std::vector<int> numbers;  // layers or blocks of each stage; the depth of CIFAR's ResNets
};

const std::vector<Family>& families() {
  static const std::vector<Family> kAll{
      {"vgg11-bn", vgg, {1, 1, 2, 2, 2}},
      {"vgg13-bn", vgg, {2, 2, 2, 2, 2}},
      {"vgg16-bn", vgg, {2, 2, 3, 3, 3}},
      {"vgg19-bn", vgg, {2, 2, 4, 4, 4}},
      {"resnet-18", basic_resnet, {2, 2, 2, 2}},
      {"resnet-50", bottleneck_resnet, {3, 4, 6, 3}},
      {"resnet-20", cifar_resnet, {20}},
      {"resnet-56", cifar_resnet, {56}},
      {"resnet-110", cifar_resnet, {110}},
      {"resnet-164", cifar_resnet, {164}},
      {"mobilenet-v2", mobilenet_v2, {1, 2, 3, 4, 3, 3, 1}},
      {"shufflenet-v2", shufflenet_v2, {4, 8, 4}},
  };
  return kAll;
}

}  // namespace

const std::vector<std::string_view>& family_names() {
  static const std::vector<std::string_view> kNames = [] {
    std::vector<std::string_view> names;
    for (const auto& family : families()) names.push_back(family.name);
    return names;
  }();
  return kNames;
}

Expected<Network> family(std::string_view name, const Dims& input, int classes, std::uint64_t seed, double width) {
  const auto found = std::find_if(families().begin(), families().end(), [&](const auto& f) { return f.name == name; });
  const auto fault = [&](ErrorCode code, const std::string& why) {
    return unexpected(Error{code, std::string(name) + ": " + why});
  };
  if (found == families().end()) {
    std::string known;
    for (const auto& each : family_names()) known += (known.empty() ? "" : ", ") + std::string(each);
    return fault(ErrorCode::unsupported_operator, "no such network family; there are " + known);
  }
  const auto sides_fit = [](std::int64_t side) { return side >= 8 && side <= 4'096; };
  if (input.size() != 3 || input[0] < 1 || input[0] > 4'096 || !sides_fit(input[1]) || !sides_fit(input[2]))
    return fault(ErrorCode::shape_mismatch, "takes images of 8 to 4096 pixels a side, not " + to_string(input));
  if (classes < 1 || classes > 1'000'000)
    return fault(ErrorCode::shape_mismatch, "cannot tell " + std::to_string(classes) + " classes apart");
  if (!(width > 0 && width <= 8))
    return fault(ErrorCode::shape_mismatch, "its width must be above 0 and at most 8, not " + std::to_string(width));
  Grower grower(name, input, classes, seed, width);
  found->grow(grower, found->numbers);
  return grower.finish();
}

}  // namespace coppice::gpu
