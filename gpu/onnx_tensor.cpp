#include "gpu/onnx_tensor.hpp"

#include <onnx/onnx_pb.h>

#include <cstring>
#include <optional>

namespace coppice::gpu {
namespace {

constexpr std::int64_t kElementsMax = std::int64_t{1} << 28;

std::optional<std::size_t> count(const Dims& dims) {
  std::int64_t product = 1;
  for (const auto dim : dims) {
    if (dim < 0 || (dim > 0 && product > kElementsMax / dim)) return std::nullopt;
    product *= dim;
  }
  return dims.size() > 8 ? std::nullopt : std::optional(static_cast<std::size_t>(product));
}

// Stored is how one element lies in raw_data. Whether the bytes are what n elements need.
template <class Stored, class Value, class Repeated>
bool copy(const onnx::TensorProto& tensor, const Repeated& repeated, std::size_t n, std::vector<Value>& into) {
  if (!tensor.has_raw_data()) {
    if (static_cast<std::size_t>(repeated.size()) != n) return false;
    into.assign(repeated.begin(), repeated.end());
    return true;
  }
  const std::string& raw = tensor.raw_data();
  if (raw.size() != n * sizeof(Stored)) return false;
  into.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    Stored element;
    std::memcpy(&element, raw.data() + i * sizeof(Stored), sizeof(Stored));
    into[i] = element;
  }
  return true;
}

}  // namespace

Expected<Weight> read_tensor(const onnx::TensorProto& tensor, const std::string& file) {
  const std::string where = file + ": tensor " + tensor.name();
  const auto fault = [&](ErrorCode code, const std::string& why) { return unexpected(Error{code, where + why}); };
  if (tensor.data_location() == onnx::TensorProto::EXTERNAL || tensor.external_data_size() > 0)
    return fault(ErrorCode::malformed, " lies in another file; export the model with its weights inside");
  Weight weight;
  weight.dims.assign(tensor.dims().begin(), tensor.dims().end());
  const auto n = count(weight.dims);
  if (!n) return fault(ErrorCode::malformed, " claims a size of " + to_string(weight.dims));
  bool fits = false;
  switch (tensor.data_type()) {
    case onnx::TensorProto::FLOAT:
      fits = copy<float>(tensor, tensor.float_data(), *n, weight.values);
      break;
    case onnx::TensorProto::INT64:
      fits = copy<std::int64_t>(tensor, tensor.int64_data(), *n, weight.integers);
      break;
    case onnx::TensorProto::BOOL:
      fits = copy<unsigned char>(tensor, tensor.int32_data(), *n, weight.integers);
      break;
    default:
      return fault(ErrorCode::unsupported_operator, " is of a type other than float32, int64 and bool");
  }
  if (!fits)
    return fault(ErrorCode::malformed, " has not the bytes that its size " + to_string(weight.dims) + " needs");
  return weight;
}

}  // namespace coppice::gpu
