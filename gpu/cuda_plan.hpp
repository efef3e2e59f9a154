// gpu/cuda_plan.hpp: a convolution with bias, residual and bound as one graph of operations for cuDNN to plan.
#pragma once

#include <compare>
#include <cstddef>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "gpu/cuda_handles.hpp"

namespace coppice::gpu {

inline constexpr std::size_t kWorkspaceMax = std::size_t{512} << 20;

// All that decides which plan fits: equal ones share theirs.
struct ConvolutionSpec {
  int batch = 1, in_channels = 1, in_h = 1, in_w = 1, out_channels = 1, out_h = 1, out_w = 1, groups = 1;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  bool half = false;           // float16 tensors rather than float32
  bool tensor_cores = false;   // where tensors are float32: TF32 may be used
  bool channels_last = false;  // NHWC, and weights [out, h, w, in]
  bool bias = false, residual = false;
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  auto operator<=>(const ConvolutionSpec&) const = default;

  bool bounded() const { return low > -std::numeric_limits<float>::infinity() || upper_bounded(); }
  bool upper_bounded() const { return high < std::numeric_limits<float>::infinity(); }
};

struct ConvolutionOperands {
  const void *x = nullptr, *w = nullptr, *bias = nullptr, *residual = nullptr;  // the last two where the spec has them
  const float* float_bias = nullptr;  // the bias once more, for our own kernels
  void* y = nullptr;
};

enum class Pattern : std::uint8_t {
  exact,        // what there is: convolution, then residual, bias and bound where the spec has them
  with_scaled,  // a residual in any case, scaled by zero: some of cuDNN's ready-made engines know only this one
  alone,        // the convolution without the rest
};

// One plan of cuDNN's, to be run on any operands of its spec.
class ConvolutionPlan {
 public:
  ConvolutionPlan(std::shared_ptr<const void> origin, BackendPart plan, Pattern pattern, std::size_t workspace)
      : origin_(std::move(origin)), plan_(std::move(plan)), pattern_(pattern), workspace_(workspace) {}
  std::size_t workspace() const { return workspace_; }
  // What cuDNN says: a plan may still refuse what it was made for.
  cudnnStatus_t run(const Lane& lane, const ConvolutionSpec& spec, const ConvolutionOperands& operands) const;

 private:
  std::shared_ptr<const void> origin_;
  BackendPart plan_;
  Pattern pattern_;
  std::size_t workspace_;
};

// The plans that cuDNN advises (heuristics A, then its fallbacks), best first, until `enough` says so of one.
void plan(const Lane& lane, const ConvolutionSpec& spec, Pattern pattern,
          const std::function<bool(const std::shared_ptr<const ConvolutionPlan>&)>& enough);

}  // namespace coppice::gpu
