// Training on the CPU: every node a few oneDNN primitives, forward and backward, over buffers that live as long as the
// net. Layouts are the convolutions' choice and are passed on; weights are kept plain, in one flat buffer, so that the
// optimiser is one loop, and are moved into the layouts that the primitives like at every step.
#include "gpu/cpu_training.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "gpu/training.hpp"

namespace coppice::gpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;
using dnnl::normalization_flags;
constexpr float kMomentumOfStatistics = 0.1F;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

float* floats(const memory& of) { return static_cast<float*>(of.get_data_handle()); }

// The same numbers in another layout, prepared once.
struct Move {
  dnnl::reorder primitive;
  std::unordered_map<int, memory> arguments;
  Move(const memory& from, const memory& to)
      : primitive(from, to), arguments{{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}} {}
  void run(dnnl::stream& stream) const { primitive.execute(stream, arguments); }
};

struct Parameter {
  std::size_t offset = 0, size = 0;
  bool decays = false, learns = true;
};

struct Value {
  Dims dims;  // without batch
  memory data, slope;
  bool has_slope = false;  // some reader's backward has been laid out already
  bool wanted = true;      // whether anything before it learns
};

class CpuTrainableNet final : public TrainableNet {
 public:
  CpuTrainableNet(const dnnl::engine& engine, int threads, const Network& net, int batch)
      : engine_(engine), stream_(engine), threads_(threads), net_(net), batch_(batch) {}

  // Throws dnnl::error, or std::logic_error for a node that is not trained. REQUIRES: shapes infer.
  void build(const std::vector<Dims>& shapes);

  std::int64_t input_elements() const override { return batch_ * elements(values_.front().dims); }
  std::int64_t output_elements() const override { return batch_ * elements(values_.back().dims); }

  Expected<void> forward(std::span<const float> input, std::span<float> scores, Mode mode) override {
    if (std::ssize(input) != input_elements() || std::ssize(scores) != output_elements()) return mismatch("forward");
    return guarded([&] {
      train_ = mode == Mode::train;
      std::ranges::copy(input, floats(input_));
      for (const auto& step : forward_) step();
      std::copy_n(floats(scores_), scores.size(), scores.begin());
    });
  }
  Expected<void> backward(std::span<const float> score_gradients) override {
    if (std::ssize(score_gradients) != output_elements()) return mismatch("backward");
    return guarded([&] {
      std::ranges::copy(score_gradients, floats(score_slopes_));
      for (const auto& step : backward_) step();
    });
  }
  Expected<void> update(const SgdStep& step) override;

  Expected<void> read_value(int value, std::span<float> out) const override {
    return read(value, out, [](const Value& v) { return v.data; });
  }
  Expected<void> read_value_gradient(int value, std::span<float> out) const override {
    return read(value, out, [](const Value& v) { return v.slope; });
  }
  std::int64_t parameter_elements() const override { return std::ssize(weights_); }
  Expected<void> read_gradients(std::span<float> out) const override {
    if (out.size() != slopes_.size()) return mismatch("read_gradients");
    std::ranges::copy(slopes_, out.begin());
    return {};
  }
  Expected<void> write_gradients(std::span<const float> in) override {
    if (in.size() != slopes_.size()) return mismatch("write_gradients");
    std::ranges::copy(in, slopes_.begin());
    return {};
  }
  Expected<Network> network(bool averaged) const override;
  Expected<TrainingState> state() const override { return TrainingState{weights_, velocity_, average_}; }
  Expected<void> restore(const TrainingState& state) override {
    if (state.weights.size() != weights_.size() || state.velocity.size() != weights_.size() ||
        (!state.average.empty() && state.average.size() != weights_.size()))
      return mismatch("restore");
    std::ranges::copy(state.weights, weights_.begin());  // primitives point into it
    velocity_ = state.velocity;
    average_ = state.average;
    return {};
  }

 private:
  friend class TrainingBuilder;
  using Step = std::function<void()>;

