// What infer_shapes refuses, operator by operator, and which node it names.
#include <gtest/gtest.h>

#include <limits>

#include "tests/gpu/builder.hpp"

namespace coppice::gpu {
namespace {

using Numbers = std::vector<float>;
constexpr auto kMost = std::numeric_limits<std::int64_t>::max(), kLeast = std::numeric_limits<std::int64_t>::min();

void refused(const Dims& input, Operator op, std::vector<int> inputs = {0}) {
  const auto shapes =
      infer_shapes({"net", input, {{"before", Identity{}, {0}}, {"culprit", std::move(op), std::move(inputs)}}});
  ASSERT_FALSE(shapes);
  EXPECT_EQ(shapes.error().code, ErrorCode::shape_mismatch);
  EXPECT_NE(shapes.error().what.find("node culprit"), std::string::npos) << shapes.error().what;
}

Convolution conv(Window window, std::int64_t out, std::int64_t groups, std::size_t weights, std::size_t biases = 0) {
  return {window, out, groups, Numbers(weights), Numbers(biases)};
}

TEST(InferShapes, NamesTheConvolutionOfWrongWeights) {
  const Window w{3, 3, 1, 1, 1, 1, 1, 1};
  refused({2, 5, 5}, conv(w, 4, 1, 4 * 2 * 9 - 1));
  refused({2, 5, 5}, conv(w, 4, 1, 0));
  refused({2, 5, 5}, conv(w, 4, 1, 4 * 2 * 9, 3));
  refused({50}, conv(w, 4, 1, 4 * 2 * 9));
}

TEST(InferShapes, NamesTheConvolutionOfWrongGroups) {
  const Window w{1, 1, 1, 1, 0, 0, 0, 0};
  for (const std::int64_t groups : {kLeast, std::int64_t{-1}, std::int64_t{0}, std::int64_t{3}, std::int64_t{4}, kMost})
    refused({2, 5, 5}, conv(w, 4, groups, 8));
  refused({4, 5, 5}, conv(w, 6, 4, 6));
  for (const std::int64_t out : {std::int64_t{0}, std::int64_t{-4}, kMost, kLeast})
    refused({2, 5, 5}, conv(w, out, 1, 8));
}

TEST(InferShapes, NamesTheWindowThatDoesNotFit) {
  refused({1, 5, 5}, conv({6, 1, 1, 1, 0, 0, 0, 0}, 1, 1, 6));
  refused({1, 5, 5}, MaxPool{{1, 6, 1, 1, 0, 0, 0, 0}});
  refused({1, 5, 5}, AveragePool{{8, 1, 1, 1, 1, 0, 1, 0}, false});
}

TEST(InferShapes, NamesTheWindowThatCannotBe) {
  for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, kMost, kLeast}) {
    refused({1, 5, 5}, MaxPool{{value, 1, 1, 1, 0, 0, 0, 0}});
    refused({1, 5, 5}, AveragePool{{1, 1, 1, value, 0, 0, 0, 0}, true});
    refused({1, 5, 5}, conv({1, value, 1, 1, 0, 0, 0, 0}, 1, 1, 1));
    refused({1, 5, 5}, conv({1, 1, value, 1, 0, 0, 0, 0}, 1, 1, 1));
    if (value != 0) refused({1, 5, 5}, conv({1, 1, 1, 1, 0, 0, 0, value}, 1, 1, 1));
  }
}

TEST(InferShapes, NamesThePoolWhosePaddingHidesTheImage) {
  refused({1, 5, 5}, MaxPool{{2, 2, 1, 1, 2, 0, 0, 0}});
  refused({1, 5, 5}, AveragePool{{2, 2, 1, 1, 0, 0, 0, 2}, true});
  refused({25}, MaxPool{{2, 2, 1, 1, 0, 0, 0, 0}});
  refused({25}, GlobalAveragePool{});
}

