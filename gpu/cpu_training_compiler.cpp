// How every operator trains: the primitives it runs forward, and those that lead gradients back through it.
//
// A first pass lays out the forward steps, and each operator leaves behind how its backward is made; a second pass
// makes these from the last to the first. A value's gradient is the first reader's contribution, and further ones are
// added to it. Layouts are oneDNN's choice; a gradient always has the layout of its value.
#include <omp.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "gpu/cpu_training_graph.hpp"

namespace coppice::gpu {
namespace {

using dnnl::algorithm;
using dnnl::memory;
using dnnl::prop_kind;
using Tag = memory::format_tag;
using Type = memory::data_type;
using Arguments = std::unordered_map<int, memory>;

enum class When : std::uint8_t { train, evaluate, always };

dnnl::primitive_attr attributes() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

class Compiler {
 public:
  Compiler(CpuTrainingGraph& graph, const Network& net, const std::vector<Dims>& shapes, const TrainingOptions& options)
      : graph_(graph), net_(net), shapes_(shapes), options_(options), values_(graph.values) {}

  void compile() {
    omp_set_num_threads(graph_.threads);  // primitives are made for a number of threads
    find_readers();
    values_.resize(shapes_.size());
    for (std::size_t i = 0; i < shapes_.size(); ++i) values_[i].dims = shapes_[i];
    values_[0].data = make(plain(shapes_[0]));
    values_[0].learns = options_.input_gradient;
    for (std::size_t i = 0; i < net_.nodes.size(); ++i) {
      node_ = static_cast<int>(i);
      auto& out = values_[i + 1];
      if (out.data) continue;  // a ReLU that the node before it took up
      for (const int input : net_.nodes[i].inputs) out.learns |= values_[static_cast<std::size_t>(input)].learns;
      first_parameter_ = graph_.parameters.count();
      std::visit(*this, net_.nodes[i].op);
    }
    finish_forward();
    begin_backward();
    backward_ = true;
    for (auto make_backward = backwards_.rbegin(); make_backward != backwards_.rend(); ++make_backward)
      (*make_backward)();
    graph_.parameters.allocate();
    graph_.scratch = make(plain_layout({static_cast<memory::dim>(scratch_bytes_ / sizeof(float) + 1)}));
    for (auto& view : scratch_views_) view.set_data_handle(graph_.scratch.get_data_handle());
  }

  void operator()(const Convolution& c) {
    const auto& w = c.window;
    const auto &from = in().dims, &to = out().dims;
    memory::dims weight_dims{c.out_channels, from[0], w.kernel_h, w.kernel_w};
    if (c.groups > 1) weight_dims = {c.groups, c.out_channels / c.groups, from[0] / c.groups, w.kernel_h, w.kernel_w};
    const memory::dims strides{w.stride_h, w.stride_w}, dilates{w.dilation_h - 1, w.dilation_w - 1},
        before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
    const auto src = any(from), dst = any(to), weights = any_of(weight_dims);
    const memory::desc bias = c.bias.empty() ? memory::desc() : memory::desc({c.out_channels}, Type::f32, Tag::x);
    const auto direct = algorithm::convolution_direct;
    const dnnl::convolution_forward::primitive_desc forward(
        {prop_kind::forward_training, direct, src, weights, bias, dst, strides, dilates, before, after}, attributes(),
        graph_.engine);
    const auto weight = parameter(c.weight, plain_layout(weight_dims), forward.weights_desc(), Kind::decayed);
    const auto offset = c.bias.empty() ? CpuParameters::Place{} : free_parameter(c.bias);
    const memory source = in_layout(in().data, forward.src_desc());
    out().data = make(forward.dst_desc());
    Arguments arguments{{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight.weight}, {DNNL_ARG_DST, out().data}};
    if (offset.weight) arguments.emplace(DNNL_ARG_BIAS, offset.weight);
    step(dnnl::convolution_forward(forward), arguments, forward.scratchpad_desc());

    backward([=, this](int from_value, int to_value) {
      const dnnl::convolution_backward_weights::primitive_desc of_weights(
          {direct, src, weights, bias, dst, strides, dilates, before, after}, attributes(), graph_.engine, forward);
      back_to_weights<dnnl::convolution_backward_weights>(of_weights, source, value(to_value).gradient, weight, offset);
      if (!value(from_value).learns) return;
      const dnnl::convolution_backward_data::primitive_desc of_data(
          {direct, src, weights, dst, strides, dilates, before, after}, attributes(), graph_.engine, forward);
      back_to_data<dnnl::convolution_backward_data>(of_data, weight, value(to_value).gradient, from_value);
    });
  }