  unexpected<Error> mismatch(const std::string& call) const {
    return unexpected(Error{ErrorCode::shape_mismatch, net_.name + ": " + call + ": as many numbers as the net has were expected"});
  }
  template <class Work>
  Expected<void> guarded(Work work) {
    omp_set_num_threads(threads_);
    try {
      work();
    } catch (const dnnl::error& fault) {
      return unexpected(Error{ErrorCode::device_failed, net_.name + ": oneDNN: " + fault.what()});
    }
    return {};
  }
  template <class Which>
  Expected<void> read(int value, std::span<float> out, Which which) const {
    if (value < 0 || at(value) >= values_.size()) return mismatch("read_value");
    const auto& v = values_[at(value)];
    const memory from = which(v);
    if (std::ssize(out) != batch_ * elements(v.dims)) return mismatch("read_value");
    if (!from)
      return unexpected(Error{ErrorCode::shape_mismatch,
                              net_.name + ": value " + std::to_string(value) + " is not kept apart while training"});
    const memory to(plain(v.dims), engine_, out.data());
    Move(from, to).run(stream_);
    stream_.wait();
    return {};
  }
  memory::dims with_batch(const Dims& dims) const {
    memory::dims out{batch_};
    out.insert(out.end(), dims.begin(), dims.end());
    return out;
  }
  memory::desc plain(const Dims& dims) const {
    const auto sizes = with_batch(dims);
    memory::dims strides(sizes.size(), 1);
    for (std::size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
    return {sizes, Type::f32, strides};
  }

  dnnl::engine engine_;
  mutable dnnl::stream stream_;
  int threads_;
  Network net_;
  int batch_;
  bool train_ = true;
  std::vector<Parameter> parameters_;
  std::vector<float> weights_, slopes_, velocity_, average_;
  std::vector<Value> values_;
  std::vector<Step> forward_, backward_;
  memory input_, scores_, score_slopes_;
};

// ---- laying it out -------------------------------------------------------------------------------------------------

class TrainingBuilder {
 public:
  TrainingBuilder(CpuTrainableNet& to, const std::vector<Dims>& shapes) : to_(to), net_(to.net_), shapes_(shapes) {}

  void build() {
    omp_set_num_threads(to_.threads_);
    collect_parameters();
    readers_.assign(shapes_.size(), {});
    for (std::size_t i = 0; i < net_.nodes.size(); ++i)
      for (const int input : net_.nodes[i].inputs) readers_[at(input)].push_back(i);
    to_.values_.resize(shapes_.size());
    for (std::size_t i = 0; i < shapes_.size(); ++i) to_.values_[i].dims = shapes_[i];
    to_.values_[0].wanted = false;
    to_.input_ = to_.values_[0].data = memory(to_.plain(shapes_[0]), to_.engine_);
    for (node_ = 0; node_ < net_.nodes.size(); ++node_) {
      if (out().data) continue;  // made with the node before it
      out().wanted = std::ranges::any_of(net_.nodes[node_].inputs, [&](int i) { return to_.values_[at(i)].wanted; }) ||
                     learns(net_.nodes[node_].op);
      std::visit([&](const auto& op) { lay(op); }, net_.nodes[node_].op);
    }
    auto& last = to_.values_.back();
    to_.scores_ = as(last.data, to_.plain(last.dims), to_.forward_);
    to_.score_slopes_ = memory(to_.plain(last.dims), to_.engine_);
    seed_slope(last);
    // Backwards were laid out node by node; they run from the last to the first.
    for (auto lay_out = backwards_.rbegin(); lay_out != backwards_.rend(); ++lay_out) (*lay_out)();
  }

 private:
  using Step = std::function<void()>;
  using Steps = std::vector<Step>;

  static bool learns(const Operator& op) {
    return std::holds_alternative<Convolution>(op) || std::holds_alternative<BatchNorm>(op) || std::holds_alternative<Dense>(op);
  }

  Value& in(std::size_t i = 0) { return to_.values_[at(net_.nodes[node_].inputs[i])]; }
  Value& out() { return to_.values_[node_ + 1]; }

  // ---- parameters ----

  void collect_parameters() {
    for (const auto& node : net_.nodes) {
      first_parameter_.push_back(to_.parameters_.size());
      if (const auto* c = std::get_if<Convolution>(&node.op)) {
        add(c->weight, true);
        if (!c->bias.empty()) add(c->bias, false);
      } else if (const auto* d = std::get_if<Dense>(&node.op)) {
        add(d->weight, true);
        if (!d->bias.empty()) add(d->bias, false);
      } else if (const auto* b = std::get_if<BatchNorm>(&node.op)) {
        add(b->scale, false);
        add(b->shift, false);
        add(b->mean, false, false);
        add(b->variance, false, false);
      }
    }
    to_.slopes_.assign(to_.weights_.size(), 0.0F);
    to_.velocity_.assign(to_.weights_.size(), 0.0F);
  }
  void add(const std::vector<float>& values, bool decays, bool learns = true) {
    to_.parameters_.push_back({to_.weights_.size(), values.size(), decays, learns});
    to_.weights_.insert(to_.weights_.end(), values.begin(), values.end());
  }
  const Parameter& parameter(std::size_t i) const { return to_.parameters_[first_parameter_[node_] + i]; }
  memory parameter_memory(std::size_t i, const memory::dims& dims, Tag tag) {
    return memory({dims, Type::f32, tag}, to_.engine_, to_.weights_.data() + parameter(i).offset);
  }
  // Slopes that a primitive has left in `from` are added to the flat buffer.
  Step collect(const memory& from, const memory::desc& plain, std::size_t i) {
    const memory moved = from.get_desc() == plain ? from : memory(plain, to_.engine_);
    const auto p = parameter(i);
    std::optional<Move> move;
    if (moved.get() != from.get()) move.emplace(from, moved);
    return [this_ = &to_, moved, move, p] {
      if (move) move->run(this_->stream_);
      const float* values = floats(moved);
      float* sum = this_->slopes_.data() + p.offset;
      for (std::size_t j = 0; j < p.size; ++j) sum[j] += values[j];
    };
  }

