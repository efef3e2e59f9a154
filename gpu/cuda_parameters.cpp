#include "gpu/cuda_parameters.hpp"

#include <algorithm>

#include "gpu/cuda_kernels.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kAlignment = 64;  // in numbers: cuDNN's fast kernels read weights in wide words

}  // namespace

Parameters::Parameters(const Network& net, const Lane& lane) {
  std::vector<float> values;
  for (std::size_t i = 0; i < net.nodes.size(); ++i)
    each_array(net.nodes[i], [&](int which, const std::vector<float>& array, ParameterKind kind) {
      if (array.empty()) return;
      pieces_.push_back({static_cast<int>(i), which, size_, array.size(), kind});
      size_ += (array.size() + kAlignment - 1) / kAlignment * kAlignment;
      elements_ += static_cast<std::int64_t>(array.size());
      values.insert(values.end(), array.begin(), array.end());
    });
  narrow(static_cast<std::int64_t>(size_));
  std::vector<ParameterKind> kinds(size_, ParameterKind::fixed);
  for (const auto& piece : pieces_)
    std::fill_n(kinds.begin() + static_cast<std::ptrdiff_t>(piece.begin), piece.count, piece.kind);
  kinds_ = lane.upload(kinds.data(), kinds.size());
  weights_ = lane.zeros(bytes());
  gradients_ = lane.zeros(bytes());
  velocity_ = lane.zeros(bytes());
  write(lane, weights_, values);
}

float* Parameters::at(const DeviceMemory& array, int node, int which) const {
  for (const auto& piece : pieces_)
    if (piece.node == node && piece.which == which) return static_cast<float*>(array.get()) + piece.begin;
  return nullptr;
}

std::vector<float> Parameters::read(const Lane& lane, const DeviceMemory& array) const {
  std::vector<float> whole(size_), out;
  check(cudaMemcpyAsync(whole.data(), array.get(), bytes(), cudaMemcpyDeviceToHost, lane.stream()), "cudaMemcpyAsync");
  lane.wait();
  out.reserve(static_cast<std::size_t>(elements_));
  for (const auto& piece : pieces_) {
    const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(piece.begin);
    out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(piece.count));
  }
  return out;
}

void Parameters::write(const Lane& lane, const DeviceMemory& array, std::span<const float> values) const {
  std::vector<float> whole(size_, 0.0F);
  for (const auto& piece : pieces_) {
    std::ranges::copy(values.first(piece.count), whole.begin() + static_cast<std::ptrdiff_t>(piece.begin));
    values = values.subspan(piece.count);
  }
  check(cudaMemcpyAsync(array.get(), whole.data(), bytes(), cudaMemcpyHostToDevice, lane.stream()), "cudaMemcpyAsync");
  lane.wait();
}

void Parameters::update(const Lane& lane, const SgdStep& step) {
  const bool averages = step.average_decay > 0;
  if (averages && !average_) {  // begins with the weights as they are
    auto made = device_memory(bytes());
    check(cudaMemcpyAsync(made.get(), weights_.get(), bytes(), cudaMemcpyDeviceToDevice, lane.stream()),
          "cudaMemcpyAsync");
    average_ = std::move(made);
  }
  const auto floats = [](const DeviceMemory& array) { return static_cast<float*>(array.get()); };
  const Descent job{floats(weights_),
                    floats(gradients_),
                    floats(velocity_),
                    averages ? floats(average_) : nullptr,
                    static_cast<const ParameterKind*>(kinds_.get()),
                    static_cast<int>(size_),
                    step.rate,
                    step.momentum,
                    step.weight_decay,
                    step.average_decay,
                    step.nesterov};
  if (size_ > 0) check(launch(job, lane.stream()), "descent kernel");
}

void Parameters::clear(const Lane& lane) const {
  check(cudaMemsetAsync(gradients_.get(), 0, bytes(), lane.stream()), "cudaMemsetAsync");
}

void Parameters::read_gradients(const Lane& lane, std::span<float> out) const {
  std::ranges::copy(read(lane, gradients_), out.begin());
}

void Parameters::write_gradients(const Lane& lane, std::span<const float> in) const { write(lane, gradients_, in); }

template <class Visit>
void Parameters::each_number(std::int64_t first, std::size_t count, const Visit& visit) const {
  const auto from = static_cast<std::size_t>(first), to = from + count;
  std::size_t at = 0;
  for (const auto& piece : pieces_) {
    for (auto i = std::max(at, from); i < std::min(at + piece.count, to); ++i) visit(i, piece.kind == ParameterKind::fixed);
    at += piece.count;
  }
}

void Parameters::read_shared(const Lane& lane, std::int64_t first, std::span<float> out) const {
  const auto gradients = read(lane, gradients_), weights = read(lane, weights_);
  auto to = out.begin();
  each_number(first, out.size(), [&](std::size_t i, bool fixed) { *to++ = fixed ? weights[i] : gradients[i]; });
}

void Parameters::write_shared(const Lane& lane, std::int64_t first, std::span<const float> in) const {
  auto gradients = read(lane, gradients_), weights = read(lane, weights_);
  auto from = in.begin();
  each_number(first, in.size(), [&](std::size_t i, bool fixed) { (fixed ? weights[i] : gradients[i]) = *from++; });
  write(lane, gradients_, gradients);
  write(lane, weights_, weights);
}

TrainingState Parameters::state(const Lane& lane) const {
  return {read(lane, weights_), read(lane, velocity_), average_ ? read(lane, average_) : std::vector<float>{}};
}

void Parameters::restore(const Lane& lane, const TrainingState& state) {
  if (state.average.empty()) {
    lane.wait();
    average_.reset();
  } else {
    if (!average_) average_ = device_memory(bytes());
    write(lane, average_, state.average);
  }
  write(lane, weights_, state.weights);
  write(lane, velocity_, state.velocity);
}

Network Parameters::network(const Lane& lane, const Network& like, bool averaged) const {
  Network out = like;
  const auto values = read(lane, averaged && average_ ? average_ : weights_);
  std::span<const float> rest(values);
  for (auto& node : out.nodes)
    each_array(node, [&](int, std::vector<float>& array, ParameterKind) {
      std::ranges::copy(rest.first(array.size()), array.begin());
      rest = rest.subspan(array.size());
    });
  return out;
}

}  // namespace coppice::gpu
