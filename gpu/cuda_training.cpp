// A tape and its parameters behind the interface of training; each pass is a CUDA graph, as in inference.
#include "gpu/cuda_training.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "gpu/cuda_tape.hpp"

namespace coppice::gpu {
namespace {

class CudaTraining final : public TrainableNet {
 public:
  CudaTraining(int ordinal, Precision precision, const Network& net, const std::vector<Dims>& shapes, int batch)
      : ordinal_(ordinal),
        net_(net),
        lane_(ordinal),
        parameters_(net, lane_),
        tape_(net_, shapes, batch, precision, lane_, parameters_),
        pinned_input_(pinned_memory(bytes(0))),
        pinned_scores_(pinned_memory(bytes(last()))),
        pinned_gradients_(pinned_memory(bytes(last()))) {
    std::memset(pinned_input_.get(), 0, bytes(0));
    std::memset(pinned_gradients_.get(), 0, bytes(last()));
    const auto as_given = parameters_.state(lane_);
    for (const auto mode : {Mode::train, Mode::evaluate}) {
      forward_[index(mode)] = warmed_up([this, mode] { enqueue_forward(mode); });
      backward_[index(mode)] = warmed_up([this, mode] { enqueue_backward(mode); });
    }
    // As if none of it had been.
    parameters_.restore(lane_, as_given);
    parameters_.clear(lane_);
    lane_.wait();
  }
  CudaTraining(const CudaTraining&) = delete;
  CudaTraining& operator=(const CudaTraining&) = delete;
  ~CudaTraining() override { lane_.settle(); }

  std::int64_t input_elements() const override { return tape_.count(0); }
  std::int64_t output_elements() const override { return tape_.count(last()); }
  std::int64_t parameter_elements() const override { return parameters_.elements(); }

  Expected<void> forward(std::span<const float> input, std::span<float> scores, Mode mode) override {
    return guarded(std::ssize(input) == input_elements() && std::ssize(scores) == output_elements(), "forward", [&] {
      std::memcpy(pinned_input_.get(), input.data(), input.size_bytes());
      latest_.reset();
      if (const auto& graph = forward_[index(mode)])
        check(cudaGraphLaunch(graph.get(), lane_.stream()), "cudaGraphLaunch");
      else
        enqueue_forward(mode);
      lane_.wait();
      latest_ = mode;
      std::memcpy(scores.data(), pinned_scores_.get(), scores.size_bytes());
    });
  }

  // Does not wait: the caller makes the next batch meanwhile. The whole backward is one graph, which tells nothing before
  // it has ended.
  Expected<void> backward(std::span<const float> score_gradients, const GradientsReady& /*ready*/) override {
    return guarded(latest_ && std::ssize(score_gradients) == output_elements(), "backward", [&] {
      lane_.wait();  // for an earlier backward that still reads the pinned memory
      std::memcpy(pinned_gradients_.get(), score_gradients.data(), score_gradients.size_bytes());
      if (const auto& graph = backward_[index(*latest_)])
        check(cudaGraphLaunch(graph.get(), lane_.stream()), "cudaGraphLaunch");
      else
        enqueue_backward(*latest_);
    });
  }
  Expected<void> update(const SgdStep& step) override {
    return guarded(true, "update", [&] { parameters_.update(lane_, step); });
  }

  Expected<void> read_value(int value, std::span<float> out) const override {
    return read("read_value", value, out, [&] { return tape_.value(value); });
  }
  Expected<void> read_value_gradient(int value, std::span<float> out) const override {
    return read("read_value_gradient", value, out, [&] { return tape_.gradient(value); });
  }
  Expected<void> read_gradients(std::span<float> out) const override {
    return guarded(std::ssize(out) == parameter_elements(), "read_gradients",
                   [&] { parameters_.read_gradients(lane_, out); });
  }
  Expected<void> write_gradients(std::span<const float> in) override {
    return guarded(std::ssize(in) == parameter_elements(), "write_gradients",
                   [&] { parameters_.write_gradients(lane_, in); });
  }

  Expected<void> read_shared(std::int64_t first, std::span<float> out) const override {
    return guarded(within(first, out.size()), "read_shared", [&] { parameters_.read_shared(lane_, first, out); });
  }
  Expected<void> write_shared(std::int64_t first, std::span<const float> in) override {
    return guarded(within(first, in.size()), "write_shared", [&] { parameters_.write_shared(lane_, first, in); });
  }

