#include "apps/crossing.hpp"

#include <algorithm>
#include <functional>

#include "apps/inference_bench.hpp"
#include "apps/local_cluster.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"
#include "gpu/device.hpp"
#include "gpu/onnx_writer.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;

const std::vector<std::vector<int>> kGroups{{0, 6}, {1, 3}, {2, 4}, {5, 7}, {8, 9}};
constexpr int kClasses = 10;

// The whole net (divide = 1), or one of the widths of a sub-net (divide = 2), as the trained ones are of the reference.
gpu::Network net_of(const NetSize& size, int divide, int classes, std::uint64_t seed) {
  std::vector<int> widths;
  for (const int width : {16, 16, 32, 32, 64, 64}) widths.push_back(width * size.scale / divide);
  return gpu::vgg({1, size.side, size.side}, widths, classes, seed);
}

runtime::Expected<runtime::Model> random_model(const NetSize& size, int companions) {
  runtime::Model model;
  auto& m = model.manifest;
  m.name = "random weights";
  m.scheme = companions ? coding::Scheme::parity : coding::Scheme::none;
  m.shape = {static_cast<int>(kGroups.size()) + companions, static_cast<int>(kGroups.size())};
  m.input = {1, size.side, size.side};
  m.normalisation = {0.5F, 0.5F};
  for (int c = 0; c < kClasses; ++c) m.class_names.push_back("class " + std::to_string(c));
  m.groups = kGroups;
  auto generator = coding::grouped_generator(kGroups, kClasses, companions);
  if (!generator) return runtime::failed(generator.error());
  m.generator = std::move(*generator);
  m.decoder = coding::SumDecoder{};
  for (int w = 0; w < m.shape.workers; ++w) {
    const bool grouped = w < static_cast<int>(kGroups.size());
    runtime::WorkerNet worker;
    if (grouped) {
      worker.classes = kGroups[static_cast<std::size_t>(w)];
    } else {
      for (int c = 0; c < kClasses; ++c) worker.classes.push_back(c);
    }
    const auto net = net_of(size, 2, static_cast<int>(worker.classes.size()), static_cast<std::uint64_t>(w) + 1);
    auto bytes = gpu::to_onnx(net);
    if (!bytes) return runtime::failed(bytes.error().what);
    worker.file = "random" + std::to_string(w) + ".onnx";
    worker.multiply_adds = gpu::multiply_adds(net);
    worker.parameters = gpu::parameters(net);
    worker.bytes = static_cast<std::int64_t>(bytes->size());
    model.files[worker.file] = std::move(*bytes);
    m.workers.push_back(std::move(worker));
  }
  m.source_multiply_adds = gpu::multiply_adds(net_of(size, 1, kClasses, 1));
  m.source_sha256 = std::string(64, '0');
  return model;
}

runtime::Expected<double> cluster_p50_ms(const std::filesystem::path& directory, const NetSize& size, int companions,
                                         int requests) {
  const auto model = random_model(size, companions);
  if (!model) return tl::unexpected(model.error());
  if (auto saved = runtime::save_model(*model, directory / "model"); !saved) return tl::unexpected(saved.error());
  auto made = make_local_cluster(directory / "cluster", directory / "model", model->manifest);
  if (!made) return tl::unexpected(made.error());
  auto session = Session::start(made->cluster, made->file, made->logs);
  if (!session) return tl::unexpected(session.error());
  if (auto ready = (*session)->wait_ready(std::chrono::seconds{30}); !ready) return tl::unexpected(ready.error());
  const std::vector<float> item(static_cast<std::size_t>(gpu::elements(model->manifest.input)), 0.25F);
  std::vector<double> ms;
  for (int i = 0; i < requests + requests / 4 && !interrupted; ++i) {
    const auto begun = Clock::now();
    const auto reply = (*session)->client().infer(item, std::chrono::seconds{2});
    if (!reply) return tl::unexpected(reply.error());
    if (i >= requests / 4)  // the rest warmed up
      ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begun).count());
  }
  if (interrupted) return runtime::failed("interrupted");
  return quantile(ms, 0.5);
}

}  // namespace

