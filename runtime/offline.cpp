#include "runtime/offline.hpp"

#include <algorithm>
#include <chrono>

#include "gpu/device.hpp"
#include "gpu/onnx.hpp"

namespace coppice::runtime {
namespace {

struct Running {
  std::unique_ptr<gpu::Device> device;
  std::unique_ptr<gpu::CompiledNet> net;
};

Expected<Running> compile(const gpu::Network& network) {
  Running running;
  auto device = gpu::make_cpu_device({});
  if (!device) return failed(device.error().what);
  running.device = std::move(*device);
  auto net = running.device->compile(network, {});
  if (!net) return failed(network.name + ": " + net.error().what);
  running.net = std::move(*net);
  return running;
}

Expected<void> fits(const gpu::CompiledNet& net, const gpu::Dataset& data, const std::string& name) {
  if (net.input_elements() != gpu::elements(data.item))
    return bad_input(name + " takes " + std::to_string(net.input_elements()) + " numbers an item, the data has " +
                     gpu::to_string(data.item));
  return {};
}

std::size_t total_floats(const Manifest& manifest) {
  if (manifest.blocks.empty()) return static_cast<std::size_t>(manifest.generator.total_floats());
  std::size_t total = 0;
  for (const auto& block : manifest.blocks) total += static_cast<std::size_t>(block.generator.total_floats());
  return total;
}

// As many responses as the generator has workers, of which those of `present`; `at` is where they begin.
coding::Arrivals arrivals_at(const float* at, const coding::Generator& generator, coding::ArrivalSet present) {
  coding::Arrivals arrivals;
  arrivals.responses.resize(generator.workers.size());
  for (std::size_t w = 0; w < generator.workers.size(); ++w) {
    const auto floats = generator.workers[w].floats;
    if (present >> w & 1U) arrivals.responses[w].assign(at, at + floats);
    at += floats;
  }
  return arrivals;
}

coding::ArrivalSet everyone(int workers) {
  return static_cast<coding::ArrivalSet>((std::uint64_t{1} << workers) - 1);
}

}  // namespace

Expected<OfflineResponses> run_offline(const Model& model, const gpu::Dataset& data, const OfflineProgress& progress) {
  const auto& manifest = model.manifest;
  const auto width = total_floats(manifest);
  OfflineResponses out{data.count(), std::vector<float>(static_cast<std::size_t>(data.count()) * width)};
  const std::int64_t total = data.count() * static_cast<std::int64_t>(manifest.workers.size());
  std::int64_t done = 0;
  std::size_t column = 0;
  std::vector<float> item(static_cast<std::size_t>(gpu::elements(data.item)));
  for (std::size_t w = 0; w < manifest.workers.size(); ++w) {
    const auto& worker = manifest.workers[w];
    const auto place = place_of(manifest, w);
    auto network = gpu::parse_onnx(model.files.at(worker.file), worker.file);
    if (!network) return bad_input(network.error().what);
    auto running = compile(*network);
    if (!running) return tl::unexpected(running.error());
    if (auto ok = fits(*running->net, data, worker.file); !ok) return tl::unexpected(ok.error());
    std::vector<float> scores(static_cast<std::size_t>(running->net->output_elements()));
    if (scores.size() != worker.classes.size())
      return bad_input(worker.file + " answers with " + std::to_string(scores.size()) + " scores, the manifest says " +
                       std::to_string(worker.classes.size()));
    std::vector<float> z(static_cast<std::size_t>(place.classes), 0.0F);
    for (std::int64_t i = 0; i < data.count(); ++i) {
      gpu::item(data, i, manifest.normalisation, item);
      if (auto ran = running->net->run(item, scores); !ran) return failed(ran.error().what);
      for (std::size_t c = 0; c < scores.size(); ++c) z[static_cast<std::size_t>(place.outputs[c])] = scores[c];
      const auto y = coding::encode(place.rows, z);
      std::copy(y.begin(), y.end(), out.values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * width + column));
      if (progress && ++done % 1'000 == 0) progress(done, total);
    }
    column += static_cast<std::size_t>(place.rows.floats);
  }
  if (progress) progress(total, total);
  return out;
}

Expected<TimedScores> time_net(const Model& model, std::size_t worker, const gpu::Dataset& data, std::int64_t items) {
  const auto& file = model.manifest.workers[worker].file;
  auto network = gpu::parse_onnx(model.files.at(file), file);
  if (!network) return bad_input(network.error().what);
  auto running = compile(*network);
  if (!running) return tl::unexpected(running.error());
  if (auto ok = fits(*running->net, data, file); !ok) return tl::unexpected(ok.error());
  TimedScores out;
  std::vector<float> item(static_cast<std::size_t>(gpu::elements(data.item)));
  std::vector<float> scores(static_cast<std::size_t>(running->net->output_elements()));
  for (std::int64_t i = 0; i < std::min(items, data.count()); ++i) {
    gpu::item(data, i, model.manifest.normalisation, item);
    auto begun = std::chrono::steady_clock::now();
    for (int run = 0; run < 2; ++run) {
      begun = std::chrono::steady_clock::now();
      if (auto ran = running->net->run(item, scores); !ran) return failed(ran.error().what);
    }
    out.service_us.push_back(static_cast<std::uint32_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begun).count()));
    out.scores.insert(out.scores.end(), scores.begin(), scores.end());
  }
  return out;
}

