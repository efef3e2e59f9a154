#include "gpu/families.hpp"

#include <gtest/gtest.h>

#include <set>

#include "tests/gpu/random_net.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

struct Size {
  const char* name;
  Dims input;
  int classes;
  double multiply_adds, parameters;  // in millions, as published for this variant
};

Network built(std::string_view name, const Dims& input, int classes, double width = 1) {
  auto net = family(name, input, classes, 1, width);
  EXPECT_TRUE(net) << net.error().what;
  return std::move(*net);
}

// Within half a unit of the last digit that was published, and conventions: some count poolings or additions too.
TEST(Families, HaveThePublishedSizes) {
  const Dims cifar{3, 32, 32}, imagenet{3, 224, 224};
  for (const auto& size : std::vector<Size>{{"vgg11-bn", cifar, 10, 152.6, 9.23},
                                            {"vgg13-bn", cifar, 10, 228.3, 9.42},
                                            {"vgg16-bn", cifar, 10, 313.2, 14.73},
                                            {"vgg19-bn", cifar, 10, 398.1, 20.04},
                                            {"resnet-18", cifar, 10, 555.4, 11.17},
                                            {"resnet-50", cifar, 10, 1'298, 23.52},
                                            {"resnet-20", cifar, 10, 40.8, 0.272},
                                            {"resnet-110", cifar, 10, 250, 1.70},
                                            {"resnet-18", imagenet, 1'000, 1'814, 11.69},
                                            {"resnet-50", imagenet, 1'000, 4'089, 25.56},
                                            {"mobilenet-v2", imagenet, 1'000, 300.8, 3.50},
                                            {"shufflenet-v2", imagenet, 1'000, 146, 2.28}}) {
    const Network net = built(size.name, size.input, size.classes);
    EXPECT_NEAR(static_cast<double>(multiply_adds(net)) / 1e6, size.multiply_adds, 0.011 * size.multiply_adds)
        << size.name << " " << to_string(size.input);
    EXPECT_NEAR(static_cast<double>(parameters(net)) / 1e6, size.parameters, 0.005 * size.parameters)
        << size.name << " " << to_string(size.input);
  }
}

TEST(Families, GiveOneScoreAClassForEveryImage) {
  for (const auto name : family_names())
    for (const Dims& input : {Dims{1, 28, 28}, Dims{3, 32, 32}, Dims{1, 33, 48}, Dims{3, 64, 64}, Dims{3, 96, 80}}) {
      const Network net = built(name, input, 7, 0.25);
      EXPECT_EQ(net.name, name);
      EXPECT_EQ(infer_shapes(net).value().back(), Dims{7}) << name << " " << to_string(input);
    }
}

TEST(Families, AreEqualForEqualSeeds) {
  const auto weights = [](std::uint64_t seed) {
    const auto net = family("resnet-20", {1, 16, 16}, 4, seed).value();
    return std::get<Convolution>(net.nodes.front().op).weight;
  };
  EXPECT_EQ(weights(5), weights(5));
  EXPECT_NE(weights(5), weights(6));
}

// Layers have their norms as nodes of their own, and no bias beside one.
TEST(Families, CanBeTrainedLayerByLayer) {
  for (const auto name : family_names()) {
    const Network net = built(name, {3, 32, 32}, 5, 0.25);
    std::set<std::string> names;
    for (std::size_t i = 0; i < net.nodes.size(); ++i) {
      names.insert(net.nodes[i].name);
      const auto* conv = std::get_if<Convolution>(&net.nodes[i].op);
      if (!conv) continue;
      EXPECT_TRUE(conv->bias.empty());
      ASSERT_TRUE(std::holds_alternative<BatchNorm>(net.nodes[i + 1].op)) << name << " " << net.nodes[i].name;
    }
    EXPECT_EQ(names.size(), net.nodes.size()) << name << ": two nodes bear one name";
  }
}

TEST(Families, ScaleToMultiplesOfEight) {
  for (const auto name : family_names())
    for (const double width : {0.125, 0.5, 0.7, 1.5}) {
      const Network net = built(name, {3, 32, 32}, 10, width);
      for (const auto& node : net.nodes) {
        const auto* conv = std::get_if<Convolution>(&node.op);
        EXPECT_TRUE(!conv || conv->out_channels % 8 == 0) << name << " " << node.name;
      }
    }
  const auto half = built("vgg16-bn", {3, 32, 32}, 10, 0.5), whole = built("vgg16-bn", {3, 32, 32}, 10);
  EXPECT_LT(multiply_adds(half), multiply_adds(whole) / 3);
}

TEST(Families, ComputeTheSameWhenSimplified) {
  for (const auto name : {"vgg11-bn", "resnet-20", "resnet-56", "mobilenet-v2", "shufflenet-v2"}) {
    const Network net = built(name, {1, 12, 12}, 3, 0.125);
    const auto input = NetSampler(3).floats(elements(net.input));
    const auto whole = reference::forward(net, input);
    const Network folded = simplified(net);
    EXPECT_LT(folded.nodes.size(), net.nodes.size());
    EXPECT_LT(reference::error(reference::forward(folded, input), whole), 1e-4) << name;
  }
}

TEST(Families, RefuseWhatTheyCannotBuild) {
  const auto refused = [](std::string_view name, const Dims& input, int classes, double width, ErrorCode code) {
    const auto net = family(name, input, classes, 1, width);
    ASSERT_FALSE(net) << name;
    EXPECT_EQ(net.error().code, code);
    EXPECT_TRUE(net.error().what.starts_with(name)) << net.error().what;
  };
  refused("resnet-1001", {3, 32, 32}, 10, 1, ErrorCode::unsupported_operator);
  refused("", {3, 32, 32}, 10, 1, ErrorCode::unsupported_operator);
  for (const Dims& input :
       std::vector<Dims>{{}, {3}, {3, 32}, {0, 32, 32}, {3, 7, 32}, {3, 32, 1 << 20}, {1, 3, 32, 32}})
    refused("vgg11-bn", input, 10, 1, ErrorCode::shape_mismatch);
  for (const int classes : {0, -1, 2'000'000}) refused("resnet-20", {3, 32, 32}, classes, 1, ErrorCode::shape_mismatch);
  for (const double width : {0.0, -1.0, 9.0, std::nan("")})
    refused("mobilenet-v2", {3, 32, 32}, 10, width, ErrorCode::shape_mismatch);
}

}  // namespace
}  // namespace coppice::gpu
