#include "apps/assembly.hpp"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <optional>

#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "gpu/class_groups.hpp"
#include "gpu/onnx.hpp"
#include "runtime/cluster.hpp"
#include "runtime/sha256.hpp"

namespace coppice::apps {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using runtime::bad_input;
using runtime::Expected;
using runtime::failed;

constexpr std::size_t kNetsBytesMax = 1U << 20, kManifestBytesMax = 16U << 20, kNetBytesMax = 64U << 20;
constexpr int kFolds = 5;
// Per-sample weight penalties to choose from; the shipped nets' best, 3e-4, lies well inside.
constexpr std::array kPenalties{1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2};
// To rank penalties: at 30 steps of 100 the losses order alike, in a quarter of the time.
constexpr int kRankingIterations = 30;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// ---- nets.json -----------------------------------------------------------------------------------------------------

// Thrown and caught in this file alone.
struct Fault {
  std::string what;
};

template <class T>
T field(const json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end()) throw Fault{std::string(key) + ": missing"};
  if (std::is_integral_v<T> && !found->is_number_integer()) throw Fault{std::string(key) + ": must be a whole number"};
  try {
    return found->template get<T>();
  } catch (const json::exception&) {
    throw Fault{std::string(key) + ": of the wrong type"};
  }
}

std::string file_field(const json& object, const char* key) {
  auto file = field<std::string>(object, key);
  if (!runtime::is_plain_name(file)) throw Fault{std::string(key) + ": \"" + file + "\" must be a plain file name"};
  return file;
}

std::vector<NetFile> files_field(const json& object, const char* key) {
  std::vector<NetFile> files;
  for (const auto& entry : field<std::vector<json>>(object, key))
    files.push_back({file_field(entry, "file"), field<std::vector<int>>(entry, "classes")});
  return files;
}

gpu::Normalisation normalisation_field(const json& input) {
  const gpu::Normalisation read{field<float>(input, "mean"), field<float>(input, "std")};
  if (!std::isfinite(read.mean) || !std::isfinite(read.deviation) || !(read.deviation > 0))
    throw Fault{"input: mean and std must be finite and std above 0"};
  return read;
}

std::vector<int> sorted(std::vector<int> classes) {
  std::ranges::sort(classes);
  return classes;
}

// Consecutive groups that are coded together: all of them where there are no blocks.
struct GroupRun {
  std::size_t first = 0, count = 0;  // of the groups
  std::vector<int> classes;
};

std::vector<GroupRun> blocks_of(const Nets& nets) {
  const auto blocks = at(std::max(1, nets.blocks));
  std::vector<GroupRun> runs;
  for (std::size_t b = 0; b < blocks; ++b) {
    auto& run = runs.emplace_back();
    run.count = nets.groups.size() / blocks;
    run.first = b * run.count;
    for (std::size_t g = run.first; g < run.first + run.count; ++g)
      run.classes.insert(run.classes.end(), nets.groups[g].begin(), nets.groups[g].end());
  }
  return runs;
}