  // ---- memories ----

  memory make(const memory::desc& desc) { return memory(desc, to_.engine_); }
  // The same numbers in the layout that is wanted.
  memory as(const memory& from, const memory::desc& wanted, Steps& steps) {
    if (from.get_desc() == wanted) return from;
    memory moved = make(wanted);
    steps.push_back([this_ = &to_, move = Move(from, moved)] { move.run(this_->stream_); });
    return moved;
  }
  void run(const dnnl::primitive& primitive, std::unordered_map<int, memory> arguments, Steps& steps) {
    steps.push_back([this_ = &to_, primitive, arguments = std::move(arguments)] { primitive.execute(this_->stream_, arguments); });
  }

  // Lays out what gives d loss / d value in the layout `produced`; adds to what other readers gave.
  void give_slope(Value& value, const memory::desc& produced, const std::function<void(const memory&)>& lay_out) {
    if (!value.wanted) return;
    const auto wanted = value.data ? value.data.get_desc() : produced;
    const bool first = !value.has_slope;
    if (first) value.slope = make(wanted);
    value.has_slope = true;
    if (first && produced == wanted) return lay_out(value.slope);
    const memory own = make(produced);
    lay_out(own);
    if (first) {
      to_.backward_.push_back([this_ = &to_, move = Move(own, value.slope)] { move.run(this_->stream_); });
      return;
    }
    const memory moved = as(own, wanted, to_.backward_);
    const auto count = value.slope.get_desc().get_size() / sizeof(float);
    to_.backward_.push_back([this_ = &to_, from = moved, to = value.slope, count] {
      float* sum = floats(to);
      const float* more = floats(from);
#pragma omp parallel for simd num_threads(this_->threads_) if (count > 65536)
      for (std::size_t j = 0; j < count; ++j) sum[j] += more[j];
    });
  }
  void seed_slope(Value& last) {
    give_slope(last, to_.plain(last.dims), [&](const memory& slope) {
      to_.backward_.push_back([from = to_.score_slopes_, slope, count = at(to_.output_elements())] {
        std::copy_n(floats(from), count, floats(slope));
      });
    });
  }
  // What runs backwards for the node that makes `target`: laid out once all its readers are. Nothing where nobody reads.
  void later(Value& target, std::function<void()> lay_out) {
    backwards_.push_back([&target, lay_out = std::move(lay_out)] {
      if (target.has_slope) lay_out();
    });
  }

  // ---- layers ----

  void lay(const Convolution& c) {
    const auto& w = c.window;
    Value &source = in(), &target = out();
    memory::dims sizes{c.out_channels, source.dims[0], w.kernel_h, w.kernel_w};
    auto tag = Tag::oihw;
    if (c.groups > 1) {
      sizes = {c.groups, c.out_channels / c.groups, source.dims[0] / c.groups, w.kernel_h, w.kernel_w};
      tag = Tag::goihw;
    }
    const memory::desc any_in(to_.with_batch(source.dims), Type::f32, Tag::any), any_out(to_.with_batch(target.dims), Type::f32, Tag::any);
    const memory::desc weights(sizes, Type::f32, Tag::any), bias({c.out_channels}, Type::f32, Tag::x);
    const memory::dims strides{w.stride_h, w.stride_w}, dilation{w.dilation_h - 1, w.dilation_w - 1};
    const memory::dims before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
    const auto direct = dnnl::algorithm::convolution_direct;
    const auto training = dnnl::prop_kind::forward_training;
    const bool biased = !c.bias.empty();
    using Forward = dnnl::convolution_forward;
    const Forward::primitive_desc chosen(
        biased ? Forward::desc(training, direct, any_in, weights, bias, any_out, strides, dilation, before, after)
               : Forward::desc(training, direct, any_in, weights, any_out, strides, dilation, before, after),
        to_.engine_);
    const memory plain_weights = parameter_memory(0, sizes, tag);
    const memory from = as(source.data, chosen.src_desc(), to_.forward_);
    target.data = make(chosen.dst_desc());
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, from},
                                              {DNNL_ARG_WEIGHTS, as(plain_weights, chosen.weights_desc(), to_.forward_)},
                                              {DNNL_ARG_DST, target.data}};
    if (biased) arguments.emplace(DNNL_ARG_BIAS, parameter_memory(1, {c.out_channels}, Tag::x));
    run(Forward(chosen), arguments, to_.forward_);

