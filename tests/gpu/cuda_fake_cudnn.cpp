// cuDNN's older calls for convolutions, and its backend as far as a convolution with what follows it goes.
#include <cudnn.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "gpu/cuda_jobs.hpp"
#include "tests/gpu/cuda_fake_parts.hpp"

using namespace coppice::gpu::fake;
using coppice::gpu::Reals;

namespace {

constexpr std::size_t kWorkspace = 1'000;

Engines engines_now = Engines::all;

struct View {  // a tensor's sizes and steps
  std::array<std::int64_t, 4> dims{}, steps{};
  bool half = false;
  std::int64_t at(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) const {
    return n * steps[0] + c * steps[1] + h * steps[2] + w * steps[3];
  }
};

struct Tensor {
  View view;
  const void* data = nullptr;
  double get(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) const {
    return Reals{const_cast<void*>(data), view.half}.get(static_cast<unsigned>(view.at(n, c, h, w)));
  }
  void set(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, double value) const {
    Reals{const_cast<void*>(data), view.half}.set(static_cast<unsigned>(view.at(n, c, h, w)),
                                                  static_cast<float>(value));
  }
};

View view_of(cudnnTensorFormat_t format, cudnnDataType_t type, std::int64_t n, std::int64_t c, std::int64_t h,
             std::int64_t w) {
  View out{{n, c, h, w}, {c * h * w, h * w, w, 1}, type == CUDNN_DATA_HALF};
  if (format == CUDNN_TENSOR_NHWC) out.steps = {h * w * c, 1, w * c, c};
  return out;
}

struct Shape {
  std::int64_t pad[2]{}, stride[2]{1, 1}, dilation[2]{1, 1};
};

// f(n, output channel, row, column, channel of the group, kernel row, kernel column, channel, input row, input column)
template <class F>
void each_product(const View& x, const View& w, const View& y, const Shape& s, const F& f) {
  const auto inner = w.dims[1], outer = w.dims[0] / (x.dims[1] / inner);
  for (std::int64_t n = 0; n < y.dims[0]; ++n)
    for (std::int64_t o = 0; o < y.dims[1]; ++o)
      for (std::int64_t r = 0; r < y.dims[2]; ++r)
        for (std::int64_t q = 0; q < y.dims[3]; ++q)
          for (std::int64_t i = 0; i < inner; ++i)
            for (std::int64_t ky = 0; ky < w.dims[2]; ++ky)
              for (std::int64_t kx = 0; kx < w.dims[3]; ++kx) {
                const auto v = r * s.stride[0] - s.pad[0] + ky * s.dilation[0];
                const auto u = q * s.stride[1] - s.pad[1] + kx * s.dilation[1];
                if (v >= 0 && u >= 0 && v < x.dims[2] && u < x.dims[3])
                  f(n, o, r, q, i, ky, kx, o / outer * inner + i, v, u);
              }
}

// target = sum of what add says, scaled; beta times what was there on top.
template <class Add>
void accumulate(const Tensor& target, double beta, const Add& add) {
  const auto& d = target.view.dims;
  std::vector<double> sums(static_cast<std::size_t>(d[0] * d[1] * d[2] * d[3]), 0.0);
  add([&](std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t e, double value) {
    sums[static_cast<std::size_t>(((a * d[1] + b) * d[2] + c) * d[3] + e)] += value;
  });
  std::size_t i = 0;
  for (std::int64_t a = 0; a < d[0]; ++a)
    for (std::int64_t b = 0; b < d[1]; ++b)
      for (std::int64_t c = 0; c < d[2]; ++c)
        for (std::int64_t e = 0; e < d[3]; ++e, ++i)
          target.set(a, b, c, e, sums[i] + (beta != 0 ? beta * target.get(a, b, c, e) : 0.0));
}

void spoil(void* workspace, std::size_t bytes) {
  if (bytes == 0) return;
  if (!workspace) std::abort();
  std::memset(workspace, 0xff, bytes);
}

void convolve(const Tensor& x, const Tensor& w, const Tensor& y, const Shape& s) {
  accumulate(y, 0, [&](const auto& add) {
    each_product(x.view, w.view, y.view, s,
                 [&](auto n, auto o, auto r, auto q, auto i, auto ky, auto kx, auto c, auto v, auto u) {
                   add(n, o, r, q, x.get(n, c, v, u) * w.get(o, i, ky, kx));
                 });
  });
}

template <class T>
cudnnStatus_t lend_new(T** place, const char* call) {
  if (fails(call)) return CUDNN_STATUS_ALLOC_FAILED;
  *place = new T;
  lend(*place);
  return CUDNN_STATUS_SUCCESS;
}
template <class T>
cudnnStatus_t take_back(T* what) {
  give_back(what);
  delete what;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t answer(const char* call) { return fails(call) ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS; }

// Advices as they come: one that is no advice, one that is not to be taken, and one that is good.
template <class Advice, class Algorithm>
cudnnStatus_t advise(const char* call, int room, int* count, Advice* advices, Algorithm good) {
  if (fails(call) || room < 3) return CUDNN_STATUS_NOT_SUPPORTED;
  *count = 3;
  for (int i = 0; i < 3; ++i) advices[i] = Advice{};
  advices[0].status = CUDNN_STATUS_NOT_SUPPORTED;
  advices[0].determinism = CUDNN_DETERMINISTIC;
  advices[1].determinism = CUDNN_NON_DETERMINISTIC;
  advices[2].algo = good;
  advices[2].determinism = CUDNN_DETERMINISTIC;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t workspace(const char* call, std::size_t* bytes) {
  *bytes = kWorkspace;
  return answer(call);
}

}  // namespace

struct cudnnContext {
  cudaStream_t stream = nullptr;
};
struct cudnnTensorStruct {
  View view;
};
struct cudnnFilterStruct {
  View view;
};
struct cudnnConvolutionStruct {
  Shape shape;
};

namespace coppice::gpu::fake {
void engines(Engines which) { engines_now = which; }
}  // namespace coppice::gpu::fake

const char* cudnnGetErrorString(cudnnStatus_t) { return "made to fail"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return lend_new(handle, "cudnnCreate"); }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) { return take_back(handle); }
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return answer("cudnnSetStream");
}