void check_nets(const Nets& nets) {
  constexpr std::int64_t kElementsMax = std::int64_t{1} << 24;
  std::int64_t elements = 1;
  for (const auto extent : nets.input) {
    if (extent < 1 || extent > kElementsMax / elements) throw Fault{"input.shape: must be whole numbers above 0"};
    elements *= extent;
  }
  if (nets.input.empty() || nets.input.size() > 8) throw Fault{"input.shape: must have 1 to 8 extents"};
  if (nets.held_out < 0) throw Fault{"held_out: must not be negative"};
  const auto classes = static_cast<int>(std::min(nets.class_names.size(), at(coding::kClassesMax) + 1));
  if (classes > coding::kClassesMax) throw Fault{"classes: must be at most " + std::to_string(coding::kClassesMax)};
  // How many groups one code takes is a bound of each block's, where there are blocks.
  if (nets.blocks > 0) {
    if (const auto good = gpu::check_groups(nets.groups, classes); !good) throw Fault{"groups: " + good.error().what};
  } else if (const auto coded = coding::grouped_generator(nets.groups, classes, 0); !coded) {
    throw Fault{"groups: " + coded.error()};
  }
  if (nets.subnets.size() != nets.groups.size()) throw Fault{"subnets: must be one for each group"};
  for (std::size_t i = 0; i < nets.subnets.size(); ++i)
    if (nets.subnets[i].classes != nets.groups[i])
      throw Fault{"subnets[" + std::to_string(i) + "].classes: must be groups[" + std::to_string(i) + "]"};
  if (nets.blocks < 0 || nets.blocks > runtime::kBlocksMax) throw Fault{"blocks: must lie in 1.." + std::to_string(runtime::kBlocksMax)};
  if (nets.blocks > 0 && nets.groups.size() % at(nets.blocks) != 0)
    throw Fault{"blocks: " + std::to_string(nets.groups.size()) + " groups cannot be shared out over " + std::to_string(nets.blocks)};
  const auto blocks = blocks_of(nets);
  for (const auto& companion : nets.companions)
    if (std::ranges::none_of(blocks, [&](const auto& block) { return sorted(companion.classes) == sorted(block.classes); }))
      throw Fault{"companions: " + companion.file + " must score every class " + (nets.blocks > 0 ? "of a block " : "") + "once"};
}

Nets read_nets(const json& object) {
  if (field<int>(object, "schema") != 1) throw Fault{"schema: this program reads 1"};
  Nets nets;
  nets.data = field<std::string>(object, "data");
  const auto input = field<json>(object, "input");
  nets.input = field<gpu::Dims>(input, "shape");
  nets.normalisation = normalisation_field(input);
  nets.class_names = field<std::vector<std::string>>(object, "classes");
  nets.held_out = field<std::int64_t>(object, "held_out");
  nets.groups = field<std::vector<std::vector<int>>>(object, "groups");
  nets.base = file_field(object, "base");
  nets.control = file_field(object, "control");
  nets.subnets = files_field(object, "subnets");
  nets.companions = files_field(object, "companions");
  if (object.contains("blocks")) nets.blocks = field<int>(object, "blocks");
  check_nets(nets);
  return nets;
}

Expected<json> read_json(const fs::path& file, std::size_t bytes_max) {
  const auto text = runtime::read_file(AT_FDCWD, file, file, {.bytes_max = bytes_max});
  if (!text) return tl::unexpected(text.error());
  const auto shallow = [](int depth, json::parse_event_t, json&) {  // values are copied by recursion
    if (depth > 16) throw Fault{"nested too deeply"};
    return true;
  };
  try {
    auto object = json::parse(*text, shallow, false);
    if (object.is_discarded()) return bad_input(file.string() + ": not JSON");
    return object;
  } catch (const Fault& fault) {
    return bad_input(file.string() + ": " + fault.what);
  }
}

// ---- the workers of a scheme ---------------------------------------------------------------------------------------

// Who answers with what, before any file is read.
struct Layout {
  std::vector<NetFile> workers;
  coding::CodeShape shape;
  std::vector<std::vector<int>> groups;
  coding::Generator generator;
  bool fitted = false;  // a decoder is, rather than a sum taken
  std::vector<coding::BlockCode> blocks = {};  // in place of the generator
};

// Each block's sub-nets, then its companions.
Expected<Layout> blocked(const Nets& nets) {
  Layout layout{{}, {}, nets.groups, {}, true, {}};
  for (const auto& run : blocks_of(nets)) {
    std::vector<std::vector<int>> own;  // the groups, as the block counts its classes
    int next = 0;
    for (std::size_t g = run.first; g < run.first + run.count; ++g) {
      layout.workers.push_back(nets.subnets[g]);
      auto& group = own.emplace_back();
      for (std::size_t c = 0; c < nets.groups[g].size(); ++c) group.push_back(next++);
    }
    int companions = 0;
    for (const auto& companion : nets.companions) {
      if (sorted(companion.classes) != sorted(run.classes)) continue;
      layout.workers.push_back(companion);
      ++companions;
    }
    auto generator = coding::grouped_generator(own, next, companions);
    if (!generator) return bad_input(generator.error());
    const coding::CodeShape shape{static_cast<int>(run.count) + companions, static_cast<int>(run.count)};
    if (!layout.blocks.empty() && shape != layout.shape)
      return bad_input("nets.json: every block must have as many companions as the first");
    layout.shape = shape;
    layout.blocks.push_back({run.classes, coding::with_none(*std::move(generator)), coding::RidgeDecoder{}});
  }
  return layout;
}

