#include "gpu/onnx_tensor.hpp"

#include <onnx/onnx_pb.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>

#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr std::int64_t kElementsMax = std::int64_t{1} << 28;

// None where that is too many; an empty tensor's other axes are bounded too, since sizes are made of them.
std::optional<std::size_t> count(const Dims& dims) {
  std::int64_t product = 1;
  for (const auto dim : dims) {
    if (dim < 0 || (dim > 0 && product > kElementsMax / dim)) return std::nullopt;
    product *= dim > 0 ? dim : 1;
  }
  if (dims.size() > 8) return std::nullopt;
  return std::find(dims.begin(), dims.end(), 0) == dims.end() ? static_cast<std::size_t>(product) : 0;
}

// Stored is how one element lies in raw data. Whether the bytes are what n elements need.
template <class Stored, class Value>
bool copy(std::span<const std::byte> raw, std::size_t n, std::vector<Value>& into) {
  if (raw.size() != n * sizeof(Stored)) return false;
  into.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    Stored element;
    std::memcpy(&element, raw.data() + i * sizeof(Stored), sizeof(Stored));
    into[i] = element;
  }
  return true;
}

// Of raw data, inside or outside of the model, or else of the numbers listed one by one.
template <class Stored, class Value, class Repeated>
bool copy(const onnx::TensorProto& tensor, const std::optional<std::vector<std::byte>>& outside,
          const Repeated& repeated, std::size_t n, std::vector<Value>& into) {
  if (outside) return copy<Stored>(*outside, n, into);
  if (tensor.has_raw_data()) return copy<Stored>(std::as_bytes(std::span(tensor.raw_data())), n, into);
  if (static_cast<std::size_t>(repeated.size()) != n) return false;
  into.assign(repeated.begin(), repeated.end());
  return true;
}

// Bytes of one element in raw data; 0 for types that are not read.
std::size_t stored_bytes(int type) {
  switch (type) {
    case onnx::TensorProto::FLOAT:
    case onnx::TensorProto::INT32:
      return 4;
    case onnx::TensorProto::INT64:
      return 8;
    case onnx::TensorProto::BOOL:
      return 1;
    default:
      return 0;
  }
}

struct Place {  // of external data
  std::string location;
  std::int64_t offset = 0;
  std::optional<std::int64_t> length;
};

std::optional<std::int64_t> number(const std::string& text) {
  std::int64_t out = 0;
  const auto* end = text.data() + text.size();
  const auto [stop, fault] = std::from_chars(text.data(), end, out);
  return fault == std::errc() && stop == end && out >= 0 ? std::optional(out) : std::nullopt;
}

std::optional<Place> place(const onnx::TensorProto& tensor) {
  Place out;
  for (const auto& entry : tensor.external_data()) {
    if (entry.key() == "location") out.location = entry.value();
    if (entry.key() != "offset" && entry.key() != "length") continue;
    const auto value = number(entry.value());
    if (!value) return std::nullopt;
    if (entry.key() == "offset") out.offset = *value;
    if (entry.key() == "length") out.length = value;
  }
  return out.location.empty() ? std::nullopt : std::optional(out);
}

// The tensor's bytes in another file. REQUIRES: bytes is at most 2^31.
Expected<std::vector<std::byte>> outside_bytes(const onnx::TensorProto& tensor, const std::string& where,
                                               std::int64_t bytes, ExternalData& external) {
  const auto malformed = [&](const std::string& why) { return unexpected(Error{ErrorCode::malformed, where + why}); };
  if (!external.directory)
    return malformed(" lies in another file; export the model with its weights inside, or load it from its directory");
  const auto at = place(tensor);
  if (!at || tensor.has_raw_data()) return malformed(" does not say properly in which other file it lies, and where");
  if (at->length && *at->length != bytes)
    return malformed(" claims " + std::to_string(*at->length) + " bytes of " + at->location + " and needs " +
                     std::to_string(bytes));
  if (bytes > external.bytes_left) return malformed(": more than 1 GiB lie in other files");
  external.bytes_left -= bytes;
  auto read = read_beneath(*external.directory, at->location, at->offset, bytes);
  if (!read) return unexpected(Error{read.error().code, where + ": " + read.error().what});
  return read;
}

}  // namespace

Expected<Weight> read_tensor(const onnx::TensorProto& tensor, const std::string& file, ExternalData& external) {
  const std::string where = file + ": tensor " + tensor.name();
  const auto fault = [&](ErrorCode code, const std::string& why) { return unexpected(Error{code, where + why}); };
  Weight weight;
  weight.dims.assign(tensor.dims().begin(), tensor.dims().end());
  const auto n = count(weight.dims);
  if (!n) return fault(ErrorCode::malformed, " claims a size of " + to_string(weight.dims));
  const auto element = stored_bytes(tensor.data_type());
  if (element == 0)
    return fault(ErrorCode::unsupported_operator, " is of a type other than float32, int32, int64 and bool");
  std::optional<std::vector<std::byte>> outside;
  if (tensor.data_location() == onnx::TensorProto::EXTERNAL || tensor.external_data_size() > 0) {
    auto read = outside_bytes(tensor, where, static_cast<std::int64_t>(*n * element), external);
    if (!read) return unexpected(read.error());
    outside = std::move(*read);
  }
  bool fits = false;
  switch (tensor.data_type()) {
    case onnx::TensorProto::FLOAT:
      fits = copy<float>(tensor, outside, tensor.float_data(), *n, weight.values);
      break;
    case onnx::TensorProto::INT64:
      fits = copy<std::int64_t>(tensor, outside, tensor.int64_data(), *n, weight.integers);
      break;
    case onnx::TensorProto::INT32:
      fits = copy<std::int32_t>(tensor, outside, tensor.int32_data(), *n, weight.integers);
      break;
    default:
      fits = copy<unsigned char>(tensor, outside, tensor.int32_data(), *n, weight.integers);
      break;
  }
  if (!fits)
    return fault(ErrorCode::malformed, " has not the bytes that its size " + to_string(weight.dims) + " needs");
  return weight;
}

}  // namespace coppice::gpu
