// A gate before the first step of every stream and one after the last hold a run together: a run begins after the one
// before it and after the callers' streams, and its end is one event.
#include "gpu/cuda_peer_run.hpp"

#include "gpu/cuda_kernels.hpp"

namespace coppice::gpu {
namespace {

std::size_t index(int at) { return static_cast<std::size_t>(at); }

class CudaPeerRun final : public PeerRun {
 public:
  CudaPeerRun(std::vector<int> ordinals, const PeerProgram& program)
      : ordinals_(std::move(ordinals)), program_(program), order_(order_of(program)) {
    streams_.resize(program_.streams.size());
    drained_.resize(program_.streams.size());
    done_.resize(program_.steps.size());
    for (std::size_t device = 0; device < ordinals_.size(); ++device)
      at_device(ordinals_[device], [&] { make(device); });
  }
  CudaPeerRun(const CudaPeerRun&) = delete;
  CudaPeerRun& operator=(const CudaPeerRun&) = delete;
  ~CudaPeerRun() override { settle(); }

  Expected<void> start(std::span<const PeerBuffers> buffers) override {
    if (const auto fit = fits(buffers); !fit) return fit;
    const auto started = without_faults("run", [&] {
      open_gate(buffers);
      for (std::size_t step = 0; step < program_.steps.size(); ++step) enqueue(step, buffers);
      close_gate(buffers);
    });
    if (!started) settle();
    return started;
  }

  Expected<void> wait() override {
    // A fault of a kernel or copy shows here first, whichever step's it was.
    return without_faults("run", [this] {
      at_device(ordinals_[0], [this] { check(cudaEventSynchronize(over_.get()), "cudaEventSynchronize"); });
    });
  }

  Expected<bool> ready() override {
    bool over = false;
    const auto asked = without_faults("run", [&] {
      at_device(ordinals_[0], [&] {
        const auto status = cudaEventQuery(over_.get());
        over = status == cudaSuccess;
        if (status != cudaErrorNotReady) check(status, "cudaEventQuery");
      });
    });
    if (!asked) return unexpected(asked.error());
    return over;
  }

 private:
  int ordinal_of(int stream) const { return ordinals_[index(program_.streams[index(stream)])]; }

  // What it has on the current device.
  void make(std::size_t device) {
    const auto bytes = static_cast<std::size_t>(program_.landing[device]);
    landing_.push_back(bytes > 0 ? device_memory(bytes) : nullptr);
    begun_.push_back(new_event());
    if (device == 0) {
      gate_ = new_stream();
      opened_ = new_event();
      over_ = new_event();
    }
    const auto here = [&](int stream) { return program_.streams[index(stream)] == static_cast<int>(device); };
    for (int stream = 0; stream < std::ssize(streams_); ++stream)
      if (here(stream)) {
        streams_[index(stream)] = new_stream();
        drained_[index(stream)] = new_event();
      }
    for (std::size_t step = 0; step < done_.size(); ++step)
      if (order_.awaited[step] && here(program_.steps[step].stream)) done_[step] = new_event();
  }

  Expected<void> fits(std::span<const PeerBuffers> buffers) const {
    const auto refuse = [](const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); };
    if (buffers.size() != ordinals_.size())
      return refuse("buffers of " + std::to_string(buffers.size()) + " devices, not " +
                    std::to_string(ordinals_.size()));
    const auto aligned = [this](const void* at) {
      return reinterpret_cast<std::uintptr_t>(at) % size_of(program_.element) == 0;
    };
    for (std::size_t device = 0; device < buffers.size(); ++device) {
      const auto of = " of cuda:" + std::to_string(ordinals_[device]);
      const auto& [input, output, stream] = buffers[device];
      if (!input && program_.input[device] > 0) return refuse("no input" + of);
      if (!output && program_.output[device] > 0) return refuse("no output" + of);
      if (!aligned(input) || !aligned(output)) return refuse("a buffer" + of + " is not aligned as its elements are");
    }
    return {};
  }

  void* at(const PeerPlace& place, std::span<const PeerBuffers> buffers) const {
    const auto& own = buffers[index(place.device)];
    void* const base = place.memory == PeerMemory::input    ? own.input
                       : place.memory == PeerMemory::output ? own.output
                                                            : landing_[index(place.device)].get();
    return static_cast<std::byte*>(base) + place.offset;
  }