Expected<Layout> grouped(const Nets& nets, bool with_companions) {
  Layout layout{nets.subnets, {}, nets.groups, {}, true};
  const int companions = with_companions ? static_cast<int>(nets.companions.size()) : 0;
  if (with_companions) layout.workers.insert(layout.workers.end(), nets.companions.begin(), nets.companions.end());
  layout.shape = {static_cast<int>(layout.workers.size()), static_cast<int>(nets.groups.size())};
  auto generator = coding::grouped_generator(nets.groups, static_cast<int>(nets.class_names.size()), companions);
  if (!generator) return bad_input(generator.error());
  layout.generator = *std::move(generator);
  return layout;
}

Layout copies(const Nets& nets, const std::string& file, std::size_t count) {
  const auto all = all_classes(static_cast<int>(nets.class_names.size()));
  const auto classes = static_cast<int>(all.size());
  return {std::vector<NetFile>(count, {file, all}),
          {static_cast<int>(count), 1},
          {all},
          {classes, std::vector<coding::WorkerRows>(count, coding::select_rows(all, classes))},
          false};
}

Expected<Layout> layout_of(const Nets& nets, coding::Scheme scheme) {
  using coding::Scheme;
  switch (scheme) {
    case Scheme::none:
      if (nets.blocks > 0) return bad_input("nets.json has blocks, and they are coded: take scheme parity");
      return grouped(nets, false);
    case Scheme::parity:
      if (nets.blocks > 0) return blocked(nets);
      if (nets.companions.empty()) return bad_input("nets.json lists no companions, which scheme parity needs");
      return grouped(nets, true);
    case Scheme::control:
      return copies(nets, nets.control, nets.subnets.size() + nets.companions.size());
    case Scheme::replicate:
      return copies(nets, nets.base, 2);
    case Scheme::sparse:
    case Scheme::harmonic:
    case Scheme::wide:
      break;
  }
  return bad_input("scheme " + std::string(coding::name(scheme)) +
                   " cannot be made from trained nets yet: none, parity, control and replicate can");
}

// ---- files ---------------------------------------------------------------------------------------------------------

struct LoadedNet {
  std::vector<std::byte> bytes;
  gpu::Network network;
  std::int64_t outputs = 0;
};

Expected<LoadedNet> load_net(const fs::path& file) {
  const auto text = runtime::read_file(AT_FDCWD, file, file, {.bytes_max = kNetBytesMax});
  if (!text) return tl::unexpected(text.error());
  const auto* first = reinterpret_cast<const std::byte*>(text->data());
  LoadedNet net{{first, first + text->size()}, {}, 0};
  auto network = gpu::parse_onnx(net.bytes, file.string());
  if (!network) return tl::unexpected(reported(network.error()));
  const auto shapes = gpu::infer_shapes(*network);
  if (!shapes) return tl::unexpected(reported(shapes.error()));
  net.outputs = gpu::elements(shapes->back());
  net.network = *std::move(network);
  return net;
}

Expected<void> add_worker(runtime::Model& model, const fs::path& directory, const NetFile& worker) {
  auto net = load_net(directory / worker.file);
  if (!net) return tl::unexpected(net.error());
  if (at(net->outputs) != worker.classes.size())
    return bad_input((directory / worker.file).string() + ": answers with " + std::to_string(net->outputs) +
                     " scores, nets.json gives it " + std::to_string(worker.classes.size()) + " classes");
  model.manifest.workers.push_back({worker.file, worker.classes, gpu::multiply_adds(net->network),
                                    gpu::parameters(net->network), static_cast<std::int64_t>(net->bytes.size())});
  model.files[worker.file] = std::move(net->bytes);
  return {};
}