// ---- the older calls -----------------------------------------------------------------------------------------------

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* made) {
  return lend_new(made, "cudnnCreateTensorDescriptor");
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t tensor) { return take_back(tensor); }
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t tensor, cudnnTensorFormat_t format,
                                         cudnnDataType_t type, int n, int c, int h, int w) {
  tensor->view = view_of(format, type, n, c, h, w);
  return answer("cudnnSetTensor4dDescriptor");
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* made) {
  return lend_new(made, "cudnnCreateFilterDescriptor");
}
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t filter) { return take_back(filter); }
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t filter, cudnnDataType_t type,
                                         cudnnTensorFormat_t format, int n, int c, int h, int w) {
  filter->view = view_of(format, type, n, c, h, w);
  return answer("cudnnSetFilter4dDescriptor");
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* made) {
  return lend_new(made, "cudnnCreateConvolutionDescriptor");
}
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t shape) { return take_back(shape); }
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t made, int pad_h, int pad_w, int stride_h,
                                              int stride_w, int dilation_h, int dilation_w, cudnnConvolutionMode_t,
                                              cudnnDataType_t) {
  made->shape = {{pad_h, pad_w}, {stride_h, stride_w}, {dilation_h, dilation_w}};
  return answer("cudnnSetConvolution2dDescriptor");
}
cudnnStatus_t cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t, int) {
  return answer("cudnnSetConvolutionGroupCount");
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t, cudnnMathType_t) {
  return answer("cudnnSetConvolutionMathType");
}
cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t,
                                                     cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t, int room,
                                                     int* count, cudnnConvolutionFwdAlgoPerf_t* advices) {
  return advise("cudnnGetConvolutionForwardAlgorithm_v7", room, count, advices,
                CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM);
}
cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnnHandle_t, cudnnFilterDescriptor_t,
                                                          cudnnTensorDescriptor_t, cudnnConvolutionDescriptor_t,
                                                          cudnnTensorDescriptor_t, int room, int* count,
                                                          cudnnConvolutionBwdDataAlgoPerf_t* advices) {
  return advise("cudnnGetConvolutionBackwardDataAlgorithm_v7", room, count, advices, CUDNN_CONVOLUTION_BWD_DATA_ALGO_1);
}
cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(cudnnHandle_t, cudnnTensorDescriptor_t,
                                                            cudnnTensorDescriptor_t, cudnnConvolutionDescriptor_t,
                                                            cudnnFilterDescriptor_t, int room, int* count,
                                                            cudnnConvolutionBwdFilterAlgoPerf_t* advices) {
  return advise("cudnnGetConvolutionBackwardFilterAlgorithm_v7", room, count, advices,
                CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1);
}
cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t,
                                                      cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t,
                                                      cudnnConvolutionFwdAlgo_t, std::size_t* bytes) {
  return workspace("cudnnGetConvolutionForwardWorkspaceSize", bytes);
}
cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(cudnnHandle_t, cudnnFilterDescriptor_t,
                                                           cudnnTensorDescriptor_t, cudnnConvolutionDescriptor_t,
                                                           cudnnTensorDescriptor_t, cudnnConvolutionBwdDataAlgo_t,
                                                           std::size_t* bytes) {
  return workspace("cudnnGetConvolutionBackwardDataWorkspaceSize", bytes);
}
cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(cudnnHandle_t, cudnnTensorDescriptor_t,
                                                             cudnnTensorDescriptor_t, cudnnConvolutionDescriptor_t,
                                                             cudnnFilterDescriptor_t, cudnnConvolutionBwdFilterAlgo_t,
                                                             std::size_t* bytes) {
  return workspace("cudnnGetConvolutionBackwardFilterWorkspaceSize", bytes);
}
cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t handle, const void*, cudnnTensorDescriptor_t x, const void* x_data,
                                      cudnnFilterDescriptor_t w, const void* w_data, cudnnConvolutionDescriptor_t shape,
                                      cudnnConvolutionFwdAlgo_t algorithm, void* space, std::size_t bytes, const void*,
                                      cudnnTensorDescriptor_t y, void* y_data) {
  if (fails("cudnnConvolutionForward") || algorithm != CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM)
    return CUDNN_STATUS_NOT_SUPPORTED;
  enqueue(handle->stream, [=, from = Tensor{x->view, x_data}, by = Tensor{w->view, w_data},
                           to = Tensor{y->view, y_data}, s = shape->shape] {
    spoil(space, bytes);
    convolve(from, by, to, s);
  });
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t handle, const void*, cudnnFilterDescriptor_t w,
                                           const void* w_data, cudnnTensorDescriptor_t dy, const void* dy_data,
                                           cudnnConvolutionDescriptor_t shape, cudnnConvolutionBwdDataAlgo_t algorithm,
                                           void* space, std::size_t bytes, const void* beta, cudnnTensorDescriptor_t dx,
                                           void* dx_data) {
  if (fails("cudnnConvolutionBackwardData") || algorithm != CUDNN_CONVOLUTION_BWD_DATA_ALGO_1)
    return CUDNN_STATUS_NOT_SUPPORTED;
  enqueue(handle->stream, [=, by = Tensor{w->view, w_data}, from = Tensor{dy->view, dy_data},
                           to = Tensor{dx->view, dx_data}, s = shape->shape, keep = *static_cast<const float*>(beta)] {
    spoil(space, bytes);
    accumulate(to, keep, [&](const auto& add) {
      each_product(to.view, by.view, from.view, s,
                   [&](auto n, auto o, auto r, auto q, auto i, auto ky, auto kx, auto c, auto v, auto u) {
                     add(n, c, v, u, from.get(n, o, r, q) * by.get(o, i, ky, kx));
                   });
    });
  });
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t handle, const void*, cudnnTensorDescriptor_t x,
                                             const void* x_data, cudnnTensorDescriptor_t dy, const void* dy_data,
                                             cudnnConvolutionDescriptor_t shape,
                                             cudnnConvolutionBwdFilterAlgo_t algorithm, void* space, std::size_t bytes,
                                             const void* beta, cudnnFilterDescriptor_t dw, void* dw_data) {
  if (fails("cudnnConvolutionBackwardFilter") || algorithm != CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1)
    return CUDNN_STATUS_NOT_SUPPORTED;
  enqueue(handle->stream, [=, of = Tensor{x->view, x_data}, from = Tensor{dy->view, dy_data},
                           to = Tensor{dw->view, dw_data}, s = shape->shape, keep = *static_cast<const float*>(beta)] {
    spoil(space, bytes);
    accumulate(to, keep, [&](const auto& add) {
      each_product(of.view, to.view, from.view, s,
                   [&](auto n, auto o, auto r, auto q, auto i, auto ky, auto kx, auto c, auto v, auto u) {
                     add(o, i, ky, kx, from.get(n, o, r, q) * of.get(n, c, v, u));
                   });
    });
  });
  return CUDNN_STATUS_SUCCESS;
}

