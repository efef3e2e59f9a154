// apps/training_run.hpp: one training of one net on labelled images, as coppice train does it, alone or as a replica.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "gpu/trainer.hpp"
#include "runtime/communicator.hpp"

namespace coppice::apps {

struct TrainingJob {
  std::string net;                  // vgg:WIDTHS, or a family's name
  double width = 1;  // of a family: scales the channels
  std::string data, out, checkpoint;
  std::int64_t held_out = 5'000;    // so many of the last training images are for validation
  std::optional<float> mean, deviation;  // of pixels; measured where absent
  bool folded = false;              // batch norms into their convolutions, in what is written
  gpu::TrainerOptions training;     // but for what this file sets: normalisation, checkpoint, callbacks
};

// Where this process trains: alone, or together with the other hosts of a cluster.
struct Seat {
  std::string device = "cpu";
  std::unique_ptr<runtime::Communicator> group;
  std::unique_ptr<gpu::ReplicaGroup> replicas;  // none: alone
  bool leads() const { return !replicas || replicas->rank() == 0; }
};

// Trains, validates after every epoch and writes the net; of replicas, the one that leads does the last two. Gives the
// document of coppice train --json; null where this one does not lead. Errors name the flag or file.
runtime::Expected<nlohmann::json> run_training(const TrainingJob& job, const Seat& seat);

}  // namespace coppice::apps
