// gpu/onnx.hpp: ONNX files in (opsets 9 to 18, the operators of gpu/network.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "gpu/network.hpp"

namespace coppice::gpu {

inline constexpr std::int64_t kOnnxBytesMax = std::int64_t{512} << 20;

// Errors: unreadable, malformed, unsupported_operator (naming node, operator and opset), shape_mismatch.
// External tensor data is refused. All sizes are checked in 64 bits before anything is allocated.
Expected<Network> load_onnx(const std::filesystem::path& file);
Expected<Network> parse_onnx(std::span<const std::byte> bytes, const std::string& name);

}  // namespace coppice::gpu
