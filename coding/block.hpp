// coding/block.hpp: many classes, decoded block by block.
//
// The classes are shared out over blocks. Each block is a small code of its own over its classes and one more, "none of
// these", which no worker's row mentions. The score of a class is its log-odds against none of these,
//
//   s_c = log p(c | y_b) - log p(none | y_b),
//
// and a block's best score and the log-sum-exp of its scores are all that anyone else needs: by Bayes' rule, if the other
// blocks' responses say of class c no more than that it is none of theirs, and all blocks are equally likely,
//
//   p(c | y) = exp(s_c) / sum of exp(s) over the classes of all blocks.
//
// Everything here is pure.
#pragma once

#include <span>
#include <tl/expected.hpp>
#include <vector>

#include "coding/decoder.hpp"

namespace coppice::coding {

struct BlockCode {
  std::vector<int> classes;  // of the whole problem; column j of the generator's rows is classes[j]
  Generator generator;       // classes.size() + 1 classes: the last is none of these
  Decoder decoder;           // anything but sum, which has no score for none of these
  bool operator==(const BlockCode&) const = default;
};

// The same rows with a column of zeros behind: a class that no row mentions.
Generator with_none(Generator generator);

// What one block says. runner_up: the second best score; the lowest float where the block has one class only.
struct BlockBest {
  int label = -1;  // of the whole problem
  float score = 0, runner_up = 0, log_sum_exp = 0;
  bool operator==(const BlockBest&) const = default;
};

// Errors: those of decode. REQUIRES: block.generator.classes == block.classes.size() + 1 >= 2.
tl::expected<BlockBest, DecodeError> decode(const BlockCode& block, const Arrivals& arrivals);

// What the blocks say together.
struct Combined {
  int label = -1;         // of the best score, the first among equals
  float margin = 0;       // its score minus the next best of any block; 0 when there is no other class
  float probability = 0;  // of label, among the classes of the blocks that are given
};

// REQUIRES: at least one block; all numbers finite.
Combined combine(std::span<const BlockBest> blocks);

}  // namespace coppice::coding