  Expected<Network> network(bool averaged) const override {
    Network out;
    const auto read = guarded(true, "network", [&] { out = parameters_.network(lane_, net_, averaged); });
    if (!read) return unexpected(read.error());
    return out;
  }
  Expected<TrainingState> state() const override {
    TrainingState out;
    const auto read = guarded(true, "state", [&] { out = parameters_.state(lane_); });
    if (!read) return unexpected(read.error());
    return out;
  }
  Expected<void> restore(const TrainingState& state) override {
    const bool fits = std::ssize(state.weights) == parameter_elements() &&
                      std::ssize(state.velocity) == parameter_elements() &&
                      (state.average.empty() || std::ssize(state.average) == parameter_elements());
    return guarded(fits, "restore", [&] { parameters_.restore(lane_, state); });
  }

 private:
  static std::size_t index(Mode mode) { return static_cast<std::size_t>(mode); }
  int last() const { return tape_.values() - 1; }
  bool within(std::int64_t first, std::size_t count) const {
    return first >= 0 && first <= parameter_elements() &&
           static_cast<std::int64_t>(count) <= parameter_elements() - first;
  }
  std::size_t bytes(int value) const { return static_cast<std::size_t>(tape_.count(value)) * sizeof(float); }

  // Runs it on this net's GPU; its faults become errors. fits: whether sizes are what they should be.
  template <class Run>
  Expected<void> guarded(bool fits, const char* what, const Run& run) const {
    const auto here = "cuda:" + std::to_string(ordinal_) + ": ";
    if (!fits)
      return unexpected(
          Error{ErrorCode::shape_mismatch, here + what + ": sizes that do not fit the net, or no forward yet"});
    try {
      check(cudaSetDevice(ordinal_), "cudaSetDevice");
      run();
    } catch (const Fault& fault) {
      return unexpected(Error{fault.code, here + fault.what()});
    }
    return {};
  }
  template <class Place>
  Expected<void> read(const char* what, int value, std::span<float> out, const Place& place) const {
    const bool fits = value >= 0 && value <= last() && std::ssize(out) == tape_.count(value);
    return guarded(fits, what, [&] {
      check(cudaMemcpyAsync(out.data(), place(), out.size_bytes(), cudaMemcpyDeviceToHost, lane_.stream()),
            "cudaMemcpyAsync");
      lane_.wait();
    });
  }

  // Pinned memory to pinned memory; throws Fault.
  void enqueue_forward(Mode mode) const {
    check(cudaMemcpyAsync(tape_.value(0), pinned_input_.get(), bytes(0), cudaMemcpyHostToDevice, lane_.stream()),
          "cudaMemcpyAsync");
    tape_.forward(mode);
    check(cudaMemcpyAsync(pinned_scores_.get(), tape_.value(last()), bytes(last()), cudaMemcpyDeviceToHost,
                          lane_.stream()),
          "cudaMemcpyAsync");
  }
  void enqueue_backward(Mode mode) const {
    check(cudaMemcpyAsync(tape_.gradient(last()), pinned_gradients_.get(), bytes(last()), cudaMemcpyHostToDevice,
                          lane_.stream()),
          "cudaMemcpyAsync");
    tape_.backward(mode);
  }
  // Once as it is: libraries load their kernels at first use, which a capture does not allow.
  template <class Enqueue>
  ReadyGraph warmed_up(const Enqueue& enqueue) const {
    enqueue();
    lane_.wait();
    return captured(lane_, enqueue);
  }

  int ordinal_;
  Network net_;
  Lane lane_;
  Parameters parameters_;
  Tape tape_;
  PinnedMemory pinned_input_, pinned_scores_, pinned_gradients_;
  std::array<ReadyGraph, 2> forward_, backward_;  // by mode; none where capture was refused
  std::optional<Mode> latest_;                    // of the latest forward that succeeded
};

}  // namespace

std::unique_ptr<TrainableNet> make_cuda_training(int ordinal, Precision precision, const Network& net,
                                                 const std::vector<Dims>& shapes, const TrainingOptions& options) {
  return std::make_unique<CudaTraining>(ordinal, precision, net, shapes, options.batch);
}

}  // namespace coppice::gpu