// ---- the backend ---------------------------------------------------------------------------------------------------

namespace {

struct Descriptor {
  cudnnBackendDescriptorType_t type{};
  std::map<int, std::vector<std::byte>> attributes;
  std::set<int> points;  // those attributes that are descriptors
  bool finished = false;

  bool has(int name) const { return attributes.contains(name); }
  template <class T>
  T get(int name) const {
    T out{};
    std::memcpy(&out, attributes.at(name).data(), sizeof(T));
    return out;
  }
  template <class T>
  std::vector<T> all(int name) const {
    const auto& bytes = attributes.at(name);
    std::vector<T> out(bytes.size() / sizeof(T));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  const Descriptor& part(int name) const { return *get<Descriptor*>(name); }
};

// All that it points to must still be there when it is used, and finished.
void check_parts(const Descriptor& of) {
  if (!is_lent(&of) || !of.finished) std::abort();
  for (const auto& [name, bytes] : of.attributes)
    if (of.points.contains(name))
      for (const auto* part : of.all<const Descriptor*>(name)) check_parts(*part);
}

std::size_t bytes_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
      return sizeof(bool);
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
      return 8;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return sizeof(void*);
    default:
      return 4;
  }
}

Descriptor* descriptor(cudnnBackendDescriptor_t handle) { return static_cast<Descriptor*>(handle); }