    later(target, [=, this, &source, &target, node = node_] {
      node_ = node;
      using ByWeights = dnnl::convolution_backward_weights;
      const ByWeights::primitive_desc by_weights(
          biased ? ByWeights::desc(direct, any_in, weights, bias, any_out, strides, dilation, before, after)
                 : ByWeights::desc(direct, any_in, weights, any_out, strides, dilation, before, after),
          to_.engine_, chosen);
      const memory weight_slopes = make(by_weights.diff_weights_desc());
      std::unordered_map<int, memory> with{{DNNL_ARG_SRC, as(from, by_weights.src_desc(), to_.backward_)},
                                           {DNNL_ARG_DIFF_DST, as(target.slope, by_weights.diff_dst_desc(), to_.backward_)},
                                           {DNNL_ARG_DIFF_WEIGHTS, weight_slopes}};
      const memory bias_slopes = make(bias);
      if (biased) with.emplace(DNNL_ARG_DIFF_BIAS, bias_slopes);
      run(ByWeights(by_weights), with, to_.backward_);
      to_.backward_.push_back(collect(weight_slopes, plain_weights.get_desc(), 0));
      if (biased) to_.backward_.push_back(collect(bias_slopes, bias, 1));
      if (!source.wanted) return;
      using ByData = dnnl::convolution_backward_data;
      const ByData::primitive_desc by_data(ByData::desc(direct, any_in, weights, any_out, strides, dilation, before, after),
                                           to_.engine_, chosen);
      give_slope(source, by_data.diff_src_desc(), [&](const memory& slope) {
        run(ByData(by_data),
            {{DNNL_ARG_DIFF_DST, as(target.slope, by_data.diff_dst_desc(), to_.backward_)},
             {DNNL_ARG_WEIGHTS, as(plain_weights, by_data.weights_desc(), to_.backward_)},
             {DNNL_ARG_DIFF_SRC, slope}},
            to_.backward_);
      });
    });
  }

  // With the ReLU after it, where that is its only reader.
  void lay(const BatchNorm& b) {
    Value& source = in();
    const auto& readers = readers_[node_ + 1];
    const bool fused = source.dims.size() == 3 && readers.size() == 1 && readers[0] == node_ + 1 &&
                       std::holds_alternative<Relu>(net_.nodes[node_ + 1].op);
    Value& target = fused ? to_.values_[node_ + 2] : out();
    target.wanted = true;
    const auto channels = source.dims[0];
    memory from = source.data;
    if (source.dims.size() == 1) from = reshaped(from, {channels, 1, 1});
    const auto desc = from.get_desc();
    auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    if (fused) flags |= normalization_flags::fuse_norm_relu;
    using Forward = dnnl::batch_normalization_forward;
    const auto prop = dnnl::prop_kind::forward_training;
    const Forward::primitive_desc train(Forward::desc(prop, desc, b.epsilon, flags), to_.engine_);
    const Forward::primitive_desc judge(Forward::desc(prop, desc, b.epsilon, flags | normalization_flags::use_global_stats), to_.engine_);
    const memory to = make(desc), mean = make(train.mean_desc()), variance = make(train.variance_desc());
    const memory workspace = fused ? make(train.workspace_desc()) : memory();
    const auto scale = parameter_memory(0, {channels}, Tag::x), shift = parameter_memory(1, {channels}, Tag::x);
    const auto running_mean = parameter_memory(2, {channels}, Tag::x), running_variance = parameter_memory(3, {channels}, Tag::x);
    std::unordered_map<int, memory> common{{DNNL_ARG_SRC, from}, {DNNL_ARG_DST, to}, {DNNL_ARG_SCALE, scale}, {DNNL_ARG_SHIFT, shift}};
    if (fused) common.emplace(DNNL_ARG_WORKSPACE, workspace);
    auto of_batch = common, of_running = common;
    of_batch.emplace(DNNL_ARG_MEAN, mean);
    of_batch.emplace(DNNL_ARG_VARIANCE, variance);
    of_running.emplace(DNNL_ARG_MEAN, running_mean);
    of_running.emplace(DNNL_ARG_VARIANCE, running_variance);
    const double count = static_cast<double>(to_.batch_ * elements(source.dims) / channels);
    const auto unbiased = static_cast<float>(count / std::max(count - 1, 1.0));
    to_.forward_.push_back([this_ = &to_, train_run = Forward(train), judge_run = Forward(judge), of_batch, of_running, mean,
                            variance, running_mean, running_variance, channels, unbiased] {
      if (!this_->train_) return judge_run.execute(this_->stream_, of_running);
      train_run.execute(this_->stream_, of_batch);
      const auto move = [&](const memory& running, const memory& batch, float factor) {
        for (std::int64_t c = 0; c < channels; ++c)
          floats(running)[c] += kMomentumOfStatistics * (factor * floats(batch)[c] - floats(running)[c]);
      };
      move(running_mean, mean, 1);
      move(running_variance, variance, unbiased);
    });
    target.data = source.dims.size() == 1 ? reshaped(to, source.dims) : to;

    later(target, [=, this, &source, &target, node = node_, epsilon = b.epsilon] {
      node_ = node;
      using Backward = dnnl::batch_normalization_backward;
      const auto both = dnnl::prop_kind::backward;
      const Backward::primitive_desc train_back(Backward::desc(both, desc, desc, epsilon, flags), to_.engine_, train);
      const Backward::primitive_desc judge_back(
          Backward::desc(both, desc, desc, epsilon, flags | normalization_flags::use_global_stats), to_.engine_, judge);
      const memory vector_slope = target.slope;
      const memory given = source.dims.size() == 1 ? reshaped(vector_slope, {channels, 1, 1}) : as(vector_slope, desc, to_.backward_);
      const memory scale_slope = make(scale.get_desc()), shift_slope = make(shift.get_desc());
      const memory own = make(desc);  // also where nothing before learns: the primitive wants it
      const auto lay_out = [&](const memory& slope) {
        std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, from}, {DNNL_ARG_DIFF_DST, given}, {DNNL_ARG_SCALE, scale}, {DNNL_ARG_SHIFT, shift},
                                                  {DNNL_ARG_DIFF_SRC, slope}, {DNNL_ARG_DIFF_SCALE, scale_slope},
                                                  {DNNL_ARG_DIFF_SHIFT, shift_slope}};
        if (fused) arguments.emplace(DNNL_ARG_WORKSPACE, workspace);
        auto batch = arguments, running = arguments;
        batch.emplace(DNNL_ARG_MEAN, mean);
        batch.emplace(DNNL_ARG_VARIANCE, variance);
        running.emplace(DNNL_ARG_MEAN, running_mean);
        running.emplace(DNNL_ARG_VARIANCE, running_variance);
        to_.backward_.push_back([this_ = &to_, train_run = Backward(train_back), judge_run = Backward(judge_back), batch, running] {
          this_->train_ ? train_run.execute(this_->stream_, batch) : judge_run.execute(this_->stream_, running);
        });
      };
      if (!source.wanted || source.dims.size() == 1) {
        lay_out(own);
        if (source.wanted)
          give_slope(source, to_.plain(source.dims), [&](const memory& slope) {
            to_.backward_.push_back([own, slope, numbers = own.get_desc().get_size() / sizeof(float)] {
              std::copy_n(floats(own), numbers, floats(slope));
            });
          });
      } else {
        give_slope(source, desc, lay_out);
      }
      to_.backward_.push_back(collect(scale_slope, scale.get_desc(), 0));
      to_.backward_.push_back(collect(shift_slope, shift.get_desc(), 1));
    });
  }

  // REQUIRES: `from` is plain. The same bytes under other sizes.
  memory reshaped(const memory& from, const Dims& dims) { return memory(to_.plain(dims), to_.engine_, from.get_data_handle()); }

  // Elementwise on whatever layout the value has; padding lanes hold 0 and keep it.
  template <class Apply, class Slope>
  void pointwise(Apply apply, Slope slope_of) {
    Value &source = in(), &target = out();
    target.data = make(source.data.get_desc());
    const auto count = target.data.get_desc().get_size() / sizeof(float);
    to_.forward_.push_back([this_ = &to_, from = source.data, to = target.data, count, apply] {
      const float* x = floats(from);
      float* y = floats(to);
#pragma omp parallel for simd num_threads(this_->threads_) if (count > 65536)
      for (std::size_t i = 0; i < count; ++i) y[i] = apply(x[i]);
    });
    later(target, [=, this, &source, &target] {
      give_slope(source, target.data.get_desc(), [&](const memory& slope) {
        to_.backward_.push_back([this_ = &to_, x_memory = source.data, given = as(target.slope, target.data.get_desc(), to_.backward_), slope, count, slope_of] {
          const float *x = floats(x_memory), *d = floats(given);
          float* to = floats(slope);
#pragma omp parallel for simd num_threads(this_->threads_) if (count > 65536)
          for (std::size_t i = 0; i < count; ++i) to[i] = slope_of(x[i]) ? d[i] : 0.0F;
        });
      });
    });
  }
  void lay(const Relu&) {
    pointwise([](float x) { return x > 0 ? x : 0.0F; }, [](float x) { return x > 0; });
  }
  void lay(const Clip& c) {
    if (c.low > 0 || c.high < 0) throw std::logic_error("a Clip that leaves out 0");
    pointwise([low = c.low, high = c.high](float x) { return std::min(std::max(x, low), high); },
              [low = c.low, high = c.high](float x) { return x > low && x < high; });
  }

  void lay(const Identity&) { same(out().dims); }
  void lay(const Flatten&) { same(out().dims); }
  void lay(const Reshape&) { same(out().dims); }
  // The same numbers, plain.
  void same(const Dims& dims) {
    Value &source = in(), &target = out();
    const memory moved = as(source.data, to_.plain(source.dims), to_.forward_);
    target.data = reshaped(moved, dims);
    later(target, [=, this, &source, &target] {
      give_slope(source, to_.plain(source.dims), [&](const memory& slope) {
        to_.backward_.push_back([given = target.slope, slope, count = slope.get_desc().get_size() / sizeof(float)] {
          std::copy_n(floats(given), count, floats(slope));
        });
      });
    });
  }

  void lay(const Add&) {
    if (in(0).dims != in(1).dims) throw std::logic_error("an Add that repeats an input");
    Value &a = in(0), &b = in(1);
    // With the ReLU after it, where that is its only reader: one pass over memory instead of two.
    const auto& readers = readers_[node_ + 1];
    const bool relu = readers.size() == 1 && readers[0] == node_ + 1 && std::holds_alternative<Relu>(net_.nodes[node_ + 1].op);
    Value& target = relu ? to_.values_[node_ + 2] : out();
    target.wanted = a.wanted || b.wanted;
    const auto desc = a.data.get_desc();
    const memory other = as(b.data, desc, to_.forward_);
    target.data = make(desc);
    const auto count = desc.get_size() / sizeof(float);
    to_.forward_.push_back([this_ = &to_, x_memory = a.data, other, to = target.data, count, relu] {
      const float *x = floats(x_memory), *y = floats(other);
      float* sum = floats(to);
      const float low = relu ? 0.0F : -std::numeric_limits<float>::infinity();
#pragma omp parallel for simd num_threads(this_->threads_) if (count > 65536)
      for (std::size_t i = 0; i < count; ++i) sum[i] = std::max(x[i] + y[i], low);
    });
    later(target, [=, this, &a, &b, &target] {
      const memory given = as(target.slope, desc, to_.backward_);
      if (relu)
        to_.backward_.push_back([this_ = &to_, given, y_memory = target.data, count] {
          const float* y = floats(y_memory);
          float* d = floats(given);
#pragma omp parallel for simd num_threads(this_->threads_) if (count > 65536)
          for (std::size_t i = 0; i < count; ++i) d[i] = y[i] > 0 ? d[i] : 0.0F;
        });
      for (Value* to : {&a, &b})
        give_slope(*to, desc, [&](const memory& slope) {
          to_.backward_.push_back([given, slope, count] { std::copy_n(floats(given), count, floats(slope)); });
        });
    });
  }

  void lay(const MaxPool& p) { pool(p.window, dnnl::algorithm::pooling_max); }
  void lay(const AveragePool& p) {
    pool(p.window, p.count_padding ? dnnl::algorithm::pooling_avg_include_padding : dnnl::algorithm::pooling_avg_exclude_padding);
  }
  void lay(const GlobalAveragePool&) {
    pool({in().dims[1], in().dims[2], 1, 1, 0, 0, 0, 0}, dnnl::algorithm::pooling_avg_exclude_padding);
  }
  void pool(const Window& w, dnnl::algorithm algorithm) {
    Value &source = in(), &target = out();
    const memory::dims strides{w.stride_h, w.stride_w}, kernel{w.kernel_h, w.kernel_w},
        dilation{w.dilation_h - 1, w.dilation_w - 1}, before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
    const memory::desc any_out(to_.with_batch(target.dims), Type::f32, Tag::any);
    using Forward = dnnl::pooling_v2_forward;
    const Forward::primitive_desc chosen(Forward::desc(dnnl::prop_kind::forward_training, algorithm, source.data.get_desc(),
                                                       any_out, strides, kernel, dilation, before, after),
                                         to_.engine_);
    target.data = make(chosen.dst_desc());
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, source.data}, {DNNL_ARG_DST, target.data}};
    const bool remembers = algorithm == dnnl::algorithm::pooling_max;
    const memory workspace = remembers ? make(chosen.workspace_desc()) : memory();
    if (remembers) arguments.emplace(DNNL_ARG_WORKSPACE, workspace);
    run(Forward(chosen), arguments, to_.forward_);
    later(target, [=, this, &source, &target] {
      using Backward = dnnl::pooling_v2_backward;
      const Backward::primitive_desc back(
          Backward::desc(algorithm, source.data.get_desc(), target.data.get_desc(), strides, kernel, dilation, before, after),
          to_.engine_, chosen);
      give_slope(source, back.diff_src_desc(), [&](const memory& slope) {
        std::unordered_map<int, memory> with{{DNNL_ARG_DIFF_DST, as(target.slope, back.diff_dst_desc(), to_.backward_)}, {DNNL_ARG_DIFF_SRC, slope}};
        if (remembers) with.emplace(DNNL_ARG_WORKSPACE, workspace);
        run(Backward(back), with, to_.backward_);
      });
    });
  }

  void lay(const Dense& d) {
    Value &source = in(), &target = out();
    const memory::dims sizes{d.out_features, source.dims[0]};
    const auto from_plain = to_.plain(source.dims), to_plain = to_.plain(target.dims);
    const memory::desc weights(sizes, Type::f32, Tag::any), bias({d.out_features}, Type::f32, Tag::x);
    const bool biased = !d.bias.empty();
    using Forward = dnnl::inner_product_forward;
    const auto training = dnnl::prop_kind::forward_training;
    const Forward::primitive_desc chosen(biased ? Forward::desc(training, from_plain, weights, bias, to_plain)
                                                : Forward::desc(training, from_plain, weights, to_plain),
                                         to_.engine_);
    const memory plain_weights = parameter_memory(0, sizes, Tag::oi);
    const memory from = as(source.data, from_plain, to_.forward_);
    target.data = make(to_plain);
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, from},
                                              {DNNL_ARG_WEIGHTS, as(plain_weights, chosen.weights_desc(), to_.forward_)},
                                              {DNNL_ARG_DST, target.data}};
    if (biased) arguments.emplace(DNNL_ARG_BIAS, parameter_memory(1, {d.out_features}, Tag::x));
    run(Forward(chosen), arguments, to_.forward_);
    later(target, [=, this, &source, &target, node = node_] {
      node_ = node;
      using ByWeights = dnnl::inner_product_backward_weights;
      const ByWeights::primitive_desc by_weights(biased ? ByWeights::desc(from_plain, weights, bias, to_plain)
                                                        : ByWeights::desc(from_plain, weights, to_plain),
                                                 to_.engine_, chosen);
      const memory weight_slopes = make(by_weights.diff_weights_desc()), bias_slopes = make(bias);
      std::unordered_map<int, memory> with{{DNNL_ARG_SRC, from}, {DNNL_ARG_DIFF_DST, target.slope}, {DNNL_ARG_DIFF_WEIGHTS, weight_slopes}};
      if (biased) with.emplace(DNNL_ARG_DIFF_BIAS, bias_slopes);
      run(ByWeights(by_weights), with, to_.backward_);
      to_.backward_.push_back(collect(weight_slopes, plain_weights.get_desc(), 0));
      if (biased) to_.backward_.push_back(collect(bias_slopes, bias, 1));
      if (!source.wanted) return;
      using ByData = dnnl::inner_product_backward_data;
      const ByData::primitive_desc by_data(ByData::desc(from_plain, weights, to_plain), to_.engine_, chosen);
      give_slope(source, by_data.diff_src_desc(), [&](const memory& slope) {
        run(ByData(by_data),
            {{DNNL_ARG_DIFF_DST, target.slope},
             {DNNL_ARG_WEIGHTS, as(plain_weights, by_data.weights_desc(), to_.backward_)},
             {DNNL_ARG_DIFF_SRC, slope}},
            to_.backward_);
      });
    });
  }

  // Output i of each item is input map[i] of the same item.
  void gather(std::vector<std::int64_t> map) {
    Value &source = in(), &target = out();
    const auto batch = to_.batch_;
    const auto ins = elements(source.dims), outs = elements(target.dims);
    const memory from = as(source.data, to_.plain(source.dims), to_.forward_);
    target.data = make(to_.plain(target.dims));
    to_.forward_.push_back([from, to = target.data, map, batch, ins, outs] {
      for (std::int64_t n = 0; n < batch; ++n)
        for (std::int64_t i = 0; i < outs; ++i) floats(to)[n * outs + i] = floats(from)[n * ins + map[at(i)]];
    });
    later(target, [=, this, &source, &target] {
      give_slope(source, to_.plain(source.dims), [&](const memory& slope) {
        to_.backward_.push_back([given = target.slope, slope, map, batch, ins, outs] {
          std::fill_n(floats(slope), batch * ins, 0.0F);
          for (std::int64_t n = 0; n < batch; ++n)
            for (std::int64_t i = 0; i < outs; ++i) floats(slope)[n * ins + map[at(i)]] += floats(given)[n * outs + i];
        });
      });
    });
  }
  // place(indices along each axis of the output) gives those of the input.
  template <class Place>
  std::vector<std::int64_t> map_of(Place place) {
    const Dims &from = in().dims, &to = out().dims;
    std::vector<std::int64_t> map(at(elements(to)));
    Dims indices(to.size(), 0);
    for (auto& entry : map) {
      const Dims source = place(indices);
      for (std::size_t axis = 0; axis < from.size(); ++axis) entry = entry * from[axis] + source[axis];
      for (std::size_t axis = indices.size(); axis-- > 0 && ++indices[axis] == to[axis];) indices[axis] = 0;
    }
    return map;
  }
  void lay(const Slice& s) {
    gather(map_of([&](Dims i) {
      i[at(s.axis)] += s.begin;
      return i;
    }));
  }
  void lay(const Transpose& t) {
    gather(map_of([&](const Dims& i) {
      Dims source(i.size());
      for (std::size_t axis = 0; axis < i.size(); ++axis) source[at(t.order[axis])] = i[axis];
      return source;
    }));
  }
  void lay(const ChannelShuffle& s) {
    const auto per_group = in().dims[0] / s.groups;
    gather(map_of([&](Dims i) {
      i[0] = i[0] % s.groups * per_group + i[0] / s.groups;
      return i;
    }));
  }

  void lay(const Concat& c) {
    Value& target = out();
    const auto& inputs = net_.nodes[node_].inputs;
    std::int64_t rows = to_.batch_;
    for (int axis = 0; axis < c.axis; ++axis) rows *= target.dims[at(axis)];
    const auto width = to_.batch_ * elements(target.dims) / rows;
    target.data = make(to_.plain(target.dims));
    std::int64_t column = 0;
    for (const int input : inputs) {
      Value& source = to_.values_[at(input)];
      const auto own = to_.batch_ * elements(source.dims) / rows;
      const memory from = as(source.data, to_.plain(source.dims), to_.forward_);
      to_.forward_.push_back([from, to = target.data, rows, width, own, column] {
        for (std::int64_t r = 0; r < rows; ++r) std::copy_n(floats(from) + r * own, own, floats(to) + r * width + column);
      });
      column += own;
    }
    later(target, [=, this, &target] {
      std::int64_t begin = 0;
      for (const int input : inputs) {
        Value& source = to_.values_[at(input)];
        const auto own = to_.batch_ * elements(source.dims) / rows;
        give_slope(source, to_.plain(source.dims), [&](const memory& slope) {
          to_.backward_.push_back([given = target.slope, slope, rows, width, own, begin] {
            for (std::int64_t r = 0; r < rows; ++r) std::copy_n(floats(given) + r * width + begin, own, floats(slope) + r * own);
          });
        });
        begin += own;
      }
    });
  }
  void lay(const Constant&) { throw std::logic_error("a Constant"); }

  CpuTrainableNet& to_;
  const Network& net_;
  const std::vector<Dims>& shapes_;
  std::size_t node_ = 0;
  std::vector<std::size_t> first_parameter_;
  std::vector<std::vector<std::size_t>> readers_;
  std::vector<std::function<void()>> backwards_;
};