  static void wait_on(cudaStream_t stream, const Event& event) {
    check(cudaStreamWaitEvent(stream, event.get(), 0), "cudaStreamWaitEvent");
  }
  static void record(const Event& event, cudaStream_t stream) {
    check(cudaEventRecord(event.get(), stream), "cudaEventRecord");
  }

  void open_gate(std::span<const PeerBuffers> buffers) {
    for (std::size_t device = 0; device < buffers.size(); ++device)
      if (buffers[device].stream)
        at_device(ordinals_[device], [&] {
          record(begun_[device], static_cast<cudaStream_t>(buffers[device].stream));
          wait_on(gate_.get(), begun_[device]);
        });
    at_device(ordinals_[0], [&] {
      record(opened_, gate_.get());
      for (const auto& stream : streams_) wait_on(stream.get(), opened_);
    });
  }

  void enqueue(std::size_t step, std::span<const PeerBuffers> buffers) {
    at_device(ordinal_of(program_.steps[step].stream), [&] {
      try {
        carry_out(step, buffers);
      } catch (const Fault& fault) {
        throw Fault(fault.code, in_words(program_, step, ordinals_) + ": " + fault.what());
      }
    });
  }

  void carry_out(std::size_t step, std::span<const PeerBuffers> buffers) {
    const PeerStep& todo = program_.steps[step];
    cudaStream_t stream = streams_[index(todo.stream)].get();
    for (const int other : order_.waits[step]) wait_on(stream, done_[index(other)]);
    void* const to = at(todo.to, buffers);
    const auto bytes = static_cast<std::size_t>(todo.bytes);
    switch (todo.kind) {
      case PeerStep::Kind::copy:
        copy(to, todo, at(todo.from, buffers), stream);
        break;
      case PeerStep::Kind::combine: {
        const auto job = combine_of(program_.element, program_.reduction, to, at(todo.from, buffers),
                                    at(todo.other, buffers), bytes);
        check(launch(job, stream), "Combine");
        break;
      }
      case PeerStep::Kind::average:
        check(launch(average_of(program_.element, program_.ranks, to, bytes), stream), "Average");
        break;
    }
    if (order_.awaited[step]) record(done_[step], stream);
  }

  void copy(void* to, const PeerStep& step, const void* from, cudaStream_t stream) const {
    const auto bytes = static_cast<std::size_t>(step.bytes);
    if (to == from) return;  // a caller's buffer that is input and output
    if (step.to.device == step.from.device)
      check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    else
      check(cudaMemcpyPeerAsync(to, ordinals_[index(step.to.device)], from, ordinals_[index(step.from.device)], bytes,
                                stream),
            "cudaMemcpyPeerAsync");
  }

  void close_gate(std::span<const PeerBuffers> buffers) {
    for (int stream = 0; stream < std::ssize(streams_); ++stream)
      at_device(ordinal_of(stream), [&] {
        record(drained_[index(stream)], streams_[index(stream)].get());
        wait_on(gate_.get(), drained_[index(stream)]);
      });
    at_device(ordinals_[0], [&] { record(over_, gate_.get()); });
    for (std::size_t device = 0; device < buffers.size(); ++device)
      if (buffers[device].stream)
        at_device(ordinals_[device], [&] { wait_on(static_cast<cudaStream_t>(buffers[device].stream), over_); });
  }

  // Waits for what runs, whatever came of it: before its memory goes, or a caller's.
  void settle() const noexcept {
    for (const auto& stream : streams_) static_cast<void>(cudaStreamSynchronize(stream.get()));
    if (gate_) static_cast<void>(cudaStreamSynchronize(gate_.get()));
  }

  std::vector<int> ordinals_;
  PeerProgram program_;
  PeerOrder order_;
  std::vector<DeviceMemory> landing_;  // of each device
  Stream gate_;
  std::vector<Stream> streams_;
  std::vector<Event> begun_;  // of each device: what its caller's stream had on it
  Event opened_, over_;
  std::vector<Event> drained_;  // of each stream
  std::vector<Event> done_;     // of each step that another stream waits for
};

}  // namespace

Stream new_stream() {
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Stream(made);
}

Event new_event() {
  cudaEvent_t made = nullptr;
  check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return Event(made);
}

std::unique_ptr<PeerRun> make_peer_run(std::vector<int> ordinals, const PeerProgram& program) {
  return std::make_unique<CudaPeerRun>(std::move(ordinals), program);
}

}  // namespace coppice::gpu
