#include "apps/command.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"
#include "gpu/dataset.hpp"
#include "gpu/npy.hpp"
#include "runtime/client.hpp"
#include "runtime/model.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string cluster, input, data;
  std::int64_t first = 0, count = 10;
  int patience_ms = 2'000;
};

// The items to ask about: float32, normalised, one net input each.
runtime::Expected<std::vector<std::vector<float>>> read_items(const Options& options, const runtime::Manifest& manifest) {
  const auto width = static_cast<std::size_t>(gpu::elements(manifest.input));
  std::vector<std::vector<float>> items;
  if (!options.input.empty()) {
    const auto array = gpu::load_npy(options.input);
    if (!array) return runtime::bad_input(array.error().what);
    if (array->values.empty() || array->values.size() % width != 0)
      return runtime::bad_input(options.input + " holds " + std::to_string(array->values.size()) +
                                " numbers, not a multiple of the " + std::to_string(width) + " of " +
                                gpu::to_string(manifest.input));
    for (std::size_t at = 0; at < array->values.size(); at += width)
      items.emplace_back(array->values.begin() + static_cast<std::ptrdiff_t>(at),
                         array->values.begin() + static_cast<std::ptrdiff_t>(at + width));
    return items;
  }
  const auto data = gpu::load_dataset(options.data, gpu::Split::test);
  if (!data) return runtime::bad_input(data.error().what);
  if (gpu::elements(data->item) != gpu::elements(manifest.input) || options.first >= data->count())
    return runtime::bad_input("--first " + std::to_string(options.first) + ": the data holds " +
                              std::to_string(data->count()) + " items of " + gpu::to_string(data->item));
  for (auto i = options.first; i < std::min(options.first + options.count, data->count()); ++i)
    gpu::item(*data, i, manifest.normalisation, items.emplace_back(width));
  return items;
}

std::string_view word(actors::ReplyStatus status) {
  using actors::ReplyStatus;
  switch (status) {
    case ReplyStatus::ok: return "ok";
    case ReplyStatus::degraded: return "degraded";
    case ReplyStatus::no_response: return "no_response";
    case ReplyStatus::no_workers: return "no_workers";
    case ReplyStatus::not_ready: return "not_ready";
    case ReplyStatus::overloaded: return "overloaded";
    case ReplyStatus::bad_request: return "bad_request";
  }
  return "?";
}

runtime::Expected<void> infer(const Options& options, const Shell& shell) {
  const auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return tl::unexpected(cluster.error());
  if (cluster->model.empty()) return runtime::bad_input(options.cluster + ": names no model; add model = \"DIR\"");
  const auto model = runtime::load_model(cluster->model);
  if (!model) return tl::unexpected(model.error());
  const auto items = read_items(options, model->manifest);
  if (!items) return tl::unexpected(items.error());
  auto client = runtime::Client::connect(*cluster, {});
  if (!client) return tl::unexpected(client.error());

  nlohmann::json answers = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows{{"item", "class", "name", "margin", "status", "gateway ms"}};
  std::string fault;
  for (std::size_t i = 0; i < items->size(); ++i) {
    const auto reply = (*client)->infer((*items)[i], std::chrono::milliseconds(options.patience_ms));
    if (!reply) return tl::unexpected(reply.error());
    if (!reply->error.empty() && fault.empty()) fault = reply->error;
    const auto& names = model->manifest.class_names;
    const bool named = reply->label >= 0 && static_cast<std::size_t>(reply->label) < names.size();
    const std::string label = named ? names[static_cast<std::size_t>(reply->label)] : "-";
    const auto number = options.input.empty() ? options.first + static_cast<std::int64_t>(i) : static_cast<std::int64_t>(i);
    answers.push_back({{"item", number}, {"class", reply->label}, {"name", label}, {"margin", reply->margin},
                       {"status", word(reply->status)}, {"scores", reply->scores}, {"gateway_ms", reply->gateway_us / 1e3}});
    rows.push_back({std::to_string(number), std::to_string(reply->label), label, fixed(reply->margin, 2),
                    std::string(word(reply->status)), fixed(reply->gateway_us / 1e3, 2)});
  }
  if (shell.json) {
    shell.print({{"answers", answers}});
  } else {
    std::fputs(table(rows).c_str(), stdout);
  }
  if (!fault.empty()) return runtime::failed(fault);
  return {};
}

}  // namespace

void add_infer(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto* command = add_command(app, shell, "infer", "Answer items through a running cluster",
                              "coppice infer --cluster lab.toml --count 5", [options, &shell] { return infer(*options, shell); });
  command->add_option("--cluster", options->cluster, "the cluster file")->required()->envname("COPPICE_CLUSTER");
  command->add_option("--input", options->input, "items as float32 .npy, normalised as the net wants them");
  command->add_option("--data", options->data, "or the directory of a data set (its test items)")->envname("COPPICE_DATA")->capture_default_str();
  command->add_option("--first", options->first, "first item of --data")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--count", options->count, "how many items of --data")->check(CLI::Range(1, 1'000'000))->capture_default_str();
  command->add_option("--patience-ms", options->patience_ms, "how long to wait for each answer")->check(CLI::Range(1, 86'400'000))->capture_default_str();
}

}  // namespace coppice::apps
