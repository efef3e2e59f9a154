// gpu/cpu_training_parameters.hpp: every parameter and running statistic of a net, one after another in one buffer,
// each in the layout that its layer reads. Gradients, velocity and average are buffers of the same form, so that a step
// of the optimiser is one pass over four arrays.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <span>
#include <vector>

#include "gpu/training.hpp"

namespace coppice::gpu {

class CpuParameters {
 public:
  enum class Kind : std::uint8_t { decayed, free, statistic };
  struct Place {
    dnnl::memory weight, gradient;  // of a statistic: no gradient
  };

  explicit CpuParameters(const dnnl::engine& engine) : engine_(engine) {}

  // plain: how values are laid out; layout: how the buffer keeps them, the same sizes. The memories get their addresses
  // in allocate.
  Place add(std::span<const float> values, const dnnl::memory::desc& plain, const dnnl::memory::desc& layout,
            Kind kind);
  void allocate();

  std::int64_t count() const { return count_; }  // of all numbers, without the layouts' padding
  void update(const SgdStep& step, int threads);

  // Plain order, as TrainingState has it; spans are count() long.
  void read_weights(std::span<float> out) const { copy_out(weights_, out); }
  void read_average(std::span<float> out) const { copy_out(average_.empty() ? weights_ : average_, out); }
  void read_gradients(std::span<float> out) const { copy_out(gradients_, out); }
  void write_gradients(std::span<const float> in);
  // Gradients, and values of statistics. False, and nothing done, where the range cuts through an array.
  bool read_shared(std::int64_t first, std::span<float> out) const;
  bool write_shared(std::int64_t first, std::span<const float> in);
  TrainingState state() const;
  void restore(const TrainingState& state);  // REQUIRES: the sizes fit

  bool pending() const { return pending_; }  // gradients that no update has taken yet
  // A backward writes gradients anew: what there was is set aside before it and added after it.
  void begin_backward();
  void end_backward();

 private:
  using Buffer = std::vector<float>;
  struct Segment {
    dnnl::memory::desc plain, layout;
    std::size_t offset, size;   // in the buffers, padding included
    std::int64_t first, count;  // without
    Kind kind;
    Place place;
  };

  // The segments of [first, first + count); none where the range cuts through one.
  std::span<const Segment> within(std::int64_t first, std::int64_t count) const;
  void copy_out(const Buffer& from, std::span<float> out) const;
  void copy_in(std::span<const float> in, Buffer& to) const;
  float* aligned(const Buffer& buffer) const;
  Buffer make() const;

  dnnl::engine engine_;
  std::vector<Segment> segments_;
  std::vector<float> initial_;
  std::size_t size_ = 0;
  std::int64_t count_ = 0;
  Buffer weights_, gradients_, velocity_, average_, aside_;
  bool pending_ = false;
};

}  // namespace coppice::gpu
