// Each operator and each fusion of the CPU device alone, and nets beside one another.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <functional>
#include <limits>
#include <thread>

#include "gpu/device.hpp"
#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

constexpr double kTolerance = 2e-5;

std::unique_ptr<CompiledNet> compiled(const Network& net, int batch, int threads = 1) {
  auto device = make_cpu_device({threads});
  EXPECT_TRUE(device) << device.error().what;
  auto made = (*device)->compile(net, {batch});
  EXPECT_TRUE(made) << made.error().what;
  return made ? std::move(*made) : nullptr;
}

std::vector<float> run(CompiledNet& net, const std::vector<float>& input) {
  std::vector<float> output(static_cast<std::size_t>(net.output_elements()), std::numeric_limits<float>::quiet_NaN());
  const auto done = net.run(input, output);
  EXPECT_TRUE(done) << done.error().what;
  return output;
}

double error_of(const Network& net, int batch, std::uint64_t seed) {
  const auto input = random_input(net, batch, seed);
  const auto ready = compiled(net, batch);
  if (!ready) return std::numeric_limits<double>::infinity();
  return reference::error(run(*ready, input), reference::forward(net, input));
}

// What `append` puts onto an image of random size does what it is defined to do.
void holds(const std::function<void(Builder&)>& append) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  const auto batch = *rc::gen::inRange(1, 4);
  Builder b({}, seed);
  b.net.input = {b.draw(1, 20), b.draw(1, 10), b.draw(1, 10)};
  append(b);
  RC_ASSERT(error_of(b.net, batch, seed + 1) < kTolerance);
}

RC_GTEST_PROP(CpuOperators, Convolution, ()) {
  holds([](Builder& b) { b.conv(0, b.window(false), b.draw(1, 20), 1, b.toss()); });
}

RC_GTEST_PROP(CpuOperators, ConvolutionInGroups, ()) {
  holds([](Builder& b) {
    const auto groups = b.draw(1, 6);
    b.net.input[0] = groups * b.draw(1, 5);
    b.conv(0, b.window(false), groups * b.draw(1, 5), groups, b.toss());
  });
}

RC_GTEST_PROP(CpuOperators, ConvolutionWiderThanTheImage, ()) {
  holds([](Builder& b) {
    const auto h = b.draw(1, 4), w = b.draw(1, 4);
    b.net.input = {b.draw(1, 3), h, w};
    b.conv(0, {h + b.draw(0, 3), w + b.draw(0, 3), b.draw(1, 2), b.draw(1, 2), 2, 1, 1, 2}, b.draw(1, 9));
  });
}

RC_GTEST_PROP(CpuOperators, ConvolutionWithRelu, ()) {
  holds([](Builder& b) { b.relu(b.conv(0, b.window(false), b.draw(1, 20), 1, b.toss())); });
}

RC_GTEST_PROP(CpuOperators, ConvolutionWithNorm, ()) {
  holds([](Builder& b) {
    const int norm = b.norm(b.conv(0, b.window(false), b.draw(1, 20), 1, b.toss()));
    if (b.toss()) b.relu(norm);
  });
}

RC_GTEST_PROP(CpuOperators, NormOfTheInput, ()) {
  holds([](Builder& b) {
    const int norm = b.norm(b.toss() ? b.flatten(0) : 0);
    if (b.toss()) b.relu(norm);
  });
}

RC_GTEST_PROP(CpuOperators, MaxPool, ()) {
  holds([](Builder& b) { b.push(MaxPool{b.window(true)}, {0}); });
}

RC_GTEST_PROP(CpuOperators, AveragePool, ()) {
  holds([](Builder& b) { b.push(AveragePool{b.window(true), b.toss()}, {0}); });
}

RC_GTEST_PROP(CpuOperators, GlobalAveragePool, ()) {
  holds([](Builder& b) { b.push(GlobalAveragePool{}, {0}); });
}

RC_GTEST_PROP(CpuOperators, Relu, ()) {
  holds([](Builder& b) { b.relu(0); });
}

