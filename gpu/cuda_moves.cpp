#include "gpu/cuda_moves.hpp"

#include <algorithm>

#include "gpu/cuda_handles.hpp"

namespace coppice::gpu {

Strided strided(Reals in, std::int64_t in_begin, Reals out, std::int64_t out_begin, std::vector<Axis> axes, bool add) {
  std::int64_t count = 1;
  for (const auto& axis : axes) count *= axis.size;
  std::erase_if(axes, [](const Axis& axis) { return axis.size == 1; });
  std::ranges::stable_sort(axes, [](const Axis& a, const Axis& b) { return a.to > b.to; });
  std::vector<Axis> merged;
  for (const auto& axis : axes) {
    if (!merged.empty() && merged.back().from == axis.from * axis.size && merged.back().to == axis.to * axis.size)
      merged.back() = {merged.back().size * axis.size, axis.from, axis.to};
    else
      merged.push_back(axis);
  }
  Strided job{in, out, narrow(count), static_cast<int>(merged.size()), {}, {}, {}, narrow(in_begin), narrow(out_begin),
              add ? Onto::add : Onto::put};
  if (merged.size() > static_cast<std::size_t>(kAxesMax))
    throw Fault(ErrorCode::unsupported_operator, "too many axes for the GPU");
  for (std::size_t i = 0; i < merged.size(); ++i) {
    job.dims[i] = narrow(merged[i].size);
    job.from[i] = narrow(merged[i].from);
    job.to[i] = narrow(merged[i].to);
  }
  return job;
}

Dims steps_of(const Dims& dims) {
  Dims out(dims.size(), 1);
  for (std::size_t axis = dims.size(); axis-- > 1;) out[axis - 1] = out[axis] * dims[axis];
  return out;
}

std::vector<Axis> axes_of(int batch, const Dims& dims, std::int64_t from_item, const Dims& from, std::int64_t to_item,
                          const Dims& to) {
  std::vector<Axis> out{{batch, from_item, to_item}};
  for (std::size_t axis = 0; axis < dims.size(); ++axis) out.push_back({dims[axis], from[axis], to[axis]});
  return out;
}

Dims repeated_steps(const Dims& dims, const Dims& steps, const Dims& out) {
  Dims found(out.size(), 0);
  for (std::size_t i = 0; i < dims.size(); ++i)
    if (dims[i] > 1) found[out.size() - dims.size() + i] = steps[i];
  return found;
}

std::vector<Axis> shuffle_axes(int batch, const Dims& dims, std::int64_t groups, const Dims& from, const Dims& to) {
  const auto each = dims[0] / groups, item = elements(dims);
  return {{batch, item, item},
          {groups, each * from[0], to[0]},
          {each, from[0], groups * to[0]},
          {dims[1], from[1], to[1]},
          {dims[2], from[2], to[2]}};
}

}  // namespace coppice::gpu
