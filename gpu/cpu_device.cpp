// The CPU device: a net as a list of prepared oneDNN primitives over one arena.
//
// Compiling folds batch norms, fuses convolution + bias + (residual add) + ReLU, lets oneDNN choose every layout and
// reorders weights ahead. Running executes the list: no allocation and no lookup, only handles of input and output set.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <dnnl.hpp>
#include <unordered_map>

#include "gpu/device.hpp"

namespace coppice::gpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;

constexpr std::size_t kAlignment = 64;

memory::dims with_batch(int batch, const Dims& dims) {
  memory::dims out{batch};
  out.insert(out.end(), dims.begin(), dims.end());
  return out;
}

Tag plain(std::size_t axes) {
  switch (axes) {
    case 2: return Tag::nc;
    case 4: return Tag::nchw;
    default: return Tag::undef;
  }
}

struct Step {
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
};

class CpuNet final : public CompiledNet {
 public:
  CpuNet(dnnl::engine engine, int threads, int batch) : engine_(std::move(engine)), stream_(engine_), threads_(threads), batch_(batch) {}

  std::int64_t input_elements() const override { return input_count_; }
  std::int64_t output_elements() const override { return output_count_; }

  Expected<void> run(std::span<const float> input, std::span<float> output) override {
    if (static_cast<std::int64_t>(input.size()) != input_count_ || static_cast<std::int64_t>(output.size()) != output_count_)
      return tl::unexpected(Error{ErrorCode::shape_mismatch,
                                  "run: " + std::to_string(input.size()) + " numbers in and " + std::to_string(output.size()) +
                                      " out, the net takes " + std::to_string(input_count_) + " and gives " + std::to_string(output_count_)});
    omp_set_num_threads(threads_);  // this thread's own setting
    try {
      input_.set_data_handle(const_cast<float*>(input.data()));
      for (auto& view : input_views_) view.set_data_handle(input_.get_data_handle());
      output_.set_data_handle(output.data());
      for (const auto& step : steps_) step.primitive.execute(stream_, step.arguments);
      stream_.wait();
    } catch (const dnnl::error& fault) {
      return tl::unexpected(Error{ErrorCode::device_failed, std::string("oneDNN: ") + fault.what()});
    }
    return {};
  }

  // Compiles; throws dnnl::error.
  void build(const Network& net, const std::vector<Dims>& shapes);

 private:
  struct Value {
    memory data;
    Dims dims;  // without batch
  };

  memory::desc any(const Dims& dims) const {
    return {with_batch(batch_, dims), Type::f32, dims.size() == 1 ? Tag::nc : Tag::any};
  }
  memory make(const memory::desc& desc) { return {desc, engine_}; }

  void add(const dnnl::primitive& primitive, std::unordered_map<int, memory> arguments, const memory::desc& scratch) {
    if (scratch.get_size() > 0) {
      scratch_size_ = std::max(scratch_size_, scratch.get_size());
      arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(scratch, engine_, nullptr));
    }
    steps_.push_back({primitive, std::move(arguments)});
  }

  // The value in the layout that is wanted; a reorder step where it differs.
  memory in_layout(const memory& from, const memory::desc& wanted) {
    if (from.get_desc() == wanted) return from;
    memory to = make(wanted);
    add(dnnl::reorder(from, to), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}}, memory::desc());
    return to;
  }
  // Constants, moved once.
  memory constant(const std::vector<float>& values, const memory::dims& dims, Tag tag, const memory::desc& wanted) {
    memory from({dims, Type::f32, tag}, engine_, const_cast<float*>(values.data()));
    memory to = make(wanted);
    dnnl::reorder(from, to).execute(stream_, from, to);
    stream_.wait();
    return to;
  }
  dnnl::primitive_attr attributes(bool relu, bool sum) const {
    dnnl::post_ops ops;
    if (sum) ops.append_sum(1.0F);
    if (relu) ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
    dnnl::primitive_attr attr;
    attr.set_post_ops(ops);
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return attr;
  }

  memory convolution(const Convolution& c, const Value& in, const Dims& out, bool relu, const memory* residual);
  memory dense(const Dense& d, const Value& in, const Dims& out, bool relu);
  memory pool(const Window& w, dnnl::algorithm algorithm, const Value& in, const Dims& out);
  memory relu(const memory& in);
  memory sum(const memory& a, const memory& b, bool relu);
  memory norm(const BatchNorm& b, const Value& in);
  memory flatten(const Value& in);

  dnnl::engine engine_;
  dnnl::stream stream_;
  int threads_, batch_;
  std::vector<Step> steps_;
  std::size_t scratch_size_ = 0;
  memory scratch_, input_, output_;
  std::vector<memory> input_views_;  // the input by another shape
  std::vector<memory> kept_;  // values whose memory others share
  std::int64_t input_count_ = 0, output_count_ = 0;
};