  void operator()(const Dense& d) {
    const auto src = any(in().dims), dst = plain(out().dims);
    const memory::dims weight_dims{d.out_features, in().dims[0]};
    const auto weights = any_of(weight_dims);
    const memory::desc bias = d.bias.empty() ? memory::desc() : memory::desc({d.out_features}, Type::f32, Tag::x);
    const dnnl::inner_product_forward::primitive_desc forward({prop_kind::forward_training, src, weights, bias, dst},
                                                              attributes(), graph_.engine);
    const auto weight = parameter(d.weight, plain_layout(weight_dims), forward.weights_desc(), Kind::decayed);
    const auto offset = d.bias.empty() ? CpuParameters::Place{} : free_parameter(d.bias);
    const memory source = in_layout(in().data, forward.src_desc());
    out().data = make(forward.dst_desc());
    Arguments arguments{{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight.weight}, {DNNL_ARG_DST, out().data}};
    if (offset.weight) arguments.emplace(DNNL_ARG_BIAS, offset.weight);
    step(dnnl::inner_product_forward(forward), arguments, forward.scratchpad_desc());

    backward([=, this](int from_value, int to_value) {
      const dnnl::inner_product_backward_weights::primitive_desc of_weights({src, weights, bias, dst}, attributes(),
                                                                            graph_.engine, forward);
      back_to_weights<dnnl::inner_product_backward_weights>(of_weights, source, value(to_value).gradient, weight,
                                                            offset);
      if (!value(from_value).learns) return;
      const dnnl::inner_product_backward_data::primitive_desc of_data({src, weights, dst}, attributes(), graph_.engine,
                                                                      forward);
      back_to_data<dnnl::inner_product_backward_data>(of_data, weight, value(to_value).gradient, from_value);
    });
  }

  void operator()(const BatchNorm& b) {
    const int relu = only_reader_of_kind<Relu>();
    const float epsilon = b.epsilon;
    const auto channels = static_cast<memory::dim>(b.scale.size());
    const memory::desc vector({channels}, Type::f32, Tag::x);
    std::vector<float> both = b.scale;
    both.insert(both.end(), b.shift.begin(), b.shift.end());
    const memory::desc two({2, channels}, Type::f32, Tag::nc);
    const auto affine = parameter(both, two, two, Kind::free);
    const auto mean = graph_.parameters.add(b.mean, vector, vector, Kind::statistic).weight;
    const auto variance = graph_.parameters.add(b.variance, vector, vector, Kind::statistic).weight;
    const memory batch_mean = make(vector), batch_variance = make(vector);

    const memory source = as_image(in_layout(in().data, layout_for_image(in())), in().dims);
    const auto layout = source.get_desc();
    out().data = make(layout_for_image(in()));
    const memory target = as_image(out().data, out().dims);
    if (relu > 0) {
      value(relu).data = out().data;
      value(relu).learns = true;
      graph_.fused_norms.push_back({node_, relu, batch_mean, batch_variance, mean, variance, affine.weight});
    }
    auto flags = dnnl::normalization_flags::use_scale_shift;
    if (relu > 0) flags |= dnnl::normalization_flags::fuse_norm_relu;
    const auto fixed = flags | dnnl::normalization_flags::use_global_stats;
    using Forward = dnnl::batch_normalization_forward;
    const Forward::primitive_desc training({prop_kind::forward_training, layout, epsilon, flags}, attributes(),
                                           graph_.engine);
    const Forward::primitive_desc evaluation({prop_kind::forward_training, layout, epsilon, fixed}, attributes(),
                                             graph_.engine);
    Arguments arguments{{DNNL_ARG_SRC, source}, {DNNL_ARG_DST, target}, {DNNL_ARG_SCALE_SHIFT, affine.weight}};
    memory mask;
    if (relu > 0) {
      mask = make(training.workspace_desc());
      arguments.emplace(DNNL_ARG_WORKSPACE, mask);
    }
    const auto with = [](Arguments base, const memory& m, const memory& v) {
      base.emplace(DNNL_ARG_MEAN, m);
      base.emplace(DNNL_ARG_VARIANCE, v);
      return base;
    };
    step(Forward(training), with(arguments, batch_mean, batch_variance), training.scratchpad_desc(), When::train);
    step(Forward(evaluation), with(arguments, mean, variance), evaluation.scratchpad_desc(), When::evaluate);
    const auto items = options_.batch * elements(in().dims) / channels;
    follow(channels, items, batch_mean, batch_variance, mean, variance);

    out().learns = true;
    backward(
        [=, this](int from_value, int to_value) {
          const auto& after = value(relu > 0 ? relu : to_value);
          using Backward = dnnl::batch_normalization_backward;
          const auto with_statistics = [&](auto used, const Forward::primitive_desc& hint) {
            return Backward::primitive_desc({prop_kind::backward, layout, layout, epsilon, used}, attributes(),
                                            graph_.engine, hint);
          };
          const auto train = with_statistics(flags, training), evaluate = with_statistics(fixed, evaluation);
          const memory found = make(layout_for_image(value(from_value)));
          Arguments back{{DNNL_ARG_SRC, source},
                         {DNNL_ARG_DIFF_DST, as_image(after.gradient, after.dims)},
                         {DNNL_ARG_SCALE_SHIFT, affine.weight},
                         {DNNL_ARG_DIFF_SRC, as_image(found, after.dims)},
                         {DNNL_ARG_DIFF_SCALE_SHIFT, affine.gradient}};
          if (relu > 0) back.emplace(DNNL_ARG_WORKSPACE, mask);
          step(Backward(train), with(back, batch_mean, batch_variance), train.scratchpad_desc(), When::train);
          step(Backward(evaluate), with(back, mean, variance), evaluate.scratchpad_desc(), When::evaluate);
          contribute(from_value, found);
        },
        relu);
  }

