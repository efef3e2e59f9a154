// apps/from_scratch.hpp: the nets of the demo, made by our own engine: a base trained on the data, its decomposition,
// and the manifests of every scheme.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/error.hpp"

namespace coppice::apps {

struct FromScratchOptions {
  std::string data;
  std::vector<int> widths{16, 16, 32, 32, 64, 64};  // of the base, a VGG
  int base_epochs = 15, epochs = 12, threads = 2;
  std::uint64_t seed = 0;
};

// Fills `out` as apps/nets/fashion-mnist is: base, control, sub-nets, companions, nets.json, SCHEME.json.
runtime::Expected<void> make_nets_from_scratch(const FromScratchOptions& options, const std::filesystem::path& out,
                                               const std::vector<std::string>& schemes);

}  // namespace coppice::apps