Expected<runtime::Model> build(const fs::path& directory, const Nets& nets, const LoadedNet& base, Layout layout,
                               coding::Scheme scheme) {
  runtime::Model model;
  auto& m = model.manifest;
  m.name = nets.data + "/" + std::string(coding::name(scheme));
  m.source_sha256 = runtime::sha256(base.bytes);
  m.source_multiply_adds = gpu::multiply_adds(base.network);
  m.input = nets.input;
  m.normalisation = nets.normalisation;
  m.class_names = nets.class_names;
  m.groups = std::move(layout.groups);
  m.scheme = scheme;
  m.shape = layout.shape;
  m.generator = std::move(layout.generator);
  m.blocks = std::move(layout.blocks);
  m.decoder = coding::SumDecoder{};
  for (const auto& worker : layout.workers)
    if (auto added = add_worker(model, directory, worker); !added) return tl::unexpected(added.error());
  return model;
}

// ---- fitting -------------------------------------------------------------------------------------------------------

struct Fitting {
  const coding::Generator& generator;
  const runtime::OfflineResponses& responses;
  const std::vector<std::uint16_t>& labels;
  int missing = 2;      // how many workers a penalty is judged without
  int arrived_min = 1;  // sets with fewer workers are not fitted
};

// A block's sets are fitted from the largest down, as long as they are no more than this.
constexpr std::size_t kBlockSetsMax = 128;

// All samples but those of `fold`; all samples where it is kFolds.
coding::FitData fit_data(const Fitting& f, int fold) {
  const auto width = at(f.generator.total_floats());
  coding::FitData data;
  for (std::size_t i = 0; i < f.labels.size(); ++i) {
    if (static_cast<int>(i % kFolds) == fold) continue;
    const auto row = f.responses.values.begin() + static_cast<std::ptrdiff_t>(i * width);
    data.responses.insert(data.responses.end(), row, row + static_cast<std::ptrdiff_t>(width));
    data.labels.push_back(f.labels[i]);
  }
  return data;
}

// Mean of -log p(true class) over the samples of `fold` when only `present` answer.
Expected<double> log_loss(const Fitting& f, const coding::Decoder& decoder, int fold, coding::ArrivalSet present) {
  double sum = 0;
  int count = 0;
  for (auto i = at(fold); i < f.labels.size(); i += kFolds, ++count) {
    const auto scores = coding::decode(
        decoder, f.generator, runtime::arrivals_of(f.generator, f.responses, static_cast<std::int64_t>(i), present));
    if (!scores) return failed(scores.error().what);
    sum -= static_cast<double>(scores->scores[f.labels[i]]);
  }
  return sum / count;
}

// What a penalty is judged by: the log-loss with everyone there and, counting as much, with two missing.
Expected<double> fold_loss(const Fitting& f, double l2, int fold) {
  const int n = static_cast<int>(f.generator.workers.size()), missing = std::min(f.missing, n - 1);
  const auto decoder = coding::fit_logistic(
      f.generator, fit_data(f, fold), {.l2 = l2, .iterations_max = kRankingIterations, .arrived_min = n - missing});
  if (!decoder) return failed(decoder.error().what);
  const auto clean = log_loss(f, *decoder, fold, sets_without(n, 0).front());
  if (!clean) return clean;
  const auto sets = sets_without(n, missing);
  double sum = 0;
  for (const auto set : sets) {
    const auto loss = log_loss(f, *decoder, fold, set);
    if (!loss) return loss;
    sum += *loss;
  }
  return *clean + sum / static_cast<double>(sets.size());
}

