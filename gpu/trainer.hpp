// gpu/trainer.hpp: rounds over the data: augmentation, schedule, batches, checkpoints; for one net or for several that
// answer together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

#include "gpu/dataset.hpp"
#include "gpu/replicas.hpp"
#include "gpu/training.hpp"

namespace coppice::gpu {

// ---- what the rate does --------------------------------------------------------------------------------------------

struct Schedule {
  enum class Kind : std::uint8_t { constant, step, cosine, one_cycle };
  Kind kind = Kind::one_cycle;
  float peak = 0.1F;
  float rising = 0.2F;            // one_cycle: this share of all steps rises, the rest falls to peak / 10,000
  std::vector<float> milestones{};  // step: at these shares of all steps the rate falls to a tenth
  float rate(std::int64_t step, std::int64_t steps) const;  // 0 <= step < steps
};

struct Augmentation {
  int shift = 0;      // pad by so many pixels of zero (after normalisation: of the mean) and crop anywhere
  bool flip = false;  // mirror half of the images
};

// ---- losses: of scores [batch, classes], mean over the batch -------------------------------------------------------

// Each gives weight times the loss, summed in double precision, and adds d of that / d score to gradients, which are
// [batch, classes] too. REQUIRES: labels are below classes.
double cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                     std::span<float> gradients, float weight = 1);
// One logit a class, each on its own, summed over the classes; positive_weight makes up for classes that are rare.
double binary_cross_entropy(std::span<const float> scores, std::span<const std::uint16_t> labels, int classes,
                            std::span<float> gradients, float weight = 1, float positive_weight = 1);
// temperature^2 KL(teacher || scores), both softened by it (Hinton et al. 2015).
double distillation(std::span<const float> scores, std::span<const float> teacher, int classes, float temperature,
                    std::span<float> gradients, float weight = 1);

// ---- training ------------------------------------------------------------------------------------------------------

struct TrainingBatch {
  std::span<const float> images;           // [batch, item], normalised and augmented, as the nets saw it
  std::span<const std::int64_t> indices;   // [batch] of the data set
  std::span<const std::uint16_t> labels;   // [batch]
  std::int64_t step = 0, steps = 0;
};

// scores and gradients: [batch, outputs of net 0, outputs of net 1, ...]; gradients come zeroed. Gives the loss.
using LossFunction =
    std::function<Expected<double>(const TrainingBatch& batch, std::span<const float> scores, std::span<float> gradients)>;

struct TrainingProgress {
  std::int64_t step = 0, steps = 0;
  int epoch = 0, epochs = 0;
  double loss = 0;               // mean over the latest hundred steps
  double images_per_second = 0, seconds_left = 0;
};

struct EpochReport {
  int epoch = 0, epochs = 0;  // 1 is the first
  double loss = 0;            // mean over the epoch's steps since the training began or was resumed
  std::vector<Network> nets;  // as they stand; averaged where sgd.average_decay > 0
};

struct TrainerOptions {
  // Every epoch goes through the items in a new order, in whole batches: those left over sit it out. Fewer items than a
  // batch repeat to fill one.
  int epochs = 10, batch = 128;
  Schedule schedule;
  // Its rate is the schedule's. Its average_decay is reached from below, (1 + step) / (10 + step) at most, lest the
  // average remember the first random weights.
  SgdStep sgd;
  Augmentation augmentation;
  Normalisation normalisation;
  std::uint64_t seed = 0;
  int threads = 1;  // nets are shared out among them; one net alone gets them all
  // A file; none where empty. Resumed from where it exists and fits: on as many threads, to the same bits.
  std::filesystem::path checkpoint;
  double checkpoint_every_seconds = 60;  // written beside and renamed: there is always a whole one
  std::function<void(const TrainingProgress&)> progress;  // about ten times a second
  std::function<Expected<void>(const EpochReport&)> after_epoch;  // its error ends the training
  std::function<bool()> stop;  // asked after each step; a checkpoint is written and the error `stopped` says so
  // Where others train the same net together with this one: every step's batch is theirs in equal parts, in the order of
  // ranks, and all come to the same weights. Each part has batch norms of its own; what is learnt and the running
  // statistics are averaged. Rank 0's checkpoint counts, and only rank 0 writes one.
  ReplicaGroup* replicas = nullptr;
  std::int64_t bucket_bytes = 1 << 20;  // of gradients that travel together
};

struct Trained {
  std::vector<Network> nets;  // averaged where sgd.average_decay > 0
  double loss = 0, seconds = 0;
};

// Trains the nets together on data[items]: every step feeds the same augmented batch to each of them, asks for the loss
// of all their scores, and hands each its part of the gradients. The same seed, data and options on one thread give the
// same bits. Errors: shape_mismatch, device_failed, unreadable (a checkpoint that is another training's), replica_lost.
Expected<Trained> train(Device& device, const std::vector<Network>& nets, const Dataset& data,
                        std::span<const std::int64_t> items, const LossFunction& loss, const TrainerOptions& options);

}  // namespace coppice::gpu
