#include "gpu/cuda_convolution.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <span>

namespace coppice::gpu {
namespace {

constexpr float kOne = 1.0F, kZero = 0.0F;

TensorShape tensor(const ConvolutionSpec& spec, int c, int h, int w) {
  cudnnTensorDescriptor_t made = nullptr;
  check(cudnnCreateTensorDescriptor(&made), "cudnnCreateTensorDescriptor");
  TensorShape out(made);
  check(cudnnSetTensor4dDescriptor(made, spec.channels_last ? CUDNN_TENSOR_NHWC : CUDNN_TENSOR_NCHW,
                                   spec.half ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT, spec.batch, c, h, w),
        "cudnnSetTensor4dDescriptor");
  return out;
}

FilterShape filter(const ConvolutionSpec& spec) {
  cudnnFilterDescriptor_t made = nullptr;
  check(cudnnCreateFilterDescriptor(&made), "cudnnCreateFilterDescriptor");
  FilterShape out(made);
  check(cudnnSetFilter4dDescriptor(made, spec.half ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT,
                                   spec.channels_last ? CUDNN_TENSOR_NHWC : CUDNN_TENSOR_NCHW, spec.out_channels,
                                   spec.in_channels / spec.groups, spec.kernel_h, spec.kernel_w),
        "cudnnSetFilter4dDescriptor");
  return out;
}

ConvolutionShape convolution(const ConvolutionSpec& spec) {
  cudnnConvolutionDescriptor_t made = nullptr;
  check(cudnnCreateConvolutionDescriptor(&made), "cudnnCreateConvolutionDescriptor");
  ConvolutionShape out(made);
  check(cudnnSetConvolution2dDescriptor(made, spec.pad_h, spec.pad_w, spec.stride_h, spec.stride_w, spec.dilation_h,
                                        spec.dilation_w, CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
        "cudnnSetConvolution2dDescriptor");
  check(cudnnSetConvolutionGroupCount(made, spec.groups), "cudnnSetConvolutionGroupCount");
  const auto math = spec.half ? CUDNN_TENSOR_OP_MATH : spec.tensor_cores ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH;
  check(cudnnSetConvolutionMathType(made, math), "cudnnSetConvolutionMathType");
  return out;
}

// Sets algorithm and bytes to the first advice that runs: what is advised is not always what is implemented.
template <class Advice, class Algorithm, class Size, class Run>
void take_first(Lane& lane, std::span<const Advice> advices, Algorithm& algorithm, std::size_t& bytes, const char* call,
                const Size& size, const Run& run) {
  std::string refused = std::string(call) + ": no algorithm for this convolution";
  for (const auto& advice : advices) {
    if (advice.status != CUDNN_STATUS_SUCCESS || advice.determinism != CUDNN_DETERMINISTIC) continue;
    algorithm = advice.algo;
    if (size() != CUDNN_STATUS_SUCCESS || bytes > kWorkspaceMax) continue;
    lane.reserve(bytes);
    try {
      run();
    } catch (const Fault& fault) {
      refused = fault.what();
      forget_refusal();
      continue;
    }
    lane.wait("cudaStreamSynchronize after a convolution");
    return;
  }
  throw Fault(ErrorCode::device_failed, refused);
}

}  // namespace

PlainConvolution::PlainConvolution(const ConvolutionSpec& spec)
    : x_(tensor(spec, spec.in_channels, spec.in_h, spec.in_w)),
      y_(tensor(spec, spec.out_channels, spec.out_h, spec.out_w)),
      w_(filter(spec)),
      shape_(convolution(spec)) {}

void PlainConvolution::choose_forward(Lane& lane, const void* x, const void* w, void* y) {
  std::array<cudnnConvolutionFwdAlgoPerf_t, CUDNN_CONVOLUTION_FWD_ALGO_COUNT> found;
  int count = 0;
  check(cudnnGetConvolutionForwardAlgorithm_v7(lane.cudnn(), x_.get(), w_.get(), shape_.get(), y_.get(),
                                               static_cast<int>(found.size()), &count, found.data()),
        "cudnnGetConvolutionForwardAlgorithm_v7");
  const auto size = [&] {
    return cudnnGetConvolutionForwardWorkspaceSize(lane.cudnn(), x_.get(), w_.get(), shape_.get(), y_.get(), forward_,
                                                   &forward_bytes_);
  };
  take_first(lane, std::span<const cudnnConvolutionFwdAlgoPerf_t>(found.data(), static_cast<std::size_t>(count)),
             forward_, forward_bytes_, "cudnnConvolutionForward", size, [&] { forward(lane, x, w, y); });
}

void PlainConvolution::choose_backward_data(Lane& lane, const void* w, const void* dy, void* dx) {
  std::array<cudnnConvolutionBwdDataAlgoPerf_t, CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT> found;
  int count = 0;
  check(cudnnGetConvolutionBackwardDataAlgorithm_v7(lane.cudnn(), w_.get(), y_.get(), shape_.get(), x_.get(),
                                                    static_cast<int>(found.size()), &count, found.data()),
        "cudnnGetConvolutionBackwardDataAlgorithm_v7");
  const auto size = [&] {
    return cudnnGetConvolutionBackwardDataWorkspaceSize(lane.cudnn(), w_.get(), y_.get(), shape_.get(), x_.get(), data_,
                                                        &data_bytes_);
  };
  take_first(lane, std::span<const cudnnConvolutionBwdDataAlgoPerf_t>(found.data(), static_cast<std::size_t>(count)),
             data_, data_bytes_, "cudnnConvolutionBackwardData", size, [&] { backward_data(lane, w, dy, dx, false); });
}

void PlainConvolution::choose_backward_filter(Lane& lane, const void* x, const void* dy, void* dw) {
  std::array<cudnnConvolutionBwdFilterAlgoPerf_t, CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT> found;
  int count = 0;
  check(cudnnGetConvolutionBackwardFilterAlgorithm_v7(lane.cudnn(), x_.get(), y_.get(), shape_.get(), w_.get(),
                                                      static_cast<int>(found.size()), &count, found.data()),
        "cudnnGetConvolutionBackwardFilterAlgorithm_v7");
  const auto size = [&] {
    return cudnnGetConvolutionBackwardFilterWorkspaceSize(lane.cudnn(), x_.get(), y_.get(), shape_.get(), w_.get(),
                                                          filter_, &filter_bytes_);
  };
  take_first(lane, std::span<const cudnnConvolutionBwdFilterAlgoPerf_t>(found.data(), static_cast<std::size_t>(count)),
             filter_, filter_bytes_, "cudnnConvolutionBackwardFilter", size, [&] { backward_filter(lane, x, dy, dw); });
}

void PlainConvolution::forward(const Lane& lane, const void* x, const void* w, void* y) const {
  check(cudnnConvolutionForward(lane.cudnn(), &kOne, x_.get(), x, w_.get(), w, shape_.get(), forward_, lane.workspace(),
                                forward_bytes_, &kZero, y_.get(), y),
        "cudnnConvolutionForward");
}

void PlainConvolution::backward_data(const Lane& lane, const void* w, const void* dy, void* dx, bool add) const {
  check(cudnnConvolutionBackwardData(lane.cudnn(), &kOne, w_.get(), w, y_.get(), dy, shape_.get(), data_,
                                     lane.workspace(), data_bytes_, add ? &kOne : &kZero, x_.get(), dx),
        "cudnnConvolutionBackwardData");
}

void PlainConvolution::backward_filter(const Lane& lane, const void* x, const void* dy, void* dw) const {
  check(cudnnConvolutionBackwardFilter(lane.cudnn(), &kOne, x_.get(), x, y_.get(), dy, shape_.get(), filter_,
                                       lane.workspace(), filter_bytes_, &kOne, w_.get(), dw),
        "cudnnConvolutionBackwardFilter");
}

void FusedConvolution::run(const Lane& lane) const {
  switch (choice_.way) {
    case Way::fused:
    case Way::plan:
      check(choice_.plan->run(lane, spec_, operands_), "cudnnBackendExecute");
      break;
    case Way::older:
      choice_.plain->forward(lane, operands_.x, operands_.w, operands_.y);
      break;
    case Way::kernel:
      return check(launch(direct(), lane.stream()), "convolution kernel");
  }
  if (choice_.way != Way::fused && (spec_.bias || spec_.residual || spec_.bounded()))
    check(launch(after(), lane.stream()), "pointwise kernel");
}

Pointwise FusedConvolution::after() const {
  const Reals y{operands_.y, spec_.half};
  const auto& s = spec_;
  return {y,
          {const_cast<void*>(operands_.residual), s.half},
          y,
          nullptr,
          operands_.float_bias,
          s.batch * s.out_channels * s.out_h * s.out_w,
          s.out_channels,
          s.channels_last ? 1 : s.out_h * s.out_w,
          {s.low, s.high}};
}

DirectConvolution FusedConvolution::direct() const {
  const auto& s = spec_;
  const auto reals = [&](const void* data) { return Reals{const_cast<void*>(data), s.half}; };
  return {{reals(operands_.x), s.batch, s.in_channels, s.in_h, s.in_w, s.channels_last},
          {reals(operands_.y), s.batch, s.out_channels, s.out_h, s.out_w, s.channels_last},
          reals(operands_.w),
          reals(operands_.residual),
          operands_.float_bias,
          s.groups,
          s.kernel_h,
          s.kernel_w,
          s.stride_h,
          s.stride_w,
          s.pad_h,
          s.pad_w,
          s.dilation_h,
          s.dilation_w,
          {s.low, s.high}};
}

namespace {

// The ways of one convolution, each tried on its operands.
class Chooser {
 public:
  Chooser(Lane& lane, const ConvolutionSpec& spec, const ConvolutionOperands& operands, bool timed)
      : lane_(lane), spec_(spec), operands_(operands), timed_(timed) {}

