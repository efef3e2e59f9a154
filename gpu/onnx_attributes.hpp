// gpu/onnx_attributes.hpp: what an ONNX node says of itself. Private to gpu/onnx*.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "gpu/network.hpp"

namespace onnx {
class AttributeProto;
class NodeProto;
}  // namespace onnx

namespace coppice::gpu {

inline unexpected<Error> fault(ErrorCode code, const std::string& what) { return unexpected(Error{code, what}); }
inline unexpected<Error> unsupported(const std::string& what) { return fault(ErrorCode::unsupported_operator, what); }
inline unexpected<Error> malformed(const std::string& what) { return fault(ErrorCode::malformed, what); }

const onnx::AttributeProto* attribute(const onnx::NodeProto& node, const std::string& name);  // null where it is not
std::int64_t integer(const onnx::NodeProto& node, const std::string& name, std::int64_t otherwise);
float real(const onnx::NodeProto& node, const std::string& name, float otherwise);
Dims integers(const onnx::NodeProto& node, const std::string& name, Dims otherwise);

// How a Conv or a pool slides. Of one spatial axis it is a row one pixel high, of two an image one plane deep.
struct Sliding {
  Window window;
  bool padded = false;     // whether the node itself asks for padding
  bool overhangs = false;  // whether ceil_mode lets a window reach beyond the padding that the node asks for
};

// sizes: pixels of the one to three spatial axes, each at most 2^31. kernel: the weight's, or empty for a pool.
// auto_pad and ceil_mode become pads. A window that ceil_mode adds must begin before the padding at the end does, as in
// PyTorch, whose exports are the ones that use it.
// Errors: unsupported_operator (another number of axes), shape_mismatch (out of bounds). `at` is how errors begin.
Expected<Sliding> sliding(const onnx::NodeProto& node, const std::string& at, const Dims& sizes, const Dims& kernel);

}  // namespace coppice::gpu
