// The CPU device: a net as a list of prepared oneDNN primitives over one arena.
//
// Compiling folds batch norms, fuses convolution or dense or add with the ReLU after it, lets oneDNN choose every
// layout and reorders weights ahead. Running executes the list: nothing is looked up and nothing of ours is allocated
// (oneDNN's own execute keeps a small map of arguments); only the caller's two buffers are put in their places.
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <dnnl.hpp>
#include <stdexcept>
#include <utility>

#include "gpu/arena.hpp"
#include "gpu/cpu_training.hpp"
#include "gpu/device.hpp"

namespace coppice::gpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;
using Arguments = std::vector<std::pair<int, memory>>;
constexpr auto kInference = dnnl::prop_kind::forward_inference;

memory::dims with_batch(int batch, const Dims& dims) {
  memory::dims out{batch};
  out.insert(out.end(), dims.begin(), dims.end());
  return out;
}

dnnl::primitive_attr attributes(bool relu) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (!relu) return attr;
  dnnl::post_ops ops;
  ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
  attr.set_post_ops(ops);
  return attr;
}

struct Step {
  dnnl::primitive primitive;
  std::vector<dnnl_exec_arg_t> arguments;  // point to memories that the net keeps
};

class CpuNet final : public CompiledNet {
 public:
  CpuNet(const dnnl::engine& engine, int threads) : engine_(engine), stream_(engine), threads_(threads) {}

  std::int64_t input_elements() const override { return input_count_; }
  std::int64_t output_elements() const override { return output_count_; }

  Expected<void> run(std::span<const float> input, std::span<float> output) override {
    if (std::ssize(input) != input_count_ || std::ssize(output) != output_count_)
      return unexpected(Error{ErrorCode::shape_mismatch, "run: " + std::to_string(input.size()) + " numbers in and " +
                                                             std::to_string(output.size()) + " out, the net takes " +
                                                             std::to_string(input_count_) + " and gives " +
                                                             std::to_string(output_count_)});
    omp_set_num_threads(threads_);  // this thread's own setting
    try {
      for (auto& view : input_views_) view.set_data_handle(const_cast<float*>(input.data()));
      for (auto& view : output_views_) view.set_data_handle(output.data());
    } catch (const dnnl::error& fault) {
      return unexpected(Error{ErrorCode::device_failed, std::string("oneDNN: ") + fault.what()});
    }
    for (const auto& step : steps_) {
      const auto status = dnnl_primitive_execute(step.primitive.get(), stream_.get(),
                                                 static_cast<int>(step.arguments.size()), step.arguments.data());
      if (status != dnnl_success)
        return unexpected(
            Error{ErrorCode::device_failed, "oneDNN: a primitive failed, status " + std::to_string(status)});
    }
    return {};
  }

 private:
  friend class Compiler;

  dnnl::engine engine_;
  dnnl::stream stream_;
  int threads_;
  std::int64_t input_count_ = 0, output_count_ = 0;
  std::vector<Step> steps_;
  std::vector<memory> kept_;  // whatever steps point to
  std::vector<memory> input_views_, output_views_;
  memory arena_, scratch_;
};

// A value while its net is compiled. Several memories may be views of one buffer.
struct Value {
  memory data;
  std::size_t buffer = 0;
  Dims dims;  // without batch
};

// Lays the steps out first and their memory afterwards, when it is known how long each buffer is needed.
class Compiler {
 public:
  Compiler(CpuNet& net, int batch) : net_(net), batch_(batch) {}

  // Throws dnnl::error. REQUIRES: the net is simplified, all values are images or vectors.
  void compile(const Network& source, const std::vector<Dims>& shapes) {
    omp_set_num_threads(net_.threads_);  // primitives are made for a number of threads
    net_.input_count_ = batch_ * elements(source.input);
    net_.output_count_ = batch_ * elements(shapes.back());
    std::vector<int> readers(shapes.size(), 0);
    for (const auto& node : source.nodes)
      for (const int input : node.inputs) ++readers[static_cast<std::size_t>(input)];

    std::vector<Value> values(shapes.size());
    values[0] = make(plain(source.input), source.input);
    for (std::size_t i = 0; i < source.nodes.size(); ++i) {
      const auto& node = source.nodes[i];
      if (values[i + 1].data) continue;  // a ReLU that the node before it took up
      const bool relu_next = i + 1 < source.nodes.size() && std::holds_alternative<Relu>(source.nodes[i + 1].op) &&
                             source.nodes[i + 1].inputs.front() == static_cast<int>(i) + 1 && readers[i + 1] == 1;
      if (node.inputs.empty()) throw std::logic_error("a Constant is not run yet");
      in_ = &values[static_cast<std::size_t>(node.inputs.front())];
      other_ = &values[static_cast<std::size_t>(node.inputs.back())];
      out_ = shapes[i + 1];
      relu_ = relu_next;
      values[i + 1] = std::visit(*this, node.op);
      if (relu_next && relu_) values[i + 2] = values[i + 1];
    }
    finish(values.back());
  }

