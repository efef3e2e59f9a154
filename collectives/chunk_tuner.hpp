// collectives/chunk_tuner.hpp: the number of chunks that is fastest in practice, found while calls are made. Pure.
//
// Multiplicative increase of the chunk, additive decrease: from a chunk smaller than the model's it doubles while calls
// become faster, and then shrinks in steps while they do. Source: Blink (MLSys 2020), section 4.2.
#pragma once

#include <cstdint>
#include <vector>

namespace coppice::collectives {

struct ChunkTunerOptions {
  double faster_by = 0.01;    // less than this part is no gain
  int smaller_at_first = 4;   // than the model's chunk, so many times
  std::int64_t chunks_max = 4'096;
  int calls_max = 16;         // then the best so far is taken
};

class ChunkTuner {
 public:
  // model: the number of chunks that a model says.
  explicit ChunkTuner(std::int64_t model, ChunkTunerOptions options = {});

  std::int64_t chunks() const;  // of the next call
  void observe(double seconds); // how long a call with that many took
  bool settled() const { return phase_ == Phase::settled; }

 private:
  enum class Phase : std::uint8_t { growing, shrinking, settled };

  ChunkTunerOptions options_;
  Phase phase_ = Phase::growing;
  double chunk_;               // its size, as a part of the whole
  double best_chunk_ = 0, best_seconds_ = 0, step_ = 0;
  int calls_ = 0;
};

}  // namespace coppice::collectives
