// gpu/cuda_moves.hpp: blocks of numbers that go from one place to another, described axis by axis.
#pragma once

#include <vector>

#include "gpu/cuda_jobs.hpp"
#include "gpu/network.hpp"

namespace coppice::gpu {

struct Axis {
  std::int64_t size = 1, from = 0, to = 0;  // steps in numbers
};

// The job that moves a block of these axes. Few axes and writes side by side: what lies together on both sides becomes
// one axis. Throws Fault where something does not fit an int.
Strided strided(Reals in, std::int64_t in_begin, Reals out, std::int64_t out_begin, std::vector<Axis> axes,
                bool add = false);

// How far it is from one number to the next along each axis of a dense array.
Dims steps_of(const Dims& dims);

// The axes of a batch of items that lie densely on both sides, or are told otherwise by their steps.
std::vector<Axis> axes_of(int batch, const Dims& dims, std::int64_t from_item, const Dims& from, std::int64_t to_item,
                          const Dims& to);

// What an input of these dims gives to an output it is added to: its own steps, 0 where it is repeated.
Dims repeated_steps(const Dims& dims, const Dims& steps, const Dims& out);

// ChannelShuffle's axes, the batch first, of images with these steps of channel, row and column on either side.
std::vector<Axis> shuffle_axes(int batch, const Dims& dims, std::int64_t groups, const Dims& from, const Dims& to);

}  // namespace coppice::gpu
