#include "apps/shipped.hpp"

#include <fstream>

#include "apps/session.hpp"

namespace coppice::apps {
namespace {

runtime::Expected<std::vector<std::byte>> read_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in) return runtime::bad_input("cannot read " + file.string());
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return std::vector<std::byte>(data, data + text.size());
}

}  // namespace

runtime::Expected<std::filesystem::path> shipped_nets() {
  const auto installed = std::filesystem::path(self_path()).parent_path() / "../share/coppice/nets/fashion-mnist";
  const auto source = std::filesystem::path(COPPICE_SOURCE) / "apps/nets/fashion-mnist";
  for (const auto& place : {installed, source})
    if (std::filesystem::exists(place / "parity.json")) return place.lexically_normal();
  return runtime::failed("the shipped nets are neither in " + installed.lexically_normal().string() + " nor in " +
                         source.string());
}

runtime::Expected<runtime::Model> load_shipped(const std::filesystem::path& nets, const std::string& scheme) {
  const auto file = nets / (scheme + ".json");
  const auto text = read_file(file);
  if (!text) return tl::unexpected(text.error());
  const auto* begin = reinterpret_cast<const char*>(text->data());
  const auto json = nlohmann::json::parse(begin, begin + text->size(), nullptr, false);
  auto manifest = runtime::parse_manifest(json, file.string());
  if (!manifest) return tl::unexpected(manifest.error());
  runtime::Model model;
  for (const auto& worker : manifest->workers) {
    if (model.files.contains(worker.file)) continue;
    auto bytes = read_file(nets / worker.file);
    if (!bytes) return tl::unexpected(bytes.error());
    model.files[worker.file] = std::move(*bytes);
  }
  model.manifest = std::move(*manifest);
  return model;
}

}  // namespace coppice::apps
