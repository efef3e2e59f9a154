#include "apps/training_run.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/assembly.hpp"
#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"
#include "gpu/families.hpp"
#include "runtime/offline.hpp"

namespace coppice::apps {
namespace {

using runtime::Expected;

// ---- what is trained -----------------------------------------------------------------------------------------------

// "32,64" as widths from 1 to 4096; none where it is anything else.
std::optional<std::vector<int>> widths_of(std::string_view text) {
  std::vector<int> out;
  while (!text.empty()) {
    int width = 0;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), width);
    if (fault != std::errc{} || width < 1 || width > 4'096 || out.size() >= 64) return std::nullopt;
    out.push_back(width);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (text.starts_with(',') && text.size() > 1)
      text.remove_prefix(1);
    else if (!text.empty())
      return std::nullopt;
  }
  return out.empty() ? std::nullopt : std::optional(out);
}

Expected<gpu::Network> net_of(const TrainingJob& job, const gpu::Dims& input, int classes) {
  const std::string_view text = job.net;
  const auto seed = job.training.seed;
  if (!text.starts_with("vgg:")) {
    auto net = gpu::family(text, input, classes, seed, job.width);
    if (!net) return runtime::bad_input("--net " + job.net + ": " + net.error().what);
    return *std::move(net);
  }
  const auto widths = widths_of(text.substr(4));
  if (!widths) return runtime::bad_input("--net " + job.net + ": expected widths, as in vgg:32,32,64,64");
  auto net = gpu::vgg(input, *widths, classes, seed);
  if (const auto shapes = gpu::infer_shapes(net); !shapes)
    return runtime::bad_input("--net " + job.net + ": " + gpu::to_string(input) +
                              " images are too small for it: " + shapes.error().what);
  return net;
}

// ---- what it is trained on -----------------------------------------------------------------------------------------

struct Parts {
  gpu::Dataset data;                // all training images
  std::vector<std::int64_t> items;  // of it: those that are trained on
  gpu::Dataset held_out;            // the last ones
  int classes = 0;
};

Expected<Parts> parts_of(const TrainingJob& job) {
  auto data = gpu::load_dataset(job.data, gpu::Split::train);
  if (!data) return tl::unexpected(reported(data.error()));
  Parts parts{*std::move(data), {}, {}, 0};
  const auto count = parts.data.count(), kept = count - job.held_out;
  if (job.held_out < 0 || kept < 1)
    return runtime::bad_input("--held-out " + std::to_string(job.held_out) + ": " + job.data + " has " +
                              std::to_string(count) + " training images, and some must be left to train on");
  parts.items.resize(static_cast<std::size_t>(kept));
  std::iota(parts.items.begin(), parts.items.end(), std::int64_t{0});
  const auto size = gpu::elements(parts.data.item);
  parts.held_out = {parts.data.item,
                    {parts.data.pixels.begin() + kept * size, parts.data.pixels.end()},
                    {parts.data.labels.begin() + kept, parts.data.labels.end()}};
  parts.classes = *std::max_element(parts.data.labels.begin(), parts.data.labels.end()) + 1;
  return parts;
}

// Of the pixels that are trained on, to four digits: what is printed can be given to other commands as it is.
gpu::Normalisation rounded_normalisation(const Parts& parts) {
  const auto exact = gpu::measured(parts.data, parts.items);
  const auto digits = [](float value) { return static_cast<float>(std::round(static_cast<double>(value) * 1e4) / 1e4); };
  return {digits(exact.mean), std::max(digits(exact.deviation), 1e-4F)};
}

// ---- training ------------------------------------------------------------------------------------------------------

Expected<std::optional<double>> validated(const gpu::Network& net, const Parts& parts,
                                          const gpu::Normalisation& normalisation) {
  if (parts.held_out.labels.empty()) return std::nullopt;
  const auto scores = runtime::run_net(net, parts.held_out, normalisation, [](std::int64_t, std::int64_t) {});
  if (!scores) return tl::unexpected(scores.error());
  const auto width = static_cast<std::size_t>(parts.classes);
  std::vector<int> labels;
  for (std::size_t i = 0; i < parts.held_out.labels.size(); ++i)
    labels.push_back(runtime::argmax(std::span(*scores).subspan(i * width, width)));
  return runtime::accuracy_percent(labels, parts.held_out.labels);
}

nlohmann::json percent(const std::optional<double>& accuracy) {
  return accuracy ? nlohmann::json(std::round(*accuracy * 1e4) / 1e4) : nlohmann::json();
}

// One training as the person sees it.
class TrainingRun {
 public:
  TrainingRun(const TrainingJob& job, const Parts& parts, gpu::Normalisation normalisation, const Seat& seat)
      : options_(job.training), parts_(parts), seat_(seat) {
    options_.normalisation = normalisation;
    options_.checkpoint = job.checkpoint;
    options_.stop = [] { return interrupted.load(); };
    options_.replicas = seat.replicas.get();
    if (!seat.leads()) return;  // all have the same net: one validates it
    options_.progress = [this](const gpu::TrainingProgress& progress) { show(progress); };
    options_.after_epoch = [this](const gpu::EpochReport& report) { return close(report); };
  }

