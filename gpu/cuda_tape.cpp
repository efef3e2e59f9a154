// Values stay where they are from the forward pass to the backward one, float32 and NCHW: no arena, since all of them
// are needed at the end, and may be read. A gradient's first part overwrites, the others add.
#include "gpu/cuda_tape.hpp"

#include <algorithm>
#include <limits>

#include "gpu/cuda_convolution.hpp"
#include "gpu/cuda_moves.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kAlignment = 256;  // in bytes, as cudaMalloc's
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Bounds kUnbounded{-kInfinity, kInfinity};
constexpr Reals kNone{nullptr, false};

Reals reals(float* data) { return {data, false}; }

std::vector<Axis> reversed(std::vector<Axis> axes) {
  for (auto& axis : axes) std::swap(axis.from, axis.to);
  return axes;
}

}  // namespace

// Writes a node's steps; node by node forward, then node by node backward, since what comes first decides what adds.
class TapeWriter {
 public:
  TapeWriter(Tape& tape, const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision,
             Lane& lane, const Parameters& parameters)
      : tape_(tape),
        net_(net),
        shapes_(shapes),
        batch_(batch),
        precision_(precision),
        lane_(lane),
        parameters_(parameters),
        convolutions_(net.nodes.size()),
        norms_(net.nodes.size()) {}

  void write() {
    place();
    const auto nodes = static_cast<int>(net_.nodes.size());
    for (at_ = 0; at_ < nodes; ++at_) each([this](const auto& op) { forward(op); });
    written_[static_cast<std::size_t>(root(nodes))] = true;  // by the caller's score gradients
    for (at_ = nodes - 1; at_ >= 0; --at_) each([this](const auto& op) { backward(op); });
  }

 private:
  // A convolution, on zeros put around its input where it is padded more on one side than on the other.
  struct Convolving {
    std::shared_ptr<PlainConvolution> run;
    Dims from;  // of what it reads: padded or not
    float *padded = nullptr, *padded_gradient = nullptr;
    std::vector<Axis> into_padded;
    std::int64_t padded_begin = 0;
  };

  template <class Do>
  void each(const Do& what) {
    try {
      std::visit(what, node().op);
    } catch (const Fault& fault) {
      throw Fault(fault.code, "node " + node().name + ": " + fault.what());
    }
  }
  const Node& node() const { return net_.nodes[static_cast<std::size_t>(at_)]; }
  int input(std::size_t i = 0) const { return node().inputs[i]; }
  int output() const { return at_ + 1; }
  const Dims& dims(int value) const { return shapes_[static_cast<std::size_t>(value)]; }
  float* x(std::size_t i = 0) const { return tape_.value(input(i)); }
  float* y() const { return tape_.value(output()); }
  float* dx(std::size_t i = 0) const { return tape_.gradient(input(i)); }
  float* dy() const { return tape_.gradient(output()); }
  float* weight(int which) const { return parameters_.weight(at_, which); }
  float* gradient(int which) const { return parameters_.gradient(at_, which); }

  // ---- memory ----