runtime::Expected<double> local_p50_ms(const gpu::Network& net, int threads, int runs) {
  auto device = gpu::make_cpu_device({threads});
  if (!device) return runtime::failed(device.error().what);
  auto compiled = (*device)->compile(net, {});
  if (!compiled) return runtime::failed(compiled.error().what);
  std::vector<float> input(static_cast<std::size_t>((*compiled)->input_elements()), 0.25F);
  std::vector<float> output(static_cast<std::size_t>((*compiled)->output_elements()));
  std::vector<double> ms;
  for (int i = 0; i < runs + runs / 4; ++i) {
    const auto begun = Clock::now();
    if (auto ran = (*compiled)->run(input, output); !ran) return runtime::failed(ran.error().what);
    if (i >= runs / 4) ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begun).count());
  }
  return quantile(ms, 0.5);
}

runtime::Expected<std::vector<CrossingRow>> measure_crossing(const std::filesystem::path& directory,
                                                             const std::vector<NetSize>& sizes, int requests) {
  std::vector<CrossingRow> rows;
  Progress bar("larger nets, random weights", static_cast<std::int64_t>(sizes.size()));
  for (const auto& size : sizes) {
    const auto whole = net_of(size, 1, kClasses, 1);
    CrossingRow row;
    row.macs = gpu::multiply_adds(whole);
    const std::vector<std::pair<double*, std::function<runtime::Expected<double>()>>> measures{
        {&row.subnet_ms, [&] { return local_p50_ms(net_of(size, 2, 2, 1), 1, requests); }},
        {&row.local1_ms, [&] { return local_p50_ms(whole, 1, requests); }},
        {&row.local2_ms, [&] { return local_p50_ms(whole, 2, requests); }},
        {&row.none_ms, [&] { return cluster_p50_ms(directory, size, 0, requests); }},
        {&row.parity_ms, [&] { return cluster_p50_ms(directory, size, 2, requests); }}};
    for (const auto& [into, measure] : measures) {
      const auto value = measure();
      if (!value) return tl::unexpected(value.error());
      *into = *value;
    }
    rows.push_back(row);
    bar.at(static_cast<std::int64_t>(rows.size()));
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return rows;
}

std::string crossing_text(const std::vector<CrossingRow>& rows) {
  std::vector<std::vector<std::string>> cells{{"whole net, M multiply-adds", "local 1 thread ms", "local 2 threads ms", "none (5) ms", "parity (5 of 7) ms", "one sub-net alone ms"}};
  for (const auto& r : rows)
    cells.push_back({fixed(static_cast<double>(r.macs) / 1e6, 1), fixed(r.local1_ms, 2), fixed(r.local2_ms, 2),
                     fixed(r.none_ms, 2), fixed(r.parity_ms, 2), fixed(r.subnet_ms, 2)});
  const auto first = [&](auto distributed, auto local) -> std::string {
    for (const auto& r : rows)
      if (r.*distributed < r.*local) return "pays from " + fixed(static_cast<double>(r.macs) / 1e6, 0) + " M multiply-adds";
    return "does not pay up to " + fixed(static_cast<double>(rows.back().macs) / 1e6, 0) + " M multiply-adds";
  };
  using Row = CrossingRow;
  return table(cells) + "On this machine, all workers on the same cores, distributing " +
         first(&Row::none_ms, &Row::local1_ms) + " (none) against one thread here, and " +
         first(&Row::none_ms, &Row::local2_ms) + " against two; with any 5 of 7 it " +
         first(&Row::parity_ms, &Row::local1_ms) + " against one thread and " + first(&Row::parity_ms, &Row::local2_ms) +
         " against two.\nA machine for each worker would wait for one sub-net alone and one round trip.\n";
}

nlohmann::json to_json(const std::vector<CrossingRow>& rows) {
  nlohmann::json out = nlohmann::json::array();
  for (const auto& r : rows)
    out.push_back({{"macs", r.macs}, {"subnet_ms", r.subnet_ms}, {"local1_ms", r.local1_ms}, {"local2_ms", r.local2_ms},
                   {"none_ms", r.none_ms}, {"parity_ms", r.parity_ms}});
  return out;
}

}  // namespace coppice::apps