Expected<double> choose_penalty(const Fitting& f) {
  Progress bar("cross-validating the decoder", static_cast<std::int64_t>(kPenalties.size()) * kFolds);
  std::int64_t done = 0;
  std::optional<std::pair<double, double>> best;  // loss, penalty
  for (const double l2 : kPenalties) {
    double sum = 0;
    for (int fold = 0; fold < kFolds; ++fold) {
      const auto loss = fold_loss(f, l2, fold);
      if (!loss) return loss;
      sum += *loss;
      bar.at(++done);
    }
    if (!best || sum < best->first) best = {sum, l2};
  }
  return best->second;
}

// Every non-empty set (of a block, as many as are asked for), so that whoever is left can give an estimate.
Expected<coding::LogisticDecoder> fit_all(const Fitting& f, double l2) {
  std::optional<Progress> bar;
  auto decoder = coding::fit_logistic(f.generator, fit_data(f, kFolds), {.l2 = l2, .arrived_min = f.arrived_min}, [&](int done, int total) {
    if (!bar) bar.emplace("fitting a decoder an arrival set", total);
    bar->at(done);
  });
  if (!decoder) return failed(decoder.error().what);
  return *std::move(decoder);
}

// The penalty is chosen once and kept for further blocks.
Expected<coding::Decoder> fit_logistic(Assembly& assembly, const Fitting& fitting) {
  auto begun = std::chrono::steady_clock::now();
  if (assembly.l2 == 0) {
    const auto l2 = choose_penalty(fitting);
    if (!l2) return tl::unexpected(l2.error());
    assembly.l2 = *l2;
  }
  assembly.choose_seconds += seconds_since(begun);
  begun = std::chrono::steady_clock::now();
  auto decoder = fit_all(fitting, assembly.l2);
  if (!decoder) return tl::unexpected(decoder.error());
  assembly.fit_seconds += seconds_since(begun);
  return *std::move(decoder);
}

Expected<coding::Decoder> fitted(Assembly& assembly, const Fitting& fitting, DecoderKind kind) {
  if (kind == DecoderKind::logistic) return fit_logistic(assembly, fitting);
  auto decoder = coding::fit_posterior(fitting.generator, fit_data(fitting, kFolds));
  if (!decoder) return failed(decoder.error().what);
  return *std::move(decoder);
}

// The fewest workers of a block whose sets are still fitted.
int arrived_min(int workers) {
  std::size_t sets = 1;
  int missing = 0;
  while (missing + 1 < workers && (sets += sets_without(workers, missing + 1).size()) <= kBlockSetsMax) ++missing;
  return workers - missing;
}

// Each block's decoder, fitted to its own columns and to its own labels: its classes in turn, and none of these.
Expected<void> fit_blocks(Assembly& assembly, const runtime::OfflineResponses& all,
                          const std::vector<std::uint16_t>& truth, DecoderKind kind) {
  const auto width = all.values.size() / truth.size();
  std::size_t column = 0;
  for (auto& block : assembly.model.manifest.blocks) {
    const auto own = at(block.generator.total_floats());
    runtime::OfflineResponses responses{all.items, {}};
    std::vector<std::uint16_t> labels;
    for (std::size_t i = 0; i < truth.size(); ++i) {
      const auto row = all.values.begin() + static_cast<std::ptrdiff_t>(i * width + column);
      responses.values.insert(responses.values.end(), row, row + static_cast<std::ptrdiff_t>(own));
      const auto found = std::ranges::find(block.classes, static_cast<int>(truth[i]));
      labels.push_back(static_cast<std::uint16_t>(found - block.classes.begin()));
    }
    const auto workers = static_cast<int>(block.generator.workers.size());
    auto decoder = fitted(assembly, {block.generator, responses, labels, 1, arrived_min(workers)}, kind);
    if (!decoder) return tl::unexpected(decoder.error());
    block.decoder = *std::move(decoder);
    column += own;
  }
  return {};
}

