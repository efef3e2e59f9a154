#include "gpu/cpu_net.hpp"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include "gpu/cpu_heap.hpp"

namespace coppice::gpu {
namespace {

constexpr std::size_t kLine = 64, kLargePage = std::size_t{1} << 21;

}  // namespace

AlignedBytes::AlignedBytes(std::size_t bytes) {
  const std::size_t unit = bytes >= kLargePage / 2 ? kLargePage : kLine;
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + unit - 1) / unit * unit;
  bytes_.reset(static_cast<std::byte*>(std::aligned_alloc(unit, rounded)));
  if (!bytes_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kLargePage) madvise(bytes_.get(), rounded, MADV_HUGEPAGE);  // a wish: its refusal changes nothing
#endif
}

void AlignedBytes::Free::operator()(std::byte* bytes) const { std::free(bytes); }

CpuNet::CpuNet(dnnl::engine engine, int threads, CpuProgram program)
    : engine_(std::move(engine)), stream_(engine_), threads_(threads), program_(std::move(program)) {}

Expected<void> CpuNet::run(std::span<const float> input, std::span<float> output) {
  if (std::ssize(input) != input_elements() || std::ssize(output) != output_elements())
    return unexpected(Error{ErrorCode::shape_mismatch, "run: " + std::to_string(input.size()) + " numbers in and " +
                                                           std::to_string(output.size()) + " out, the net takes " +
                                                           std::to_string(input_elements()) + " and gives " +
                                                           std::to_string(output_elements())});
  omp_set_num_threads(threads_);  // this thread's own setting
  if (const auto status = execute(input, output); status != dnnl_success)
    return unexpected(Error{ErrorCode::device_failed, "oneDNN: a run failed, status " + std::to_string(status)});
  return {};
}

dnnl_status_t CpuNet::execute(std::span<const float> input, std::span<float> output) {
  const QuietHeap quiet;
  const auto show = [](const CallerView& view, const float* data) {
    auto* place = reinterpret_cast<std::byte*>(const_cast<float*>(data)) + view.offset;
    return dnnl_memory_set_data_handle_v2(view.data.get(), place, nullptr);
  };
  for (const auto& view : program_.input_views)
    if (const auto status = show(view, input.data()); status != dnnl_success) return status;
  for (const auto& view : program_.output_views)
    if (const auto status = show(view, output.data()); status != dnnl_success) return status;
  for (const auto& step : program_.steps) {
    if (step.kernel) {
      step.kernel();
      continue;
    }
    const auto status = dnnl_primitive_execute(step.primitive.get(), stream_.get(),
                                               static_cast<int>(step.arguments.size()), step.arguments.data());
    if (status != dnnl_success) return status;
  }
  return dnnl_success;
}

}  // namespace coppice::gpu
