// coppice decompose: one trained net as many small ones, the code over their answers, and what it costs in accuracy.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>

#include "apps/assembly.hpp"
#include "apps/command.hpp"
#include "apps/subnets.hpp"
#include "apps/table.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string model, nets, data, out, scheme = "parity", ranking = "taylor", report;
  std::optional<int> groups;
  DecoderKind decoder = DecoderKind::logistic;
  SubnetsOptions subnets;
};

double share_of_base(const runtime::Manifest& manifest, const runtime::WorkerNet& worker) {
  return static_cast<double>(worker.multiply_adds) / static_cast<double>(manifest.source_multiply_adds);
}

std::string names_of(const runtime::Manifest& manifest, const std::vector<int>& classes) {
  if (classes.size() == manifest.class_names.size()) return "all " + std::to_string(classes.size());
  std::string text;
  for (const int c : classes) text += (text.empty() ? "" : ", ") + manifest.class_names[static_cast<std::size_t>(c)];
  return text;
}

std::string code_of(const runtime::Manifest& manifest) {
  return "any " + std::to_string(manifest.shape.needed) + " of " + std::to_string(manifest.shape.workers) +
         (manifest.blocks.empty() ? "" : " in each of " + std::to_string(manifest.blocks.size()) + " blocks");
}

std::string percent(const nlohmann::json& value) {
  return value.is_number() ? fixed(value.get<double>(), 2) + " %" : "-";
}

std::string summary(const Assembly& assembly, const std::string& out) {
  const auto& manifest = assembly.model.manifest;
  std::vector<std::vector<std::string>> rows{
      {"worker", "classes", "multiply-adds", "share of base", "parameters", "accuracy alone %"}};
  for (std::size_t w = 0; w < manifest.workers.size(); ++w) {
    const auto& worker = manifest.workers[w];
    rows.push_back({std::to_string(w) + " " + worker.file, names_of(manifest, worker.classes),
                    std::to_string(worker.multiply_adds), fixed(100 * share_of_base(manifest, worker), 1) + " %",
                    std::to_string(worker.parameters), fixed(assembly.alone[w], 2)});
  }
  std::string text = table(rows) + "\n" + manifest.name + ", " + code_of(manifest) + ": base " +
                     percent(manifest.accuracy["base"]) + ", all workers " + percent(manifest.accuracy["clean"]);
  for (const auto& row : manifest.accuracy["missing"])
    text += ", " + std::to_string(row["count"].get<int>()) + " missing " + percent(row["mean"]) + " (worst " +
            percent(row["worst"]) + ")";
  return text + "\nwritten to " + out + "\n";
}

nlohmann::json document(const Assembly& assembly, const std::string& out) {
  const auto& manifest = assembly.model.manifest;
  nlohmann::json workers = nlohmann::json::array();
  for (std::size_t w = 0; w < manifest.workers.size(); ++w) {
    const auto& worker = manifest.workers[w];
    workers.push_back({{"file", worker.file},
                       {"classes", worker.classes},
                       {"multiply_adds", worker.multiply_adds},
                       {"share", share_of_base(manifest, worker)},
                       {"parameters", worker.parameters},
                       {"bytes", worker.bytes},
                       {"accuracy_alone", assembly.alone[w]}});
  }
  auto json = manifest.accuracy;
  json["out"] = out;
  json["name"] = manifest.name;
  json["scheme"] = coding::name(manifest.scheme);
  json["n"] = manifest.shape.workers;
  json["k"] = manifest.shape.needed;
  if (!manifest.blocks.empty()) json["blocks"] = manifest.blocks.size();
  json["decoder"] = coding::name(manifest.blocks.empty() ? manifest.decoder : manifest.blocks.front().decoder);
  json["l2"] = assembly.l2 > 0 ? nlohmann::json(assembly.l2) : nlohmann::json();
  json["choose_seconds"] = assembly.choose_seconds;
  json["fit_seconds"] = assembly.fit_seconds;
  json["workers"] = std::move(workers);
  return json;
}