RC_GTEST_PROP(CpuOperators, Dense, ()) {
  holds([](Builder& b) {
    b.net.input = {b.draw(1, 70)};
    const int dense = b.dense(0, b.draw(1, 40), b.toss());
    if (b.toss()) b.relu(dense);
  });
}

RC_GTEST_PROP(CpuOperators, ConvolutionWithDilation, ()) {
  holds([](Builder& b) {
    auto w = b.window(false);
    w.kernel_h = std::min<std::int64_t>(w.kernel_h, 2);
    w.dilation_h = b.draw(1, 3);
    w.pad_top = w.pad_bottom = w.dilation_h;
    b.clip(b.conv(0, w, b.draw(1, 20), 1, b.toss()));
  });
}

RC_GTEST_PROP(CpuOperators, ConvolutionOfManyChannelsAndFewPixels, ()) {
  holds([](Builder& b) {
    b.net.input = {b.draw(128, 140), b.draw(1, 5), b.draw(1, 5)};
    const auto out = b.toss() ? b.net.input[0] : b.draw(128, 150), spread = b.draw(1, 2);
    const Window w{3, 3, 1, 1, spread, 1, spread, 1, spread, 1};
    const int conv = b.conv(0, w, out, 1, b.toss());
    if (b.shape(conv) == b.net.input) b.add(conv, 0);
  });
}

// Channels and rows of all the sizes that kernels over blocks of channels are cut into.
RC_GTEST_PROP(CpuOperators, ConvolutionOfManySizes, ()) {
  holds([](Builder& b) {
    b.net.input = {b.draw(8, 40), b.draw(1, 6), b.draw(1, 30)};
    const auto out = b.toss() ? b.net.input[0] : b.draw(8, 60), stride = b.draw(1, 2);
    const int conv = b.conv(0, {3, 3, stride, stride, 1, 1, 1, 1}, out, 1, b.toss());
    const int made = b.shape(conv) == b.net.input ? b.add(conv, 0) : conv;
    if (b.toss()) b.push(MaxPool{{2, 2, 2, 2, 1, 1, 1, 1}}, {b.relu(made)});
  });
}

RC_GTEST_PROP(CpuOperators, MaxPoolWithDilation, ()) {
  holds([](Builder& b) {
    b.net.input = {b.draw(1, 20), b.draw(5, 10), b.draw(5, 10)};
    b.push(MaxPool{{2, 3, 1, 2, 0, 0, 0, 0, b.draw(1, 4), b.draw(1, 2)}}, {0});
  });
}

RC_GTEST_PROP(CpuOperators, Clip, ()) {
  holds([](Builder& b) { b.clip(b.toss() ? b.flatten(0) : 0); });
}

RC_GTEST_PROP(CpuOperators, Arithmetic, ()) {
  holds([](Builder& b) {
    Dims other = b.net.input;
    for (auto& dim : other)
      if (b.toss()) dim = 1;
    if (b.toss()) other.erase(other.begin());
    const bool repeated = b.toss();
    const auto kind = static_cast<Arithmetic::Kind>(b.draw(0, 2));
    const int second = repeated ? b.push(Constant{other, b.sample.floats(elements(other), 0.5F, 2)}, {})
                       : kind == Arithmetic::Kind::divide
                           ? b.push(Clip{0.5F, 2}, {b.relu(0)})
                           : b.relu(b.conv(0, {}, b.net.input[0]));
    const int made = b.toss() ? b.push(Arithmetic{kind}, {0, second}) : b.push(Arithmetic{Arithmetic::Kind::subtract}, {second, 0});
    if (b.toss()) b.push(SquareRoot{}, {b.relu(made)});
  });
}

RC_GTEST_PROP(CpuOperators, DepthwiseSeparableWithClips, ()) {
  holds([](Builder& b) {
    const auto wide = b.draw(1, 40);
    const int expanded = b.clip(b.conv(0, {}, wide));
    const int depthwise = b.clip(b.conv(expanded, {3, 3, 1, 1, 1, 1, 1, 1}, wide, wide));
    b.add(b.conv(depthwise, {}, b.net.input[0]), 0);
  });
}

