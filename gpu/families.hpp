// gpu/families.hpp: the network families of the literature, built from code with weights that nobody has trained.
//
// Unfolded: each convolution is followed by its BatchNorm and Relu (or Clip) as nodes of their own, and has no bias
// beside a norm, so that a net can be trained, measured and pruned layer by layer; simplified() folds them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "gpu/network.hpp"

namespace coppice::gpu {

// One net of each published size, smaller ones first within a family.
const std::vector<std::string_view>& family_names();

// The net called `name`, for images of `input` ({channels, height, width}, at least 8 pixels a side) and `classes`
// scores. Weights are He-normal (variance 2 / fan-in), drawn from the seed; norms start as identities.
//
//   vgg11-bn, vgg13-bn, vgg16-bn, vgg19-bn    Simonyan and Zisserman, 2015, with batch norms
//   resnet-18, resnet-50                      He et al., 2016; stride on the 3x3 convolution of a bottleneck
//   resnet-20, resnet-56, resnet-110, resnet-164
//                                             CIFAR's, for any input, as the reference of sensAI has them
//                                             (bearpaw/pytorch-classification, post-activation): (depth - 2) / 6 blocks
//                                             in each of three stages, basic ones below depth 44 and bottlenecks from
//                                             there on. Its resnet-110 is what He et al. call ResNet-164 (1.70 M
//                                             parameters); its resnet-164 is deeper still (2.54 M).
//   mobilenet-v2                              Sandler et al., 2018; Clip{0, 6} for ReLU6
//   shufflenet-v2                             Ma et al., 2018, 1.0x: Slice, Concat and ChannelShuffle
//
// Up to 64 pixels a side, the stems of the variants known from CIFAR: stride 1 and no pool (MobileNetV2's second stage
// keeps its size too), and one dense layer after VGG's convolutions. Above, ImageNet's. VGG's pools that would leave
// nothing of the image are left out.
//
// width scales every layer but the scores, to multiples of 8 and never down by more than a tenth beyond what was asked;
// 1 gives the published widths, 116 channels of ShuffleNetV2 included. More than 0, at most 8.
//
// Errors: unsupported_operator (no such name), shape_mismatch (an input, class count or width out of range).
Expected<Network> family(std::string_view name, const Dims& input, int classes, std::uint64_t seed, double width = 1);

}  // namespace coppice::gpu
