#include "apps/from_scratch.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "apps/assembly.hpp"
#include "apps/net_training.hpp"
#include "apps/session.hpp"
#include "apps/subnets.hpp"
#include "gpu/distill.hpp"

namespace coppice::apps {
namespace {

namespace fs = std::filesystem;
using runtime::Expected;

constexpr int kGroups = 5, kHeldOut = 5'000;
constexpr double kFlops = 0.255;  // half the channels everywhere would be a quarter, and a little for the head
constexpr float kPeak = 0.15F;

// The trained base, unfolded, so that its sub-nets can be retrained with their norms.
Expected<void> train_base(const FromScratchOptions& options, const fs::path& file) {
  const auto data = gpu::load_dataset(options.data, gpu::Split::train);
  if (!data) return tl::unexpected(reported(data.error()));
  const auto parts = hold_out(*data, kHeldOut, options.data);
  if (!parts) return tl::unexpected(parts.error());
  auto device = gpu::make_cpu_device({options.threads});
  if (!device) return tl::unexpected(reported(device.error()));
  const int classes = std::ranges::max(data->labels) + 1;
  gpu::TrainerOptions how;
  how.epochs = options.base_epochs;
  how.schedule.peak = kPeak;
  how.augmentation = {2, true};
  how.normalisation = gpu::measured(*data, parts->fit);
  how.seed = options.seed;
  how.threads = options.threads;
  how.progress = training_bar("training the base");
  how.stop = [] { return interrupted.load(); };
  const auto start = gpu::vgg(data->item, options.widths, classes, options.seed);
  auto trained = gpu::train(**device, {start}, *data, parts->fit,
                            gpu::ensemble_loss({{{all_classes(classes)}}}, classes, nullptr, {}), how);
  if (!trained) return tl::unexpected(reported(trained.error()));
  return write_onnx(trained->nets.front(), file);
}

Expected<void> write_manifest(const Assembly& assembly, const fs::path& file) {
  std::ofstream out(file, std::ios::trunc);
  out << runtime::to_json(assembly.model.manifest).dump(1) << "\n";
  if (!out.flush()) return runtime::failed("cannot write " + file.string());
  return {};
}

}  // namespace

Expected<void> make_nets_from_scratch(const FromScratchOptions& options, const fs::path& out,
                                      const std::vector<std::string>& schemes) {
  std::error_code fault;
  fs::create_directories(out, fault);
  if (fault) return runtime::bad_input("cannot make " + out.string() + ": " + fault.message());
  const auto base = out / "trained.onnx";
  if (auto trained = train_base(options, base); !trained) return trained;
  SubnetsOptions how;
  how.model = base;
  how.data = options.data;
  how.groups = kGroups;
  how.flops = kFlops;
  how.epochs = options.epochs;
  how.peak = kPeak;
  how.augmentation = {2, true};
  how.held_out = kHeldOut;
  how.seed = options.seed;
  how.threads = options.threads;
  const auto report = make_subnets(how, out);
  if (!report) return tl::unexpected(report.error());
  std::fprintf(stderr, "%s", to_text(*report).c_str());
  std::ofstream(out / "decomposition.html") << to_html(*report);

  const auto nets = load_nets(out);
  if (!nets) return tl::unexpected(nets.error());
  const auto data = load_assembly_data(options.data, *nets);
  if (!data) return tl::unexpected(data.error());
  for (const auto& name : schemes) {
    const auto scheme = coding::scheme_of(name);
    if (!scheme) return runtime::bad_input(scheme.error());
    const auto assembly = assemble(out, *nets, *data, *scheme, DecoderKind::logistic);
    if (!assembly) return tl::unexpected(assembly.error());
    if (auto written = write_manifest(*assembly, out / (name + ".json")); !written) return written;
  }
  return {};
}

}  // namespace coppice::apps