// Fitting takes a while; a place that cannot be written is better known before it. Nothing is made yet.
runtime::Expected<void> check_writable(const std::filesystem::path& out) {
  std::error_code ignored;
  auto nearest = std::filesystem::absolute(out);
  while (!std::filesystem::exists(nearest, ignored) && nearest.has_relative_path()) nearest = nearest.parent_path();
  if (!std::filesystem::is_directory(nearest, ignored))
    return runtime::bad_input("--out " + out.string() + ": " + nearest.string() + " is not a directory");
  if (::access(nearest.c_str(), W_OK) != 0)
    return runtime::bad_input("--out " + out.string() + ": cannot write to " + nearest.string());
  return {};
}

// Makes the nets that --model asks for, in a directory under --out.
runtime::Expected<SubnetsReport> decompose_model(const Options& options, const std::filesystem::path& nets) {
  SubnetsOptions how = options.subnets;
  how.model = options.model;
  how.data = options.data;
  how.groups = options.groups.value_or(how.groups);
  const auto ranking = gpu::ranking_of(options.ranking);
  if (!ranking) return runtime::bad_input("--" + ranking.error().what);
  how.ranking = *ranking;
  return make_subnets(how, nets);
}

runtime::Expected<void> write_page(const std::filesystem::path& file, const SubnetsReport& report) {
  std::ofstream out(file, std::ios::trunc);
  out << to_html(report);
  if (!out.flush()) return runtime::failed("cannot write " + file.string());
  return {};
}

runtime::Expected<void> decompose(Options options, const Shell& shell) {
  if (options.nets.empty() == options.model.empty())
    return runtime::bad_input("give --model, a trained net in ONNX, or --nets, a directory of sub-nets with a nets.json");
  const auto scheme = coding::scheme_of(options.scheme);
  if (!scheme) return runtime::bad_input("--scheme: " + scheme.error());
  if (auto writable = check_writable(options.out); !writable) return writable;
  std::optional<SubnetsReport> made;
  if (!options.model.empty()) {
    options.nets = (std::filesystem::path(options.out) / "nets").string();
    auto report = decompose_model(options, options.nets);
    if (!report) return tl::unexpected(report.error());
    made = std::move(*report);
    const auto page = options.report.empty() ? std::filesystem::path(options.out) / "decomposition.html"
                                             : std::filesystem::path(options.report);
    if (auto written = write_page(page, *made); !written) return written;
    if (!shell.json) std::fputs((to_text(*made) + "\n").c_str(), stdout);
    const auto blocks = std::max(1, options.subnets.blocks);
    if (const auto workers = std::ssize(made->groups) / blocks + options.subnets.companions; workers > coding::kWorkersMax)
      return runtime::failed(std::to_string(workers) + " workers are more than one code takes, which is " +
                             std::to_string(coding::kWorkersMax) + " (share them out with --blocks): the nets are in " +
                             options.nets + ", without a manifest");
  }
  const auto nets = load_nets(options.nets);
  if (!nets) return tl::unexpected(nets.error());
  if (options.groups && *options.groups != static_cast<int>(nets->groups.size()))
    return runtime::bad_input("--groups " + std::to_string(*options.groups) + ": the nets of " + options.nets +
                              " have " + std::to_string(nets->groups.size()) + " groups");
  const auto data = load_assembly_data(options.data, *nets);
  if (!data) return tl::unexpected(data.error());
  const auto assembly = assemble(options.nets, *nets, *data, *scheme, options.decoder);
  if (!assembly) return tl::unexpected(assembly.error());
  if (auto saved = runtime::save_model(assembly->model, options.out); !saved) return saved;
  if (shell.json) {
    auto json = document(*assembly, options.out);
    if (made) json["decomposition"] = to_json(*made);
    shell.print(json);
  } else {
    std::fputs(summary(*assembly, options.out).c_str(), stdout);
  }
  return {};
}

