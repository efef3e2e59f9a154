// coppice evaluate: how often a net, or a decomposed model with workers missing, is right.
#include <algorithm>
#include <memory>
#include <optional>

#include "apps/assembly.hpp"
#include "apps/command.hpp"
#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "apps/table.hpp"
#include "gpu/onnx.hpp"
#include "runtime/replay.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string model, directory, data, record;
  std::int64_t record_items = 500;
  std::optional<int> missing;
  std::optional<float> mean, deviation;
};

// Of Fashion-MNIST's training images: what is taken where nobody says otherwise.
constexpr gpu::Normalisation kFashionMnist{0.2860F, 0.3530F};

runtime::Expected<gpu::Normalisation> normalisation_of(const Options& options) {
  gpu::Normalisation normalisation = kFashionMnist;
  if (!options.mean || !options.deviation) {
    const auto beside = std::filesystem::absolute(options.model).parent_path();
    const auto found = find_normalisation(beside);
    if (!found) return tl::unexpected(found.error());
    if (*found) normalisation = (*found)->normalisation;
    const auto origin =
        *found ? (*found)->file.string() : "Fashion-MNIST's: nets.json and manifest.json are not in " + beside.string();
    std::fprintf(stderr, "normalisation: mean %s, std %s (%s)\n",
                 fixed(static_cast<double>(options.mean.value_or(normalisation.mean)), 4).c_str(),
                 fixed(static_cast<double>(options.deviation.value_or(normalisation.deviation)), 4).c_str(),
                 origin.c_str());
  }
  normalisation.mean = options.mean.value_or(normalisation.mean);
  normalisation.deviation = options.deviation.value_or(normalisation.deviation);
  return normalisation;
}

runtime::Expected<void> evaluate_net(const Options& options, const gpu::Dataset& data, const Shell& shell) {
  const auto net = gpu::load_onnx(options.model);
  if (!net) return tl::unexpected(reported(net.error()));
  const auto normalisation = normalisation_of(options);
  if (!normalisation) return tl::unexpected(normalisation.error());
  const auto accuracy = net_accuracy(*net, data, *normalisation);
  if (!accuracy) return tl::unexpected(accuracy.error());
  if (shell.json) {
    shell.print({{"model", options.model},
                 {"accuracy", *accuracy},
                 {"items", data.count()},
                 {"macs", gpu::multiply_adds(*net)},
                 {"parameters", gpu::parameters(*net)},
                 {"mean", normalisation->mean},
                 {"std", normalisation->deviation}});
  } else {
    std::fputs(table({{"model", "accuracy %", "items", "multiply-adds", "parameters"},
                      {options.model, fixed(*accuracy, 2), std::to_string(data.count()),
                       std::to_string(gpu::multiply_adds(*net)), std::to_string(gpu::parameters(*net))}})
                   .c_str(),
               stdout);
  }
  return {};
}

std::string pattern_text(const std::vector<int>& pattern) {
  std::string text;
  for (const int worker : pattern) text += (text.empty() ? "" : ", ") + std::to_string(worker);
  return text;
}

std::string decoder_of(const runtime::Manifest& manifest) {
  return std::string(coding::name(manifest.blocks.empty() ? manifest.decoder : manifest.blocks.front().decoder));
}

std::string accuracy_text(const runtime::Manifest& manifest, const Accuracy& accuracy, const nlohmann::json& base) {
  std::vector<std::vector<std::string>> rows{{"missing", "sets", "mean %", "worst %", "worst set"}};
  if (base.is_number()) rows.push_back({"(base net)", "", fixed(base.get<double>(), 2), "", ""});
  rows.push_back({"0", "1", fixed(accuracy.clean, 2), fixed(accuracy.clean, 2), ""});
  for (const auto& row : accuracy.missing)
    rows.push_back({std::to_string(row.count), std::to_string(row.patterns), fixed(row.mean, 2), fixed(row.worst, 2),
                    pattern_text(row.worst_pattern)});
  return table(rows) + manifest.name + ": any " + std::to_string(manifest.shape.needed) + " of " +
         std::to_string(manifest.shape.workers) +
         (manifest.blocks.empty() ? "" : " in each of " + std::to_string(manifest.blocks.size()) + " blocks (missing: in every block at once)") +
         ", decoder " + decoder_of(manifest) + "\n";
}

// What decompose measured the base net at; null where the manifest does not say.
nlohmann::json base_of(const runtime::Manifest& manifest) {
  if (!manifest.accuracy.is_object()) return {};
  return manifest.accuracy.value("base", nlohmann::json());
}