RC_GTEST_PROP(CpuOperators, ShuffledUnits, ()) {
  holds([](Builder& b) {
    const auto half = b.draw(1, 20);
    b.net.input[0] = 2 * half;
    int value = 0;
    for (int unit = 0; unit < 3; ++unit) {
      const int left = b.push(Slice{0, 0, half}, {value}), right = b.push(Slice{0, half, 2 * half}, {value});
      const int branch = b.relu(b.conv(right, {3, 3, 1, 1, 1, 1, 1, 1}, half, b.toss() ? half : 1));
      value = b.push(ChannelShuffle{2}, {b.push(Concat{0}, {left, branch})});
    }
    if (b.toss()) b.push(GlobalAveragePool{}, {value});
  });
}

RC_GTEST_PROP(CpuOperators, SumsOfAnyTwoThatRepeat, ()) {
  holds([](Builder& b) {
    const auto c = b.net.input[0], w = b.net.input[2];
    const std::vector<Dims> shapes{{c, 1, 1}, {1, 1, w}, {w}, {1}, b.net.input, {1, b.net.input[1], 1}, {2, 1, 1, 1}};
    const Dims dims = shapes[static_cast<std::size_t>(b.draw(0, 6))];
    const int constant = b.push(Constant{dims, b.sample.floats(elements(dims))}, {});
    const int sum = b.toss() ? b.add(constant, 0) : b.add(0, constant);
    if (b.toss()) b.relu(sum);
  });
}

RC_GTEST_PROP(CpuOperators, ReshapesAndTransposes, ()) {
  holds([](Builder& b) {
    const Dims& in = b.net.input;
    const int six = b.push(Reshape{{in[0], 1, in[1], 1, in[2], 1}}, {b.toss() ? b.conv3x3(0, in[0]) : 0});
    const int turned = b.push(Transpose{{4, 1, 2, 5, 0, 3}}, {six});
    const int image = b.push(Reshape{{in[2], in[1], in[0]}}, {turned});
    if (b.toss()) b.conv3x3(image, 5);
  });
}

RC_GTEST_PROP(CpuOperators, SlicesAndConcatsAlongAnyAxis, ()) {
  holds([](Builder& b) {
    const int axis = static_cast<int>(b.draw(0, 2));
    const auto size = b.net.input[static_cast<std::size_t>(axis)];
    const int image = b.toss() ? b.conv3x3(0, b.net.input[0]) : 0;
    const int part = b.push(Slice{axis, size / 2, size}, {image});
    b.push(Concat{axis}, {part, image, part});
  });
}

RC_GTEST_PROP(CpuOperators, ResidualAddWithAndWithoutRelu, ()) {
  holds([](Builder& b) {
    const int conv = b.conv3x3(0, b.net.input[0]);
    const int sum = b.toss() ? b.add(0, conv) : b.add(conv, 0);
    if (b.toss()) b.relu(sum);
  });
}

// ---- volumes ----

void holds_of_volumes(const std::function<void(Builder&)>& append) {
  holds([&](Builder& b) {
    b.net.input = {b.draw(1, 20), b.draw(1, 6), b.draw(1, 8), b.draw(1, 8)};
    append(b);
  });
}

RC_GTEST_PROP(CpuOperators, ConvolutionOfVolumes, ()) {
  holds_of_volumes([](Builder& b) {
    const auto groups = b.toss() ? 1 : b.draw(1, 6);
    b.net.input[0] = groups * b.draw(1, 20);
    auto w = b.window(false);
    if (b.toss()) w.dilation_d = w.dilation_w = 2, w.pad_front = w.pad_left = 2 * w.kernel_d + 2 * w.kernel_w;
    const int conv = b.conv(0, w, groups * b.draw(1, 20), groups, b.toss());
    if (b.toss()) b.relu(b.toss() ? b.norm(conv) : conv);
  });
}

RC_GTEST_PROP(CpuOperators, ResidualAddOfVolumes, ()) {
  holds_of_volumes([](Builder& b) {
    const Window w{3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1};
    const auto channels = b.net.input[0];
    const int conv = b.conv(0, w, channels, b.toss() ? channels : 1), sum = b.toss() ? b.add(0, conv) : b.add(conv, 0);
    const int again = b.conv(b.clip(sum), w, b.draw(1, 20));
    if (b.toss()) b.norm(b.relu(again));
  });
}

