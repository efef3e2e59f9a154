// The CUDA device: a net as a list of launches on one stream, captured once into a CUDA graph and replayed.
//
// Convolutions are cuDNN's, by its older calls: they need no frontend, and the graph of CUDA takes them as they are.
// The rest is gpu/cuda_kernels.cu. Arithmetic is float32 throughout, never TF32: workers on CPUs and GPUs answer one
// request together, so their numbers must agree. Algorithms are cuDNN's first advice, not timed, so that one machine
// always gives the same numbers.
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "gpu/cuda_kernels.hpp"
#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kWorkspaceMax = std::size_t{512} << 20;
constexpr int kFewItems = 8;  // up to here a dense layer is read, not multiplied: see RowProducts
constexpr int kCapabilityMin = 75;

// Inside this file only; run and compile turn it into an Error.
struct Fault : std::runtime_error {
  Fault(ErrorCode c, const std::string& what) : std::runtime_error(what), code(c) {}
  ErrorCode code;
};

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw Fault(ErrorCode::device_failed, std::string(call) + ": " + cudaGetErrorString(status));
}
void check(cudnnStatus_t status, const char* call) {
  if (status != CUDNN_STATUS_SUCCESS)
    throw Fault(ErrorCode::device_failed, std::string(call) + ": " + cudnnGetErrorString(status));
}

int narrow(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max())
    throw Fault(ErrorCode::shape_mismatch, std::to_string(value) + " is more than the GPU's libraries count to");
  return static_cast<int>(value);
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    static_cast<void>(destroy(handle));  // nothing is left to be done about a failure here
  }
};
template <class T, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Destroy<destroy>>;

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using ReadyGraph = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owned<void*, cudaFree>;
using PinnedMemory = Owned<void*, cudaFreeHost>;
using Cudnn = Owned<cudnnHandle_t, cudnnDestroy>;
using Tensor = Owned<cudnnTensorDescriptor_t, cudnnDestroyTensorDescriptor>;
using Filter = Owned<cudnnFilterDescriptor_t, cudnnDestroyFilterDescriptor>;
using ConvolutionShape = Owned<cudnnConvolutionDescriptor_t, cudnnDestroyConvolutionDescriptor>;
using Activation = Owned<cudnnActivationDescriptor_t, cudnnDestroyActivationDescriptor>;

