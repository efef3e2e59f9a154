// A program in memory: its values in one arena, its launches captured once into a CUDA graph and replayed.
#include "gpu/cuda_net.hpp"

#include <algorithm>
#include <cstring>

#include "gpu/arena.hpp"
#include "gpu/cuda_program.hpp"

namespace coppice::gpu {
namespace {

class CudaNet final : public CompiledNet {
 public:
  CudaNet(int ordinal, Precision precision, const Network& net, const std::vector<Dims>& shapes,
          const CompileOptions& options)
      : ordinal_(ordinal), lane_(ordinal), program_(lowered(net, shapes, options.batch, precision, lane_)) {
    binding_.timed = options.timed;
    place();
    for (const auto& step : program_.steps) launches_.push_back(step.bind(binding_));
    pinned_input_ = pinned_memory(input_bytes());
    pinned_output_ = pinned_memory(output_bytes());
    std::memset(pinned_input_.get(), 0, input_bytes());
    // Once as it is: libraries load their kernels at first use, which a capture does not allow.
    enqueue();
    lane_.wait();
    graph_ = captured(lane_, [this] { enqueue(); });
  }

  CudaNet(const CudaNet&) = delete;
  CudaNet& operator=(const CudaNet&) = delete;
  ~CudaNet() override { lane_.settle(); }

  std::int64_t input_elements() const override { return program_.input_count; }
  std::int64_t output_elements() const override { return program_.output_count; }

  Expected<void> run(std::span<const float> input, std::span<float> output) override {
    if (std::ssize(input) != input_elements() || std::ssize(output) != output_elements())
      return unexpected(Error{ErrorCode::shape_mismatch, "run: " + std::to_string(input.size()) + " numbers in and " +
                                                             std::to_string(output.size()) + " out, the net takes " +
                                                             std::to_string(input_elements()) + " and gives " +
                                                             std::to_string(output_elements())});
    try {
      check(cudaSetDevice(ordinal_), "cudaSetDevice");
      std::memcpy(pinned_input_.get(), input.data(), input.size_bytes());
      if (graph_)
        check(cudaGraphLaunch(graph_.get(), lane_.stream()), "cudaGraphLaunch");
      else
        enqueue();
      lane_.wait();
      std::memcpy(output.data(), pinned_output_.get(), output.size_bytes());
    } catch (const Fault& fault) {
      return unexpected(Error{fault.code, "cuda:" + std::to_string(ordinal_) + ": " + fault.what()});
    }
    return {};
  }

  std::string description() const override {
    const auto count = [&](Way way) { return std::to_string(std::ranges::count(binding_.ways, way)); };
    return "convolutions: " + count(Way::fused) + " fused, " + count(Way::plan) + " by a plan and a kernel, " +
           count(Way::older) + " by the older call and a kernel, " + count(Way::kernel) + " by a kernel; " +
           std::to_string(program_.steps.size()) + " launches " + (graph_ ? "in one graph" : "one by one") +
           "; arena of " + std::to_string(arena_bytes_) + " bytes";
  }

 private:
  std::size_t input_bytes() const { return static_cast<std::size_t>(program_.input_count) * sizeof(float); }
  std::size_t output_bytes() const { return static_cast<std::size_t>(program_.output_count) * sizeof(float); }

  // Values that are never needed at one time share memory. Zeros first: convolutions are tried on what is there, and
  // there shall be no traps and no luck.
  void place() {
    const auto& buffers = program_.buffers;
    const int steps = static_cast<int>(program_.steps.size());
    std::vector<Lifetime> lives(buffers.size(), {0, steps, -1});
    const auto needed = [&](int buffer, int step) {
      auto& life = lives[static_cast<std::size_t>(buffer)];
      life.first = std::min(life.first, step);
      life.last = std::max(life.last, step);
    };
    for (int step = 0; step < steps; ++step) {
      const auto& of = program_.steps[static_cast<std::size_t>(step)];
      needed(of.writes, step);
      for (const int buffer : of.reads) needed(buffer, step);
    }
    needed(program_.input, 0);
    needed(program_.output, steps);
    for (std::size_t i = 0; i < buffers.size(); ++i)
      if (!buffers[i].apart) lives[i].bytes = buffers[i].bytes;
    const auto plan = plan_arena(lives);
    arena_bytes_ = plan.bytes;
    arena_ = lane_.zeros(plan.bytes);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      void* at = buffers[i].constant;
      if (!at && buffers[i].apart) at = apart_.emplace_back(lane_.zeros(buffers[i].bytes)).get();
      binding_.places.push_back(at ? at : static_cast<std::byte*>(arena_.get()) + plan.offsets[i]);
    }
  }

  // The whole net onto the stream, pinned memory to pinned memory; throws Fault.
  void enqueue() const {
    check(cudaMemcpyAsync(binding_.places[static_cast<std::size_t>(program_.input)], pinned_input_.get(), input_bytes(),
                          cudaMemcpyHostToDevice, lane_.stream()),
          "cudaMemcpyAsync");
    for (const auto& launch : launches_) launch();
    check(cudaMemcpyAsync(pinned_output_.get(), binding_.places[static_cast<std::size_t>(program_.output)],
                          output_bytes(), cudaMemcpyDeviceToHost, lane_.stream()),
          "cudaMemcpyAsync");
  }

  int ordinal_;
  Lane lane_;
  Program program_;
  DeviceMemory arena_;
  std::vector<DeviceMemory> apart_;
  PinnedMemory pinned_input_, pinned_output_;
  std::size_t arena_bytes_ = 0;
  Binding binding_{lane_, false, {}, {}, {}};
  std::vector<Launch> launches_;
  ReadyGraph graph_;  // none where capture was refused: then the steps are launched one by one
};

}  // namespace

std::unique_ptr<CompiledNet> make_cuda_net(int ordinal, Precision precision, const Network& net,
                                           const std::vector<Dims>& shapes, const CompileOptions& options) {
  return std::make_unique<CudaNet>(ordinal, precision, net, shapes, options);
}

}  // namespace coppice::gpu
