#include "apps/net_training.hpp"

#include <fstream>
#include <memory>
#include <numeric>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/progress.hpp"
#include "gpu/onnx_writer.hpp"

namespace coppice::apps {

std::vector<int> all_classes(int classes) {
  std::vector<int> all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

runtime::Expected<HeldOut> hold_out(const gpu::Dataset& data, std::int64_t held_out, const std::string& name) {
  if (data.count() <= held_out)
    return runtime::bad_input("--held-out " + std::to_string(held_out) + ": " + name + " has only " +
                              std::to_string(data.count()) + " training images");
  HeldOut out;
  out.fit.resize(static_cast<std::size_t>(data.count() - held_out));
  std::iota(out.fit.begin(), out.fit.end(), std::int64_t{0});
  out.held.resize(static_cast<std::size_t>(held_out));
  std::iota(out.held.begin(), out.held.end(), data.count() - held_out);
  return out;
}

std::function<void(const gpu::TrainingProgress&)> training_bar(std::string label) {
  return [bar = std::make_shared<std::unique_ptr<Progress>>(), label = std::move(label)](const gpu::TrainingProgress& p) {
    if (!*bar) *bar = std::make_unique<Progress>(label, p.steps);
    (*bar)->at(p.step);
  };
}

runtime::Expected<void> check_writable(const std::filesystem::path& file, const std::string& shown) {
  const auto directory = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  std::error_code ignored;
  const bool free = !std::filesystem::exists(file, ignored) || std::filesystem::is_regular_file(file, ignored);
  if (std::filesystem::is_directory(directory, ignored) && free) return {};
  return runtime::bad_input(shown + " " + file.string() + ": is no file in a directory that is there");
}

runtime::Expected<void> write_whole(const std::filesystem::path& named, std::initializer_list<std::string_view> parts) {
  std::error_code unknown;
  auto file = std::filesystem::weakly_canonical(named, unknown);  // a link stays, and leads to what is written
  if (unknown) file = named;
  if (std::filesystem::exists(file, unknown) && !std::filesystem::is_regular_file(file, unknown))
    return runtime::bad_input(named.string() + ": is no regular file");
  auto unfinished = file;
  unfinished += ".unfinished";
  {
    std::ofstream out(unfinished, std::ios::binary | std::ios::trunc);
    for (const auto part : parts) out << part;
    if (!out.flush()) return runtime::failed(unfinished.string() + ": cannot be written: is there room?");
  }
  std::error_code fault;
  std::filesystem::rename(unfinished, file, fault);
  if (fault) return runtime::failed(file.string() + ": " + fault.message());
  return {};
}

runtime::Expected<void> write_onnx(const gpu::Network& net, const std::filesystem::path& file) {
  const auto bytes = gpu::to_onnx(net);
  if (!bytes) return tl::unexpected(reported(bytes.error()));
  return write_whole(file, {{reinterpret_cast<const char*>(bytes->data()), bytes->size()}});
}

}  // namespace coppice::apps