  void operator()(const Relu&) { eltwise(algorithm::eltwise_relu, 0.0F, 0.0F); }
  void operator()(const Clip& c) { eltwise(algorithm::eltwise_clip_v2, c.low, c.high); }

  void operator()(const MaxPool& p) { pool(p.window, algorithm::pooling_max); }
  void operator()(const AveragePool& p) {
    pool(p.window, p.count_padding ? algorithm::pooling_avg_include_padding : algorithm::pooling_avg_exclude_padding);
  }
  void operator()(const GlobalAveragePool&) {
    pool({in().dims[1], in().dims[2], 1, 1, 0, 0, 0, 0}, algorithm::pooling_avg_exclude_padding);
  }

  // Those that only give the same numbers other sizes: views.
  void operator()(const Identity&) { view(); }
  void operator()(const Flatten&) { view(); }
  void operator()(const Reshape&) { view(); }

  void operator()(const Add&) {
    if (in(0).dims != in(1).dims) return broadcast_add();
    const int relu = only_reader_of_kind<Relu>();
    const auto layout = in(0).data.get_desc();
    const memory second = in_layout(in(1).data, layout);
    auto attr = attributes();
    if (relu > 0) {
      dnnl::post_ops ops;
      ops.append_eltwise(1.0F, algorithm::eltwise_relu, 0.0F, 0.0F);
      attr.set_post_ops(ops);
      graph_.fused_adds.push_back(node_);
    }
    const dnnl::binary::primitive_desc chosen({algorithm::binary_add, layout, layout, layout}, attr, graph_.engine);
    out().data = make(layout);
    step(dnnl::binary(chosen), {{DNNL_ARG_SRC_0, in(0).data}, {DNNL_ARG_SRC_1, second}, {DNNL_ARG_DST, out().data}},
         chosen.scratchpad_desc());
    if (relu > 0) {
      value(relu).data = out().data;
      value(relu).learns = out().learns;
    }
    const auto inputs = inputs_of_node();
    backward(
        [=, this](int, int to_value) {
          if (relu > 0) value(to_value).gradient = relu_backward(value(relu).data, value(relu).gradient);
          for (const int input : inputs) contribute(input, value(to_value).gradient, true);
        },
        relu);
  }

  void operator()(const Concat& c) {
    const auto inputs = inputs_of_node();
    const int axis = c.axis + 1;
    std::vector<memory::desc> layouts;
    for (const int input : inputs) layouts.push_back(value(input).data.get_desc());
    const dnnl::concat::primitive_desc chosen(axis, layouts, graph_.engine, attributes());
    out().data = make(chosen.dst_desc());
    Arguments arguments{{DNNL_ARG_DST, out().data}};
    for (std::size_t i = 0; i < inputs.size(); ++i)
      arguments.emplace(DNNL_ARG_MULTIPLE_SRC + static_cast<int>(i), value(inputs[i]).data);
    step(dnnl::concat(chosen), arguments, chosen.scratchpad_desc());
    backward([=, this](int, int to_value) {
      std::int64_t begin = 0;
      for (const int input : inputs) {
        const auto width = value(input).dims[static_cast<std::size_t>(c.axis)];
        if (value(input).learns) {
          const memory found = make(value(input).data.get_desc());
          move(part_of(value(to_value).gradient, axis, begin, begin + width), found);
          contribute(input, found);
        }
        begin += width;
      }
    });
  }