RC_GTEST_PROP(CpuOperators, PoolsOfVolumes, ()) {
  holds_of_volumes([](Builder& b) {
    auto w = b.window(true);
    const int from = b.toss() ? b.conv(0, {}, b.draw(1, 20)) : 0;
    if (b.draw(0, 3) == 0) {  // as far as an axis has room for
      w = {1, 1, 1, 2};
      w.kernel_d = std::min<std::int64_t>(2, b.net.input[1]);
      w.dilation_d = b.draw(1, std::max<std::int64_t>(1, b.net.input[1] - 1));
    }
    b.push(b.toss() ? Operator(MaxPool{w}) : Operator(AveragePool{w, b.toss()}), {from});
  });
}

RC_GTEST_PROP(CpuOperators, MovesOfVolumes, ()) {
  holds_of_volumes([](Builder& b) {
    const int conv = b.conv(0, {3, 3, 1, 1, 1, 1, 1, 1}, b.draw(2, 20));
    const auto axis = static_cast<int>(b.draw(0, 3));
    const auto size = b.shape(conv)[static_cast<std::size_t>(axis)];
    const int part = b.push(Slice{axis, size / 2, size}, {conv}), joined = b.push(Concat{axis}, {part, conv});
    const int turned = b.push(Transpose{{0, 3, 1, 2}}, {joined});
    b.dense(b.flatten(b.toss() ? b.conv(turned, {}, 3) : turned), 4);
  });
}

// ---- fusions that must not be ----

class CpuFusion : public ::testing::Test {
 protected:
  void agrees() const { EXPECT_LT(error_of(b.net, 3, 2), kTolerance); }
  Builder b{{3, 6, 6}, 1};
};

TEST_F(CpuFusion, KeepsAConvolutionThatReluAndAddBothRead) {
  const int conv = b.conv3x3(0, 5);
  b.add(b.relu(conv), conv);
  agrees();
}

TEST_F(CpuFusion, KeepsAConvolutionThatReluAndNormBothRead) {
  const int conv = b.conv3x3(0, 5), norm = b.norm(conv);
  b.add(b.relu(conv), norm);
  agrees();
}

TEST_F(CpuFusion, KeepsASumThatReluAndAddBothRead) {
  const int sum = b.add(0, 0);
  b.add(b.relu(sum), sum);
  agrees();
}

TEST_F(CpuFusion, KeepsADenseLayerThatReluAndAddBothRead) {
  const int dense = b.dense(b.flatten(0), 4);
  b.add(b.relu(dense), dense);
  agrees();
}

TEST_F(CpuFusion, TakesUpAReluThatIsTheOutput) {
  b.relu(b.conv3x3(0, 5));
  agrees();
}

TEST_F(CpuFusion, LeavesAReluOfAnotherValue) {
  const int conv = b.conv3x3(0, 3), relu = b.relu(0);
  b.add(conv, relu);
  agrees();
}

TEST_F(CpuFusion, SeesReadersThroughIdentities) {
  const int conv = b.conv3x3(0, 3), same = b.identity(conv), relu = b.relu(conv);
  b.add(same, relu);
  agrees();
}

TEST_F(CpuFusion, KeepsAnAddendThatIsReadLater) {
  const int first = b.relu(b.conv3x3(0, 20)), sum = b.relu(b.add(b.conv3x3(first, 20), first));
  b.add(b.conv3x3(sum, 20), first);
  agrees();
}

TEST_F(CpuFusion, KeepsAnAddendOfWhichASliceIsReadLater) {
  const int first = b.relu(b.conv3x3(0, 32)), slice = b.push(Slice{0, 16, 32}, {first});
  const int sum = b.add(b.conv3x3(first, 32), first);
  b.push(Concat{0}, {sum, slice});
  agrees();
}

TEST_F(CpuFusion, AddsAConvolutionToItsOwnInput) {
  const int first = b.relu(b.conv3x3(0, 16));
  b.add(b.conv3x3(first, 16), first);
  agrees();
}

