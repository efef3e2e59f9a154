#include "gpu/cpu_training.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "gpu/cpu_training_graph.hpp"

namespace coppice::gpu {
namespace {

using dnnl::memory;

unexpected<Error> mismatch(const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); }

class CpuTrainableNet final : public TrainableNet {
 public:
  CpuTrainableNet(const Network& net, const std::vector<Dims>& shapes, const TrainingOptions& options, int threads)
      : net_(net), options_(options), threads_(threads), graph_(dnnl::engine(dnnl::engine::kind::cpu, 0), threads) {
    compile(graph_, net_, shapes, options_);
  }

  std::int64_t input_elements() const override { return elements_of(graph_.values.front()); }
  std::int64_t output_elements() const override { return elements_of(graph_.values.back()); }
  std::int64_t parameter_elements() const override { return graph_.parameters.count(); }

  Expected<void> forward(std::span<const float> input, std::span<float> scores, Mode mode) override {
    if (std::ssize(input) != input_elements() || std::ssize(scores) != output_elements())
      return mismatch("forward: " + std::to_string(input.size()) + " numbers in and " + std::to_string(scores.size()) +
                      " out, the net takes " + std::to_string(input_elements()) + " and gives " +
                      std::to_string(output_elements()));
    // Kept, because the first layer's gradient needs it again when the caller may have gone on.
    std::memcpy(graph_.values.front().data.get_data_handle(), input.data(), input.size_bytes());
    mode_ = mode;
    return guarded([&] {
      graph_.scores.set_data_handle(scores.data());
      run(graph_.forward[static_cast<int>(mode)]);
    });
  }

  Expected<void> backward(std::span<const float> score_gradients, const GradientsReady& ready) override {
    if (std::ssize(score_gradients) != output_elements())
      return mismatch("backward: " + std::to_string(score_gradients.size()) + " gradients for " +
                      std::to_string(output_elements()) + " scores");
    return guarded([&] {
      graph_.score_gradients.set_data_handle(const_cast<float*>(score_gradients.data()));
      const bool adds_up = graph_.parameters.pending();
      graph_.parameters.begin_backward();
      run(graph_.backward[static_cast<int>(mode_)], graph_.ready[static_cast<int>(mode_)],
          adds_up ? GradientsReady() : ready);
      graph_.parameters.end_backward();
    });
  }

  Expected<void> update(const SgdStep& step) override {
    graph_.parameters.update(step, threads_);
    return {};
  }

  Expected<void> read_value(int value, std::span<float> out) const override {
    if (auto fits = check(value, out); !fits) return fits;
    return guarded([&] {
      if (const auto* norm = fused_norm(value)) return normalise(*norm, out);
      if (is_fused_add(value)) return add(value, out);
      copy_out(graph_.values[static_cast<std::size_t>(value)].data, value, out);
    });
  }

  Expected<void> read_value_gradient(int value, std::span<float> out) const override {
    if (auto fits = check(value, out); !fits) return fits;
    if (value == 0 && !options_.input_gradient)
      return mismatch("the input's gradient was not asked for when the net was compiled");
    return guarded([&] {
      if (const auto* norm = fused_norm(value)) return through_relu(norm->relu, out);
      const auto& gradient = graph_.values[static_cast<std::size_t>(value)].gradient;
      if (!gradient) return void(std::fill(out.begin(), out.end(), 0.0F));
      copy_out(gradient, value, out);
    });
  }

  Expected<void> read_gradients(std::span<float> out) const override {
    if (std::ssize(out) != parameter_elements()) return wrong_count("gradients", out.size());
    return guarded([&] { graph_.parameters.read_gradients(out); });
  }
  Expected<void> write_gradients(std::span<const float> in) override {
    if (std::ssize(in) != parameter_elements()) return wrong_count("gradients", in.size());
    return guarded([&] { graph_.parameters.write_gradients(in); });
  }

  Expected<void> read_shared(std::int64_t first, std::span<float> out) const override {
    bool fits = false;
    auto done = guarded([&] { fits = graph_.parameters.read_shared(first, out); });
    return done && !fits ? cut_through(first, out.size()) : done;
  }
  Expected<void> write_shared(std::int64_t first, std::span<const float> in) override {
    bool fits = false;
    auto done = guarded([&] { fits = graph_.parameters.write_shared(first, in); });
    return done && !fits ? cut_through(first, in.size()) : done;
  }

  Expected<Network> network(bool averaged) const override {
    Network out = net_;
    std::vector<float> values(static_cast<std::size_t>(parameter_elements()));
    const auto read =
        guarded([&] { averaged ? graph_.parameters.read_average(values) : graph_.parameters.read_weights(values); });
    if (!read) return unexpected(read.error());
    auto from = values.cbegin();
    for (auto& node : out.nodes)
      for_each_parameter(node, [&](std::vector<float>& part) {
        std::copy_n(from, part.size(), part.begin());
        from += std::ssize(part);
      });
    return out;
  }
  Expected<TrainingState> state() const override {
    TrainingState out;
    auto read = guarded([&] { out = graph_.parameters.state(); });
    if (!read) return unexpected(read.error());
    return out;
  }
  Expected<void> restore(const TrainingState& state) override {
    for (const auto* part : {&state.weights, &state.velocity, &state.average})
      if (std::ssize(*part) != parameter_elements() && !(part == &state.average && part->empty()))
        return wrong_count("numbers of state", part->size());
    return guarded([&] { graph_.parameters.restore(state); });
  }

