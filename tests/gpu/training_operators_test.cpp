// Gradients of each operator alone and of whole nets, against differences of the double-precision reference.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <functional>

#include "gpu/training.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/training_reference.hpp"

namespace coppice::gpu {
namespace {

using reference::Case;

constexpr double kForward = 5e-5, kGradient = 5e-4;  // relative to the largest expected number
constexpr int kSampled = 3;                          // parameters, and inputs, of each net whose gradients are checked

std::unique_ptr<TrainableNet> trainable(const Network& net, int batch, int threads = 1) {
  auto device = make_cpu_device({threads});
  EXPECT_TRUE(device) << device.error().what;
  auto made = (*device)->compile_training(net, {.batch = batch, .input_gradient = true});
  EXPECT_TRUE(made) << made.error().what;
  return made ? std::move(*made) : nullptr;
}

// Every number that learns or runs along, in the order of TrainingState.
struct Parameter {
  float* value;
  bool learned;
};
std::vector<Parameter> parameters_of(Network& net) {
  std::vector<Parameter> out;
  reference::each_parameter(net, [&](std::vector<float>& array, bool learned) {
    for (float& value : array) out.push_back({&value, learned});
  });
  return out;
}

Case draw_case(Network net, int batch, Mode mode, std::uint64_t seed) {
  const auto scores = elements(infer_shapes(net)->back()) * batch;
  auto input = random_input(net, batch, seed);
  return {std::move(net), std::move(input), NetSampler(seed + 1).floats(scores), mode};
}

void check_parameters(Case& c, TrainableNet& net, NetSampler& sample) {
  std::vector<float> gradients(static_cast<std::size_t>(net.parameter_elements()));
  RC_ASSERT(net.read_gradients(gradients).has_value());
  const auto parameters = parameters_of(c.net);
  RC_ASSERT(parameters.size() == gradients.size());
  double scale = 1;
  for (const float g : gradients) scale = std::max(scale, std::abs(static_cast<double>(g)));
  for (int i = 0; i < kSampled && !parameters.empty(); ++i) {
    const auto at = static_cast<std::size_t>(sample.number(0, std::ssize(parameters) - 1));
    const auto expected = parameters[at].learned ? reference::slope(c, c.net, *parameters[at].value) : std::optional(0.0);
    if (expected) RC_ASSERT(std::abs(gradients[at] - *expected) <= (parameters[at].learned ? kGradient * scale : 0));
  }
}

void check_input(const Case& c, TrainableNet& net, NetSampler& sample) {
  std::vector<float> gradients(c.input.size());
  RC_ASSERT(net.read_value_gradient(0, gradients).has_value());
  double scale = 1;
  for (const float g : gradients) scale = std::max(scale, std::abs(static_cast<double>(g)));
  const auto item = static_cast<std::size_t>(elements(c.net.input));
  for (int i = 0; i < kSampled; ++i) {
    const auto at = static_cast<std::size_t>(sample.number(0, std::ssize(gradients) - 1));
    const auto expected = reference::slope(c, {0, at / item, at % item});
    if (expected) RC_ASSERT(std::abs(gradients[at] - *expected) < kGradient * scale);
  }
}

// Every value forward, then gradients of parameters and of the input.
void check(Case c, std::uint64_t seed) {
  const auto net = trainable(c.net, static_cast<int>(std::ssize(c.input) / elements(c.net.input)));
  RC_ASSERT(net != nullptr);
  std::vector<float> scores(c.score_gradients.size());
  RC_ASSERT(net->forward(c.input, scores, c.mode).has_value());
  const auto expected = reference::all_values(c.net, c.input, c.mode);
  RC_ASSERT(reference::error(scores, reference::flattened(expected.back())) < kForward);
  for (std::size_t v = 0; v < expected.size(); ++v) {
    const auto wanted = reference::flattened(expected[v]);
    std::vector<float> got(wanted.size());
    RC_ASSERT(net->read_value(static_cast<int>(v), got).has_value());
    RC_ASSERT(reference::error(got, wanted) < kForward);
  }
  RC_ASSERT(net->backward(c.score_gradients).has_value());
  NetSampler sample(seed);
  check_parameters(c, *net, sample);
  check_input(c, *net, sample);
}

// What `append` puts onto an image of random size learns as it should, alone and behind a convolution.
void holds(const std::function<void(Builder&)>& append, bool image = true) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  const auto batch = *rc::gen::inRange(2, 5);
  const auto mode = *rc::gen::element(Mode::train, Mode::evaluate);
  Builder b({}, seed);
  b.net.input = image ? Dims{b.draw(1, 10), b.draw(1, 6), b.draw(1, 6)} : Dims{b.draw(1, 20)};
  append(b);
  check(draw_case(b.net, batch, mode, seed + 1), seed + 2);
}

int last(const Builder& b) { return static_cast<int>(b.net.nodes.size()); }

RC_GTEST_PROP(TrainingOperators, Convolution, ()) {
  holds([](Builder& b) { b.conv(0, b.window(false), b.draw(1, 20), 1, b.toss()); });
}

RC_GTEST_PROP(TrainingOperators, ConvolutionInGroups, ()) {
  holds([](Builder& b) {
    const auto groups = b.draw(1, 6);
    b.net.input[0] = groups * b.draw(1, 5);
    b.conv(0, b.window(false), groups * b.draw(1, 5), groups, b.toss());
  });
}

RC_GTEST_PROP(TrainingOperators, DepthwiseConvolution, ()) {
  holds([](Builder& b) { b.conv(0, b.window(false), b.net.input[0], b.net.input[0], b.toss()); });
}

RC_GTEST_PROP(TrainingOperators, DilatedConvolution, ()) {
  holds([](Builder& b) {
    Window w{2, 2, b.draw(1, 2), b.draw(1, 2), 2, 2, 2, 2, b.draw(1, 3), b.draw(1, 3)};
    b.conv(0, w, b.draw(1, 20), 1, b.toss());
  });
}

RC_GTEST_PROP(TrainingOperators, BatchNorm, ()) {
  holds([](Builder& b) {
    int at = b.toss() ? b.conv3x3(0, b.draw(1, 20)) : 0;
    at = b.norm(at);
    if (b.toss()) at = b.relu(at);
    if (b.toss()) b.conv3x3(at, 3);
  });
}

RC_GTEST_PROP(TrainingOperators, BatchNormOfAVector, ()) {
  holds(
      [](Builder& b) {
        const int at = b.norm(b.dense(0, b.draw(1, 20)));
        if (b.toss()) b.dense(b.relu(at), 4);
      },
      false);
}

RC_GTEST_PROP(TrainingOperators, BatchNormOfOtherAxes, ()) {
  holds([](Builder& b) {
    const int conv = b.conv3x3(0, b.draw(1, 20));
    const Dims dims = b.shape(conv);
    int at = b.push(Reshape{{dims[0], dims[1] * dims[2]}}, {conv});
    if (b.toss()) at = b.push(Transpose{{1, 0}}, {at});
    at = b.norm(at);
    if (b.toss()) b.dense(b.flatten(b.relu(at)), 3);
  });
}

RC_GTEST_PROP(TrainingOperators, Relu, ()) {
  holds([](Builder& b) { b.relu(b.toss() ? b.conv3x3(0, b.draw(1, 20)) : 0); });
}

RC_GTEST_PROP(TrainingOperators, Clip, ()) {
  holds([](Builder& b) { b.push(Clip{-0.5F, 0.7F}, {b.toss() ? b.conv3x3(0, b.draw(1, 20)) : 0}); });
}

RC_GTEST_PROP(TrainingOperators, MaxPool, ()) {
  holds([](Builder& b) { b.push(MaxPool{b.window(true)}, {b.toss() ? b.conv3x3(0, b.draw(1, 20)) : 0}); });
}

RC_GTEST_PROP(TrainingOperators, AveragePool, ()) {
  holds([](Builder& b) {
    b.push(AveragePool{b.window(true), b.toss()}, {b.toss() ? b.conv3x3(0, b.draw(1, 20)) : 0});
  });
}

RC_GTEST_PROP(TrainingOperators, GlobalAveragePool, ()) {
  holds([](Builder& b) { b.dense(b.flatten(b.push(GlobalAveragePool{}, {b.conv3x3(0, b.draw(1, 20))})), 3); });
}

RC_GTEST_PROP(TrainingOperators, Dense, ()) {
  holds([](Builder& b) { b.dense(b.dense(0, b.draw(1, 20), b.toss()), b.draw(1, 20), b.toss()); }, false);
}

RC_GTEST_PROP(TrainingOperators, FlattenReshapeIdentity, ()) {
  holds([](Builder& b) {
    const int conv = b.conv3x3(0, b.draw(1, 20));
    const int flat = b.identity(b.flatten(b.identity(conv)));
    const Dims image = b.shape(conv);
    const int turned = b.push(Reshape{{image[1], image[0], image[2]}}, {flat});
    if (b.toss()) b.conv3x3(turned, 3);
  });
}

RC_GTEST_PROP(TrainingOperators, AddOfTwoBranches, ()) {
  holds([](Builder& b) {
    const auto channels = b.draw(1, 20);
    const int trunk = b.toss() ? b.relu(b.conv3x3(0, channels)) : b.conv3x3(0, channels);
    int at = b.add(b.conv3x3(trunk, channels), b.toss() ? trunk : b.conv3x3(0, channels));
    if (b.toss()) at = b.relu(at);
    if (b.toss()) at = b.add(at, trunk);
    if (b.toss()) b.add(at, at);
  });
}

RC_GTEST_PROP(TrainingOperators, AddThatRepeats, ()) {
  holds([](Builder& b) {
    const auto c = b.draw(1, 5), h = b.draw(1, 4), w = b.draw(1, 4);
    b.net.input = {c, h, w};
    const int left = b.conv3x3(0, c);
    const int column = b.push(Reshape{{c, 1, 1}}, {b.dense(b.flatten(0), c)});
    const int row = b.dense(b.flatten(left), w);
    const int first = b.toss() ? b.add(left, column) : b.add(column, left);
    b.add(b.toss() ? first : b.add(row, column), row);
  });
}

RC_GTEST_PROP(TrainingOperators, Concat, ()) {
  holds([](Builder& b) {
    const int axis = static_cast<int>(b.draw(0, 2));
    const auto channels = b.draw(1, 20);
    const int a = b.conv3x3(0, channels);
    std::vector<int> inputs{a, b.relu(a)};
    if (b.toss()) inputs.push_back(b.conv3x3(0, axis == 0 ? b.draw(1, 20) : channels));
    if (b.toss()) inputs.push_back(a);
    const int joined = b.push(Concat{axis}, inputs);
    if (b.toss()) b.conv3x3(joined, 3);
  });
}

RC_GTEST_PROP(TrainingOperators, Slice, ()) {
  holds([](Builder& b) {
    const int at = b.conv3x3(0, b.toss() ? 32 : b.draw(2, 20));
    const Dims dims = b.shape(at);
    const int axis = dims[1] > 1 && b.toss() ? 1 : 0;
    const auto size = dims[static_cast<std::size_t>(axis)], cut = size == 32 ? 16 : b.draw(1, size - 1);
    const int low = b.push(Slice{axis, 0, cut}, {at}), high = b.push(Slice{axis, cut, size}, {at});
    if (b.toss())
      b.push(Concat{axis}, {high, b.relu(low), at});
    else
      b.conv3x3(high, 3);
  });
}

RC_GTEST_PROP(TrainingOperators, Transpose, ()) {
  holds([](Builder& b) {
    std::vector<int> order{0, 1, 2};
    std::shuffle(order.begin(), order.end(), std::mt19937_64(static_cast<std::uint64_t>(b.draw(0, 1000))));
    const int turned = b.push(Transpose{order}, {b.conv3x3(0, b.draw(1, 20))});
    if (b.toss()) b.conv3x3(turned, 3);
  });
}

RC_GTEST_PROP(TrainingOperators, ChannelShuffle, ()) {
  holds([](Builder& b) {
    const auto groups = b.draw(1, 4);
    b.push(ChannelShuffle{groups}, {b.conv3x3(0, groups * b.draw(1, 8))});
    b.conv3x3(last(b), 3);
  });
}

RC_GTEST_PROP(TrainingOperators, Constant, ()) {
  holds([](Builder& b) {
    const int at = b.conv3x3(0, b.draw(1, 20));
    const Dims dims = b.shape(at);
    b.add(at, b.push(Constant{dims, b.sample.floats(elements(dims))}, {}));
  });
}

RC_GTEST_PROP(TrainingNets, Random, ()) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  const auto mode = *rc::gen::element(Mode::train, Mode::evaluate);
  const auto net = random_net(seed, *rc::gen::inRange(1, 9));
  check(draw_case(net, *rc::gen::inRange(2, 4), mode, seed + 1), seed + 2);
}

}  // namespace
}  // namespace coppice::gpu