TEST_F(CpuFusion, AddsToTheLaterOfTwoConvolutions) {
  b.relu(b.add(b.conv3x3(0, 20), b.conv(0, {}, 20)));
  agrees();
}

TEST_F(CpuFusion, KeepsAClampedValueThatIsReadLater) {
  const int pool = b.push(MaxPool{{2, 2, 1, 1, 0, 0, 0, 0}}, {0});
  b.add(b.relu(pool), pool);
  agrees();
}

TEST_F(CpuFusion, GivesAConstantOut) {
  b.push(Constant{{2, 2}, {1, 2, 3, 4}}, {});
  agrees();
}

TEST_F(CpuFusion, GivesASliceOfTheInputOut) {
  b.push(Slice{0, 1, 2}, {0});
  agrees();
}

TEST_F(CpuFusion, ReadsTheInputAgainAtTheEnd) {
  b.add(b.conv3x3(b.conv3x3(b.conv3x3(0, 24), 24), 3), 0);
  agrees();
}

TEST_F(CpuFusion, FlattensFirst) {
  b.dense(b.flatten(0), 7);
  agrees();
}

TEST_F(CpuFusion, FlattensTwice) {
  b.dense(b.flatten(b.flatten(0)), 7);
  agrees();
}

TEST_F(CpuFusion, FlattensLast) {
  b.flatten(b.conv3x3(0, 17));
  agrees();
}

TEST_F(CpuFusion, PassesTheInputThroughAnyNumberOfIdentities) {
  b.identity(b.identity(b.identity(0)));
  agrees();
}

// ---- errors, and nets beside one another ----

TEST(CpuOperators, RefuseSpansOfOtherSizesAndLeaveThemAlone) {
  Builder b({2, 3, 3}, 1);
  b.relu(0);
  const auto net = compiled(b.net, 2);
  ASSERT_TRUE(net);
  for (const auto& [in, out] :
       {std::pair<std::size_t, std::size_t>{35, 36}, {36, 35}, {0, 36}, {36, 0}, {37, 36}, {36, 37}, {18, 18}}) {
    std::vector<float> output(out, 7.0F);
    const auto done = net->run(std::vector<float>(in), output);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::shape_mismatch);
    EXPECT_EQ(output, std::vector<float>(out, 7.0F));
  }
}

TEST(CpuOperators, RefuseNetsWhoseShapesDoNotInfer) {
  auto device = make_cpu_device({1});
  ASSERT_TRUE(device);
  std::vector<Network> bad;
  bad.push_back({"forward", {2, 3, 3}, {{"a", Relu{}, {2}}, {"b", Relu{}, {1}}}});
  bad.push_back({"negative", {2, 3, 3}, {{"a", Relu{}, {-1}}, {"b", Relu{}, {1}}}});
  bad.push_back({"norm", {2, 3, 3}, {{"a", Convolution{{}, 0, 0, {}, {}}, {0}}, {"b", BatchNorm{}, {1}}}});
  bad.push_back({"matrix", {3, 3}, {{"a", MaxPool{}, {0}}}});
  bad.push_back({"five axes", {1, 3, 3, 3, 3}, {{"a", MaxPool{}, {0}}}});
  for (const auto& net : bad) {
    const auto made = (*device)->compile(net, {1});
    ASSERT_FALSE(made) << net.name;
    EXPECT_EQ(made.error().code, ErrorCode::shape_mismatch) << net.name;
  }
}

TEST(CpuOperators, TakeNoStepsForEmptyValues) {
  Builder b({4, 5, 5}, 1);
  const int conv = b.conv3x3(0, 4), none = b.push(Slice{1, 2, 2}, {conv});
  const int sum = b.add(none, b.push(Constant{{1, 5}, b.sample.floats(5)}, {}));
  Builder whole = b;
  whole.relu(whole.push(Concat{1}, {sum, conv, whole.push(Transpose{{0, 1, 2}}, {none})}));
  EXPECT_LT(error_of(whole.net, 2, 3), kTolerance);
  EXPECT_EQ(simplified(whole.net).nodes.size(), 2U);
  b.push(Reshape{{0, 7}}, {sum});
  EXPECT_EQ(simplified(b.net).nodes.size(), 1U);
  const auto ready = compiled(b.net, 2);
  ASSERT_TRUE(ready);
  EXPECT_EQ(ready->input_elements(), 2 * 4 * 5 * 5);
  EXPECT_EQ(ready->output_elements(), 0);
  EXPECT_EQ(run(*ready, random_input(b.net, 2, 1)), std::vector<float>());
}