Expected<void> fit(Assembly& assembly, const gpu::Dataset& held_out, DecoderKind kind) {
  auto& manifest = assembly.model.manifest;
  if (kind == DecoderKind::sum || kind == DecoderKind::ridge) {  // nothing to fit
    if (kind == DecoderKind::sum && !manifest.blocks.empty())
      return bad_input("--decoder sum has no score for none of a block's classes: take logistic, posterior or ridge");
    manifest.decoder = kind == DecoderKind::sum ? coding::Decoder(coding::SumDecoder{}) : coding::RidgeDecoder{};
    return {};  // blocks have ridge decoders from the start
  }
  if (held_out.count() < 2 * kFolds)
    return bad_input("a decoder is fitted to " + std::to_string(2 * kFolds) + " held-out images or more, not to " +
                     std::to_string(held_out.count()));
  const auto responses = answers_of(assembly.model, held_out, "held-out answers");
  if (!responses) return tl::unexpected(responses.error());
  if (!manifest.blocks.empty()) return fit_blocks(assembly, *responses, held_out.labels, kind);
  auto decoder = fitted(assembly, {manifest.generator, *responses, held_out.labels}, kind);
  if (!decoder) return tl::unexpected(decoder.error());
  manifest.decoder = *std::move(decoder);
  return {};
}

// ---- measuring -----------------------------------------------------------------------------------------------------

// The classes whose scores a worker's rows pass on. Here every row has one.
std::vector<int> classes_of_rows(const runtime::Manifest& manifest, std::size_t w) {
  const auto place = runtime::place_of(manifest, w);
  std::vector<int> classes;
  for (int row = 0; row < place.rows.floats; ++row) {
    const auto first = place.rows.rows.begin() + static_cast<std::ptrdiff_t>(row) * place.classes;
    const auto c = std::find_if(first, first + place.classes, [](float x) { return x != 0.0F; }) - first;
    classes.push_back(manifest.blocks.empty() ? static_cast<int>(c)
                                              : manifest.blocks[w / at(manifest.shape.workers)].classes[at(c)]);
  }
  return classes;
}

double accuracy_alone(const runtime::Manifest& manifest, std::size_t w, const runtime::OfflineResponses& responses,
                      const std::vector<std::uint16_t>& truth) {
  std::size_t column = 0;
  for (std::size_t before = 0; before < w; ++before) column += at(runtime::place_of(manifest, before).rows.floats);
  const auto width = responses.values.size() / truth.size();
  const auto classes = classes_of_rows(manifest, w);
  std::vector<int> picked;
  std::vector<std::uint16_t> wanted;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    if (std::ranges::find(classes, truth[i]) == classes.end()) continue;
    const auto scores = std::span(responses.values).subspan(i * width + column, classes.size());
    picked.push_back(classes[at(runtime::argmax(scores))]);
    wanted.push_back(truth[i]);
  }
  return rounded(runtime::accuracy_percent(picked, wanted));
}

Expected<gpu::Dataset> last_items(gpu::Dataset data, std::int64_t count) {
  if (count > data.count())
    return bad_input("nets.json holds out " + std::to_string(count) + " training images, the data has " +
                     std::to_string(data.count()));
  const auto skipped = static_cast<std::ptrdiff_t>(data.count() - count);
  data.labels.erase(data.labels.begin(), data.labels.begin() + skipped);
  data.pixels.erase(data.pixels.begin(), data.pixels.begin() + skipped * gpu::elements(data.item));
  return data;
}

Expected<void> check_data(const gpu::Dataset& data, const Nets& nets, const fs::path& directory) {
  if (data.item != nets.input)
    return bad_input(directory.string() + " holds images of " + gpu::to_string(data.item) + ", the nets take " +
                     gpu::to_string(nets.input));
  const auto top = std::ranges::max_element(data.labels);
  if (data.labels.empty()) return bad_input(directory.string() + " holds no images");
  if (*top >= nets.class_names.size())
    return bad_input(directory.string() + " has label " + std::to_string(*top) + ", nets.json names " +
                     std::to_string(nets.class_names.size()) + " classes");
  return {};
}