TEST(InferShapes, NamesTheLayerThatDoesNotFitAVolume) {
  const Window cube{2, 2, 1, 1, 0, 0, 0, 0, 1, 1, 2};
  refused({1, 5, 5}, MaxPool{cube});  // an image has no depth
  refused({1, 1, 5, 5}, MaxPool{cube});
  refused({1, 2, 5, 5, 5}, MaxPool{cube});
  refused({2, 4, 4, 4}, conv(cube, 3, 1, 3 * 2 * 4));  // the weights of an image
  for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, kMost, kLeast}) {
    refused({1, 5, 5, 5}, MaxPool{{1, 1, 1, 1, 0, 0, 0, 0, 1, 1, value}});
    refused({1, 5, 5, 5}, conv({1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, value}, 1, 1, 1));
    refused({1, 5, 5, 5}, conv({1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, value}, 1, 1, 1));
    if (value != 0) refused({1, 5, 5, 5}, conv({1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, value}, 1, 1, 1));
  }
  refused({1, 5, 5, 5}, AveragePool{{1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0}, false});  // hides its input
  refused({1, 1'000, 1'000, 1'000}, conv({}, 3, 1, 3));
  refused({1, 1, 1, 1}, conv({1, 1, 1, 1, 2'000, 2'000, 2'000, 2'000, 1, 1, 1, 1, 2'000, 2'000}, 1, 1, 1));
}

TEST(InferShapes, FollowVolumes) {
  Builder b({2, 5, 6, 7}, 1);
  const int conv = b.conv(0, {3, 3, 2, 1, 1, 1, 1, 0, 1, 1, 2, 2, 0, 1}, 4, 2);
  EXPECT_EQ(b.shape(conv), (Dims{4, 3, 3, 6}));
  EXPECT_EQ(multiply_adds(b.net), 4 * 3 * 3 * 6 * (2 * 3 * 3));
  EXPECT_EQ(b.shape(b.push(MaxPool{{1, 2, 1, 2}}, {conv})), (Dims{4, 3, 3, 3}));
}

TEST(InferShapes, NamesTheLayerOfThreeAxesWhereTwoAreTaken) {
  Builder b({2, 5, 5, 5}, 1);
  b.relu(b.conv(0, {}, 2));
  b.net.nodes[0].name = "culprit";
  const auto taken = check_ordinary(b.net, *infer_shapes(b.net), "a test");
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::unsupported_operator);
  EXPECT_EQ(taken.error().what, "node culprit (Convolution): three spatial axes, which a test does not take");
  Builder moves({2, 5, 5, 5}, 1);
  moves.relu(0);
  EXPECT_TRUE(check_ordinary(moves.net, *infer_shapes(moves.net), "a test"));
}

TEST(InferShapes, NamesTheArithmeticWhereNoneIsTaken) {
  for (const Operator& op : {Operator(Arithmetic{}), Operator(SquareRoot{})}) {
    Builder b({2, 5}, 1);
    b.push(op, std::holds_alternative<SquareRoot>(op) ? std::vector{0} : std::vector{0, 0});
    b.net.nodes[0].name = "culprit";
    const auto taken = check_learnable(b.net, *infer_shapes(b.net), "a test");
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, ErrorCode::unsupported_operator);
    EXPECT_EQ(taken.error().what, "node culprit (" + name(op) + "): arithmetic, which a test does not take");
  }
}

TEST(InferShapes, FollowEmptyValues) {
  Builder b({2, 3, 4}, 1);
  const int none = b.push(Slice{1, 3, 3}, {0});
  EXPECT_EQ(b.shape(none), (Dims{2, 0, 4}));
  EXPECT_EQ(b.shape(b.push(Concat{1}, {none, 0, none})), (Dims{2, 3, 4}));
  EXPECT_EQ(b.shape(b.add(none, b.push(Constant{{1, 4}, Numbers(4)}, {}))), (Dims{2, 0, 4}));
  EXPECT_EQ(b.shape(b.push(Reshape{{5, 0}}, {b.relu(b.push(Transpose{{1, 2, 0}}, {none}))})), (Dims{5, 0}));
  EXPECT_EQ(b.shape(b.flatten(none)), Dims{0});
  EXPECT_EQ(b.shape(b.push(Constant{{0}, {}}, {})), Dims{0});
}

TEST(InferShapes, NamesTheLayerThatHasNothingToWorkOn) {
  refused({0, 5, 5}, conv({}, 2, 1, 0));
  refused({2, 0, 5}, conv({1, 1, 1, 1, 1, 1, 1, 1}, 2, 1, 4));
  refused({2, 0, 5}, MaxPool{});
  refused({2, 0, 5}, GlobalAveragePool{});
  refused({0}, Dense{2, {}, {}});
  refused({2, 0}, BatchNorm{Numbers(2), Numbers(2), Numbers(2), Numbers(2), 0});
  refused({2, 0}, Reshape{{0, kMost, kMost}});
  refused({2, 0}, Reshape{{2, 1}});
  refused({2, 0}, Slice{1, 0, 1});
  refused({2, 0}, Slice{1, 1, 0});
  refused({2, 0, 3}, Concat{0}, {0, -1});
  refused({2, 1}, Constant{{2, 0}, Numbers(1)}, {});
}

