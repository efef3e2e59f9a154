// gpu/distill.hpp: nets that answer together, taught by one teacher.
//
// The sub-nets of a decomposition are trained jointly, by one softmax over the scores of all of them: only scores and
// their gradients cross between them, one float a class and item each way (class-parallel training).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "gpu/class_groups.hpp"
#include "gpu/device.hpp"
#include "gpu/trainer.hpp"

namespace coppice::gpu {

// Nets that answer together: output j of net i is the score of class outputs[i][j]; together they score every class
// once. A whole net is an ensemble of itself.
struct Ensemble {
  ClassGroups outputs;
};

struct DistillOptions {
  float temperature = 3;
  float hard = 0.5F, soft = 0.5F;  // weights of cross-entropy and of the teacher
};

// Of the images of one batch. Not thread-safe.
class Teacher {
 public:
  // Errors: as Device::compile.
  static Expected<std::shared_ptr<Teacher>> make(Device& device, const Network& net, int batch);
  Expected<std::span<const float>> scores(std::span<const float> images);  // [batch, classes]

 private:
  std::unique_ptr<CompiledNet> net_;
  std::vector<float> scores_;
};

// The sum of the ensembles' losses; train() is given all their nets in this order, so that they see the same batches
// and one teacher serves them all. Without a teacher it is cross-entropy alone.
LossFunction ensemble_loss(std::vector<Ensemble> ensembles, int classes, std::shared_ptr<Teacher> teacher,
                           const DistillOptions& options);

// One net alone, as sensAI does it: its outputs are "other" and then the classes of its group, by softmax; a group of
// one class has a single output, by binary cross-entropy.
LossFunction alone_loss(std::vector<int> group);

// The items of an epoch on which each class of the group weighs as much as all others together (sensAI's reference):
// items of the group are repeated until there are as many of each class as of others.
std::vector<std::int64_t> balanced_items(const Dataset& data, std::span<const std::int64_t> items,
                                         const std::vector<int>& group);

// The same net whose last layer scores "other" and then the group's classes; "other" starts from N(0, 0.01).
Expected<Network> with_other(Network net, std::uint64_t seed);
// And back: score of class c becomes log p(c) - log p(other), which is what sub-nets trained alone are compared by.
Expected<Network> without_other(Network net);

// ---- what they answer ----------------------------------------------------------------------------------------------

// Scores of data[items], [items, outputs of the net].
Expected<std::vector<float>> scores_of(Device& device, const Network& net, const Dataset& data,
                                       std::span<const std::int64_t> items, const Normalisation& normalisation);

// [items, classes] from the nets of one ensemble.
Expected<std::vector<float>> ensemble_scores(Device& device, std::span<const Network> nets, const Ensemble& ensemble,
                                             int classes, const Dataset& data, std::span<const std::int64_t> items,
                                             const Normalisation& normalisation);

double accuracy_percent(std::span<const float> scores, int classes, const Dataset& data,
                        std::span<const std::int64_t> items);

// One factor and one shift a net, by which the scores of the nets of an ensemble compare best on data held out; folded
// into each net's last layer. scores: [items, classes]. Errors: shape_mismatch.
Expected<void> calibrate(std::span<Network> nets, const Ensemble& ensemble, std::span<const float> scores, int classes,
                         const Dataset& data, std::span<const std::int64_t> items);

}  // namespace coppice::gpu