  Value operator()(const Convolution& c) { return convolution(c, *in_); }
  Value operator()(const MaxPool& p) { return pool(p.window, dnnl::algorithm::pooling_max); }
  Value operator()(const AveragePool& p) {
    return pool(p.window, p.count_padding ? dnnl::algorithm::pooling_avg_include_padding
                                          : dnnl::algorithm::pooling_avg_exclude_padding);
  }
  Value operator()(const GlobalAveragePool&) {
    return pool({in_->dims[1], in_->dims[2], 1, 1, 0, 0, 0, 0}, dnnl::algorithm::pooling_avg_exclude_padding);
  }
  template <class Other>
  Value operator()(const Other& op) {
    throw std::logic_error(gpu::name(Operator(op)) + " is not run on the CPU yet");
  }
  Value operator()(const Identity&) {
    relu_ = false;
    return *in_;
  }
  Value operator()(const Flatten&) {
    relu_ = false;
    return reshaped(*in_, out_);
  }

  Value operator()(const Relu&) {
    relu_ = false;
    const dnnl::eltwise_forward::desc desc(kInference, dnnl::algorithm::eltwise_relu, in_->data.get_desc(), 0.0F, 0.0F);
    const dnnl::eltwise_forward::primitive_desc chosen(desc, attributes(false), net_.engine_);
    Value to = make(chosen.dst_desc(), out_);
    step(dnnl::eltwise_forward(chosen), {{DNNL_ARG_SRC, use(*in_)}, {DNNL_ARG_DST, use(to)}}, chosen.scratchpad_desc());
    return to;
  }

  Value operator()(const Add&) {
    const Value second = in_layout(*other_, in_->data.get_desc());
    const auto desc = in_->data.get_desc();
    const dnnl::binary::primitive_desc chosen({dnnl::algorithm::binary_add, desc, desc, desc}, attributes(relu_),
                                              net_.engine_);
    Value to = make(chosen.dst_desc(), out_);
    step(dnnl::binary(chosen), {{DNNL_ARG_SRC_0, use(*in_)}, {DNNL_ARG_SRC_1, use(second)}, {DNNL_ARG_DST, use(to)}},
         chosen.scratchpad_desc());
    return to;
  }

  // A norm that nothing before it took up: a depthwise 1x1 convolution does the same.
  Value operator()(const BatchNorm& b) {
    Convolution c;
    c.out_channels = c.groups = in_->dims[0];
    for (std::size_t i = 0; i < b.scale.size(); ++i) {
      const float factor = b.scale[i] / std::sqrt(b.variance[i] + b.epsilon);
      c.weight.push_back(factor);
      c.bias.push_back(b.shift[i] - b.mean[i] * factor);
    }
    if (in_->dims.size() == 3) return convolution(c, *in_);
    const Dims vector = out_;
    out_ = {vector[0], 1, 1};
    return reshaped(convolution(c, reshaped(*in_, out_)), vector);
  }