memory CpuNet::convolution(const Convolution& c, const Value& in, const Dims& out, bool relu, const memory* residual) {
  const auto& w = c.window;
  const auto in_channels = in.dims[0];
  memory::dims weight_dims{c.out_channels, in_channels, w.kernel_h, w.kernel_w};
  Tag weight_tag = Tag::oihw;
  if (c.groups > 1) {
    weight_dims = {c.groups, c.out_channels / c.groups, in_channels / c.groups, w.kernel_h, w.kernel_w};
    weight_tag = Tag::goihw;
  }
  const memory::desc weights({weight_dims}, Type::f32, Tag::any);
  const memory::desc bias({c.out_channels}, Type::f32, Tag::x);
  const memory::dims strides{w.stride_h, w.stride_w}, before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto kind = dnnl::prop_kind::forward_inference;
  const auto desc = c.bias.empty()
                        ? dnnl::convolution_forward::desc(kind, algorithm, any(in.dims), weights, any(out), strides, before, after)
                        : dnnl::convolution_forward::desc(kind, algorithm, any(in.dims), weights, bias, any(out), strides, before, after);
  const dnnl::convolution_forward::primitive_desc chosen(desc, attributes(relu, residual != nullptr), engine_);
  const memory source = in_layout(in.data, chosen.src_desc());
  memory target = make(chosen.dst_desc());
  // The sum post-op adds onto what the target holds.
  if (residual) add(dnnl::reorder(*residual, target), {{DNNL_ARG_FROM, *residual}, {DNNL_ARG_TO, target}}, memory::desc());
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, source},
                                            {DNNL_ARG_WEIGHTS, constant(c.weight, weight_dims, weight_tag, chosen.weights_desc())},
                                            {DNNL_ARG_DST, target}};
  if (!c.bias.empty()) arguments.emplace(DNNL_ARG_BIAS, constant(c.bias, {c.out_channels}, Tag::x, chosen.bias_desc()));
  add(dnnl::convolution_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
  return target;
}

memory CpuNet::dense(const Dense& d, const Value& in, const Dims& out, bool relu) {
  const memory::dims weight_dims{d.out_features, in.dims[0]};
  const memory::desc source({batch_, in.dims[0]}, Type::f32, Tag::nc), weights({weight_dims}, Type::f32, Tag::any),
      bias({d.out_features}, Type::f32, Tag::x), target_desc({batch_, out[0]}, Type::f32, Tag::nc);
  const auto kind = dnnl::prop_kind::forward_inference;
  const auto desc = d.bias.empty() ? dnnl::inner_product_forward::desc(kind, source, weights, target_desc)
                                   : dnnl::inner_product_forward::desc(kind, source, weights, bias, target_desc);
  const dnnl::inner_product_forward::primitive_desc chosen(desc, attributes(relu, false), engine_);
  memory target = make(chosen.dst_desc());
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, in_layout(in.data, chosen.src_desc())},
                                            {DNNL_ARG_WEIGHTS, constant(d.weight, weight_dims, Tag::oi, chosen.weights_desc())},
                                            {DNNL_ARG_DST, target}};
  if (!d.bias.empty()) arguments.emplace(DNNL_ARG_BIAS, constant(d.bias, {d.out_features}, Tag::x, chosen.bias_desc()));
  add(dnnl::inner_product_forward(chosen), std::move(arguments), chosen.scratchpad_desc());
  return target;
}