DeviceMemory device_memory(std::size_t bytes) {
  void* made = nullptr;
  check(cudaMalloc(&made, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  return DeviceMemory(made);
}

PinnedMemory pinned_memory(std::size_t bytes) {
  void* made = nullptr;
  check(cudaHostAlloc(&made, std::max<std::size_t>(bytes, 1), cudaHostAllocDefault), "cudaHostAlloc");
  return PinnedMemory(made);
}

Tensor tensor(int n, int c, int h, int w) {
  cudnnTensorDescriptor_t made = nullptr;
  check(cudnnCreateTensorDescriptor(&made), "cudnnCreateTensorDescriptor");
  Tensor out(made);
  check(cudnnSetTensor4dDescriptor(made, CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, n, c, h, w),
        "cudnnSetTensor4dDescriptor");
  return out;
}

struct Value {
  float* data = nullptr;  // on the GPU, [batch, dims]
  Dims dims;
};

// One convolution, ready to be launched.
struct Convolver {
  Tensor in, out, bias;
  Filter filter;
  ConvolutionShape shape;
  Activation activation;
  cudnnConvolutionFwdAlgo_t algorithm = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
  std::size_t workspace = 0;
  bool fused = false;  // bias, residual and ReLU in cuDNN's call rather than after it
  const float* source = nullptr;
  const float* weight = nullptr;
  Pointwise after{};  // also says where bias, residual and output are
};

class CudaNet final : public CompiledNet {
 public:
  CudaNet(int ordinal, int batch) : ordinal_(ordinal), batch_(batch) {}
  CudaNet(const CudaNet&) = delete;
  CudaNet& operator=(const CudaNet&) = delete;
  ~CudaNet() override {
    // Of this thread, which may be another than the one that compiled.
    static_cast<void>(cudaSetDevice(ordinal_));
    if (stream_) static_cast<void>(cudaStreamSynchronize(stream_.get()));
  }

  std::int64_t input_elements() const override { return input_count_; }
  std::int64_t output_elements() const override { return output_count_; }

  Expected<void> run(std::span<const float> input, std::span<float> output) override {
    if (static_cast<std::int64_t>(input.size()) != input_count_ ||
        static_cast<std::int64_t>(output.size()) != output_count_)
      return unexpected(Error{ErrorCode::shape_mismatch, "run: " + std::to_string(input.size()) + " numbers in and " +
                                                             std::to_string(output.size()) + " out, the net takes " +
                                                             std::to_string(input_count_) + " and gives " +
                                                             std::to_string(output_count_)});
    try {
      check(cudaSetDevice(ordinal_), "cudaSetDevice");
      std::memcpy(pinned_input_.get(), input.data(), input.size_bytes());
      if (graph_)
        check(cudaGraphLaunch(graph_.get(), stream_.get()), "cudaGraphLaunch");
      else
        enqueue();
      check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
      std::memcpy(output.data(), pinned_output_.get(), output.size_bytes());
    } catch (const Fault& fault) {
      return unexpected(Error{ErrorCode::device_failed, "cuda:" + std::to_string(ordinal_) + ": " + fault.what()});
    }
    return {};
  }

  // Compiles; throws Fault.
  void build(const Network& net, const std::vector<Dims>& shapes);

 private:
  int count(const Dims& dims) const { return narrow(batch_ * elements(dims)); }

  float* buffer(std::int64_t floats) {
    const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
    kept_.push_back(device_memory(bytes));
    // Algorithms are tried on what is there: no traps, no luck.
    check(cudaMemsetAsync(kept_.back().get(), 0, bytes, stream_.get()), "cudaMemsetAsync");
    return static_cast<float*>(kept_.back().get());
  }
  float* constant(const std::vector<float>& values) {
    const auto bytes = values.size() * sizeof(float);
    kept_.push_back(device_memory(bytes));
    // On the stream that reads it: a plain cudaMemcpy may return while a small copy is still on its way.
    check(cudaMemcpyAsync(kept_.back().get(), values.data(), bytes, cudaMemcpyHostToDevice, stream_.get()),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    return static_cast<float*>(kept_.back().get());
  }
  void reserve_workspace(std::size_t bytes) {
    if (bytes <= workspace_size_) return;
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    workspace_.reset();
    workspace_size_ = 0;
    workspace_ = device_memory(bytes);
    workspace_size_ = bytes;
  }
  template <class Job>
  void add(const Job& job, const char* kernel) {
    steps_.emplace_back([this, job, kernel] { check(launch(job, stream_.get()), kernel); });
  }

  // The whole net onto the stream, pinned memory to pinned memory; throws Fault.
  void enqueue() {
    check(cudaMemcpyAsync(input_, pinned_input_.get(), static_cast<std::size_t>(input_count_) * sizeof(float),
                          cudaMemcpyHostToDevice, stream_.get()),
          "cudaMemcpyAsync");
    for (const auto& step : steps_) step();
    check(cudaMemcpyAsync(pinned_output_.get(), output_, static_cast<std::size_t>(output_count_) * sizeof(float),
                          cudaMemcpyDeviceToHost, stream_.get()),
          "cudaMemcpyAsync");
  }
  void capture();

  cudnnStatus_t start(const Convolver& c);
  void choose_algorithm(Convolver& c);
  float* convolution(const Convolution& c, const Value& in, const Dims& out, bool relu, const float* residual);
  float* dense(const Dense& d, const Value& in, bool relu);
  float* pool(const Window& w, bool average, bool count_padding, const Value& in, const Dims& out);
  float* norm(const BatchNorm& b, const Value& in, bool relu);
  float* sum(const Value& a, const float* b, bool relu);

  int ordinal_, batch_;
  std::int64_t input_count_ = 0, output_count_ = 0;
  Stream stream_;  // first made, last destroyed
  Cudnn cudnn_;    // of this net alone: a handle serves one thread at a time
  std::vector<DeviceMemory> kept_;
  DeviceMemory workspace_;  // one for all steps, since they run one after another
  std::size_t workspace_size_ = 0;
  PinnedMemory pinned_input_, pinned_output_;
  float* input_ = nullptr;
  float* output_ = nullptr;
  std::vector<std::unique_ptr<Convolver>> convolvers_;
  std::vector<std::function<void()>> steps_;
  ReadyGraph graph_;  // none where capture was refused: then the steps are launched one by one
};

cudnnStatus_t CudaNet::start(const Convolver& c) {
  const float one = 1.0F, zero = 0.0F;
  const auto& a = c.after;
  if (c.fused)  // without a residual its place must still name a tensor
    return cudnnConvolutionBiasActivationForward(cudnn_.get(), &one, c.in.get(), c.source, c.filter.get(), c.weight,
                                                 c.shape.get(), c.algorithm, workspace_.get(), c.workspace,
                                                 a.other ? &one : &zero, c.out.get(), a.other ? a.other : a.out,
                                                 c.bias.get(), a.shift, c.activation.get(), c.out.get(), a.out);
  const auto status =
      cudnnConvolutionForward(cudnn_.get(), &one, c.in.get(), c.source, c.filter.get(), c.weight, c.shape.get(),
                              c.algorithm, workspace_.get(), c.workspace, &zero, c.out.get(), a.out);
  if (status == CUDNN_STATUS_SUCCESS) check(launch(a, stream_.get()), "pointwise kernel");
  return status;
}

// The first of cuDNN's advices that runs, fused where it can be: what is advised is not always what is implemented.
void CudaNet::choose_algorithm(Convolver& c) {
  cudnnConvolutionFwdAlgoPerf_t advice[CUDNN_CONVOLUTION_FWD_ALGO_COUNT];
  int advices = 0;
  check(cudnnGetConvolutionForwardAlgorithm_v7(cudnn_.get(), c.in.get(), c.filter.get(), c.shape.get(), c.out.get(),
                                               CUDNN_CONVOLUTION_FWD_ALGO_COUNT, &advices, advice),
        "cudnnGetConvolutionForwardAlgorithm_v7");
  auto last = CUDNN_STATUS_NOT_SUPPORTED;
  for (int i = 0; i < advices; ++i) {
    c.algorithm = advice[i].algo;
    if (advice[i].status != CUDNN_STATUS_SUCCESS) continue;
    if (cudnnGetConvolutionForwardWorkspaceSize(cudnn_.get(), c.in.get(), c.filter.get(), c.shape.get(), c.out.get(),
                                                c.algorithm, &c.workspace) != CUDNN_STATUS_SUCCESS ||
        c.workspace > kWorkspaceMax)
      continue;
    reserve_workspace(c.workspace);
    // cuDNN documents this one algorithm alone as fusable without an activation.
    const bool fusable = c.after.relu || c.algorithm == CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
    for (const bool fused : {true, false}) {
      if (fused && !fusable) continue;
      c.fused = fused;
      last = start(c);
      check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize after a convolution");
      if (last == CUDNN_STATUS_SUCCESS) return;
      static_cast<void>(cudaGetLastError());  // a refusal is not the next launch's error
    }
  }
  check(last, "cudnnConvolutionForward");
  throw Fault(ErrorCode::device_failed, "cuDNN has no algorithm for this convolution");
}

float* CudaNet::convolution(const Convolution& c, const Value& in, const Dims& out, bool relu, const float* residual) {
  const auto& w = c.window;
  const int channels = narrow(in.dims[0]), out_channels = narrow(c.out_channels);
  int in_h = narrow(in.dims[1]), in_w = narrow(in.dims[2]), pad_h = narrow(w.pad_top), pad_w = narrow(w.pad_left);
  auto made = std::make_unique<Convolver>();
  made->source = in.data;
  if (w.pad_top != w.pad_bottom || w.pad_left != w.pad_right) {
    const int padded_h = narrow(in.dims[1] + w.pad_top + w.pad_bottom),
              padded_w = narrow(in.dims[2] + w.pad_left + w.pad_right);
    float* padded = buffer(count({in.dims[0], padded_h, padded_w}));
    add(Pad{in.data, padded, narrow(std::int64_t{batch_} * channels), in_h, in_w, padded_h, padded_w, pad_h, pad_w},
        "pad kernel");
    made->source = padded;
    in_h = padded_h;
    in_w = padded_w;
    pad_h = pad_w = 0;
  }
  made->weight = constant(c.weight);
  float* bias = constant(c.bias.empty() ? std::vector<float>(static_cast<std::size_t>(c.out_channels), 0.0F) : c.bias);
  float* target = buffer(count(out));
  made->after = {target, nullptr, bias, residual, target, count(out), out_channels, narrow(out[1] * out[2]), relu};

  made->in = tensor(batch_, channels, in_h, in_w);
  made->out = tensor(batch_, out_channels, narrow(out[1]), narrow(out[2]));
  made->bias = tensor(1, out_channels, 1, 1);
  cudnnFilterDescriptor_t filter = nullptr;
  check(cudnnCreateFilterDescriptor(&filter), "cudnnCreateFilterDescriptor");
  made->filter.reset(filter);
  check(cudnnSetFilter4dDescriptor(filter, CUDNN_DATA_FLOAT, CUDNN_TENSOR_NCHW, out_channels,
                                   narrow(in.dims[0] / c.groups), narrow(w.kernel_h), narrow(w.kernel_w)),
        "cudnnSetFilter4dDescriptor");
  cudnnConvolutionDescriptor_t shape = nullptr;
  check(cudnnCreateConvolutionDescriptor(&shape), "cudnnCreateConvolutionDescriptor");
  made->shape.reset(shape);
  check(cudnnSetConvolution2dDescriptor(shape, pad_h, pad_w, narrow(w.stride_h), narrow(w.stride_w), 1, 1,
                                        CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
        "cudnnSetConvolution2dDescriptor");
  check(cudnnSetConvolutionGroupCount(shape, narrow(c.groups)), "cudnnSetConvolutionGroupCount");
  check(cudnnSetConvolutionMathType(shape, CUDNN_FMA_MATH), "cudnnSetConvolutionMathType");
  cudnnActivationDescriptor_t activation = nullptr;
  check(cudnnCreateActivationDescriptor(&activation), "cudnnCreateActivationDescriptor");
  made->activation.reset(activation);
  check(cudnnSetActivationDescriptor(activation, relu ? CUDNN_ACTIVATION_RELU : CUDNN_ACTIVATION_IDENTITY,
                                     CUDNN_NOT_PROPAGATE_NAN, 0.0),
        "cudnnSetActivationDescriptor");
  choose_algorithm(*made);

  const Convolver* ready = convolvers_.emplace_back(std::move(made)).get();
  steps_.emplace_back([this, ready] {
    check(start(*ready), ready->fused ? "cudnnConvolutionBiasActivationForward" : "cudnnConvolutionForward");
  });
  return target;
}

float* CudaNet::dense(const Dense& d, const Value& in, bool relu) {
  const Dims out{d.out_features};
  if (batch_ > kFewItems) {  // a matrix product: a convolution of one pixel
    Convolution c;
    c.out_channels = d.out_features;
    c.weight = d.weight;
    c.bias = d.bias;
    return convolution(c, {in.data, {in.dims[0], 1, 1}}, {d.out_features, 1, 1}, relu, nullptr);
  }
  float* target = buffer(count(out));
  add(RowProducts{in.data, constant(d.weight), d.bias.empty() ? nullptr : constant(d.bias), target, batch_,
                  narrow(in.dims[0]), narrow(d.out_features), relu},
      "dense kernel");
  return target;
}

float* CudaNet::pool(const Window& w, bool average, bool count_padding, const Value& in, const Dims& out) {
  // The kernel adds these up.
  narrow(in.dims[1] + w.pad_top + w.pad_bottom);
  narrow(in.dims[2] + w.pad_left + w.pad_right);
  float* target = buffer(count(out));
  add(Pool{in.data, target, narrow(batch_ * in.dims[0]), narrow(in.dims[1]), narrow(in.dims[2]), narrow(out[1]),
           narrow(out[2]), narrow(w.kernel_h), narrow(w.kernel_w), narrow(w.stride_h), narrow(w.stride_w),
           narrow(w.pad_top), narrow(w.pad_left), average, count_padding},
      "pool kernel");
  return target;
}

// A batch norm that no convolution took up.
float* CudaNet::norm(const BatchNorm& b, const Value& in, bool relu) {
  std::vector<float> scale, shift;
  for (std::size_t i = 0; i < b.scale.size(); ++i) {
    scale.push_back(b.scale[i] / std::sqrt(b.variance[i] + b.epsilon));
    shift.push_back(b.shift[i] - b.mean[i] * scale.back());
  }
  float* target = buffer(count(in.dims));
  add(Pointwise{in.data, constant(scale), constant(shift), nullptr, target, count(in.dims), narrow(in.dims[0]),
                narrow(elements(in.dims) / in.dims[0]), relu},
      "pointwise kernel");
  return target;
}

// Also a ReLU alone, where there is no b.
float* CudaNet::sum(const Value& a, const float* b, bool relu) {
  float* target = buffer(count(a.dims));
  add(Pointwise{a.data, nullptr, nullptr, b, target, count(a.dims), 1, 1, relu}, "pointwise kernel");
  return target;
}

void CudaNet::build(const Network& net, const std::vector<Dims>& shapes) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_.reset(stream);
  cudnnHandle_t cudnn = nullptr;
  check(cudnnCreate(&cudnn), "cudnnCreate");
  cudnn_.reset(cudnn);
  check(cudnnSetStream(cudnn, stream), "cudnnSetStream");

  std::vector<int> readers(net.nodes.size() + 1, 0);
  for (const auto& node : net.nodes)
    for (const int input : node.inputs) ++readers[static_cast<std::size_t>(input)];
  input_count_ = count(net.input);
  output_count_ = count(shapes.back());
  std::vector<Value> values(net.nodes.size() + 1);
  for (std::size_t i = 0; i < values.size(); ++i) values[i].dims = shapes[i];
  input_ = values[0].data = buffer(input_count_);

  // The next node, where it is of this kind and node i's only reader: the two become one launch.
  const auto next = [&]<class Op>(std::size_t i, const Op*) -> const Node* {
    if (i + 1 >= net.nodes.size() || readers[i + 1] != 1 || !std::holds_alternative<Op>(net.nodes[i + 1].op))
      return nullptr;
    const auto& inputs = net.nodes[i + 1].inputs;
    return std::ranges::count(inputs, static_cast<int>(i) + 1) == 1 ? &net.nodes[i + 1] : nullptr;
  };
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    const auto& node = net.nodes[i];
    if (values[i + 1].data) continue;  // made with the node before it
    if (node.inputs.empty()) throw Fault(ErrorCode::unsupported_operator, "Constant is not run on CUDA yet");
    const Value& in = values[static_cast<std::size_t>(node.inputs.front())];
    const Dims& dims = shapes[i + 1];
    std::size_t end = i;  // the last node of this launch
    bool relu = next(i, static_cast<const Relu*>(nullptr)) != nullptr;
    float* data = nullptr;
    try {
      if (const auto* c = std::get_if<Convolution>(&node.op)) {
        const float* residual = nullptr;
        if (const Node* add_node = next(i, static_cast<const Add*>(nullptr))) {
          const int other = add_node->inputs[add_node->inputs[0] == static_cast<int>(i) + 1 ? 1 : 0];
          residual = values[static_cast<std::size_t>(other)].data;
          end = i + 1;
          relu = next(end, static_cast<const Relu*>(nullptr)) != nullptr;
        }
        data = convolution(*c, in, dims, relu, residual);
        end += relu;
      } else if (const auto* d = std::get_if<Dense>(&node.op)) {
        data = dense(*d, in, relu);
        end += relu;
      } else if (const auto* b = std::get_if<BatchNorm>(&node.op)) {
        data = norm(*b, in, relu);
        end += relu;
      } else if (std::holds_alternative<Add>(node.op)) {
        data = sum(in, values[static_cast<std::size_t>(node.inputs[1])].data, relu);
        end += relu;
      } else if (std::holds_alternative<Relu>(node.op)) {
        data = sum(in, nullptr, true);
      } else if (const auto* m = std::get_if<MaxPool>(&node.op)) {
        data = pool(m->window, false, false, in, dims);
      } else if (const auto* a = std::get_if<AveragePool>(&node.op)) {
        data = pool(a->window, true, a->count_padding, in, dims);
      } else if (std::holds_alternative<GlobalAveragePool>(node.op)) {
        data = pool({in.dims[1], in.dims[2], 1, 1, 0, 0, 0, 0}, true, false, in, dims);
      } else if (std::holds_alternative<Flatten>(node.op) || std::holds_alternative<Identity>(node.op)) {
        data = in.data;  // the same numbers
      } else {
        throw Fault(ErrorCode::unsupported_operator, gpu::name(node.op) + " is not run on CUDA yet");
      }
    } catch (const Fault& fault) {
      throw Fault(fault.code, "node " + node.name + ": " + fault.what());
    }
    for (std::size_t made = i; made <= end; ++made) values[made + 1].data = data;
  }
  output_ = values.back().data;
  pinned_input_ = pinned_memory(static_cast<std::size_t>(input_count_) * sizeof(float));
  pinned_output_ = pinned_memory(static_cast<std::size_t>(output_count_) * sizeof(float));
  std::memset(pinned_input_.get(), 0, static_cast<std::size_t>(input_count_) * sizeof(float));
  // Once as it is: libraries load their kernels at first use, which a capture does not allow.
  enqueue();
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  capture();
}

// Any failure here leaves the net to be launched step by step.
void CudaNet::capture() {
  // Of this thread alone: other nets may be compiled or run meanwhile.
  if (cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
    bool whole = true;
    try {
      enqueue();
    } catch (const Fault&) {
      whole = false;
    }
    cudaGraph_t captured = nullptr;
    whole = cudaStreamEndCapture(stream_.get(), &captured) == cudaSuccess && whole;
    const Graph graph(captured);
    cudaGraphExec_t ready = nullptr;
    if (whole && cudaGraphInstantiateWithFlags(&ready, captured, 0) == cudaSuccess) graph_.reset(ready);
    if (graph_ &&
        (cudaGraphLaunch(ready, stream_.get()) != cudaSuccess || cudaStreamSynchronize(stream_.get()) != cudaSuccess))
      graph_.reset();
  }
  static_cast<void>(cudaGetLastError());  // a refusal is not the next call's error
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : ordinal_(ordinal) {}
  std::string name() const override { return "cuda:" + std::to_string(ordinal_); }

  Expected<std::unique_ptr<CompiledNet>> compile(const Network& given, const CompileOptions& options) override {
    if (options.batch < 1 || options.batch > 65'536)
      return unexpected(Error{ErrorCode::shape_mismatch, "a batch of " + std::to_string(options.batch)});
    if (const auto sound = infer_shapes(given); !sound) return unexpected(sound.error());
    const Network net = simplified(given);
    const auto shapes = infer_shapes(net);
    if (!shapes) return unexpected(shapes.error());
    try {
      check(cudaSetDevice(ordinal_), "cudaSetDevice");
      auto compiled = std::make_unique<CudaNet>(ordinal_, options.batch);
      compiled->build(net, *shapes);
      return compiled;
    } catch (const Fault& fault) {
      return unexpected(Error{fault.code, net.name + ": " + name() + ": " + fault.what()});
    }
  }

 private:
  int ordinal_;
};

}  // namespace
}  // namespace coppice::gpu

extern "C" __attribute__((visibility("default"))) coppice::gpu::Device* coppice_cuda_device_v1(int ordinal,
                                                                                               std::string* why) {
  using namespace coppice::gpu;
  try {
    int count = 0;
    const auto status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
      *why = std::string("no NVIDIA driver or GPU here (") +
             (status != cudaSuccess ? cudaGetErrorString(status) : "0 devices") + ")";
      return nullptr;
    }
    if (ordinal < 0 || ordinal >= count) {
      *why = "the GPUs here are cuda:0 to cuda:" + std::to_string(count - 1);
      return nullptr;
    }
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal), "cudaDeviceGetAttribute");
    if (major * 10 + minor < kCapabilityMin) {
      *why = "its compute capability is " + std::to_string(major) + "." + std::to_string(minor) + ", 7.5 is needed";
      return nullptr;
    }
    check(cudaSetDevice(ordinal), "cudaSetDevice");
    check(cudaFree(nullptr), "cudaFree");  // starts the device: what is wrong with it shows here
    return new CudaDevice(ordinal);
  } catch (const std::exception& fault) {
    *why = fault.what();
    return nullptr;
  }
}