  Value operator()(const Dense& d) {
    const memory::dims weight_dims{d.out_features, in_->dims[0]};
    const auto source = plain(in_->dims), target = plain(out_);
    const memory::desc weights(weight_dims, Type::f32, Tag::any), bias({d.out_features}, Type::f32, Tag::x);
    const auto desc = d.bias.empty() ? dnnl::inner_product_forward::desc(kInference, source, weights, target)
                                     : dnnl::inner_product_forward::desc(kInference, source, weights, bias, target);
    const dnnl::inner_product_forward::primitive_desc chosen(desc, attributes(relu_), net_.engine_);
    const Value from = in_layout(*in_, chosen.src_desc());
    Value to = make(chosen.dst_desc(), out_);
    Arguments arguments{{DNNL_ARG_SRC, use(from)},
                        {DNNL_ARG_WEIGHTS, constant(d.weight, weight_dims, Tag::oi, chosen.weights_desc())},
                        {DNNL_ARG_DST, use(to)}};
    if (!d.bias.empty())
      arguments.emplace_back(DNNL_ARG_BIAS, constant(d.bias, {d.out_features}, Tag::x, chosen.bias_desc()));
    step(dnnl::inner_product_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
    return to;
  }

 private:
  struct Buffer {
    Lifetime life;
    std::vector<memory> views;
  };

  memory::desc any(const Dims& dims) const { return {with_batch(batch_, dims), Type::f32, Tag::any}; }
  memory::desc plain(const Dims& dims) const {
    return {with_batch(batch_, dims), Type::f32, dims.size() == 1 ? Tag::nc : Tag::nchw};
  }

  // A new buffer; its place is given at the end.
  Value make(const memory::desc& desc, const Dims& dims) {
    const int now = static_cast<int>(steps_.size());
    memory data(desc, net_.engine_, DNNL_MEMORY_NONE);
    buffers_.push_back({{desc.get_size(), now, now}, {data}});
    return {data, buffers_.size() - 1, dims};
  }
  // The value as an argument of the step that comes next.
  const memory& use(const Value& value) {
    auto& life = buffers_[value.buffer].life;
    life.last = std::max(life.last, static_cast<int>(steps_.size()));
    return value.data;
  }
  void step(const dnnl::primitive& primitive, Arguments arguments, const memory::desc& scratch) {
    scratch_bytes_ = std::max(scratch_bytes_, scratch.get_size());
    if (scratch.get_size() > 0) {
      scratch_views_.push_back(memory(scratch, net_.engine_, DNNL_MEMORY_NONE));
      arguments.emplace_back(DNNL_ARG_SCRATCHPAD, scratch_views_.back());
    }
    Step made{primitive, {}};
    for (const auto& [index, data] : arguments) {
      net_.kept_.push_back(data);
      made.arguments.push_back({index, data.get()});
    }
    steps_.push_back(std::move(made));
  }

  Value in_layout(const Value& from, const memory::desc& wanted) {
    if (from.data.get_desc() == wanted) return from;
    Value to = make(wanted, from.dims);
    step(dnnl::reorder(from.data, to.data), {{DNNL_ARG_FROM, use(from)}, {DNNL_ARG_TO, use(to)}}, memory::desc());
    return to;
  }
  // The same numbers under other sizes: a view where the layout is plain already.
  Value reshaped(const Value& from, const Dims& dims) {
    const Value source = in_layout(from, plain(from.dims));
    memory view(plain(dims), net_.engine_, DNNL_MEMORY_NONE);
    buffers_[source.buffer].views.push_back(view);
    return {view, source.buffer, dims};
  }
  // Moved into the layout that is wanted, once and for all.
  memory constant(const std::vector<float>& values, const memory::dims& dims, Tag tag, const memory::desc& wanted) {
    memory from({dims, Type::f32, tag}, net_.engine_, const_cast<float*>(values.data()));
    memory to(wanted, net_.engine_);
    dnnl::reorder(from, to).execute(net_.stream_, from, to);
    net_.stream_.wait();
    return to;
  }

  Value convolution(const Convolution& c, const Value& in) {
    const auto& w = c.window;
    memory::dims weight_dims{c.out_channels, in.dims[0], w.kernel_h, w.kernel_w};
    if (c.groups > 1)
      weight_dims = {c.groups, c.out_channels / c.groups, in.dims[0] / c.groups, w.kernel_h, w.kernel_w};
    const memory::desc weights(weight_dims, Type::f32, Tag::any), bias({c.out_channels}, Type::f32, Tag::x);
    const memory::dims strides{w.stride_h, w.stride_w}, before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
    const auto algorithm = dnnl::algorithm::convolution_direct;
    const auto from_any = any(in.dims), to_any = any(out_);
    const auto desc = c.bias.empty() ? dnnl::convolution_forward::desc(kInference, algorithm, from_any, weights, to_any,
                                                                       strides, before, after)
                                     : dnnl::convolution_forward::desc(kInference, algorithm, from_any, weights, bias,
                                                                       to_any, strides, before, after);
    const dnnl::convolution_forward::primitive_desc chosen(desc, attributes(relu_), net_.engine_);
    const Value from = in_layout(in, chosen.src_desc());
    Value to = make(chosen.dst_desc(), out_);
    const auto weight_tag = c.groups > 1 ? Tag::goihw : Tag::oihw;
    Arguments arguments{{DNNL_ARG_SRC, use(from)},
                        {DNNL_ARG_WEIGHTS, constant(c.weight, weight_dims, weight_tag, chosen.weights_desc())},
                        {DNNL_ARG_DST, use(to)}};
    if (!c.bias.empty())
      arguments.emplace_back(DNNL_ARG_BIAS, constant(c.bias, {c.out_channels}, Tag::x, chosen.bias_desc()));
    step(dnnl::convolution_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
    return to;
  }

  Value pool(const Window& w, dnnl::algorithm algorithm) {
    relu_ = false;
    const dnnl::pooling_v2_forward::desc desc(kInference, algorithm, in_->data.get_desc(), any(out_),
                                              {w.stride_h, w.stride_w}, {w.kernel_h, w.kernel_w}, {0, 0},
                                              {w.pad_top, w.pad_left}, {w.pad_bottom, w.pad_right});
    const dnnl::pooling_v2_forward::primitive_desc chosen(desc, attributes(false), net_.engine_);
    Value to = make(chosen.dst_desc(), out_);
    step(dnnl::pooling_v2_forward(chosen), {{DNNL_ARG_SRC, use(*in_)}, {DNNL_ARG_DST, use(to)}},
         chosen.scratchpad_desc());
    return to;
  }

  // Gives every buffer its place. The caller's own buffers serve as the first and the last one.
  void finish(const Value& last) {
    Value output = in_layout(last, plain(last.dims));
    if (output.buffer == 0) {  // the net only passes its input on: an identity or a flatten
      Value copy = make(plain(last.dims), last.dims);
      step(dnnl::reorder(output.data, copy.data), {{DNNL_ARG_FROM, use(output)}, {DNNL_ARG_TO, use(copy)}},
           memory::desc());
      output = copy;
    }
    net_.input_views_ = std::move(buffers_[0].views);
    net_.output_views_ = std::move(buffers_[output.buffer].views);
    std::vector<Lifetime> lives;
    for (auto& buffer : buffers_) lives.push_back(buffer.life);
    lives[0].bytes = lives[output.buffer].bytes = 0;
    const auto plan = plan_arena(lives);
    net_.arena_ = block(plan.bytes);
    auto* base = static_cast<std::byte*>(net_.arena_.get_data_handle());
    for (std::size_t i = 1; i < buffers_.size(); ++i)
      if (i != output.buffer)
        for (auto& view : buffers_[i].views) view.set_data_handle(base + plan.offsets[i]);
    net_.scratch_ = block(scratch_bytes_);  // one for all steps, since they run one after another
    for (auto& view : scratch_views_) view.set_data_handle(net_.scratch_.get_data_handle());
    net_.steps_ = std::move(steps_);
  }
  memory block(std::size_t bytes) const {
    return memory({{static_cast<memory::dim>(std::max<std::size_t>(bytes, 1))}, Type::u8, Tag::x}, net_.engine_);
  }

  CpuNet& net_;
  int batch_;
  std::vector<Buffer> buffers_;  // [0] is the net's input
  std::vector<Step> steps_;
  std::vector<memory> scratch_views_;
  std::size_t scratch_bytes_ = 0;
  // Of the node that is being compiled. relu_: whether a ReLU follows; an operator that cannot take it up clears it.
  const Value *in_ = nullptr, *other_ = nullptr;
  Dims out_;
  bool relu_ = false;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : engine_(dnnl::engine::kind::cpu, 0), threads_(threads) {}
  std::string name() const override { return "cpu"; }

  Expected<std::unique_ptr<CompiledNet>> compile(const Network& given, const CompileOptions& options) override {
    if (options.batch < 1 || options.batch > 65'536)
      return unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
    if (auto valid = infer_shapes(given); !valid) return unexpected(valid.error());
    const Network net = simplified(given);
    const auto shapes = infer_shapes(net);
    if (!shapes) return unexpected(shapes.error());
    for (const auto& dims : *shapes)
      if (dims.size() != 1 && dims.size() != 3)
        return unexpected(
            Error{ErrorCode::shape_mismatch, net.name + ": the CPU runs images and vectors, not " + to_string(dims)});
    try {
      auto compiled = std::make_unique<CpuNet>(engine_, threads_);
      Compiler(*compiled, options.batch).compile(net, *shapes);
      return compiled;
    } catch (const std::logic_error& fault) {
      return unexpected(Error{ErrorCode::unsupported_operator, net.name + ": " + fault.what()});
    } catch (const dnnl::error& fault) {
      return unexpected(Error{ErrorCode::device_failed, net.name + ": oneDNN: " + fault.what()});
    }
  }

  Expected<std::unique_ptr<TrainableNet>> compile_training(const Network& net, const TrainingOptions& options) override {
    return make_cpu_training(net, options, options.threads > 0 ? options.threads : threads_);
  }

 private:
  dnnl::engine engine_;
  int threads_;
};

}  // namespace

Expected<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options) {
  if (options.threads < 1 || options.threads > 1'024)
    return unexpected(
        Error{ErrorCode::device_unavailable, "the CPU cannot run " + std::to_string(options.threads) + " threads"});
  try {
    return std::make_unique<CpuDevice>(options.threads);
  } catch (const dnnl::error& fault) {
    return unexpected(Error{ErrorCode::device_unavailable, std::string("oneDNN: ") + fault.what()});
  }
}

}  // namespace coppice::gpu