TEST(CpuOperators, TakeNothing) {
  Builder b({0}, 1);
  b.relu(b.push(Constant{{2, 2}, {1, -2, 3, -4}}, {}));
  const auto ready = compiled(b.net, 1);
  ASSERT_TRUE(ready);
  EXPECT_EQ(run(*ready, {}), (std::vector<float>{1, 0, 3, 0}));
  Builder joined({3, 0}, 1);
  joined.push(Concat{1}, {0, joined.push(Constant{{3, 1}, {1, 2, 3}}, {}), 0});
  EXPECT_EQ(run(*compiled(joined.net, 2), {}), (std::vector<float>{1, 2, 3, 1, 2, 3}));
  Builder passed({3, 0}, 1);
  passed.relu(0);
  EXPECT_EQ(run(*compiled(passed.net, 2), {}), std::vector<float>());
}

TEST(CpuOperators, GiveTheSameNumbersOnTwoThreads) {
  const Network net = vgg({1, 28, 28}, {16, 16, 32, 32}, 10, 3);
  const auto input = random_input(net, 2, 4);
  EXPECT_LT(reference::error(run(*compiled(net, 2, 2), input), run(*compiled(net, 2, 1), input)), 1e-6);
}

TEST(CpuOperators, GiveEqualNumbersTwice) {
  const Network net = vgg({1, 12, 12}, {8, 8, 16}, 10, 3);
  const auto ready = compiled(net, 3);
  const auto first_input = random_input(net, 3, 4), second_input = random_input(net, 3, 5);
  const auto first = run(*ready, first_input), second = run(*ready, second_input);
  EXPECT_NE(first, second);
  EXPECT_EQ(run(*ready, first_input), first);
  EXPECT_EQ(run(*ready, second_input), second);
}

TEST(CpuOperators, DoNotDisturbANetThatTakesTurns) {
  auto device = make_cpu_device({1});
  ASSERT_TRUE(device);
  const Network small = vgg({1, 12, 12}, {8, 8, 16}, 10, 3), large = vgg({3, 14, 14}, {16, 16, 24, 24}, 4, 5);
  auto a = (*device)->compile(small, {1}), b = (*device)->compile(large, {2});
  ASSERT_TRUE(a && b);
  device->reset();  // nets outlive their device
  const auto a_input = random_input(small, 1, 1), b_input = random_input(large, 2, 2);
  const auto a_first = run(**a, a_input), b_first = run(**b, b_input);
  EXPECT_LT(reference::error(a_first, reference::forward(small, a_input)), kTolerance);
  EXPECT_LT(reference::error(b_first, reference::forward(large, b_input)), kTolerance);
  for (int turn = 0; turn < 3; ++turn) {
    EXPECT_EQ(run(**a, a_input), a_first);
    EXPECT_EQ(run(**b, b_input), b_first);
  }
}

TEST(CpuOperators, RunOnTheirOwnThreadsAtOnce) {
  const Network net = vgg({1, 12, 12}, {8, 8, 16}, 10, 3);
  const auto input = random_input(net, 1, 4);
  const auto expected = run(*compiled(net, 1), input);
  std::vector<std::vector<float>> made(2);
  std::vector<std::thread> threads;
  for (auto& output : made)
    threads.emplace_back([&output, &input, ready = compiled(net, 1)] {
      for (int turn = 0; turn < 20; ++turn) output = run(*ready, input);
    });
  for (auto& thread : threads) thread.join();
  for (const auto& output : made) EXPECT_EQ(output, expected);
}

}  // namespace
}  // namespace coppice::gpu
