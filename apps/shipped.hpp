// apps/shipped.hpp: the nets that come with the program.
#pragma once

#include <filesystem>
#include <string>

#include "runtime/error.hpp"
#include "runtime/model.hpp"

namespace coppice::apps {

// nets/fashion-mnist of the installation, or of the source tree that this program was built from.
// Error: names both places.
runtime::Expected<std::filesystem::path> shipped_nets();

// The shipped model of a scheme: SCHEME.json and the ONNX files that it names.
runtime::Expected<runtime::Model> load_shipped(const std::filesystem::path& nets, const std::string& scheme);

}  // namespace coppice::apps
