// A net without some channels gives what the whole net gives when nobody listens to those channels.
#include "gpu/channels.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/gpu/builder.hpp"
#include "tests/gpu/reference.hpp"

namespace coppice::gpu {
namespace {

// Weights that read a channel that has gone are 0.
Network deafened(Network net, const ChannelGraph& graph, const Kept& kept) {
  for (auto& node : net.nodes) {
    if (node.inputs.empty()) continue;
    const auto source = static_cast<std::size_t>(node.inputs[0]);
    const auto& channels = graph.values[source];
    const auto heard = [&](std::size_t c) {
      return kept[static_cast<std::size_t>(channels[c].set)][static_cast<std::size_t>(channels[c].index)];
    };
    if (auto* conv = std::get_if<Convolution>(&node.op); conv && conv->groups == 1) {
      const auto taps = static_cast<std::size_t>(conv->window.kernel_h * conv->window.kernel_w);
      for (std::size_t i = 0; i < conv->weight.size(); ++i)
        if (!heard(i / taps % channels.size())) conv->weight[i] = 0;
    } else if (auto* dense = std::get_if<Dense>(&node.op)) {
      const auto spread = static_cast<std::size_t>(graph.spread[source]);
      for (std::size_t i = 0; i < dense->weight.size(); ++i)
        if (!heard(i / spread % channels.size())) dense->weight[i] = 0;
    }
  }
  return net;
}

Kept some(const ChannelGraph& graph, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Kept kept;
  for (const auto& set : graph.sets) {
    kept.emplace_back(static_cast<std::size_t>(set.width), true);
    if (set.pinned) continue;
    for (std::size_t c = 1; c < kept.back().size(); ++c) kept.back()[c] = random() % 2 == 0;
  }
  return kept;
}

void expect_narrowed_like_deafened(const Network& net, std::uint64_t seed) {
  const auto graph = channel_graph(net);
  ASSERT_TRUE(graph) << graph.error().what;
  const auto kept = some(*graph, seed);
  const auto narrow = narrowed(net, *graph, kept);
  ASSERT_TRUE(narrow) << narrow.error().what;
  EXPECT_LT(multiply_adds(*narrow), multiply_adds(net));
  const auto input = random_input(net, 2, seed);
  EXPECT_LT(reference::error(reference::forward(*narrow, input), reference::forward(deafened(net, *graph, kept), input)),
            1e-5);
}

int head(Builder& b, int value, int classes) { return b.dense(b.flatten(value), classes); }

TEST(Channels, ChainWithNormAndPool) {
  Builder b({2, 8, 8}, 1);
  int v = b.relu(b.norm(b.conv3x3(0, 12)));
  v = b.push(MaxPool{{2, 2, 2, 2, 0, 0, 0, 0}}, {v});
  v = b.relu(b.norm(b.conv3x3(v, 10)));
  head(b, v, 5);
  for (std::uint64_t seed = 0; seed < 5; ++seed) expect_narrowed_like_deafened(b.net, seed);
}

TEST(Channels, ResidualStreamIsOneSet) {
  Builder b({3, 6, 6}, 2);
  const int stem = b.relu(b.conv3x3(0, 8));
  const int inner = b.relu(b.norm(b.conv3x3(stem, 6)));
  const int sum = b.relu(b.add(b.norm(b.conv3x3(inner, 8)), stem));
  head(b, sum, 4);
  const auto graph = channel_graph(b.net).value();
  const auto& of_stem = graph.values[static_cast<std::size_t>(stem)];
  EXPECT_EQ(of_stem, graph.values[static_cast<std::size_t>(sum)]);
  EXPECT_EQ(graph.sets[static_cast<std::size_t>(of_stem[0].set)].producers.size(), 2U);
  for (std::uint64_t seed = 0; seed < 5; ++seed) expect_narrowed_like_deafened(b.net, seed);
}

TEST(Channels, DepthwiseFollowsItsInput) {
  Builder b({3, 6, 6}, 3);
  const int wide = b.push(Clip{0, 6}, {b.norm(b.conv(0, {1, 1, 1, 1, 0, 0, 0, 0}, 12))});
  const int deep = b.push(Clip{0, 6}, {b.norm(b.conv(wide, {3, 3, 1, 1, 1, 1, 1, 1}, 12, 12))});
  head(b, b.norm(b.conv(deep, {1, 1, 1, 1, 0, 0, 0, 0}, 6)), 3);
  for (std::uint64_t seed = 0; seed < 5; ++seed) expect_narrowed_like_deafened(b.net, seed);
}

TEST(Channels, ConcatAndSliceKeepTrackOfEachChannel) {
  Builder b({2, 5, 5}, 4);
  const int left = b.relu(b.conv3x3(0, 6)), right = b.relu(b.conv3x3(0, 4));
  const int joined = b.push(Concat{0}, {left, right});
  const int middle = b.push(Slice{0, 3, 8}, {joined});
  head(b, b.relu(b.conv3x3(middle, 8)), 3);
  // What no slice shows still exists in the joined value: only narrowing matters here.
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const auto graph = channel_graph(b.net).value();
    auto kept = some(graph, seed);
    kept[static_cast<std::size_t>(graph.values[static_cast<std::size_t>(left)][0].set)][3] = true;
    const auto narrow = narrowed(b.net, graph, kept);
    ASSERT_TRUE(narrow) << narrow.error().what;
    const auto input = random_input(b.net, 1, seed);
    EXPECT_LT(reference::error(reference::forward(*narrow, input), reference::forward(deafened(b.net, graph, kept), input)),
              1e-5);
  }
}

TEST(Channels, WhatIsShuffledStays) {
  Builder b({2, 5, 5}, 5);
  const int wide = b.relu(b.conv3x3(0, 8));
  const int mixed = b.push(ChannelShuffle{2}, {wide});
  head(b, b.relu(b.conv3x3(mixed, 8)), 3);
  const auto graph = channel_graph(b.net).value();
  EXPECT_TRUE(graph.sets[static_cast<std::size_t>(graph.values[static_cast<std::size_t>(wide)][0].set)].pinned);
  expect_narrowed_like_deafened(b.net, 1);
}

TEST(Channels, PinnedOrAllChannelsOfASetCannotGo) {
  Builder b({2, 5, 5}, 6);
  head(b, b.relu(b.conv3x3(0, 8)), 3);
  const auto graph = channel_graph(b.net).value();
  Kept kept;
  for (const auto& set : graph.sets) kept.emplace_back(static_cast<std::size_t>(set.width), true);
  for (std::size_t s = 0; s < graph.sets.size(); ++s) {
    auto none = kept;
    std::fill(none[s].begin(), none[s].end(), false);
    EXPECT_FALSE(narrowed(b.net, graph, none)) << graph.sets[s].name;
    if (!graph.sets[s].pinned) continue;
    auto fewer = kept;
    fewer[s][0] = false;
    EXPECT_FALSE(narrowed(b.net, graph, fewer)) << graph.sets[s].name;
  }
}

TEST(Blocks, ResidualBlocksCanGo) {
  Builder b({3, 6, 6}, 7);
  int v = b.relu(b.conv3x3(0, 8));
  const int stem = v;
  for (int i = 0; i < 3; ++i) v = b.relu(b.add(b.norm(b.conv3x3(b.relu(b.norm(b.conv3x3(v, 4))), 8)), v));
  head(b, v, 4);
  const auto found = blocks(b.net);
  ASSERT_EQ(found.size(), 3U);
  EXPECT_EQ(found[0].in, stem);
  const auto shorter = without(b.net, {found[0], found[2]});
  EXPECT_EQ(shorter.nodes.size(), b.net.nodes.size() - 2 * 7);
  ASSERT_TRUE(infer_shapes(shorter));
  EXPECT_EQ(without(b.net, found).nodes.size(), 4U);
}

TEST(Blocks, AShortcutWithAConvolutionStays) {
  Builder b({3, 6, 6}, 8);
  const int stem = b.relu(b.conv3x3(0, 8));
  const int shortcut = b.conv(stem, {1, 1, 2, 2, 0, 0, 0, 0}, 16);
  const int deep = b.conv(stem, {3, 3, 2, 2, 1, 1, 1, 1}, 16);
  head(b, b.relu(b.add(deep, shortcut)), 4);
  EXPECT_TRUE(blocks(b.net).empty());
}

TEST(Blocks, AConvolutionOfTheSameShapeIsOne) {
  Builder b({3, 6, 6}, 9);
  const int first = b.relu(b.norm(b.conv3x3(0, 8)));
  const int second = b.relu(b.norm(b.conv3x3(first, 8)));
  head(b, second, 4);
  const auto found = blocks(b.net);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].in, first);
  EXPECT_EQ(found[0].out, second);
}

TEST(ForClasses, RowsOfTheLastLayerInThisOrder) {
  Builder b({2, 4, 4}, 10);
  head(b, b.relu(b.conv3x3(0, 4)), 6);
  const auto part = for_classes(b.net, {5, 0, 3});
  ASSERT_TRUE(part) << part.error().what;
  const auto input = random_input(b.net, 1, 1);
  const auto all = reference::forward(b.net, input), own = reference::forward(*part, input);
  EXPECT_EQ(own, (std::vector<float>{all[5], all[0], all[3]}));
  EXPECT_FALSE(for_classes(b.net, {6}));
  EXPECT_FALSE(for_classes(b.net, {}));
}

TEST(Channels, RefuseThreeSpatialAxes) {
  Builder b({2, 3, 3, 3}, 1);
  head(b, b.conv(0, {}, 4), 2);
  const auto graph = channel_graph(b.net);
  ASSERT_FALSE(graph);
  EXPECT_EQ(graph.error().code, ErrorCode::unsupported_operator);
  EXPECT_EQ(graph.error().what, "node node0 (Convolution): three spatial axes, which narrowing does not take");
}

}  // namespace
}  // namespace coppice::gpu
