#include "apps/shipped.hpp"

#include "apps/session.hpp"

namespace coppice::apps {

runtime::Expected<std::filesystem::path> shipped_nets() {
  const auto installed = std::filesystem::path(self_path()).parent_path() / "../share/coppice/nets/fashion-mnist";
  const auto source = std::filesystem::path(COPPICE_SOURCE) / "apps/nets/fashion-mnist";
  for (const auto& place : {installed, source})
    if (std::filesystem::exists(place / "parity.json")) return place.lexically_normal();
  return runtime::failed("the shipped nets are neither in " + installed.lexically_normal().string() + " nor in " +
                         source.string());
}

runtime::Expected<runtime::Model> load_shipped(const std::filesystem::path& nets, const std::string& scheme) {
  return runtime::load_model(nets, scheme + ".json");
}

}  // namespace coppice::apps
