#include "gpu/cpu_training_parameters.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

namespace coppice::gpu {
namespace {

using dnnl::memory;

constexpr std::size_t kLine = 16;  // floats: every segment begins a cache line

std::int64_t elements_of(const memory::desc& desc) {
  const auto dims = desc.dims();
  return std::accumulate(dims.begin(), dims.end(), std::int64_t{1}, std::multiplies<>());
}

// Moves numbers between two layouts of the same sizes.
void convert(const dnnl::engine& engine, const memory::desc& from, const float* source, const memory::desc& to,
             float* target) {
  if (from == to) {
    std::memcpy(target, source, from.get_size());
    return;
  }
  memory in(from, engine, const_cast<float*>(source)), out(to, engine, target);
  dnnl::stream stream(engine);
  dnnl::reorder(in, out).execute(stream, in, out);
  stream.wait();
}

}  // namespace

CpuParameters::Place CpuParameters::add(std::span<const float> values, const memory::desc& plain,
                                        const memory::desc& layout, Kind kind) {
  Segment made{plain,  layout,
               size_,  (layout.get_size() / sizeof(float) + kLine - 1) / kLine * kLine,
               count_, elements_of(plain),
               kind,   {}};
  made.place.weight = memory(layout, engine_, DNNL_MEMORY_NONE);
  if (kind != Kind::statistic) made.place.gradient = memory(layout, engine_, DNNL_MEMORY_NONE);
  size_ += made.size;
  count_ += made.count;
  initial_.insert(initial_.end(), values.begin(), values.end());
  segments_.push_back(made);
  return segments_.back().place;
}

CpuParameters::Buffer CpuParameters::make() const { return Buffer(size_ + kLine, 0.0F); }

float* CpuParameters::aligned(const Buffer& buffer) const {
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  constexpr std::uintptr_t kBytes = kLine * sizeof(float);
  return reinterpret_cast<float*>((address + kBytes - 1) / kBytes * kBytes);
}

void CpuParameters::allocate() {
  weights_ = make();
  gradients_ = make();
  velocity_ = make();
  for (auto& segment : segments_) {
    segment.place.weight.set_data_handle(aligned(weights_) + segment.offset);
    if (segment.place.gradient) segment.place.gradient.set_data_handle(aligned(gradients_) + segment.offset);
  }
  copy_in(initial_, weights_);
  initial_ = {};
}

void CpuParameters::copy_out(const Buffer& from, std::span<float> out) const {
  auto* to = out.data();
  for (const auto& segment : segments_) {
    convert(engine_, segment.layout, aligned(from) + segment.offset, segment.plain, to);
    to += segment.count;
  }
}

void CpuParameters::copy_in(std::span<const float> in, Buffer& to) const {
  const auto* from = in.data();
  for (const auto& segment : segments_) {
    convert(engine_, segment.plain, from, segment.layout, aligned(to) + segment.offset);
    from += segment.count;
  }
}

void CpuParameters::begin_backward() {
  if (!pending_) return;
  if (aside_.empty()) aside_ = make();
  std::copy_n(aligned(gradients_), size_, aligned(aside_));
  // What this backward does not reach stays 0 rather than being counted twice.
  std::fill_n(aligned(gradients_), size_, 0.0F);
}

void CpuParameters::end_backward() {
  if (pending_) {
    float* sum = aligned(gradients_);
    const float* before = aligned(aside_);
    for (std::size_t i = 0; i < size_; ++i) sum[i] += before[i];
  }
  pending_ = true;
}

void CpuParameters::write_gradients(std::span<const float> in) {
  copy_in(in, gradients_);
  pending_ = true;
}

std::span<const CpuParameters::Segment> CpuParameters::within(std::int64_t first, std::int64_t count) const {
  const auto begin = std::ranges::lower_bound(segments_, first, {}, &Segment::first);
  const auto end = std::ranges::lower_bound(segments_, first + count, {}, &Segment::first);
  const auto starts_at = [&](auto at, std::int64_t number) {
    return number == (at == segments_.end() ? count_ : at->first);
  };
  if (!starts_at(begin, first) || !starts_at(end, first + count)) return {};
  return {begin, end};
}

bool CpuParameters::read_shared(std::int64_t first, std::span<float> out) const {
  const auto found = within(first, std::ssize(out));
  if (found.empty()) return out.empty();
  for (const auto& segment : found) {
    const auto& from = segment.kind == Kind::statistic ? weights_ : gradients_;
    convert(engine_, segment.layout, aligned(from) + segment.offset, segment.plain, &out[static_cast<std::size_t>(segment.first - first)]);
  }
  return true;
}

bool CpuParameters::write_shared(std::int64_t first, std::span<const float> in) {
  const auto found = within(first, std::ssize(in));
  if (found.empty()) return in.empty();
  for (const auto& segment : found) {
    const auto& to = segment.kind == Kind::statistic ? weights_ : gradients_;
    convert(engine_, segment.plain, &in[static_cast<std::size_t>(segment.first - first)], segment.layout, aligned(to) + segment.offset);
  }
  pending_ = true;
  return true;
}

void CpuParameters::update(const SgdStep& step, int threads) {
  [[maybe_unused]] const bool worth_sharing = threads > 1 && size_ > (1U << 18);
  for (const auto& segment : segments_) {
    if (segment.kind == Kind::statistic) continue;
    const float decay = segment.kind == Kind::decayed ? step.weight_decay : 0.0F;
    const float rate = step.rate, momentum = step.momentum;
    // One formula for both momenta: the velocity's share of the move, and the gradient's.
    const float of_velocity = step.nesterov ? momentum : 1.0F, of_gradient = step.nesterov ? 1.0F : 0.0F;
    float* w = aligned(weights_) + segment.offset;
    float* g = aligned(gradients_) + segment.offset;
    float* v = aligned(velocity_) + segment.offset;
#pragma omp parallel for simd num_threads(threads) if (worth_sharing)
    for (std::size_t i = 0; i < segment.size; ++i) {
      const float gradient = g[i] + decay * w[i];
      v[i] = momentum * v[i] + gradient;
      w[i] -= rate * (of_gradient * gradient + of_velocity * v[i]);
      g[i] = 0;
    }
  }
  pending_ = false;
  if (step.average_decay <= 0) return;
  if (average_.empty()) {
    average_ = make();
    std::copy_n(aligned(weights_), size_, aligned(average_));
    return;
  }
  const float keep = step.average_decay;
  float* a = aligned(average_);
  const float* w = aligned(weights_);
#pragma omp parallel for simd num_threads(threads) if (worth_sharing)
  for (std::size_t i = 0; i < size_; ++i) a[i] = keep * a[i] + (1 - keep) * w[i];
}

TrainingState CpuParameters::state() const {
  TrainingState out;
  out.weights.resize(static_cast<std::size_t>(count_));
  out.velocity.resize(out.weights.size());
  copy_out(weights_, out.weights);
  copy_out(velocity_, out.velocity);
  if (!average_.empty()) {
    out.average.resize(out.weights.size());
    copy_out(average_, out.average);
  }
  return out;
}

void CpuParameters::restore(const TrainingState& state) {
  copy_in(state.weights, weights_);
  copy_in(state.velocity, velocity_);
  average_.clear();
  if (!state.average.empty()) {
    average_ = make();
    copy_in(state.average, average_);
  }
  std::fill(gradients_.begin(), gradients_.end(), 0.0F);
  pending_ = false;
}

}  // namespace coppice::gpu