memory CpuNet::pool(const Window& w, dnnl::algorithm algorithm, const Value& in, const Dims& out) {
  const dnnl::pooling_v2_forward::desc desc(dnnl::prop_kind::forward_inference, algorithm, in.data.get_desc(), any(out),
                                            {w.stride_h, w.stride_w}, {w.kernel_h, w.kernel_w}, {0, 0},
                                            {w.pad_top, w.pad_left}, {w.pad_bottom, w.pad_right});
  const dnnl::pooling_v2_forward::primitive_desc chosen(desc, attributes(false, false), engine_);
  memory target = make(chosen.dst_desc());
  add(dnnl::pooling_v2_forward(chosen), {{DNNL_ARG_SRC, in.data}, {DNNL_ARG_DST, target}}, chosen.scratchpad_desc());
  return target;
}

memory CpuNet::relu(const memory& in) {
  const dnnl::eltwise_forward::desc desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::eltwise_relu, in.get_desc(), 0.0F, 0.0F);
  const dnnl::eltwise_forward::primitive_desc chosen(desc, attributes(false, false), engine_);
  memory target = make(chosen.dst_desc());
  add(dnnl::eltwise_forward(chosen), {{DNNL_ARG_SRC, in}, {DNNL_ARG_DST, target}}, chosen.scratchpad_desc());
  return target;
}

memory CpuNet::sum(const memory& a, const memory& b, bool relu) {
  const dnnl::binary::desc desc(dnnl::algorithm::binary_add, a.get_desc(), b.get_desc(), a.get_desc());
  const dnnl::binary::primitive_desc chosen(desc, attributes(relu, false), engine_);
  memory target = make(chosen.dst_desc());
  add(dnnl::binary(chosen), {{DNNL_ARG_SRC_0, a}, {DNNL_ARG_SRC_1, b}, {DNNL_ARG_DST, target}}, chosen.scratchpad_desc());
  return target;
}

// A batch norm that no convolution took up: a depthwise 1x1 convolution does the same.
memory CpuNet::norm(const BatchNorm& b, const Value& in) {
  Convolution c;
  c.out_channels = in.dims[0];
  c.groups = in.dims[0];
  for (std::size_t i = 0; i < b.scale.size(); ++i) {
    const float factor = b.scale[i] / std::sqrt(b.variance[i] + b.epsilon);
    c.weight.push_back(factor);
    c.bias.push_back(b.shift[i] - b.mean[i] * factor);
  }
  return convolution(c, in, in.dims, false, nullptr);
}

memory CpuNet::flatten(const Value& in) {
  const auto plain_desc = memory::desc(with_batch(batch_, in.dims), Type::f32, plain(in.dims.size() + 1));
  const memory source = in_layout(in.data, plain_desc);
  memory view(memory::desc({batch_, elements(in.dims)}, Type::f32, Tag::nc), engine_, source.get_data_handle());
  if (source.get() == input_.get()) input_views_.push_back(view);  // the caller's buffer is not known yet
  return view;
}

// Which nodes end up inside the one before them.
struct Fusion {
  std::vector<int> readers;  // of each value
  explicit Fusion(const Network& net) : readers(net.nodes.size() + 1, 0) {
    for (const auto& node : net.nodes)
      for (const int input : node.inputs) ++readers[static_cast<std::size_t>(input)];
  }
};

