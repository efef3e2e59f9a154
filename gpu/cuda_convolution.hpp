// gpu/cuda_convolution.hpp: a convolution by cuDNN with what follows it, in the fastest of the ways that run here.
#pragma once

#include <map>
#include <memory>

#include "gpu/cuda_handles.hpp"
#include "gpu/cuda_kernels.hpp"
#include "gpu/cuda_plan.hpp"

namespace coppice::gpu {

// By cuDNN's older calls: float32 or float16, bias and bound not included. For training, and for what its graphs
// refuse.
class PlainConvolution {
 public:
  explicit PlainConvolution(const ConvolutionSpec& spec);

  // Take the first of cuDNN's advices that runs on these numbers; outputs are overwritten by the trials. Throw Fault
  // where none does. Advices that may sum in another order each time are not taken.
  void choose_forward(Lane& lane, const void* x, const void* w, void* y);
  void choose_backward_data(Lane& lane, const void* w, const void* dy, void* dx);
  void choose_backward_filter(Lane& lane, const void* x, const void* dy, void* dw);

  void forward(const Lane& lane, const void* x, const void* w, void* y) const;
  void backward_data(const Lane& lane, const void* w, const void* dy, void* dx, bool add) const;
  void backward_filter(const Lane& lane, const void* x, const void* dy, void* dw) const;  // adds

 private:
  TensorShape x_, y_;
  FilterShape w_;
  ConvolutionShape shape_;
  cudnnConvolutionFwdAlgo_t forward_ = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
  cudnnConvolutionBwdDataAlgo_t data_ = CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
  cudnnConvolutionBwdFilterAlgo_t filter_ = CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;
  std::size_t forward_bytes_ = 0, data_bytes_ = 0, filter_bytes_ = 0;
};

enum class Way : std::uint8_t {
  fused,   // one plan for all of it
  plan,    // a plan for the convolution alone, then a kernel of ours
  older,   // the older call, then a kernel of ours
  kernel,  // all by a kernel of ours
};

// How convolutions of one spec are run.
struct Choice {
  Way way = Way::kernel;
  std::shared_ptr<const ConvolutionPlan> plan;
  std::shared_ptr<const PlainConvolution> plain;
};

// A convolution, its bias, a residual and a bound. Its operands stay where they are.
class FusedConvolution {
 public:
  FusedConvolution(const ConvolutionSpec& spec, const ConvolutionOperands& operands, Choice choice)
      : spec_(spec), operands_(operands), choice_(std::move(choice)) {}
  void run(const Lane& lane) const;

 private:
  Pointwise after() const;
  DirectConvolution direct() const;

  ConvolutionSpec spec_;
  ConvolutionOperands operands_;
  Choice choice_;
};

// The first way that runs on these operands, or, timed, the fastest: y is overwritten. The workspace then suffices for
// it. Throws Fault where the GPU itself fails.
Choice choose(Lane& lane, const ConvolutionSpec& spec, const ConvolutionOperands& operands, bool timed);

// Of one net, so that equal convolutions share theirs.
using Choices = std::map<ConvolutionSpec, Choice>;

}  // namespace coppice::gpu