TEST(InferShapes, NamesTheEmptyValueWhereNoneIsTaken) {
  Builder b({2, 5}, 1);
  b.push(Slice{1, 0, 0}, {0});
  b.net.nodes[0].name = "culprit";
  const auto shapes = *infer_shapes(b.net);
  for (const auto& taken : {check_ordinary(b.net, shapes, "a test"), check_filled(b.net, shapes, "a test")}) {
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, ErrorCode::unsupported_operator);
    EXPECT_EQ(taken.error().what, "node culprit (Slice): an empty value of 2x0, which a test does not take");
  }
  const Network nothing{"nothing", {0}, {{"c", Constant{{1}, {1}}, {}}}};
  EXPECT_EQ(check_filled(nothing, *infer_shapes(nothing), "a test").error().what,
            "the net's input: an empty value of 0, which a test does not take");
}

TEST(InferShapes, NamesTheNodeThatReadsAhead) {
  for (const int input : {-1, 2, 3, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()})
    refused({1, 5, 5}, Relu{}, {input});
  refused({1, 5, 5}, Add{}, {0, 2});
}

TEST(InferShapes, NamesTheNodeOfWrongArity) {
  refused({1, 5, 5}, Relu{}, {});
  refused({1, 5, 5}, Relu{}, {0, 1});
  refused({1, 5, 5}, Add{}, {0});
  refused({1, 5, 5}, Add{}, {0, 1, 1});
  refused({1, 5, 5}, Arithmetic{}, {0});
  refused({1, 5, 5}, SquareRoot{}, {0, 0});
}

TEST(InferShapes, NamesTheLayerThatDoesNotFit) {
  refused({10}, Dense{3, Numbers(29), {}});
  refused({10}, Dense{3, Numbers(30), Numbers(2)});
  for (const std::int64_t out : {std::int64_t{0}, std::int64_t{-3}, kMost, kLeast})
    refused({10}, Dense{out, Numbers(30), {}});
  refused({10, 1, 1}, Dense{3, Numbers(30), {}});
  refused({3, 2, 2}, BatchNorm{Numbers(3), Numbers(3), Numbers(3), Numbers(2), 0});
}

TEST(InferShapes, NamesTheNodeThatGrowsTooLarge) {
  refused({1, 20'000, 20'000}, conv({1, 1, 1, 1, 0, 0, 0, 0}, 6, 1, 6));
  refused({1, 1, 1}, conv({1, 1, 1, 1, 60'000, 60'000, 60'000, 60'000}, 1, 1, 1));
}

TEST(InferShapes, RefusesInputsThatCannotBe) {
  for (const Dims& input : std::vector<Dims>{{},
                                             {-1},
                                             {0, kMost, kMost},
                                             {1 << 16, 0, 1 << 16},
                                             {0, -1},
                                             {kMost},
                                             {kMost, kMost, kMost},
                                             {1 << 16, 1 << 16},
                                             {(std::int64_t{1} << 31) + 1},
                                             {1, 1, 1, 1, 1, 1, 1, 1, 1},
                                             {-2, -2}})
    EXPECT_FALSE(infer_shapes({"net", input, {{"a", Flatten{}, {0}}}})) << to_string(input);
}

TEST(MultiplyAdds, OfTheShippedArchitectures) {
  EXPECT_EQ(multiply_adds(vgg({1, 28, 28}, {16, 16, 32, 32, 64, 64}, 10, 1)), 7'344'000);
  EXPECT_EQ(multiply_adds(vgg({1, 28, 28}, {8, 8, 16, 16, 32, 32}, 2, 1)), 1'863'360);
}

TEST(MultiplyAdds, CountGroupsAndStrides) {
  Builder b({4, 6, 6}, 1);
  b.conv(0, {3, 3, 2, 2, 1, 1, 1, 1}, 8, 2);  // 3 x 3 outputs, 8 channels, each 2 x 9
  EXPECT_EQ(multiply_adds(b.net), 9 * 8 * 2 * 9);
  EXPECT_EQ(parameters(b.net), 8 * 2 * 9 + 8);
}

}  // namespace
}  // namespace coppice::gpu
