// By cuDNN's backend calls, which its C++ frontend is made of: descriptors get attributes, then are finalised.
#include "gpu/cuda_plan.hpp"

#include <array>
#include <span>

namespace coppice::gpu {
namespace {

constexpr std::int64_t kAdvicesMax = 16;  // of each heuristic: later ones are slower than our other ways
constexpr std::int64_t kAlignment = 16;   // of every tensor, in bytes: arenas and cudaMalloc give more

enum Name : std::int64_t { kX = 1, kW, kBias, kResidual, kY, kConvolved, kSummed, kBiased };  // of a tensor in a graph

// This pattern is not to be had; the next one may be.
struct Refusal {};

void accept(cudnnStatus_t status) {
  if (status != CUDNN_STATUS_SUCCESS) throw Refusal();
}

class Part {
 public:
  explicit Part(cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t made = nullptr;
    accept(cudnnBackendCreateDescriptor(type, &made));
    part_.reset(made);
  }
  Part& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
            const void* values) {
    accept(cudnnBackendSetAttribute(part_.get(), name, type, count, values));
    return *this;
  }
  Part& set(cudnnBackendAttributeName_t name, std::int64_t value) { return set(name, CUDNN_TYPE_INT64, 1, &value); }
  Part& set(cudnnBackendAttributeName_t name, std::span<const std::int64_t> values) {
    return set(name, CUDNN_TYPE_INT64, static_cast<std::int64_t>(values.size()), values.data());
  }
  Part& set(cudnnBackendAttributeName_t name, bool value) { return set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  Part& set(cudnnBackendAttributeName_t name, float value) { return set(name, CUDNN_TYPE_FLOAT, 1, &value); }
  Part& set(cudnnBackendAttributeName_t name, double value) { return set(name, CUDNN_TYPE_DOUBLE, 1, &value); }
  Part& set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
    return set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
  }
  Part& set(cudnnBackendAttributeName_t name, const Part& value) {
    const cudnnBackendDescriptor_t part = value.get();
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
  }
  Part& finish() {
    accept(cudnnBackendFinalize(part_.get()));
    return *this;
  }
  cudnnBackendDescriptor_t get() const { return part_.get(); }
  BackendPart release() { return std::move(part_); }

 private:
  BackendPart part_;
};

using Sizes = std::array<std::int64_t, 4>;  // n, c, h, w, however they lie

Part tensor(Name name, cudnnDataType_t type, const Sizes& dims, bool channels_last, bool inside = false) {
  const auto& [n, c, h, w] = dims;
  const Sizes steps = channels_last ? Sizes{h * w * c, 1, w * c, c} : Sizes{c * h * w, h * w, w, 1};
  Part out(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  out.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, std::int64_t{name})
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, dims)
      .set(CUDNN_ATTR_TENSOR_STRIDES, steps)
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, inside);
  out.finish();
  return out;
}

// The operations of one pattern; each writes a tensor that the next one reads, and the last one writes y.
class OperationGraph {
 public:
  OperationGraph(cudnnHandle_t cudnn, const ConvolutionSpec& spec, Pattern pattern) : spec_(spec), pattern_(pattern) {
    add_convolution();
    if (pattern == Pattern::with_scaled || (pattern == Pattern::exact && spec.residual)) add_residual();
    if (has_bias()) add_bias();
    if (has_bound()) add_bound();
    std::vector<cudnnBackendDescriptor_t> parts;
    for (const auto& operation : operations_) parts.push_back(operation.get());
    graph_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &cudnn)
        .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(parts.size()),
             parts.data())
        .finish();
  }
  const Part& graph() const { return graph_; }

 private:
  bool has_bias() const { return pattern_ != Pattern::alone && spec_.bias; }
  bool has_bound() const { return pattern_ != Pattern::alone && spec_.bounded(); }
  cudnnDataType_t type() const { return spec_.half ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT; }
  Sizes outputs() const { return {spec_.batch, spec_.out_channels, spec_.out_h, spec_.out_w}; }
  const Part& keep(Part part) { return *tensors_.emplace_back(std::make_unique<Part>(std::move(part))); }
  // What an operation writes: y where it is the last one. Sums inside are float32.
  const Part& written(Name name, bool last) {
    return keep(last ? tensor(kY, type(), outputs(), spec_.channels_last)
                     : tensor(name, CUDNN_DATA_FLOAT, outputs(), spec_.channels_last, true));
  }
  void add_convolution() {
    const Sizes in{spec_.batch, spec_.in_channels, spec_.in_h, spec_.in_w};
    const Sizes weight{spec_.out_channels, spec_.in_channels / spec_.groups, spec_.kernel_h, spec_.kernel_w};
    const std::array<std::int64_t, 2> pads{spec_.pad_h, spec_.pad_w}, strides{spec_.stride_h, spec_.stride_w},
        dilations{spec_.dilation_h, spec_.dilation_w};
    const auto mode = CUDNN_CROSS_CORRELATION;
    Part shape(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    shape.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, std::int64_t{2})
        .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
        .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode)
        .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pads)
        .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, pads)
        .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, dilations)
        .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, strides)
        .finish();
    const bool last = pattern_ == Pattern::alone ||
                      (pattern_ == Pattern::exact && !spec_.residual && !spec_.bias && !spec_.bounded());
    latest_ = &written(kConvolved, last);
    Part operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, keep(tensor(kX, type(), in, spec_.channels_last)))
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, keep(tensor(kW, type(), weight, spec_.channels_last)))
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, *latest_)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, keep(std::move(shape)))
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.0F)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 0.0F)
        .finish();
    operations_.push_back(std::move(operation));
  }
  void add_residual() {
    const auto& residual = keep(tensor(kResidual, type(), outputs(), spec_.channels_last));
    add_sum(residual, kSummed, spec_.residual ? 1.0F : 0.0F, !has_bias() && !has_bound());
  }
  void add_bias() {
    const auto& bias = keep(tensor(kBias, type(), {1, spec_.out_channels, 1, 1}, spec_.channels_last));
    add_sum(bias, kBiased, 1.0F, !has_bound());
  }
  void add_sum(const Part& other, Name name, float factor, bool last) {
    const auto mode = CUDNN_POINTWISE_ADD;
    Part kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode)
        .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT)
        .finish();
    const auto& out = written(name, last);
    Part operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(kind)))
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *latest_)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, 1.0F)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, factor)
        .finish();
    operations_.push_back(std::move(operation));
    latest_ = &out;
  }
  void add_bound() {
    const auto mode = CUDNN_POINTWISE_RELU_FWD;
    Part kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode)
        .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
    // Zero and none are what it has by itself, and what every engine takes.
    if (spec_.low != 0) kind.set(CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP, static_cast<double>(spec_.low));
    if (spec_.upper_bounded()) kind.set(CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, static_cast<double>(spec_.high));
    kind.finish();
    const auto& out = written(kY, true);
    Part operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(kind)))
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *latest_)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out)
        .finish();
    operations_.push_back(std::move(operation));
  }

  ConvolutionSpec spec_;
  Pattern pattern_;
  std::vector<std::unique_ptr<Part>> tensors_;  // and what else the operations point to
  std::vector<Part> operations_;
  const Part* latest_ = nullptr;
  Part graph_{CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR};
};