  void operator()(const Slice& s) {
    const int axis = s.axis + 1;
    const memory part = part_of(in().data, axis, s.begin, s.end);
    out().data = make(dense_layout_of(part));
    move(part, out().data);
    backward([=, this](int from_value, int to_value) {
      auto& before = value(from_value);
      const auto layout = before.data.get_desc();
      const bool fits = can_part(layout, axis, s.begin, s.end);
      if (fits && before.gradient && !before.borrowed)
        return move(value(to_value).gradient, part_of(before.gradient, axis, s.begin, s.end), true);
      const memory found = make(fits ? layout : plain(before.dims));
      emit([found] {
        std::fill_n(static_cast<std::byte*>(found.get_data_handle()), found.get_desc().get_size(), std::byte{0});
      });
      move(value(to_value).gradient, part_of(found, axis, s.begin, s.end));
      contribute(from_value, found);
    });
  }

  void operator()(const Transpose& t) {
    const memory source = in_layout(in().data, plain(in().dims));
    out().data = make(plain(out().dims));
    // Axis order[i] of the input is axis i of the output; the batch stays first.
    std::vector<int> to_out(t.order.size() + 1, 0), to_in(to_out);
    for (std::size_t i = 0; i < t.order.size(); ++i) {
      to_out[static_cast<std::size_t>(t.order[i]) + 1] = static_cast<int>(i) + 1;
      to_in[i + 1] = t.order[i] + 1;
    }
    const auto turned = [this](const memory& from, const std::vector<int>& permutation) {
      return view_of(from, from.get_desc().permute_axes(permutation));
    };
    move(turned(source, to_out), out().data);
    backward([=, this](int from_value, int to_value) {
      const memory found = make(plain(value(from_value).dims));
      move(turned(value(to_value).gradient, to_in), found);
      contribute(from_value, found);
    });
  }

  void operator()(const ChannelShuffle& s) {
    const auto layout = in().data.get_desc();
    const int per_group = static_cast<int>(in().dims[0] / s.groups);
    const dnnl::shuffle_forward::primitive_desc forward({prop_kind::forward_training, layout, 1, per_group},
                                                        graph_.engine, attributes());
    out().data = make(layout);
    step(dnnl::shuffle_forward(forward), {{DNNL_ARG_SRC, in().data}, {DNNL_ARG_DST, out().data}},
         forward.scratchpad_desc());
    backward([=, this](int from_value, int to_value) {
      const dnnl::shuffle_backward::primitive_desc chosen({layout, 1, per_group}, graph_.engine, forward, attributes());
      const memory found = make(layout);
      step(dnnl::shuffle_backward(chosen), {{DNNL_ARG_DIFF_DST, value(to_value).gradient}, {DNNL_ARG_DIFF_SRC, found}},
           chosen.scratchpad_desc());
      contribute(from_value, found);
    });
  }

  // check_learnable refuses these two.
  void operator()(const Arithmetic&) {}
  void operator()(const SquareRoot&) {}

  void operator()(const Constant& c) {
    out().data = make(plain(c.dims));
    auto* to = static_cast<float*>(out().data.get_data_handle());
    for (int item = 0; item < options_.batch; ++item) to = std::copy(c.values.begin(), c.values.end(), to);
  }

 private:
  using Kind = CpuParameters::Kind;

  // ---- values ------------------------------------------------------------------------------------------------------

  CpuTrainingValue& value(int index) { return values_[static_cast<std::size_t>(index)]; }
  const std::vector<int>& inputs_of_node() const { return net_.nodes[static_cast<std::size_t>(node_)].inputs; }
  CpuTrainingValue& in(std::size_t i = 0) { return value(inputs_of_node()[i]); }
  CpuTrainingValue& out() { return value(node_ + 1); }