// One recording a worker, for device = "replay:FILE".
runtime::Expected<void> record_answers(const Options& options, const runtime::Model& model, const gpu::Dataset& data) {
  std::error_code fault;
  std::filesystem::create_directories(options.record, fault);
  if (fault) return runtime::bad_input("cannot make " + options.record + ": " + fault.message());
  Progress bar("recording", static_cast<std::int64_t>(model.manifest.workers.size()));
  for (std::size_t w = 0; w < model.manifest.workers.size(); ++w) {
    const auto recording = runtime::record_replay(model, w, data, options.record_items);
    if (!recording) return tl::unexpected(recording.error());
    const auto file = std::filesystem::path(options.record) / ("worker" + std::to_string(w) + ".json");
    if (auto written = write_whole(file, {recording->dump(), "\n"}); !written) return written;
    bar.at(static_cast<std::int64_t>(w) + 1);
  }
  return {};
}

runtime::Expected<void> evaluate_directory(const Options& options, const gpu::Dataset& data, const Shell& shell) {
  const auto model = runtime::load_model(options.directory);
  if (!model) return tl::unexpected(model.error());
  const auto& manifest = model->manifest;
  if (const auto top = std::ranges::max(data.labels); static_cast<std::size_t>(top) >= manifest.class_names.size())
    return runtime::bad_input(options.data + ": has label " + std::to_string(top) + ", and " + options.directory + " knows " +
                              std::to_string(manifest.class_names.size()) + " classes");
  if (!options.record.empty())
    if (auto recorded = record_answers(options, *model, data); !recorded) return recorded;
  // Asked for before the nets are run: a --missing that cannot be is refused at once.
  const int missing = options.missing.value_or(std::min(manifest.blocks.empty() ? 2 : 1, manifest.shape.workers - 1));
  if (auto possible = check_missing(manifest, missing); !possible) return possible;
  const auto responses = answers_of(*model, data, "answers of " + std::to_string(manifest.workers.size()) + " workers");
  if (!responses) return tl::unexpected(responses.error());
  const auto accuracy = measure_accuracy(manifest, *responses, data.labels, missing);
  if (!accuracy) return tl::unexpected(accuracy.error());
  const auto base = base_of(manifest);
  if (shell.json) {
    auto json = to_json(*accuracy, base);
    json["decoder"] = decoder_of(manifest);
    if (!manifest.blocks.empty()) json["blocks"] = manifest.blocks.size();
    json["scheme"] = coding::name(manifest.scheme);
    json["n"] = manifest.shape.workers;
    json["k"] = manifest.shape.needed;
    shell.print(json);
  } else {
    std::fputs(accuracy_text(manifest, *accuracy, base).c_str(), stdout);
  }
  return {};
}

runtime::Expected<void> evaluate(const Options& options, const Shell& shell) {
  if (options.model.empty() == options.directory.empty())
    return runtime::bad_input("give --model for one net or --dir for a decomposed model, and one of them only");
  if (!options.directory.empty() && (options.mean || options.deviation))
    return runtime::bad_input("--mean and --std go with --model; a decomposed model's manifest has its own");
  if (options.directory.empty() && !options.record.empty()) return runtime::bad_input("--record-replay goes with --dir");
  if (options.directory.empty() && options.missing) return runtime::bad_input("--missing goes with --dir");
  const auto data = gpu::load_dataset(options.data, gpu::Split::test);
  if (!data) return tl::unexpected(reported(data.error()));
  if (data->labels.empty()) return runtime::bad_input(options.data + " holds no test images");
  return options.directory.empty() ? evaluate_net(options, *data, shell) : evaluate_directory(options, *data, shell);
}

}  // namespace

void add_evaluate(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto* command = add_command(
      app, shell, "evaluate", "Accuracy on test images: of a net, or of a decomposed model with workers missing",
      "coppice evaluate --dir model/ --missing 2", [options, &shell] { return evaluate(*options, shell); });
  command->add_option("--model", options->model, "one net (ONNX)");
  command->add_option("--dir", options->directory, "or a decomposed model's directory");
  command
      ->add_option("--missing", options->missing, "with --dir: every set of up to so many missing workers (default 2; with blocks: in every block at once, default 1)")
      ->check(CLI::Range(0, coding::kWorkersMax));
  auto* record = command->add_option("--record-replay", options->record,
                                     "with --dir: write what each worker's net answers, and when, to DIR/workerI.json");
  command->add_option("--record-items", options->record_items, "to how many of the test images")
      ->check(CLI::Range(1, 1'000'000))->capture_default_str()->needs(record);
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")
      ->envname("COPPICE_DATA")
      ->capture_default_str();
  command->add_option("--mean", options->mean, "with --model: pixels are (value / 255 - mean) / std");
  command
      ->add_option("--std", options->deviation,
                   "with --model; both default to those of a nets.json or manifest.json beside it")
      ->check(CLI::PositiveNumber);
}

}  // namespace coppice::apps