void CpuNet::build(const Network& net, const std::vector<Dims>& shapes) {
  omp_set_num_threads(threads_);
  const Fusion fusion(net);
  input_count_ = batch_ * elements(net.input);
  output_count_ = batch_ * elements(shapes.back());
  input_ = memory({with_batch(batch_, net.input), Type::f32, plain(net.input.size() + 1)}, engine_, nullptr);
  std::vector<Value> values(net.nodes.size() + 1);
  values[0] = {input_, net.input};
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    const auto& node = net.nodes[i];
    auto& out = values[i + 1];
    if (out.data) continue;  // made with the node before it
    out.dims = shapes[i + 1];
    const Value& in = values[static_cast<std::size_t>(node.inputs.front())];
    const bool next_is_relu = i + 1 < net.nodes.size() && std::holds_alternative<Relu>(net.nodes[i + 1].op) &&
                              net.nodes[i + 1].inputs.front() == static_cast<int>(i) + 1 && fusion.readers[i + 1] == 1;
    bool fused = false;
    if (const auto* c = std::get_if<Convolution>(&node.op)) {
      out.data = convolution(*c, in, out.dims, fused = next_is_relu, nullptr);
    } else if (const auto* d = std::get_if<Dense>(&node.op)) {
      out.data = dense(*d, in, out.dims, fused = next_is_relu);
    } else if (const auto* m = std::get_if<MaxPool>(&node.op)) {
      out.data = pool(m->window, dnnl::algorithm::pooling_max, in, out.dims);
    } else if (const auto* a = std::get_if<AveragePool>(&node.op)) {
      out.data = pool(a->window, a->count_padding ? dnnl::algorithm::pooling_avg_include_padding : dnnl::algorithm::pooling_avg_exclude_padding, in, out.dims);
    } else if (std::holds_alternative<GlobalAveragePool>(node.op)) {
      out.data = pool({in.dims[1], in.dims[2], 1, 1, 0, 0, 0, 0}, dnnl::algorithm::pooling_avg_exclude_padding, in, out.dims);
    } else if (std::holds_alternative<Add>(node.op)) {
      out.data = sum(in.data, values[static_cast<std::size_t>(node.inputs[1])].data, fused = next_is_relu);
    } else if (const auto* b = std::get_if<BatchNorm>(&node.op)) {
      out.data = norm(*b, in);
    } else if (std::holds_alternative<Relu>(node.op)) {
      out.data = relu(in.data);
    } else if (std::holds_alternative<Flatten>(node.op)) {
      out.data = flatten(in);
    } else {
      out.data = in.data;
    }
    if (fused) values[i + 2] = {out.data, out.dims};
  }
  // The output in plain order, straight into the caller's buffer.
  const auto& last = values.back();
  output_ = memory({with_batch(batch_, last.dims), Type::f32, plain(last.dims.size() + 1)}, engine_, nullptr);
  add(dnnl::reorder(last.data, output_), {{DNNL_ARG_FROM, last.data}, {DNNL_ARG_TO, output_}}, memory::desc());
  kept_.reserve(values.size());
  for (auto& value : values) kept_.push_back(value.data);
  // One scratchpad serves all steps, since they run one after another.
  if (scratch_size_ > 0) {
    scratch_ = make({{static_cast<memory::dim>(scratch_size_)}, Type::u8, Tag::a});
    for (auto& step : steps_)
      if (const auto found = step.arguments.find(DNNL_ARG_SCRATCHPAD); found != step.arguments.end())
        found->second.set_data_handle(scratch_.get_data_handle());
  }
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : engine_(dnnl::engine::kind::cpu, 0), threads_(threads) {}
  std::string name() const override { return "cpu"; }

  Expected<std::unique_ptr<CompiledNet>> compile(const Network& given, const CompileOptions& options) override {
    if (options.batch < 1 || options.batch > 65'536)
      return tl::unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
    const Network net = simplified(given);
    const auto shapes = infer_shapes(net);
    if (!shapes) return tl::unexpected(shapes.error());
    for (const auto& dims : *shapes)
      if (dims.size() != 1 && dims.size() != 3)
        return tl::unexpected(Error{ErrorCode::shape_mismatch, net.name + ": the CPU runs images and vectors, not " + to_string(dims)});
    try {
      auto compiled = std::make_unique<CpuNet>(engine_, threads_, options.batch);
      compiled->build(net, *shapes);
      return compiled;
    } catch (const dnnl::error& fault) {
      return tl::unexpected(Error{ErrorCode::device_failed, net.name + ": oneDNN: " + fault.what()});
    }
  }

 private:
  dnnl::engine engine_;
  int threads_;
};

}  // namespace

Expected<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options) {
  if (options.threads < 1 || options.threads > 1'024)
    return tl::unexpected(Error{ErrorCode::device_unavailable, "the CPU cannot run " + std::to_string(options.threads) + " threads"});
  try {
    return std::make_unique<CpuDevice>(options.threads);
  } catch (const dnnl::error& fault) {
    return tl::unexpected(Error{ErrorCode::device_unavailable, std::string("oneDNN: ") + fault.what()});
  }
}

}  // namespace coppice::gpu