  Expected<gpu::Trained> run(const gpu::Network& net) {
    auto device = gpu::make_device(seat_.device, {options_.threads});
    if (!device) return tl::unexpected(reported(device.error()));
    const gpu::LossFunction loss = [this](const gpu::TrainingBatch& batch, std::span<const float> scores,
                                          std::span<float> gradients) -> gpu::Expected<double> {
      return gpu::cross_entropy(scores, batch.labels, parts_.classes, gradients);
    };
    watch_signals();
    auto trained = gpu::train(**device, {net}, parts_.data, parts_.items, loss, options_);
    bar_.reset();
    if (trained) return *std::move(trained);
    if (fault_) return tl::unexpected(*fault_);
    const auto code = trained.error().code;
    if (code == gpu::ErrorCode::stopped || code == gpu::ErrorCode::replica_lost)
      return runtime::failed(trained.error().what);
    return tl::unexpected(reported(trained.error()));
  }

  const nlohmann::json& epochs() const { return epochs_; }
  double images_per_second() const { return images_per_second_; }

 private:
  void show(const gpu::TrainingProgress& progress) {
    images_per_second_ = progress.images_per_second;
    if (!bar_) bar_ = std::make_unique<Progress>("training", progress.steps, progress.step);
    bar_->label("epoch " + std::to_string(progress.epoch) + "/" + std::to_string(progress.epochs) + ", loss " +
                fixed(progress.loss, 3) + ", " + fixed(progress.images_per_second, 0) + " images/s");
    bar_->at(progress.step);
  }

  gpu::Expected<void> close(const gpu::EpochReport& report) {
    const auto accuracy = validated(report.nets.front(), parts_, options_.normalisation);
    if (!accuracy) {
      fault_ = accuracy.error();
      return gpu::unexpected(gpu::Error{gpu::ErrorCode::device_failed, accuracy.error().what});
    }
    epochs_.push_back({{"epoch", report.epoch}, {"loss", report.loss}, {"accuracy", percent(*accuracy)}});
    std::string line = "epoch " + std::to_string(report.epoch) + " of " + std::to_string(report.epochs) + ": loss " +
                       fixed(report.loss, 4);
    if (*accuracy) line += ", " + fixed(**accuracy, 2) + " % of the held-out images right";
    if (bar_) bar_->line(line);
    return {};
  }

  gpu::TrainerOptions options_;
  const Parts& parts_;
  const Seat& seat_;
  std::unique_ptr<Progress> bar_;
  std::optional<runtime::Error> fault_;
  nlohmann::json epochs_ = nlohmann::json::array();
  double images_per_second_ = 0;
};

struct Outcome {
  std::optional<double> accuracy;  // percent of the held-out images
  gpu::Network net;                // as it was written
  double seconds = 0;
};

nlohmann::json document_of(const TrainingJob& job, const Parts& parts, const gpu::Normalisation& normalisation,
                           const Outcome& outcome, const TrainingRun& training) {
  return {{"net", job.net},
          {"out", job.out},
          {"seed", job.training.seed},
          {"epochs", training.epochs()},
          {"accuracy", percent(outcome.accuracy)},
          {"trained_on", parts.items.size()},
          {"held_out", parts.held_out.count()},
          {"macs", gpu::multiply_adds(outcome.net)},
          {"parameters", gpu::parameters(outcome.net)},
          {"mean", normalisation.mean},
          {"std", normalisation.deviation},
          {"seconds", outcome.seconds},
          {"images_per_second", training.images_per_second()}};
}

}  // namespace

Expected<nlohmann::json> run_training(const TrainingJob& job, const Seat& seat) {
  for (const auto& [flag, file] : {std::pair{"--out", &job.out}, std::pair{"--checkpoint", &job.checkpoint}}) {
    if (!seat.leads() || file->empty()) continue;
    if (auto possible = check_writable(*file, flag); !possible) return tl::unexpected(possible.error());
  }
  const auto parts = parts_of(job);
  if (!parts) return tl::unexpected(parts.error());
  const auto net = net_of(job, parts->data.item, parts->classes);
  if (!net) return tl::unexpected(net.error());
  auto normalisation = rounded_normalisation(*parts);
  normalisation.mean = job.mean.value_or(normalisation.mean);
  normalisation.deviation = job.deviation.value_or(normalisation.deviation);
  const auto replicas = seat.replicas ? " by " + std::to_string(seat.replicas->size()) + " replicas" : std::string();
  std::fprintf(stderr, "%s on %zu images%s, normalisation: mean %s, std %s\n", job.net.c_str(), parts->items.size(),
               replicas.c_str(), fixed(static_cast<double>(normalisation.mean), 4).c_str(),
               fixed(static_cast<double>(normalisation.deviation), 4).c_str());
  TrainingRun training(job, *parts, normalisation, seat);
  auto trained = training.run(*net);
  if (!trained) return tl::unexpected(trained.error());
  if (!seat.leads()) return nlohmann::json();
  Outcome outcome{{}, std::move(trained->nets.front()), trained->seconds};
  const auto accuracy = validated(outcome.net, *parts, normalisation);
  if (!accuracy) return tl::unexpected(accuracy.error());
  outcome.accuracy = *accuracy;
  if (job.folded) outcome.net = gpu::simplified(std::move(outcome.net));
  if (auto written = write_onnx(outcome.net, job.out); !written)
    return runtime::bad_input("--out: " + written.error().what);
  return document_of(job, *parts, normalisation, outcome, training);
}

}  // namespace coppice::apps