constexpr int kExact = 900, kNote = 901;  // attributes of our own: of an engine, whether it counts in float32

std::vector<const Descriptor*> operations(const Descriptor& graph) {
  std::vector<const Descriptor*> out;
  for (auto* each : graph.all<Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) out.push_back(each);
  return out;
}

bool supported(const Descriptor& graph) {
  const auto all = operations(graph);
  bool residual = false;
  for (const auto* each : all) {
    if (each->type != CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR || !each->has(CUDNN_ATTR_OPERATION_POINTWISE_BDESC))
      continue;
    const auto dims = each->part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC).all<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
    residual = residual || dims[0] * dims[2] * dims[3] > 1;
  }
  switch (engines_now) {
    case Engines::all:
      return true;
    case Engines::with_residual:
      return residual;
    case Engines::convolution_alone:
      return all.size() == 1;
    default:
      return false;
  }
}

View view_of(const Descriptor& tensor) {
  View out;
  const auto dims = tensor.all<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
             steps = tensor.all<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
  std::copy_n(dims.begin(), 4, out.dims.begin());
  std::copy_n(steps.begin(), 4, out.steps.begin());
  out.half = tensor.get<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE) == CUDNN_DATA_HALF;
  return out;
}

// Places of a graph's tensors by their unique names; those inside get memory of their own.
class Places {
 public:
  explicit Places(const std::map<std::int64_t, void*>& given) : given_(given) {}
  Tensor operator()(const Descriptor& part) {
    const auto name = part.get<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
    const auto view = view_of(part);
    if (!part.get<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)) {
      void* const place = given_.at(name);
      if (reinterpret_cast<std::uintptr_t>(place) %
          static_cast<std::uintptr_t>(part.get<std::int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)))
        std::abort();
      return {view, place};
    }
    auto& inside = inside_[name];
    inside.resize(static_cast<std::size_t>(view.dims[0] * view.dims[1] * view.dims[2] * view.dims[3]));
    return {view, inside.data()};
  }

 private:
  const std::map<std::int64_t, void*>& given_;
  std::map<std::int64_t, std::vector<float>> inside_;
};

void run_convolution(const Descriptor& operation, Places& place) {
  const auto& kind = operation.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC);
  const auto pads = kind.all<std::int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS),
             strides = kind.all<std::int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES),
             dilations = kind.all<std::int64_t>(CUDNN_ATTR_CONVOLUTION_DILATIONS);
  convolve(place(operation.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X)),
           place(operation.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W)),
           place(operation.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y)),
           {{pads[0], pads[1]}, {strides[0], strides[1]}, {dilations[0], dilations[1]}});
}

