// gpu/slimming.hpp: how wide and how deep a sub-net is for a budget: what each set of channels and each block is worth
// is measured, then the cheapest losses are taken until the budget holds.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "gpu/channels.hpp"
#include "gpu/dataset.hpp"
#include "gpu/device.hpp"

namespace coppice::gpu {

// A net to be slimmed, with what is known of its structure. Blocks are those that can go without touching widths.
struct Slimmable {
  // So many of a value's channels are of this set. A net of thousands of channels is asked for its cost thousands of
  // times: channel by channel that takes a second.
  struct Part {
    int set = 0;
    std::int64_t channels = 0;
  };
  Network net;
  ChannelGraph graph;
  std::vector<Block> blocks;
  std::vector<Dims> shapes;
  std::vector<std::vector<Part>> parts;  // [value]
};

Expected<Slimmable> slimmable(Network net);

struct SubnetShape {
  std::vector<std::int64_t> width;  // [set]
  std::vector<bool> gone;           // [block]
};

SubnetShape whole_shape(const Slimmable& of);

struct Cost {
  double multiply_adds = 0;
  double microseconds = 0;  // a rough model of one thread: so much a layer, so much a multiply-add
};

// Of the net in this shape that scores so many classes.
Cost cost(const Slimmable& of, const SubnetShape& shape, int classes);

// Of each set the dearest channels. REQUIRES: importance is [set][channel].
Kept dearest(const Slimmable& of, const SubnetShape& shape, const std::vector<std::vector<double>>& importance);

// The net in this shape that scores these classes. REQUIRES: as many channels are kept as the shape says.
Expected<Network> slimmed(const Slimmable& of, const SubnetShape& shape, const Kept& kept,
                          const std::vector<int>& classes);

// How much the loss grows when one set is narrowed or one block goes, the rest left whole and nothing retrained.
struct Sensitivity {
  struct Level {
    std::int64_t width = 0;
    double loss = 0;
  };
  std::vector<std::vector<Level>> sets;  // [set]: widths falling, losses never falling; the first is the whole, 0
  std::vector<double> blocks;
};

struct SensitivityOptions {
  Normalisation normalisation;
  int multiple = 8;  // widths are multiples of it: SIMD lanes; others were measured to cost up to twice as much
  std::function<void(std::int64_t done, std::int64_t all)> progress;
};

// Cross-entropy of the whole head on data[items]; these should be of the group's classes for the most part.
Expected<Sensitivity> sensitivity(Device& device, const Slimmable& of, const std::vector<std::vector<double>>& importance,
                                  const Dataset& data, std::span<const std::int64_t> items,
                                  const SensitivityOptions& options);

struct Budget {
  double multiply_adds = 0.1;  // of the whole net's
  double latency = 1;          // of the whole net's, as Cost estimates it
  int multiple = 8;
  // No set falls below this share of its width in even_shape. Losses are measured one set at a time and without
  // retraining, and for deep cuts they say little: sub-nets of 0.08 of a VGG on Fashion-MNIST, retrained for three
  // epochs, were right on 92.70, 92.64, 92.80 and 93.22 % of held-out images at 0, 0.5, 0.75 and 1.
  double evenness = 0.9;
};

// The same share of every set's channels, all blocks: the widest that is within the budget, or else the narrowest there
// is. REQUIRES: budget.multiple > 0.
SubnetShape even_shape(const Slimmable& of, const Budget& budget, int classes);

// Greedily the least loss for the time it saves. Errors: shape_mismatch, saying how far the net can be slimmed or what
// the budget may not be.
Expected<SubnetShape> fit_budget(const Slimmable& of, const Sensitivity& sensitivity, const Budget& budget, int classes);

}  // namespace coppice::gpu