  void find_readers() {
    readers_.assign(shapes_.size(), {});
    for (std::size_t i = 0; i < net_.nodes.size(); ++i)
      for (const int input : net_.nodes[i].inputs)
        readers_[static_cast<std::size_t>(input)].push_back(static_cast<int>(i));
  }
  // The value of the node of type Op that alone reads what this node gives; 0 where there is none.
  template <class Op>
  int only_reader_of_kind() const {
    const auto& readers = readers_[static_cast<std::size_t>(node_) + 1];
    if (readers.size() != 1) return 0;
    return std::holds_alternative<Op>(net_.nodes[static_cast<std::size_t>(readers[0])].op) ? readers[0] + 1 : 0;
  }

  memory::desc any_of(const memory::dims& dims) const { return {dims, Type::f32, Tag::any}; }
  memory::desc any(const Dims& dims) const { return any_of(with_batch(options_.batch, dims)); }
  memory::desc plain(const Dims& dims) const { return plain_layout(with_batch(options_.batch, dims)); }
  memory make(const memory::desc& desc) const { return {desc, graph_.engine}; }
  memory view_of(const memory& from, const memory::desc& desc) const {
    return {desc, graph_.engine, from.get_data_handle()};
  }
  // Batch norms want images: a vector is one of one pixel, and what has other axes one of one column.
  // REQUIRES: images have any layout, all else the plain one.
  memory as_image(const memory& data, const Dims& dims) const {
    return dims.size() == 3 ? data : view_of(data, plain({dims[0], elements(dims) / dims[0], 1}));
  }
  memory::desc layout_for_image(const CpuTrainingValue& of) const {
    return of.dims.size() == 3 ? of.data.get_desc() : plain(of.dims);
  }

  CpuParameters::Place parameter(const std::vector<float>& values, const memory::desc& plain_desc,
                                 const memory::desc& layout, Kind kind) {
    out().learns = true;
    return graph_.parameters.add(values, plain_desc, layout, kind);
  }
  CpuParameters::Place free_parameter(const std::vector<float>& values) {
    const memory::desc vector({static_cast<memory::dim>(values.size())}, Type::f32, Tag::x);
    return parameter(values, vector, vector, Kind::free);
  }

  // ---- steps -------------------------------------------------------------------------------------------------------

  void emit(std::function<void()> run, When when = When::always) {
    auto& programs = backward_ ? graph_.backward : graph_.forward;
    if (when != When::evaluate) programs[static_cast<int>(Mode::train)].push_back(run);
    if (when != When::train) programs[static_cast<int>(Mode::evaluate)].push_back(std::move(run));
  }
  void step(const dnnl::primitive& primitive, Arguments arguments, const memory::desc& scratch,
            When when = When::always) {
    if (scratch.get_size() > 0) {
      scratch_bytes_ = std::max(scratch_bytes_, scratch.get_size());
      scratch_views_.push_back(memory(scratch, graph_.engine, DNNL_MEMORY_NONE));
      arguments.emplace(DNNL_ARG_SCRATCHPAD, scratch_views_.back());
    }
    emit([primitive, arguments = std::move(arguments),
          &stream = graph_.stream] { primitive.execute(stream, arguments); },
         when);
  }
  // to = from, or to += from, whatever their layouts.
  void move(const memory& from, const memory& to, bool add = false) {
    auto attr = attributes();
    if (add) {
      dnnl::post_ops ops;
      ops.append_sum(1.0F);
      attr.set_post_ops(ops);
    }
    const dnnl::reorder::primitive_desc chosen(from, to, attr);
    step(dnnl::reorder(chosen), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}}, chosen.scratchpad_desc());
  }
  memory in_layout(const memory& from, const memory::desc& wanted) {
    if (from.get_desc() == wanted) return from;
    const memory to = make(wanted);
    move(from, to);
    return to;
  }

  // ---- backward ----------------------------------------------------------------------------------------------------

  // Leaves behind how gradients are led through this node; skipped where none arrive or nothing before it learns.
  // through: the value whose gradient arrives, where it is not this node's own.
  void backward(std::function<void(int from, int to)> make_backward, int through = 0) {
    const int from = inputs_of_node().empty() ? 0 : inputs_of_node().front(), to = node_ + 1;
    if (!out().learns) return;
    const bool has_parameters = graph_.parameters.count() > first_parameter_;
    backwards_.push_back([this, make_backward = std::move(make_backward), from, to, through, has_parameters,
                          first = first_parameter_] {
      if (value(through > 0 ? through : to).gradient) make_backward(from, to);
      if (!has_parameters) return;
      for (const auto mode : {static_cast<int>(Mode::train), static_cast<int>(Mode::evaluate)})
        graph_.ready[mode].push_back({graph_.backward[mode].size(), first});
    });
  }

