// gpu/replicas.hpp: trainings of the same nets on several machines, each with its part of every batch (data
// parallelism): what they need of one another, and in which pieces their gradients travel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu/training.hpp"

namespace coppice::gpu {

// What carries numbers between replicas: runtime/ implements it with collective operations. All replicas make the same
// calls with the same sizes in the same order. Memory stays where it is until finish().
class ReplicaGroup {
 public:
  virtual ~ReplicaGroup() = default;
  virtual int rank() const = 0;  // 0 <= rank < size
  virtual int size() const = 0;
  // Begins to replace numbers by their mean over the replicas, and returns at once.
  virtual void average(std::span<float> numbers) = 0;
  // Begins to replace bytes by those of rank 0, and returns at once.
  virtual void share(std::span<std::byte> bytes) = 0;
  // Waits for all that has begun. Errors: replica_lost, naming it.
  virtual Expected<void> finish() = 0;
};

// A net's parameters in buckets, from its last node to its first, as a backward reaches them: while one travels, the
// backward makes the next (Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3). Where buckets end depends on the
// net alone, whatever device it trains on.
class GradientBuckets {
 public:
  // bucket_bytes: a bucket ends with the node that fills it. REQUIRES: bucket_bytes >= 1; the net has parameters.
  GradientBuckets(const Network& net, std::int64_t bucket_bytes);

  struct Range {
    std::int64_t first, count;  // parameters in the order of TrainingState::weights
  };
  const std::vector<Range>& ranges() const { return ranges_; }

  // Backward, with every bucket's mean over the group begun as soon as it is whole. The loss travels with the last.
  Expected<void> backward(TrainableNet& net, std::span<const float> score_gradients, double loss, ReplicaGroup& group);
  // Waits for the means and puts them in the net, whose update they are for. Gives that of the losses.
  Expected<double> finish(TrainableNet& net, ReplicaGroup& group);

 private:
  // Those that lie wholly at `first` or after it, where none begun before.
  Expected<void> begin_from(std::int64_t first, const TrainableNet& net, ReplicaGroup& group);

  std::vector<Range> ranges_;              // from the net's end
  std::vector<std::vector<float>> means_;  // of each range; the last has the loss after it
  std::size_t begun_ = 0;
};

}  // namespace coppice::gpu
