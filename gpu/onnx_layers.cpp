// Operators that compute: each in terms of those that devices run.
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <limits>
#include <random>
#include <utility>

#include "gpu/onnx_attributes.hpp"
#include "gpu/onnx_reader.hpp"

namespace coppice::gpu {
namespace {

// Matrices of [rows, columns], one behind the other, to [columns, rows].
std::vector<float> transposed(const std::vector<float>& from, std::int64_t rows, std::int64_t columns) {
  const auto r_max = static_cast<std::size_t>(rows), c_max = static_cast<std::size_t>(columns);
  std::vector<float> to(from.size());
  for (std::size_t base = 0; base < from.size(); base += r_max * c_max)
    for (std::size_t r = 0; r < r_max; ++r)
      for (std::size_t c = 0; c < c_max; ++c) to[base + c * r_max + r] = from[base + r * c_max + c];
  return to;
}

void scale(std::vector<float>& values, float factor) {
  if (factor != 1.0F)
    for (float& value : values) value *= factor;
}

}  // namespace

OnnxReader::Done OnnxReader::needs_batch() const {
  if (options_.first_axis_is_batch) return {};
  return unsupported(at_ + ": needs a first axis that is the batch");
}

OnnxReader::Done OnnxReader::windowed(const onnx::NodeProto& n, Operator op, int in) {
  if (shape(in).size() != 2) return give(n, make(std::move(op), {in}));
  const int row = make(Reshape{{shape(in)[0], 1, shape(in)[1]}}, {in});
  const int out = make(std::move(op), {row});
  return give(n, fault_ ? -1 : make(Reshape{{shape(out)[0], shape(out)[2]}}, {out}));
}

OnnxReader::Done OnnxReader::convolution(const onnx::NodeProto& n, int in) {
  if (auto ok = needs_batch(); !ok) return ok;
  const Dims& from = shape(in);
  const auto w = weight(n, 1);
  if (!w || w->dims.size() < 3 || w->dims.size() > 5)
    return unsupported(at_ + ": its weight is not a constant of three, four or five axes");
  if (w->dims.size() != from.size() + 1)
    return fault(ErrorCode::shape_mismatch,
                 at_ + ": its weight of " + to_string(w->dims) + " does not fit an input of " + to_string(from));
  const Dims kernel(w->dims.begin() + 2, w->dims.end());
  const auto slide = sliding(n, at_, Dims(from.begin() + 1, from.end()), kernel);
  if (!slide) return unexpected(slide.error());
  if (integers(n, "kernel_shape", kernel) != kernel)
    return fault(ErrorCode::shape_mismatch, at_ + ": kernel_shape is not its weight's");
  Convolution c{slide->window, w->dims[0], integer(n, "group", 1), {}, {}};
  if (auto ok = constant(n, 1, "weight", c.weight); !ok) return ok;
  if (auto ok = optional_constant(n, 2, "bias", c.bias); !ok) return ok;
  return windowed(n, std::move(c), in);
}

OnnxReader::Done OnnxReader::pool(const onnx::NodeProto& n, int in) {
  if (auto ok = needs_batch(); !ok) return ok;
  const Dims& from = shape(in);
  const auto slide = sliding(n, at_, Dims(from.begin() + 1, from.end()), {});
  if (!slide) return unexpected(slide.error());
  if (n.op_type() == "MaxPool") return windowed(n, MaxPool{slide->window}, in);
  // What ceil_mode adds at the end is never counted, so that without padding of its own there is nothing to count.
  const bool count_padding = integer(n, "count_include_pad", 0) != 0 && slide->padded;
  if (count_padding && slide->overhangs)
    return unsupported(at_ + ": ceil_mode with padding that is counted, and windows beyond it");
  return windowed(n, AveragePool{slide->window, count_padding}, in);
}

// ---- products ----

// One matrix, or as many as there are groups: a 1x1 convolution whose pixels are the rows.
int OnnxReader::product(int in, std::vector<float> matrices, std::int64_t count, std::int64_t outer,
                        std::int64_t inner) {
  if (fault_) return -1;
  Dims to = shape(in);
  if (to.size() == 1) return make(Dense{outer, std::move(matrices), {}}, {in});
  const auto rows = elements(to) / count / inner;
  int v = make(Reshape{{count, rows, inner}}, {in});
  v = make(Transpose{{0, 2, 1}}, {v});
  v = make(Reshape{{count * inner, rows, 1}}, {v});
  v = make(Convolution{{}, count * outer, count, std::move(matrices), {}}, {v});
  v = make(Reshape{{count, outer, rows}}, {v});
  v = make(Transpose{{0, 2, 1}}, {v});
  to.back() = outer;
  return make(Reshape{to}, {v});
}

OnnxReader::Done OnnxReader::gemm(const onnx::NodeProto& n, int in) {
  const auto w = weight(n, 1);
  if (!w || w->dims.size() != 2) return unsupported(at_ + ": its weight is not a constant matrix");
  if (whole(in).size() != 2)
    return fault(ErrorCode::shape_mismatch, at_ + ": multiplies a matrix, not " + to_string(whole(in)));
  if (integer(n, "transA", 0) != 0) {
    if (options_.first_axis_is_batch) return unsupported(at_ + ": transA would turn the batch");
    in = transpose(in, {1, 0});
    if (fault_) return unexpected(*fault_);
  }
  std::vector<float> matrix;
  if (auto ok = constant(n, 1, "weight", matrix); !ok) return ok;
  scale(matrix, real(n, "alpha", 1));
  const bool output_first = integer(n, "transB", 0) != 0;
  const auto outer = w->dims[output_first ? 0 : 1], inner = w->dims[output_first ? 1 : 0];
  if (shape(in).back() != inner)
    return fault(ErrorCode::shape_mismatch,
                 at_ + ": its weight of " + to_string(w->dims) + " does not fit an input of " + to_string(shape(in)));
  if (!output_first) matrix = transposed(matrix, inner, outer);
  const int made = product(in, std::move(matrix), 1, outer, inner);
  const float beta = real(n, "beta", 1);
  if (!given(n, 2) || beta == 0 || fault_) return give(n, made);
  if (const auto addend = value(n, 2)) {
    if (beta != 1) return unsupported(at_ + ": beta of a bias that is no constant");
    return pairwise(n, made, *addend);
  }
  Weight bias;
  if (auto ok = constant(n, 2, "bias", bias.values); !ok) return ok;
  scale(bias.values, beta);
  bias.dims = weight(n, 2)->dims;
  return give(n, plus(made, bias, true));
}

OnnxReader::Done OnnxReader::matmul(const onnx::NodeProto& n, int in) {
  const auto w = weight(n, 1);
  if (!w || w->dims.size() < 2) return unsupported(at_ + ": its second factor is not a constant matrix");
  auto dims = w->dims.size() == 2 ? w->dims : item_dims(*w, shape(in).size());
  if (!dims) return unexpected(dims.error());
  const Dims& from = shape(in);
  const auto inner = dims->end()[-2], outer = dims->end()[-1];
  const Dims leading(dims->begin(), dims->end() - 2);
  const bool one = std::all_of(leading.begin(), leading.end(), [](auto dim) { return dim == 1; });
  const bool alike = from.size() == dims->size() && std::equal(leading.begin(), leading.end(), from.begin());
  if (from.back() != inner || dims->size() > std::max<std::size_t>(from.size(), 2) || (!one && !alike))
    return fault(ErrorCode::shape_mismatch, at_ + ": multiplies " + to_string(from) + " by " + to_string(*dims));
  std::vector<float> matrices;
  if (auto ok = constant(n, 1, "second factor", matrices); !ok) return ok;
  return give(n, product(in, transposed(matrices, inner, outer), one ? 1 : elements(leading), outer, inner));
}

// ---- the rest ----

OnnxReader::Done OnnxReader::clip(const onnx::NodeProto& n, int in) {
  Clip c{std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max()};
  if (opset_ < 11) {
    c = {real(n, "min", c.low), real(n, "max", c.high)};
    return give(n, make(c, {in}));
  }
  for (const int i : {1, 2}) {
    std::vector<float> bound;
    if (auto ok = optional_constant(n, i, "bound", bound); !ok) return ok;
    if (bound.size() > 1) return malformed(at_ + ": a bound is one number");
    if (!bound.empty()) (i == 1 ? c.low : c.high) = bound[0];
  }
  return give(n, make(c, {in}));
}

// In training, numbers go at random: as the seed says to ONNX's reference implementation, which draws from numpy's
// Mersenne Twister, 53 bits for each number in turn.
OnnxReader::Done OnnxReader::dropout(const onnx::NodeProto& n, int in) {
  const auto ratio = weight(n, 1), training = weight(n, 2);
  const bool told = training && training->integers.size() == 1;
  const bool trains = given(n, 2) ? !(told && training->integers[0] == 0) : opset_ < 7 && integer(n, "is_test", 0) == 0;
  if (!trains) return give(n, make(Identity{}, {in}));
  std::vector<float> part{0.5F};
  if (auto ok = optional_constant(n, 1, "ratio", part); !ok) return ok;
  if (part.size() != 1 || !(part[0] >= 0 && part[0] < 1)) return malformed(at_ + ": its ratio is not one number below 1");
  const auto numbers = elements(shape(in));
  if (part[0] == 0 || numbers == 0) return give(n, make(Identity{}, {in}));
  const auto seed = integer(n, "seed", -1);
  if (options_.first_axis_is_batch || !told || seed < 0 || seed > std::numeric_limits<std::uint32_t>::max())
    return unsupported(at_ + " is in training mode; export for inference");
  if (auto ok = count(static_cast<std::size_t>(numbers)); !ok) return ok;
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  Weight kept{shape(in), {}, {}};
  kept.values.reserve(static_cast<std::size_t>(numbers));
  for (std::int64_t i = 0; i < numbers; ++i) {
    const auto high = static_cast<double>(random() >> 5U), low = static_cast<double>(random() >> 6U);
    kept.values.push_back((high * 67'108'864 + low) / 9'007'199'254'740'992 >= part[0] ? 1 / (1 - part[0]) : 0);
  }
  return give(n, with_constant(Arithmetic::Kind::multiply, in, kept));
}

}  // namespace coppice::gpu