  // Whether a node only gives another shape to its input.
  static bool renames(const Operator& op) {
    return std::holds_alternative<Flatten>(op) || std::holds_alternative<Reshape>(op) ||
           std::holds_alternative<Identity>(op);
  }
  int root(int value) const { return roots_[static_cast<std::size_t>(value)]; }
  // Values and gradients one after another; a renamed value is its input, and so is its gradient where nobody else
  // reads the input.
  void place() {
    std::vector<int> readers(shapes_.size(), 0);
    for (const auto& each_node : net_.nodes)
      for (const int value : each_node.inputs) ++readers[static_cast<std::size_t>(value)];
    std::vector<std::size_t> begins(shapes_.size());
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      tape_.counts_.push_back(narrow(batch_ * elements(shapes_[i])));
      begins[i] = bytes;
      bytes += (static_cast<std::size_t>(tape_.counts_[i]) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    }
    tape_.value_block_ = lane_.zeros(bytes);
    tape_.gradient_block_ = lane_.zeros(bytes);
    const auto in = [](const DeviceMemory& block, std::size_t begin) {
      return reinterpret_cast<float*>(static_cast<std::byte*>(block.get()) + begin);
    };
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      const bool renamed = i > 0 && renames(net_.nodes[i - 1].op);
      const auto before = renamed ? static_cast<std::size_t>(net_.nodes[i - 1].inputs.front()) : 0;
      const bool alone = renamed && readers[before] == 1;
      roots_.push_back(alone ? root(static_cast<int>(before)) : static_cast<int>(i));
      tape_.values_.push_back(renamed ? tape_.values_[before] : in(tape_.value_block_, begins[i]));
      tape_.gradients_.push_back(alone ? tape_.gradients_[before] : in(tape_.gradient_block_, begins[i]));
    }
    written_.assign(shapes_.size(), false);
  }
  float* scratch(std::int64_t numbers) {
    return static_cast<float*>(
        tape_.scratch_.emplace_back(lane_.zeros(static_cast<std::size_t>(narrow(numbers)) * sizeof(float))).get());
  }
  // Whether a part of the gradient of input i is to be added to what is there. Counts it as written.
  bool adds(std::size_t i = 0) {
    const auto at = static_cast<std::size_t>(root(input(i)));
    const bool before = written_[at];
    written_[at] = true;
    return before;
  }

  // ---- steps ----

  template <class Job>
  Tape::Pass pass(const Job& job, const char* kernel) const {
    return [job, kernel, stream = lane_.stream()](Mode) { check(launch(job, stream), kernel); };
  }
  template <class Job>
  void go(const Job& job, const char* kernel) {
    tape_.forward_.push_back(pass(job, kernel));
  }
  template <class Job>
  void back(const Job& job, const char* kernel) {
    tape_.backward_.push_back(pass(job, kernel));
  }
  Tape::Pass zero(float* place, std::int64_t numbers) const {
    const auto bytes = static_cast<std::size_t>(numbers) * sizeof(float);
    return [place, bytes, stream = lane_.stream()](Mode) {
      check(cudaMemsetAsync(place, 0, bytes, stream), "cudaMemsetAsync");
    };
  }
  std::vector<Axis> all_of(int value) const { return {{tape_.count(value), 1, 1}}; }
  std::vector<Axis> axes(const Dims& block, const Dims& from, const Dims& from_steps, const Dims& to,
                         const Dims& to_steps) const {
    return axes_of(batch_, block, elements(from), from_steps, elements(to), to_steps);
  }
  Image image(float* data, const Dims& d) const {
    return {reals(data), batch_, narrow(d[0]), narrow(d[1]), narrow(d[2]), false};
  }

  // ---- convolutions and dense layers ----

  void forward(const Convolution& c) {
    auto w = c.window;
    auto& made = convolutions_[static_cast<std::size_t>(at_)];
    made.from = dims(input());
    if (w.pad_top != w.pad_bottom || w.pad_left != w.pad_right) {
      pad(made, w);
      w.pad_top = w.pad_left = 0;
    }
    convolve(made, c.out_channels, c.groups, w, dims(output()), c.bias.empty());
  }
  void forward(const Dense& d) {
    auto& made = convolutions_[static_cast<std::size_t>(at_)];
    made.from = {dims(input())[0], 1, 1};  // a matrix product: a convolution of one pixel
    convolve(made, d.out_features, 1, {}, {d.out_features, 1, 1}, d.bias.empty());
  }
  void pad(Convolving& made, const Window& w) {
    const Dims from = made.from;
    made.from = {from[0], from[1] + w.pad_top + w.pad_bottom, from[2] + w.pad_left + w.pad_right};
    made.padded = scratch(batch_ * elements(made.from));  // its margins stay zero
    made.padded_gradient = scratch(batch_ * elements(made.from));
    made.into_padded = axes(from, from, steps_of(from), made.from, steps_of(made.from));
    made.padded_begin = w.pad_top * made.from[2] + w.pad_left;
    go(strided(reals(x()), 0, reals(made.padded), made.padded_begin, made.into_padded), "padding kernel");
  }
  void convolve(Convolving& made, std::int64_t outputs, std::int64_t groups, const Window& w, const Dims& out,
                bool no_bias) {
    ConvolutionSpec spec{batch_,
                         narrow(made.from[0]),
                         narrow(made.from[1]),
                         narrow(made.from[2]),
                         narrow(outputs),
                         narrow(out[1]),
                         narrow(out[2]),
                         narrow(groups),
                         narrow(w.kernel_h),
                         narrow(w.kernel_w),
                         narrow(w.stride_h),
                         narrow(w.stride_w),
                         narrow(w.pad_top),
                         narrow(w.pad_left),
                         narrow(w.dilation_h),
                         narrow(w.dilation_w)};
    spec.tensor_cores = precision_ != Precision::float32;
    made.run = std::make_shared<PlainConvolution>(spec);
    const float* from = made.padded ? made.padded : x();
    made.run->choose_forward(lane_, from, weight(0), y());
    tape_.forward_.push_back(
        [run = made.run, &lane = lane_, from, w_ = weight(0), to = y()](Mode) { run->forward(lane, from, w_, to); });
    if (!no_bias)
      go(Pointwise{reals(y()), kNone, reals(y()), nullptr, weight(1), tape_.count(output()), spec.out_channels,
                   spec.out_h * spec.out_w, kUnbounded},
         "bias kernel");
  }
  void convolve_backward(bool no_bias, std::int64_t channels) {
    const auto& made = convolutions_[static_cast<std::size_t>(at_)];
    const auto inner = elements(dims(output())) / channels;
    if (!no_bias)
      back(BiasGradient{{}, reals(dy()), gradient(1), batch_, narrow(channels), narrow(inner)}, "bias gradient kernel");
    const float* from = made.padded ? made.padded : x();
    float* to = made.padded ? made.padded_gradient : dx();
    const bool add = adds(), add_here = add && !made.padded;
    made.run->choose_backward_filter(lane_, from, dy(), gradient(0));
    made.run->choose_backward_data(lane_, weight(0), dy(), to);
    tape_.backward_.push_back(
        [run = made.run, &lane = lane_, from, to, add_here, dy = dy(), w = weight(0), dw = gradient(0)](Mode) {
          run->backward_filter(lane, from, dy, dw);
          run->backward_data(lane, w, dy, to, add_here);
        });
    if (made.padded)
      back(strided(reals(to), made.padded_begin, reals(dx()), 0, reversed(made.into_padded), add), "padding kernel");
  }
  void backward(const Convolution& c) { convolve_backward(c.bias.empty(), c.out_channels); }
  void backward(const Dense& d) { convolve_backward(d.bias.empty(), d.out_features); }

  // ---- batch norms ----

  void forward(const BatchNorm& b) {
    const auto& d = dims(input());
    float* kept = scratch(4 * d[0]);
    NormState state{};
    state.mean = kept;
    state.inverse = kept + d[0];
    state.sum = kept + 2 * d[0];
    state.product = kept + 3 * d[0];
    state.scale = weight(0);
    state.shift = weight(1);
    state.running_mean = weight(2);
    state.running_variance = weight(3);
    state.batch = batch_;
    state.channels = narrow(d[0]);
    state.inner = narrow(elements(d) / d[0]);
    state.epsilon = b.epsilon;
    norms_[static_cast<std::size_t>(at_)] = state;
    const auto own = pass(BatchStatistics{{}, state, reals(x())}, "batch statistics kernel");
    const auto running = pass(RunningNorm{state}, "running statistics kernel");
    tape_.forward_.push_back([own, running](Mode mode) { mode == Mode::train ? own(mode) : running(mode); });
    go(NormApply{state, reals(x()), reals(y())}, "norm kernel");
  }
  void backward(const BatchNorm&) {
    const auto& state = norms_[static_cast<std::size_t>(at_)];
    back(NormGradientSums{{}, state, reals(x()), reals(dy()), gradient(0), gradient(1)}, "norm gradient kernel");
    NormGradient job{state, reals(x()), reals(dy()), reals(dx()), true, adds()};
    tape_.backward_.push_back([job, stream = lane_.stream()](Mode mode) mutable {
      job.own_statistics = mode == Mode::train;
      check(launch(job, stream), "norm gradient kernel");
    });
  }

  // ---- pools and bounds ----

  static PoolWindow pool_window(const Window& w, bool average, bool count_padding) {
    return {narrow(w.kernel_h),   narrow(w.kernel_w),   narrow(w.stride_h),
            narrow(w.stride_w),   narrow(w.pad_top),    narrow(w.pad_left),
            narrow(w.dilation_h), narrow(w.dilation_w), average,
            count_padding};
  }
  PoolWindow whole() const { return pool_window({dims(input())[1], dims(input())[2], 1, 1, 0, 0, 0, 0}, true, false); }
  void pool(const PoolWindow& window) {
    go(Pool{image(x(), dims(input())), image(y(), dims(output())), window}, "pool kernel");
  }
  void pool_backward(const PoolWindow& window) {
    const auto &from = dims(input()), &to = dims(output());
    back(PoolGradient{image(x(), from), image(dx(), from), image(dy(), to), window, adds()}, "pool gradient kernel");
  }
  void forward(const MaxPool& p) { pool(pool_window(p.window, false, false)); }
  void backward(const MaxPool& p) { pool_backward(pool_window(p.window, false, false)); }
  void forward(const AveragePool& p) { pool(pool_window(p.window, true, p.count_padding)); }
  void backward(const AveragePool& p) { pool_backward(pool_window(p.window, true, p.count_padding)); }
  void forward(const GlobalAveragePool&) { pool(whole()); }
  void backward(const GlobalAveragePool&) { pool_backward(whole()); }

  void bound(Bounds bounds) {
    go(Pointwise{reals(x()), kNone, reals(y()), nullptr, nullptr, tape_.count(output()), 1, 1, bounds},
       "pointwise kernel");
  }
  void bound_backward(Bounds bounds) {
    back(ClampGradient{reals(x()), reals(dy()), reals(dx()), tape_.count(output()), bounds, adds()},
         "bound gradient kernel");
  }
  void forward(const Relu&) { bound({0.0F, kInfinity}); }
  void backward(const Relu&) { bound_backward({0.0F, kInfinity}); }
  void forward(const Clip& c) { bound({c.low, c.high}); }
  void backward(const Clip& c) { bound_backward({c.low, c.high}); }

  // ---- sums ----

  void forward(const Add&) {
    if (dims(input(0)) == dims(input(1)))
      return go(
          Pointwise{reals(x(0)), reals(x(1)), reals(y()), nullptr, nullptr, tape_.count(output()), 1, 1, kUnbounded},
          "pointwise kernel");
    const auto& out = dims(output());
    for (const std::size_t i : {0U, 1U}) {
      const auto& part = dims(input(i));
      go(strided(reals(x(i)), 0, reals(y()), 0,
                 axes(out, part, repeated_steps(part, steps_of(part), out), out, steps_of(out)), i > 0),
         "moving kernel");
    }
  }
  void backward(const Add&) {
    for (const std::size_t i : {0U, 1U})
      if (dims(input(i)) == dims(output()))
        back(strided(reals(dy()), 0, reals(dx(i)), 0, all_of(output()), adds(i)), "moving kernel");
      else
        back(repeated_sum(dims(input(i)), dims(output()), dx(i), adds(i)), "repeated sum kernel");
  }
  RepeatedSum repeated_sum(const Dims& in, const Dims& out, float* to, bool add) const {
    RepeatedSum job{};
    job.in = reals(dy());
    job.out = reals(to);
    job.add = add;
    job.kept[0] = batch_;
    job.kept_from[0] = narrow(elements(out));
    job.kept_axes = 1;
    job.kept_count = narrow(batch_ * elements(in));
    job.repeated_count = narrow(elements(out) / elements(in));
    const auto steps = steps_of(out);
    for (std::size_t axis = 0; axis < out.size(); ++axis) {
      const auto missing = out.size() - in.size();
      const bool kept = axis >= missing && in[axis - missing] == out[axis];
      int& axes_so_far = kept ? job.kept_axes : job.repeated_axes;
      (kept ? job.kept : job.repeated)[axes_so_far] = narrow(out[axis]);
      (kept ? job.kept_from : job.repeated_from)[axes_so_far] = narrow(steps[axis]);
      ++axes_so_far;
    }
    return job;
  }

  // ---- moves ----

  struct Move {
    std::vector<Axis> axes;
    std::int64_t from_begin = 0, to_begin = 0;
  };
  void move(const Move& m, std::size_t i = 0) {
    go(strided(reals(x(i)), m.from_begin, reals(y()), m.to_begin, m.axes), "moving kernel");
  }
  void move_back(const Move& m, bool add, std::size_t i = 0) {
    back(strided(reals(dy()), m.to_begin, reals(dx(i)), m.from_begin, reversed(m.axes), add), "moving kernel");
  }
  Move part_of(const Concat& c, std::size_t i) const {
    const auto axis = static_cast<std::size_t>(c.axis);
    const auto &part = dims(input(i)), &out = dims(output());
    std::int64_t begin = 0;
    for (std::size_t before = 0; before < i; ++before) begin += dims(input(before))[axis];
    return {axes(part, part, steps_of(part), out, steps_of(out)), 0, begin * steps_of(out)[axis]};
  }
  void forward(const Concat& c) {
    for (std::size_t i = 0; i < node().inputs.size(); ++i) move(part_of(c, i), i);
  }
  void backward(const Concat& c) {
    for (std::size_t i = 0; i < node().inputs.size(); ++i) move_back(part_of(c, i), adds(i), i);
  }
  Move slice(const Slice& s) const {
    const auto &in = dims(input()), &out = dims(output());
    return {axes(out, in, steps_of(in), out, steps_of(out)), s.begin * steps_of(in)[static_cast<std::size_t>(s.axis)],
            0};
  }
  void forward(const Slice& s) { move(slice(s)); }
  void backward(const Slice& s) {
    if (!adds()) tape_.backward_.push_back(zero(dx(), tape_.count(input())));  // around the slice
    move_back(slice(s), true);
  }
  Move transposed(const Transpose& t) const {
    const auto &in = dims(input()), &out = dims(output());
    const auto steps = steps_of(in);
    Dims from;
    for (const int axis : t.order) from.push_back(steps[static_cast<std::size_t>(axis)]);
    return {axes(out, in, from, out, steps_of(out))};
  }
  void forward(const Transpose& t) { move(transposed(t)); }
  void backward(const Transpose& t) { move_back(transposed(t), adds()); }
  Move shuffled(const ChannelShuffle& s) const {
    const auto steps = steps_of(dims(input()));
    return {shuffle_axes(batch_, dims(input()), s.groups, steps, steps)};
  }
  void forward(const ChannelShuffle& s) { move(shuffled(s)); }
  void backward(const ChannelShuffle& s) { move_back(shuffled(s), adds()); }

  void renamed_backward() {
    if (root(output()) == root(input())) return;  // the gradient is where it should be
    back(strided(reals(dy()), 0, reals(dx()), 0, all_of(output()), adds()), "moving kernel");
  }
  void forward(const Flatten&) {}
  void backward(const Flatten&) { renamed_backward(); }
  void forward(const Reshape&) {}
  void backward(const Reshape&) { renamed_backward(); }
  void forward(const Identity&) {}
  void backward(const Identity&) { renamed_backward(); }
  // check_learnable refuses these two.
  void forward(const Arithmetic&) {}
  void backward(const Arithmetic&) {}
  void forward(const SquareRoot&) {}
  void backward(const SquareRoot&) {}

  void forward(const Constant& c) {
    std::vector<float> all;
    all.reserve(static_cast<std::size_t>(tape_.count(output())));
    for (int i = 0; i < batch_; ++i) all.insert(all.end(), c.values.begin(), c.values.end());
    check(cudaMemcpyAsync(y(), all.data(), all.size() * sizeof(float), cudaMemcpyHostToDevice, lane_.stream()),
          "cudaMemcpyAsync");
    lane_.wait();
  }
  void backward(const Constant&) {}

  Tape& tape_;
  const Network& net_;
  const std::vector<Dims>& shapes_;
  int batch_;
  Precision precision_;
  Lane& lane_;
  const Parameters& parameters_;
  int at_ = 0;
  std::vector<int> roots_;     // the value whose gradient a value's gradient is
  std::vector<bool> written_;  // whether a root's gradient has been written, backward so far
  std::vector<Convolving> convolutions_;
  std::vector<NormState> norms_;
};

Tape::Tape(const Network& net, const std::vector<Dims>& shapes, int batch, Precision precision, Lane& lane,
           const Parameters& parameters) {
  TapeWriter(*this, net, shapes, batch, precision, lane, parameters).write();
  // The trials left their marks; what nobody writes is to stay zero.
  std::size_t bytes = 0;
  for (const int numbers : counts_)
    bytes += (static_cast<std::size_t>(numbers) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  check(cudaMemsetAsync(gradient_block_.get(), 0, bytes, lane.stream()), "cudaMemsetAsync");
}

void Tape::forward(Mode mode) const {
  for (const auto& step : forward_) step(mode);
}

void Tape::backward(Mode mode) const {
  for (const auto& step : backward_) step(mode);
}

}  // namespace coppice::gpu