  Choice choice() {
    planned(Way::fused, Pattern::exact);
    if (!spec_.residual && !enough()) planned(Way::fused, Pattern::with_scaled);
    if (!enough()) planned(Way::plan, Pattern::alone);
    if (!enough()) older();
    // Among those that are timed too: of a few channels it may win.
    if (!found_ || (timed_ && products() < kProductsMax)) take({Way::kernel, nullptr, nullptr});
    return best_;
  }

 private:
  static constexpr int kTimedPlansMax = 5;  // of each pattern: the heuristics begin with the likely ones
  static constexpr int kRuns = 20, kReplays = 5;
  static constexpr double kProductsMax = 1e7;  // from here on our own kernel only loses, and for long

  bool enough() const { return found_ && !timed_; }
  double products() const {
    return static_cast<double>(spec_.batch) * spec_.out_channels * spec_.out_h * spec_.out_w * spec_.kernel_h *
           spec_.kernel_w * spec_.in_channels / spec_.groups;
  }

  void planned(Way way, Pattern pattern) {
    int plans = 0;
    plan(lane_, spec_, pattern, [&](const std::shared_ptr<const ConvolutionPlan>& candidate) {
      lane_.reserve(candidate->workspace());
      return tried({way, candidate, nullptr}) && (!timed_ || ++plans >= kTimedPlansMax);
    });
  }
  void older() {
    try {
      const auto plain = std::make_shared<PlainConvolution>(spec_);
      plain->choose_forward(lane_, operands_.x, operands_.w, operands_.y);
      tried({Way::older, nullptr, plain});
    } catch (const Fault&) {
      forget_refusal();
    }
  }
  // Whether it is accepted. What fails after that is the GPU's failure.
  bool tried(const Choice& choice) {
    try {
      FusedConvolution(spec_, operands_, choice).run(lane_);
    } catch (const Fault&) {
      forget_refusal();
      return false;
    }
    lane_.wait("cudaStreamSynchronize after a convolution");
    keep(choice);
    return true;
  }
  // The last resort: where it fails, the GPU does.
  void take(const Choice& choice) {
    FusedConvolution(spec_, operands_, choice).run(lane_);
    lane_.wait("cudaStreamSynchronize after a convolution");
    keep(choice);
  }
  void keep(const Choice& choice) {
    const double seconds = timed_ ? timed(choice) : 0;
    if (found_ && seconds >= seconds_) return;
    found_ = true;
    best_ = choice;
    seconds_ = seconds;
  }
  // Many in one graph, as the net will run it: launched one by one, the launches would be what is timed.
  double timed(const Choice& choice) const {
    const FusedConvolution convolution(spec_, operands_, choice);
    const auto graph = captured(lane_, [&] {
      for (int i = 0; i < kRuns; ++i) convolution.run(lane_);
    });
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kReplays && graph; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      check(cudaGraphLaunch(graph.get(), lane_.stream()), "cudaGraphLaunch");
      lane_.wait();
      least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return least;
  }

  Lane& lane_;
  const ConvolutionSpec& spec_;
  const ConvolutionOperands& operands_;
  bool timed_, found_ = false;
  Choice best_;
  double seconds_ = 0;
};

}  // namespace

Choice choose(Lane& lane, const ConvolutionSpec& spec, const ConvolutionOperands& operands, bool timed) {
  return Chooser(lane, spec, operands, timed).choice();
}

}  // namespace coppice::gpu