Expected<void> measure(Assembly& assembly, const LoadedNet& base, const gpu::Dataset& test) {
  auto& manifest = assembly.model.manifest;
  const auto base_accuracy = net_accuracy(base.network, test, manifest.normalisation);
  if (!base_accuracy) return tl::unexpected(base_accuracy.error());
  const auto responses = answers_of(assembly.model, test, "test answers");
  if (!responses) return tl::unexpected(responses.error());
  // One beyond what the code promises: how it falls. With blocks, what it promises of all of them at once.
  const int n = manifest.shape.workers, beyond = manifest.blocks.empty() ? 1 : 0;
  const int missing = std::min(n - manifest.shape.needed + beyond, n - 1);
  const auto accuracy = measure_accuracy(manifest, *responses, test.labels, missing);
  if (!accuracy) return tl::unexpected(accuracy.error());
  manifest.accuracy = to_json(*accuracy, *base_accuracy);
  for (std::size_t w = 0; w < manifest.workers.size(); ++w)
    assembly.alone.push_back(accuracy_alone(manifest, w, *responses, test.labels));
  return {};
}

}  // namespace

Expected<Nets> load_nets(const fs::path& directory) {
  const auto file = directory / "nets.json";
  const auto object = read_json(file, kNetsBytesMax);
  if (!object) return tl::unexpected(object.error());
  try {
    return read_nets(*object);
  } catch (const Fault& fault) {
    return bad_input(file.string() + ": " + runtime::one_line(fault.what));
  }
}

Expected<std::optional<FoundNormalisation>> find_normalisation(const fs::path& directory) {
  for (const char* name : {"nets.json", "manifest.json"}) {
    const auto file = directory / name;
    if (!fs::exists(file)) continue;
    const auto object = read_json(file, kManifestBytesMax);
    if (!object) return tl::unexpected(object.error());
    try {
      return FoundNormalisation{normalisation_field(field<json>(*object, "input")), file};
    } catch (const Fault& fault) {
      return bad_input(file.string() + ": " + fault.what + "; or give --mean and --std");
    }
  }
  return std::nullopt;
}

Expected<AssemblyData> load_assembly_data(const fs::path& directory, const Nets& nets) {
  auto train = gpu::load_dataset(directory, gpu::Split::train);
  if (!train) return tl::unexpected(reported(train.error()));
  auto test = gpu::load_dataset(directory, gpu::Split::test);
  if (!test) return tl::unexpected(reported(test.error()));
  for (const auto* data : {&*train, &*test})
    if (auto fits = check_data(*data, nets, directory); !fits) return tl::unexpected(fits.error());
  auto held_out = last_items(*std::move(train), nets.held_out);
  if (!held_out) return tl::unexpected(held_out.error());
  return AssemblyData{*std::move(held_out), *std::move(test)};
}

Expected<Assembly> assemble(const fs::path& directory, const Nets& nets, const AssemblyData& data,
                            coding::Scheme scheme, DecoderKind decoder) {
  auto layout = layout_of(nets, scheme);
  if (!layout) return tl::unexpected(layout.error());
  const bool fitted = layout->fitted;
  const auto base = load_net(directory / nets.base);
  if (!base) return tl::unexpected(base.error());
  auto model = build(directory, nets, *base, *std::move(layout), scheme);
  if (!model) return tl::unexpected(model.error());
  Assembly assembly;
  assembly.model = *std::move(model);
  if (fitted)
    if (auto done = fit(assembly, data.held_out, decoder); !done) return tl::unexpected(done.error());
  if (auto done = measure(assembly, *base, data.test); !done) return tl::unexpected(done.error());
  return assembly;
}

runtime::Error reported(const gpu::Error& error) {
  using enum gpu::ErrorCode;
  const bool no_fault_of_input = error.code == device_failed || error.code == device_unavailable || error.code == stopped;
  return {no_fault_of_input ? runtime::ErrorCode::failed : runtime::ErrorCode::bad_input, runtime::one_line(error.what)};
}

}  // namespace coppice::apps