void add_subnet_options(CLI::App& command, Options& options) {
  auto& subnets = options.subnets;
  const char* group = "With --model";
  command.add_option("--grouping", subnets.grouping, "similar, contiguous, or a JSON file [[0, 6], [1, 3], ...]")
      ->capture_default_str()->group(group);
  auto* flops = command.add_option("--flops", subnets.flops, "multiply-adds of each sub-net, as a share of the base's")
                    ->check(CLI::Range(1e-4, 1.0))->capture_default_str()->group(group);
  command.add_option("--accuracy-drop", subnets.accuracy_drop, "points held out: search the smallest --flops that keeps it")
      ->check(CLI::Range(0.0, 100.0))->excludes(flops)->group(group);
  command.add_option("--latency", subnets.latency, "estimated time of each sub-net, as a share of the base's")
      ->check(CLI::Range(1e-3, 1.0))->capture_default_str()->group(group);
  command.add_option("--ranking", options.ranking, "of channels: taylor, magnitude, apoz or random")->capture_default_str()->group(group);
  const std::map<std::string, Retrain> kinds{{"joint", Retrain::joint}, {"alone", Retrain::alone}, {"none", Retrain::none}};
  command.add_option("--retrain", subnets.retrain, "joint: one softmax over all; alone: each with \"other\"; none")
      ->transform(CLI::CheckedTransformer(kinds, CLI::ignore_case))->group(group);
  command.add_option("--blocks", subnets.blocks, "share the groups out over so many blocks, each coded and decoded by itself")
      ->check(CLI::Range(1, runtime::kBlocksMax))->group(group);
  command.add_option("--companions", subnets.companions, "nets of a sub-net's size that stand in for one: of all classes; with --blocks so many a block, of its classes")
      ->check(CLI::Range(0, 16))->capture_default_str()->group(group);
  command.add_option("--epochs", subnets.epochs, "of retraining")->check(CLI::Range(1, 10'000))->capture_default_str()->group(group);
  command.add_option("--peak", subnets.peak, "highest rate of the one-cycle")->check(CLI::PositiveNumber)->capture_default_str()->group(group);
  command.add_option("--shift", subnets.augmentation.shift, "pixels of padding to crop from")->check(CLI::Range(0, 64))->capture_default_str()->group(group);
  command.add_flag("--flip", subnets.augmentation.flip, "mirror half of the images")->group(group);
  command.add_option("--held-out", subnets.held_out, "of the training images, for choices")->check(CLI::Range(1, 10'000'000))->capture_default_str()->group(group);
  command.add_option("--seed", subnets.seed, "of everything drawn")->capture_default_str()->group(group);
  command.add_option("--threads", subnets.threads, "of training")->check(CLI::Range(1, 1'024))->capture_default_str()->group(group);
  command.add_option("--report", options.report, "the page to write; OUT/decomposition.html if left out")->group(group);
}

}  // namespace

void add_decompose(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto* command =
      add_command(app, shell, "decompose", "Make a decomposed model: a net a worker and the code over their answers",
                  "coppice decompose --model base.onnx --groups 5 --flops 0.1 --scheme parity --out model/",
                  [options, &shell] { return decompose(*options, shell); });
  command->add_option("--nets", options->nets, "directory of trained sub-nets with a nets.json")
      ->envname("COPPICE_NETS");
  command->add_option("--scheme", options->scheme, "none, parity, control or replicate")->capture_default_str();
  const std::map<std::string, DecoderKind> kinds{{"logistic", DecoderKind::logistic},
                                                 {"posterior", DecoderKind::posterior},
                                                 {"ridge", DecoderKind::ridge},
                                                 {"sum", DecoderKind::sum}};
  command->add_option("--decoder", options->decoder, "of none and parity: logistic, posterior, ridge or sum")
      ->transform(CLI::CheckedTransformer(kinds, CLI::ignore_case));
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")
      ->envname("COPPICE_DATA")
      ->capture_default_str();
  command->add_option("--out", options->out, "directory to write manifest.json and the nets to")->required();
  command->add_option("--model", options->model, "a trained classifier to decompose, ONNX");
  command->add_option("--groups", options->groups, "into how many class groups")
      ->check(CLI::Range(1, coding::kClassesMax));
  add_subnet_options(*command, *options);
}

}  // namespace coppice::apps