Expected<std::vector<float>> run_net(const gpu::Network& network, const gpu::Dataset& data,
                                     const gpu::Normalisation& normalisation, const OfflineProgress& progress) {
  auto running = compile(network);
  if (!running) return tl::unexpected(running.error());
  if (auto ok = fits(*running->net, data, network.name); !ok) return tl::unexpected(ok.error());
  const auto width = static_cast<std::size_t>(running->net->output_elements());
  std::vector<float> out(static_cast<std::size_t>(data.count()) * width);
  std::vector<float> item(static_cast<std::size_t>(gpu::elements(data.item)));
  for (std::int64_t i = 0; i < data.count(); ++i) {
    gpu::item(data, i, normalisation, item);
    auto ran = running->net->run(item, std::span(out).subspan(static_cast<std::size_t>(i) * width, width));
    if (!ran) return failed(ran.error().what);
    if (progress && (i + 1) % 1'000 == 0) progress(i + 1, data.count());
  }
  return out;
}

coding::Arrivals arrivals_of(const coding::Generator& generator, const OfflineResponses& responses, std::int64_t item,
                             coding::ArrivalSet present) {
  return arrivals_at(responses.values.data() + item * generator.total_floats(), generator, present);
}

tl::expected<coding::BlockBest, coding::DecodeError> block_best_of(const Manifest& manifest,
                                                                   const OfflineResponses& responses, std::int64_t item,
                                                                   int block, coding::ArrivalSet present) {
  const auto* at = responses.values.data() + item * static_cast<std::int64_t>(total_floats(manifest));
  for (int before = 0; before < block; ++before)
    at += manifest.blocks[static_cast<std::size_t>(before)].generator.total_floats();
  const auto& code = manifest.blocks[static_cast<std::size_t>(block)];
  return coding::decode(code, arrivals_at(at, code.generator, present));
}

Expected<std::vector<int>> labels_of_all(const Manifest& manifest, const OfflineResponses& responses) {
  const auto all = everyone(manifest.shape.workers);
  if (manifest.blocks.empty()) return labels_of(manifest, responses, all);
  std::vector<int> labels;
  for (std::int64_t i = 0; i < responses.items; ++i) {
    std::vector<coding::BlockBest> said;
    for (int block = 0; block < static_cast<int>(manifest.blocks.size()); ++block) {
      const auto best = block_best_of(manifest, responses, i, block, all);
      if (!best) return failed(best.error().what);
      said.push_back(*best);
    }
    labels.push_back(coding::combine(said).label);
  }
  return labels;
}

Expected<std::vector<int>> labels_of(const Manifest& manifest, const OfflineResponses& responses,
                                     coding::ArrivalSet present) {
  std::vector<int> labels;
  labels.reserve(static_cast<std::size_t>(responses.items));
  for (std::int64_t i = 0; i < responses.items; ++i) {
    const auto scores = coding::decode(manifest.decoder, manifest.generator,
                                       arrivals_of(manifest.generator, responses, i, present));
    if (!scores) return failed(scores.error().what);
    labels.push_back(scores->label);
  }
  return labels;
}

double accuracy_percent(const std::vector<int>& labels, const std::vector<std::uint16_t>& truth) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) right += labels[i] == truth[i] ? 1 : 0;
  return labels.empty() ? 0.0 : 100.0 * static_cast<double>(right) / static_cast<double>(labels.size());
}

int argmax(std::span<const float> scores) {
  return static_cast<int>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace coppice::runtime
