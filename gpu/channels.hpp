// gpu/channels.hpp: which channels of a net can go together, which whole blocks can, and the net without them.
//
// A channel that a convolution makes may be read by many, added to another's, joined, sliced: all of them lose it or
// none. The dependency graph follows every single channel through the net, so residual streams, depthwise
// convolutions and concatenations need no case of their own (cf. Fang et al., DepGraph, CVPR 2023).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// ---- width: channels -----------------------------------------------------------------------------------------------

// Channels that the same layers make: the outputs of one convolution, or of all that add to one residual stream.
struct ChannelSet {
  std::string name;            // of the first layer that makes them
  std::vector<int> producers;  // nodes
  std::int64_t width = 0;
  bool pinned = false;  // may not go: the net's input or output, or shuffled, transposed or otherwise tied to a place
};

struct Channel {
  int set = 0;
  std::int64_t index = 0;  // in the set
  bool operator==(const Channel&) const = default;
};

struct ChannelGraph {
  std::vector<ChannelSet> sets;
  std::vector<std::vector<Channel>> values;  // [value][its channel]; value 0 is the input
  std::vector<std::int64_t> spread;          // [value]: numbers an image channel has become by a flatten; else 1
};

// Errors: shape_mismatch or unsupported_operator (check_learnable), naming the node.
Expected<ChannelGraph> channel_graph(const Network& net);

using Kept = std::vector<std::vector<bool>>;  // [set][channel of the set]

// The same net with only those channels. Errors: shape_mismatch where a pinned set or the last channel of one would go.
Expected<Network> narrowed(const Network& net, const ChannelGraph& graph, const Kept& kept);

// ---- depth: blocks -------------------------------------------------------------------------------------------------

// A stretch of the net with one way in and one way out, of the same shape, and a convolution in it: a residual block,
// a unit of ShuffleNet, a convolution that changes neither width nor size.
struct Block {
  std::string name;  // of its last node
  int in = 0, out = 0;  // values; without the block, who read `out` reads `in`
  std::vector<int> nodes;
};

std::vector<Block> blocks(const Network& net);  // REQUIRES: shapes infer

Network without(Network net, const std::vector<Block>& gone);

// ---- classes -------------------------------------------------------------------------------------------------------

// The net that scores only these classes, in this order: rows of its last dense layer. Errors: shape_mismatch.
Expected<Network> for_classes(Network net, const std::vector<int>& classes);

}  // namespace coppice::gpu