 private:
  std::int64_t elements_of(const CpuTrainingValue& value) const { return options_.batch * elements(value.dims); }

  Expected<void> wrong_count(const std::string& what, std::size_t count) const {
    return mismatch(std::to_string(count) + " " + what + ", the net has " + std::to_string(parameter_elements()));
  }
  Expected<void> cut_through(std::int64_t first, std::size_t count) const {
    return mismatch("parameters " + std::to_string(first) + " to " + std::to_string(first) + " + " +
                    std::to_string(count) + " are not those of whole nodes");
  }
  Expected<void> check(int value, std::span<float> out) const {
    if (value < 0 || value >= static_cast<int>(graph_.values.size()))
      return mismatch("there is no value " + std::to_string(value) + " in a net of " +
                      std::to_string(graph_.values.size()));
    const auto wanted = elements_of(graph_.values[static_cast<std::size_t>(value)]);
    if (std::ssize(out) != wanted)
      return mismatch("value " + std::to_string(value) + " has " + std::to_string(wanted) + " numbers, not " +
                      std::to_string(out.size()));
    return {};
  }

  template <class Work>
  Expected<void> guarded(Work work) const {
    omp_set_num_threads(threads_);  // this thread's own setting
    try {
      work();
      return {};
    } catch (const dnnl::error& fault) {
      return unexpected(Error{ErrorCode::device_failed, net_.name + ": oneDNN: " + fault.what()});
    }
  }
  static void run(const CpuTrainingGraph::Program& program) {
    for (const auto& step : program) step();
  }
  static void run(const CpuTrainingGraph::Program& program, std::span<const CpuTrainingGraph::Ready> marks,
                  const GradientsReady& ready) {
    if (!ready) return run(program);
    std::size_t done = 0;
    for (const auto& mark : marks) {
      for (; done < mark.steps; ++done) program[done]();
      ready(mark.first);
    }
    for (; done < program.size(); ++done) program[done]();
  }

  void copy_out(const memory& from, int value, std::span<float> out) const {
    const auto& dims = graph_.values[static_cast<std::size_t>(value)].dims;
    memory source = from, to(plain_layout(with_batch(options_.batch, dims)), graph_.engine, out.data());
    dnnl::stream stream(graph_.engine);
    dnnl::reorder(source, to).execute(stream, source, to);
    stream.wait();
  }

  // ---- values that a fused step never wrote ------------------------------------------------------------------------

  const CpuFusedNorm* fused_norm(int value) const {
    for (const auto& norm : graph_.fused_norms)
      if (norm.node + 1 == value) return &norm;
    return nullptr;
  }
  bool is_fused_add(int value) const {
    return std::find(graph_.fused_adds.begin(), graph_.fused_adds.end(), value - 1) != graph_.fused_adds.end();
  }
  const Node& node_of(int value) const { return net_.nodes[static_cast<std::size_t>(value) - 1]; }

  void normalise(const CpuFusedNorm& norm, std::span<float> out) const {
    const int input = node_of(norm.node + 1).inputs.front();
    copy_out(graph_.values[static_cast<std::size_t>(input)].data, input, out);
    const bool training = mode_ == Mode::train;
    const auto* mean = static_cast<const float*>((training ? norm.mean : norm.running_mean).get_data_handle());
    const auto* variance =
        static_cast<const float*>((training ? norm.variance : norm.running_variance).get_data_handle());
    const auto* scale = static_cast<const float*>(norm.scale_shift.get_data_handle());
    const auto& op = std::get<BatchNorm>(node_of(norm.node + 1).op);
    const auto channels = op.scale.size(), pixels = out.size() / channels / static_cast<std::size_t>(options_.batch);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto c = i / pixels % channels;
      out[i] = (out[i] - mean[c]) / std::sqrt(variance[c] + op.epsilon) * scale[c] + scale[channels + c];
    }
  }
  void add(int value, std::span<float> out) const {
    const auto& inputs = node_of(value).inputs;
    std::vector<float> second(out.size());
    copy_out(graph_.values[static_cast<std::size_t>(inputs[0])].data, inputs[0], out);
    copy_out(graph_.values[static_cast<std::size_t>(inputs[1])].data, inputs[1], second);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += second[i];
  }
  void through_relu(int relu, std::span<float> out) const {
    const auto& after = graph_.values[static_cast<std::size_t>(relu)];
    if (!after.gradient) return void(std::fill(out.begin(), out.end(), 0.0F));
    std::vector<float> values(out.size());
    copy_out(after.data, relu, values);
    copy_out(after.gradient, relu, out);
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!(values[i] > 0)) out[i] = 0;
  }

  Network net_;
  TrainingOptions options_;
  int threads_;
  CpuTrainingGraph graph_;
  Mode mode_ = Mode::evaluate;
};

}  // namespace

Expected<std::unique_ptr<TrainableNet>> make_cpu_training(const Network& net, const TrainingOptions& options,
                                                          int threads) {
  if (options.batch < 1 || options.batch > 65'536) return mismatch("a batch of " + std::to_string(options.batch));
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  if (auto ok = check_learnable(net, *shapes, "training"); !ok) return unexpected(ok.error());
  try {
    return std::make_unique<CpuTrainableNet>(net, *shapes, options, threads);
  } catch (const dnnl::error& fault) {
    return unexpected(Error{ErrorCode::device_failed, net.name + ": oneDNN: " + fault.what()});
  }
}

}  // namespace coppice::gpu
