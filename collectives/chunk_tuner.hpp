// collectives/chunk_tuner.hpp: the number of chunks that is fastest in practice, found while calls are made. Pure.
//
// Multiplicative increase of the chunk, additive decrease: from a chunk smaller than the model's it doubles while calls
// become faster, and then shrinks in steps while they do. A chunk is judged by the faster of two calls, and doubling goes on
// past one that is no gain: of calls that vary by 4 % and are now and then a third too slow, single ones led it more than
// 5 % astray in 6 cases of 100, these in 1 of 1,000 (tests/collectives). Source: Blink (MLSys 2020), section 4.2.
#pragma once

#include <cstdint>
#include <vector>

namespace coppice::collectives {

struct ChunkTunerOptions {
  double faster_by = 0.01;    // less than this part is no gain
  int smaller_at_first = 4;   // than the model's chunk, so many times
  std::int64_t chunks_max = 4'096;
  int calls_each = 2;         // with the same number
  int patience = 1;           // times that doubling may be no gain in between
  int calls_max = 20;         // then the best so far is taken
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
  double fastest_ = 0;  // of the calls with the present number
  int calls_ = 0, calls_here_ = 0, no_gain_ = 0;
};

}  // namespace coppice::collectives