  // Adds a part of a value's gradient. borrowed: the memory is another value's gradient too.
  void contribute(int index, const memory& part, bool borrowed = false) {
    auto& to = value(index);
    if (!to.learns) return;
    const auto layout = to.data.get_desc();
    const memory moved = in_layout(part, layout);
    borrowed = borrowed && part.get_desc() == layout;
    if (!to.gradient) {
      to.gradient = moved;
      to.borrowed = borrowed;
      return;
    }
    const memory sum = to.borrowed ? make(layout) : to.gradient;
    const dnnl::binary::primitive_desc chosen({algorithm::binary_add, layout, layout, layout}, attributes(),
                                              graph_.engine);
    step(dnnl::binary(chosen), {{DNNL_ARG_SRC_0, to.gradient}, {DNNL_ARG_SRC_1, moved}, {DNNL_ARG_DST, sum}},
         chosen.scratchpad_desc());
    to.gradient = sum;
    to.borrowed = false;
  }

  template <class Primitive>
  void back_to_weights(const typename Primitive::primitive_desc& chosen, const memory& source, const memory& gradient,
                       const CpuParameters::Place& weight, const CpuParameters::Place& bias) {
    const memory from = in_layout(source, chosen.src_desc()), after = in_layout(gradient, chosen.diff_dst_desc());
    const bool direct = chosen.diff_weights_desc() == weight.gradient.get_desc();
    const memory found = direct ? weight.gradient : make(chosen.diff_weights_desc());
    Arguments arguments{{DNNL_ARG_SRC, from}, {DNNL_ARG_DIFF_DST, after}, {DNNL_ARG_DIFF_WEIGHTS, found}};
    if (bias.gradient) arguments.emplace(DNNL_ARG_DIFF_BIAS, bias.gradient);
    step(Primitive(chosen), arguments, chosen.scratchpad_desc());
    if (!direct) move(found, weight.gradient);
  }
  template <class Primitive>
  void back_to_data(const typename Primitive::primitive_desc& chosen, const CpuParameters::Place& weight,
                    const memory& gradient, int to) {
    const memory after = in_layout(gradient, chosen.diff_dst_desc());
    const memory weights = in_layout(weight.weight, chosen.weights_desc());
    const memory found = make(chosen.diff_src_desc());
    step(Primitive(chosen), {{DNNL_ARG_DIFF_DST, after}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DIFF_SRC, found}},
         chosen.scratchpad_desc());
    contribute(to, found);
  }

  // Running statistics follow the batch's by a tenth, the variance as its unbiased estimate (as PyTorch does).
  void follow(std::int64_t channels, std::int64_t items, const memory& batch_mean, const memory& batch_variance,
              const memory& mean, const memory& variance) {
    const float unbiased = static_cast<float>(items) / static_cast<float>(std::max<std::int64_t>(items - 1, 1));
    emit(
        [=] {
          const auto* m = static_cast<const float*>(batch_mean.get_data_handle());
          const auto* v = static_cast<const float*>(batch_variance.get_data_handle());
          auto* running_mean = static_cast<float*>(mean.get_data_handle());
          auto* running_variance = static_cast<float*>(variance.get_data_handle());
          for (std::int64_t c = 0; c < channels; ++c) {
            running_mean[c] += 0.1F * (m[c] - running_mean[c]);
            running_variance[c] += 0.1F * (v[c] * unbiased - running_variance[c]);
          }
        },
        When::train);
  }

  // ---- operators with more than one name
  // -----------------------------------------------------------------------------

  memory relu_backward(const memory& output, const memory& gradient) {
    const auto layout = output.get_desc();
    constexpr auto kind = algorithm::eltwise_relu_use_dst_for_bwd;
    const dnnl::eltwise_forward::primitive_desc hint({prop_kind::forward_training, kind, layout, 0.0F, 0.0F},
                                                     attributes(), graph_.engine);
    const dnnl::eltwise_backward::primitive_desc chosen({kind, layout, layout, 0.0F, 0.0F}, attributes(), graph_.engine,
                                                        hint);
    const memory found = make(layout);
    step(dnnl::eltwise_backward(chosen),
         {{DNNL_ARG_DST, output}, {DNNL_ARG_DIFF_DST, gradient}, {DNNL_ARG_DIFF_SRC, found}}, chosen.scratchpad_desc());
    return found;
  }

  void eltwise(algorithm kind, float alpha, float beta) {
    const memory source = in().data;
    const auto layout = source.get_desc();
    const dnnl::eltwise_forward::primitive_desc forward({prop_kind::forward_training, kind, layout, alpha, beta},
                                                        attributes(), graph_.engine);
    out().data = make(layout);
    step(dnnl::eltwise_forward(forward), {{DNNL_ARG_SRC, source}, {DNNL_ARG_DST, out().data}},
         forward.scratchpad_desc());
    backward([=, this](int from_value, int to_value) {
      const dnnl::eltwise_backward::primitive_desc chosen({kind, layout, layout, alpha, beta}, attributes(),
                                                          graph_.engine, forward);
      const memory found = make(layout);
      step(dnnl::eltwise_backward(chosen),
           {{DNNL_ARG_SRC, source}, {DNNL_ARG_DIFF_DST, value(to_value).gradient}, {DNNL_ARG_DIFF_SRC, found}},
           chosen.scratchpad_desc());
      contribute(from_value, found);
    });
  }

  void pool(const Window& w, algorithm kind) {
    const memory source = in().data;
    const auto dst = any(out().dims), layout = source.get_desc();
    const memory::dims strides{w.stride_h, w.stride_w}, kernel{w.kernel_h, w.kernel_w},
        dilates{w.dilation_h - 1, w.dilation_w - 1}, before{w.pad_top, w.pad_left}, after{w.pad_bottom, w.pad_right};
    const dnnl::pooling_v2_forward::primitive_desc forward(
        {prop_kind::forward_training, kind, layout, dst, strides, kernel, dilates, before, after}, attributes(),
        graph_.engine);
    out().data = make(forward.dst_desc());
    Arguments arguments{{DNNL_ARG_SRC, source}, {DNNL_ARG_DST, out().data}};
    memory winners;
    if (kind == algorithm::pooling_max) {
      winners = make(forward.workspace_desc());
      arguments.emplace(DNNL_ARG_WORKSPACE, winners);
    }
    step(dnnl::pooling_v2_forward(forward), arguments, forward.scratchpad_desc());
    backward([=, this](int from_value, int to_value) {
      const dnnl::pooling_v2_backward::primitive_desc chosen(
          {kind, layout, forward.dst_desc(), strides, kernel, dilates, before, after}, attributes(), graph_.engine,
          forward);
      const memory found = make(layout);
      Arguments back{{DNNL_ARG_DIFF_DST, value(to_value).gradient}, {DNNL_ARG_DIFF_SRC, found}};
      if (winners) back.emplace(DNNL_ARG_WORKSPACE, winners);
      step(dnnl::pooling_v2_backward(chosen), back, chosen.scratchpad_desc());
      contribute(from_value, found);
    });
  }

  void view() {
    const bool same = in().dims == out().dims;
    const memory source = same ? in().data : in_layout(in().data, plain(in().dims));
    out().data = same ? source : view_of(source, plain(out().dims));
    backward([=, this](int from_value, int to_value) {
      const auto& gradient = value(to_value).gradient;
      contribute(from_value, same ? gradient : view_of(gradient, plain(value(from_value).dims)), true);
    });
  }

  // ---- parts of a value along an axis ------------------------------------------------------------------------------

  static std::pair<memory::dims, memory::dims> box(const memory::desc& desc, int axis, std::int64_t begin,
                                                   std::int64_t end) {
    memory::dims dims = desc.dims(), offsets(dims.size(), 0);
    dims[static_cast<std::size_t>(axis)] = end - begin;
    offsets[static_cast<std::size_t>(axis)] = begin;
    return {dims, offsets};
  }
  // Blocked layouts can be cut only between blocks.
  static bool can_part(const memory::desc& desc, int axis, std::int64_t begin, std::int64_t end) {
    const auto [dims, offsets] = box(desc, axis, begin, end);
    return static_cast<bool>(desc.submemory_desc(dims, offsets, true));
  }
  memory part_of(const memory& from, int axis, std::int64_t begin, std::int64_t end) {
    const auto desc = from.get_desc();
    const bool fits = can_part(desc, axis, begin, end);
    const memory source = fits ? from : in_layout(from, plain_layout(desc.dims()));
    const auto [dims, offsets] = box(desc, axis, begin, end);
    return view_of(source, source.get_desc().submemory_desc(dims, offsets));
  }
  // A layout of its own for what is a view of a larger one: the blocks it has, without the gaps.
  memory::desc dense_layout_of(const memory& part) const {
    const dnnl::concat::primitive_desc alone(1, {part.get_desc()}, graph_.engine);
    return alone.dst_desc();
  }

  // ---- an add that repeats one side --------------------------------------------------------------------------------

  // [batch, dims] with axes of 1 before dims, as many as the output has.
  memory aligned(const memory& from, const Dims& dims) {
    const memory source = in_layout(from, plain(dims));
    return view_of(source, plain(aligned(dims)));
  }
  Dims aligned(const Dims& dims) {
    Dims full(out_dims_.size() - dims.size(), 1);
    full.insert(full.end(), dims.begin(), dims.end());
    return full;
  }
  void broadcast_add() {
    out_dims_ = out().dims;
    const auto layout = plain(out_dims_);
    out().data = make(layout);
    // Zero first: a sum may repeat either side, a primitive only its second.
    const memory zero = make(layout);
    std::fill_n(static_cast<std::byte*>(zero.get_data_handle()), layout.get_size(), std::byte{0});
    memory so_far = zero;
    for (std::size_t i = 0; i < 2; ++i) {
      const memory side = aligned(in(i).data, in(i).dims);
      const dnnl::binary::primitive_desc chosen({algorithm::binary_add, layout, side.get_desc(), layout}, attributes(),
                                                graph_.engine);
      step(dnnl::binary(chosen), {{DNNL_ARG_SRC_0, so_far}, {DNNL_ARG_SRC_1, side}, {DNNL_ARG_DST, out().data}},
           chosen.scratchpad_desc());
      so_far = out().data;
    }
    const auto inputs = inputs_of_node();
    backward([=, this, dims = out_dims_](int, int to_value) {
      out_dims_ = dims;
      for (const int input : inputs) sum_back(input, value(to_value).gradient);
    });
  }
  // What was repeated gets the sum of its copies' gradients.
  void sum_back(int to, const memory& gradient) {
    const Dims dims = value(to).dims;
    if (!value(to).learns) return;
    if (dims == out_dims_) return contribute(to, gradient, true);
    const auto narrow = plain(aligned(dims));
    memory found = make(narrow);
    if (aligned(dims) == out_dims_) {
      found = gradient;
    } else {
      const dnnl::reduction::primitive_desc chosen({algorithm::reduction_sum, gradient.get_desc(), narrow, 0.0F, 0.0F},
                                                   attributes(), graph_.engine);
      step(dnnl::reduction(chosen), {{DNNL_ARG_SRC, gradient}, {DNNL_ARG_DST, found}}, chosen.scratchpad_desc());
    }
    contribute(to, view_of(found, plain(dims)), aligned(dims) == out_dims_);
  }

  // ---- the two ends ------------------------------------------------------------------------------------------------

  void finish_forward() {
    const auto& last = values_.back();
    graph_.scores = memory(plain(last.dims), graph_.engine, DNNL_MEMORY_NONE);
    move(last.data, graph_.scores);
  }
  void begin_backward() {
    auto& last = values_.back();
    graph_.score_gradients = memory(plain(last.dims), graph_.engine, DNNL_MEMORY_NONE);
    last.gradient = make(last.data.get_desc());
    backward_ = true;
    move(graph_.score_gradients, last.gradient);
  }

  CpuTrainingGraph& graph_;
  const Network& net_;
  const std::vector<Dims>& shapes_;
  const TrainingOptions& options_;
  std::vector<CpuTrainingValue>& values_;
  std::vector<std::vector<int>> readers_;  // of each value: nodes
  std::vector<std::function<void()>> backwards_;
  std::int64_t first_parameter_ = 0;  // of the node that is being laid out
  std::vector<memory> scratch_views_;
  std::size_t scratch_bytes_ = 0;
  int node_ = 0;
  Dims out_dims_;          // of an add that repeats one side
  bool backward_ = false;  // which program steps go into
};

}  // namespace

memory::dims with_batch(int batch, const Dims& dims) {
  memory::dims out{batch};
  out.insert(out.end(), dims.begin(), dims.end());
  return out;
}

memory::desc plain_layout(const memory::dims& dims) {
  memory::dims strides(dims.size(), 1);
  for (std::size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return {dims, Type::f32, strides};
}

void compile(CpuTrainingGraph& graph, const Network& net, const std::vector<Dims>& shapes,
             const TrainingOptions& options) {
  Compiler(graph, net, shapes, options).compile();
}

}  // namespace coppice::gpu