void run_pointwise(const Descriptor& operation, Places& place) {
  const auto& kind = operation.part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
  const auto x = place(operation.part(CUDNN_ATTR_OPERATION_POINTWISE_XDESC)),
             y = place(operation.part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
  const bool sum = kind.get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE) == CUDNN_POINTWISE_ADD;
  const auto b = sum ? place(operation.part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC)) : Tensor{};
  const auto factor = sum ? operation.get<float>(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2) : 0.0F;
  const double low =
      kind.has(CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP) ? kind.get<double>(CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP) : 0.0;
  const double high = kind.has(CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP)
                          ? kind.get<double>(CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP)
                          : std::numeric_limits<double>::infinity();
  const auto one = [](std::int64_t size, std::int64_t i) { return size == 1 ? 0 : i; };
  const auto& d = y.view.dims;
  for (std::int64_t n = 0; n < d[0]; ++n)
    for (std::int64_t c = 0; c < d[1]; ++c)
      for (std::int64_t h = 0; h < d[2]; ++h)
        for (std::int64_t w = 0; w < d[3]; ++w) {
          double value = x.get(n, c, h, w);
          const auto& r = b.view.dims;
          if (!sum)
            value = std::min(std::max(value, low), high);
          else if (factor != 0)
            value += factor * b.get(one(r[0], n), one(r[1], c), one(r[2], h), one(r[3], w));
          y.set(n, c, h, w, value);
        }
}

void run_graph(const Descriptor& graph, const std::map<std::int64_t, void*>& given) {
  Places place(given);
  for (const auto* operation : operations(graph))
    if (operation->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
      run_convolution(*operation, place);
    else
      run_pointwise(*operation, place);
}

}  // namespace

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* made) {
  Descriptor* out = nullptr;
  if (lend_new(&out, "cudnnBackendCreateDescriptor") != CUDNN_STATUS_SUCCESS) return CUDNN_STATUS_ALLOC_FAILED;
  out->type = type;
  *made = out;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle) {
  // What is enqueued still reads it; cuDNN itself has then read all it needs.
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Descriptor>> destroyed;
  const std::lock_guard guard(mutex);
  give_back(handle);
  destroyed.emplace_back(descriptor(handle));
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count, const void* values) {
  if (fails("cudnnBackendSetAttribute") || descriptor(handle)->finished) return CUDNN_STATUS_BAD_PARAM;
  const auto* begin = static_cast<const std::byte*>(values);
  descriptor(handle)->attributes[name].assign(begin, begin + bytes_of(type) * static_cast<std::size_t>(count));
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) descriptor(handle)->points.insert(name);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle) {
  if (fails("cudnnBackendFinalize")) return CUDNN_STATUS_BAD_PARAM;
  auto* made = descriptor(handle);
  if (made->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR &&
      !supported(made->part(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)))
    return CUDNN_STATUS_NOT_SUPPORTED;
  made->finished = true;
  return CUDNN_STATUS_SUCCESS;
}

// An engine configuration here carries its graph, and whether its engine counts in float32: the first one does not.
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, std::int64_t room, std::int64_t* count,
                                       void* values) {
  if (fails("cudnnBackendGetAttribute")) return CUDNN_STATUS_BAD_PARAM;
  const auto* of = descriptor(handle);
  const auto put = [](Descriptor* to, int attribute, auto value) {
    const auto* begin = reinterpret_cast<const std::byte*>(&value);
    to->attributes[attribute].assign(begin, begin + sizeof value);
  };
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
      *count = 2;
      for (std::int64_t i = 0; i < std::min<std::int64_t>(room, 2); ++i) {
        auto* advice = static_cast<Descriptor**>(values)[i];
        put(advice, kExact, i > 0);
        put(advice, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, of->get<Descriptor*>(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH));
        advice->points.insert(CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
        advice->finished = true;
      }
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      *count = 1;
      put(*static_cast<Descriptor**>(values), kNote, of->get<bool>(kExact));
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
      *count = of->get<bool>(kNote) ? 0 : 1;
      if (*count == 1) *static_cast<cudnnBackendNumericalNote_t*>(values) = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *static_cast<std::int64_t*>(values) = kWorkspace;
      return CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_NOT_SUPPORTED;
  }
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
  const auto* made = descriptor(plan);
  const auto& advice = made->part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  if (fails(advice.get<bool>(kExact) ? "cudnnBackendExecute" : "cudnnBackendExecute (tensor cores)"))
    return CUDNN_STATUS_EXECUTION_FAILED;
  check_parts(*made);
  check_parts(*descriptor(pack));
  const auto& operands = *descriptor(pack);
  const auto names = operands.all<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto places = operands.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  std::map<std::int64_t, void*> given;
  for (std::size_t i = 0; i < names.size(); ++i) given[names[i]] = places[i];
  const auto* graph = &advice.part(CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
  enqueue(handle->stream, [given, graph, space = operands.get<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE)] {
    spoil(space, kWorkspace);
    run_graph(*graph, given);
  });
  return CUDNN_STATUS_SUCCESS;
}