std::vector<Part> advices(const Part& graph, cudnnBackendHeurMode_t mode) {
  Part heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode)
      .finish();
  std::int64_t count = 0;
  accept(cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0,
                                  &count, nullptr));
  count = std::min(count, kAdvicesMax);
  std::vector<Part> out;
  std::vector<cudnnBackendDescriptor_t> parts;
  for (std::int64_t i = 0; i < count; ++i) parts.push_back(out.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  std::int64_t given = 0;
  accept(cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count,
                                  &given, parts.data()));
  while (static_cast<std::int64_t>(out.size()) > given) out.pop_back();
  return out;
}

// Whether an engine's arithmetic is what the spec allows.
bool allowed(const Part& advice, const ConvolutionSpec& spec) {
  Part engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t part = engine.get();
  std::int64_t count = 0;
  accept(cudnnBackendGetAttribute(advice.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count,
                                  &part));
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  accept(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                  CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes.data()));
  for (const auto note : std::span(notes).first(static_cast<std::size_t>(count))) {
    const bool float32 = !spec.half && !spec.tensor_cores;
    if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC || note == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13) return false;
    if (note == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) return false;
    // On float32 tensors these two mean TF32, and worse.
    if (float32 && (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE || note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS))
      return false;
  }
  return true;
}

// What a plan was made of lives as long as the plan: cuDNN does not say that it copies.
struct Origin {
  OperationGraph operations;
  std::vector<Part> advices;
};

std::shared_ptr<const ConvolutionPlan> ready(cudnnHandle_t cudnn, const Part& advice, Pattern pattern,
                                             std::shared_ptr<const void> origin) {
  Part part(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  part.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &cudnn)
      .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, advice)
      .finish();
  std::int64_t bytes = 0, count = 0;
  accept(cudnnBackendGetAttribute(part.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                  &bytes));
  if (bytes < 0 || static_cast<std::size_t>(bytes) > kWorkspaceMax) throw Refusal();
  return std::make_shared<ConvolutionPlan>(std::move(origin), part.release(), pattern, static_cast<std::size_t>(bytes));
}

}  // namespace

cudnnStatus_t ConvolutionPlan::run(const Lane& lane, const ConvolutionSpec& spec,
                                   const ConvolutionOperands& operands) const {
  std::vector<std::int64_t> names{kX, kW, kY};
  std::vector<const void*> places{operands.x, operands.w, operands.y};
  const auto add = [&](Name name, const void* place) {
    names.push_back(name);
    places.push_back(place);
  };
  if (pattern_ != Pattern::alone && spec.bias) add(kBias, operands.bias);
  if (pattern_ == Pattern::with_scaled || (pattern_ == Pattern::exact && spec.residual))
    add(kResidual, spec.residual ? operands.residual : operands.y);
  try {
    void* workspace = lane.workspace();
    const auto count = static_cast<std::int64_t>(names.size());
    Part operands_part(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    operands_part.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, names)
        .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, places.data())
        .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace)
        .finish();
    return cudnnBackendExecute(lane.cudnn(), plan_.get(), operands_part.get());
  } catch (const Refusal&) {
    return CUDNN_STATUS_BAD_PARAM;
  }
}

void plan(const Lane& lane, const ConvolutionSpec& spec, Pattern pattern,
          const std::function<bool(const std::shared_ptr<const ConvolutionPlan>&)>& enough) {
  for (const auto mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) try {
      const auto origin = std::make_shared<Origin>(Origin{OperationGraph(lane.cudnn(), spec, pattern), {}});
      origin->advices = advices(origin->operations.graph(), mode);
      for (const auto& advice : origin->advices) try {
          if (allowed(advice, spec) && enough(ready(lane.cudnn(), advice, pattern, origin))) return;
        } catch (const Refusal&) {
          continue;
        }
    } catch (const Refusal&) {
      continue;
    }
}

}  // namespace coppice::gpu