void CpuTrainableNet::build(const std::vector<Dims>& shapes) { TrainingBuilder(*this, shapes).build(); }

// ---- learning ------------------------------------------------------------------------------------------------------

Expected<void> CpuTrainableNet::update(const SgdStep& step) {
  if (step.average_decay > 0 && average_.empty()) average_ = weights_;
  for (const auto& p : parameters_) {
    float* w = weights_.data() + p.offset;
    float* g = slopes_.data() + p.offset;
    float* v = velocity_.data() + p.offset;
    if (p.learns) {
      const float decay = p.decays ? step.weight_decay : 0.0F;
      const float look_ahead = step.nesterov ? step.momentum : 1.0F, direct = step.nesterov ? 1.0F : 0.0F;
      for (std::size_t i = 0; i < p.size; ++i) {
        const float slope = g[i] + decay * w[i];
        v[i] = step.momentum * v[i] + slope;
        w[i] -= step.rate * (direct * slope + look_ahead * v[i]);
        g[i] = 0;
      }
    }
    if (step.average_decay > 0) {
      float* a = average_.data() + p.offset;
      for (std::size_t i = 0; i < p.size; ++i) a[i] += (1 - step.average_decay) * (w[i] - a[i]);
    }
  }
  return {};
}

Expected<Network> CpuTrainableNet::network(bool averaged) const {
  const auto& from = averaged && !average_.empty() ? average_ : weights_;
  Network out = net_;
  std::size_t next = 0;
  const auto take = [&](std::vector<float>& into) {
    if (into.empty()) return;
    const auto& p = parameters_[next++];
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(p.offset), p.size, into.begin());
  };
  for (auto& node : out.nodes) {
    if (auto* c = std::get_if<Convolution>(&node.op)) {
      take(c->weight);
      take(c->bias);
    } else if (auto* d = std::get_if<Dense>(&node.op)) {
      take(d->weight);
      take(d->bias);
    } else if (auto* b = std::get_if<BatchNorm>(&node.op)) {
      for (auto* statistic : {&b->scale, &b->shift, &b->mean, &b->variance}) take(*statistic);
    }
  }
  return out;
}

}  // namespace

Expected<std::unique_ptr<TrainableNet>> make_cpu_training(const dnnl::engine& engine, int threads, const Network& net,
                                                          const TrainingOptions& options) {
  if (options.batch < 1 || options.batch > 65'536)
    return unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  try {
    auto made = std::make_unique<CpuTrainableNet>(engine, threads, net, options.batch);
    made->build(*shapes);
    return made;
  } catch (const std::logic_error& fault) {
    return unexpected(Error{ErrorCode::unsupported_operator, net.name + ": not trained on the CPU: " + fault.what()});
  } catch (const dnnl::error& fault) {
    return unexpected(Error{ErrorCode::device_failed, net.name + ": oneDNN: " + fault.what()});
  }
}

}  // namespace coppice::gpu
