// coppice train: a net from its description and labelled images, on this machine or on all hosts of a cluster.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "apps/assembly.hpp"
#include "apps/command.hpp"
#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "apps/ranks.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"
#include "gpu/families.hpp"
#include "gpu/trainer.hpp"
#include "runtime/offline.hpp"
#include "runtime/replicas.hpp"

namespace coppice::apps {
namespace {

using runtime::Expected;

struct Options {
  std::string net, data, out, checkpoint, schedule = "one-cycle";
  double width = 1;
  std::int64_t held_out = 5'000;
  std::optional<float> mean, deviation;
  bool folded = false;
  gpu::TrainerOptions training;
  // On a cluster:
  std::string cluster, mode = "data-parallel", planner = "exact", bucket = "1M", logs, as;
  int restarts = 3;
};

// Where this process trains: alone, or as a host of a cluster together with the others.
struct Seat {
  std::string device = "cpu";
  std::unique_ptr<runtime::Communicator> group;
  std::unique_ptr<gpu::ReplicaGroup> replicas;  // none: alone
  bool leads() const { return !replicas || replicas->rank() == 0; }
  int size() const { return replicas ? replicas->size() : 1; }
};

const std::map<std::string, gpu::Schedule::Kind> kSchedules{{"constant", gpu::Schedule::Kind::constant},
                                                            {"step", gpu::Schedule::Kind::step},
                                                            {"cosine", gpu::Schedule::Kind::cosine},
                                                            {"one-cycle", gpu::Schedule::Kind::one_cycle}};

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

Expected<gpu::Network> net_of(const Options& options, const gpu::Dims& input, int classes) {
  const std::string_view text = options.net;
  const auto seed = options.training.seed;
  if (!text.starts_with("vgg:")) {
    auto net = gpu::family(text, input, classes, seed, options.width);
    if (!net) return runtime::bad_input("--net " + options.net + ": " + net.error().what);
    return *std::move(net);
  }
  const auto widths = widths_of(text.substr(4));
  if (!widths) return runtime::bad_input("--net " + options.net + ": expected widths, as in vgg:32,32,64,64");
  auto net = gpu::vgg(input, *widths, classes, seed);
  if (const auto shapes = gpu::infer_shapes(net); !shapes)
    return runtime::bad_input("--net " + options.net + ": " + gpu::to_string(input) +
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

Expected<Parts> parts_of(const Options& options) {
  auto data = gpu::load_dataset(options.data, gpu::Split::train);
  if (!data) return tl::unexpected(reported(data.error()));
  Parts parts{*std::move(data), {}, {}, 0};
  const auto count = parts.data.count(), kept = count - options.held_out;
  if (options.held_out < 0 || kept < 1)
    return runtime::bad_input("--held-out " + std::to_string(options.held_out) + ": " + options.data + " has " +
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
  TrainingRun(const Options& options, const Parts& parts, gpu::Normalisation normalisation, const Seat& seat)
      : options_(options.training), parts_(parts), seat_(seat) {
    options_.normalisation = normalisation;
    options_.checkpoint = options.checkpoint;
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

// Said before the work rather than after it.
Expected<void> check_out(const std::filesystem::path& out) {
  const auto directory = out.has_parent_path() ? out.parent_path() : std::filesystem::path(".");
  std::error_code ignored;
  if (std::filesystem::is_directory(directory, ignored) && !std::filesystem::is_directory(out, ignored)) return {};
  return runtime::bad_input("--out " + out.string() + ": is no file in a directory that is there");
}

struct Outcome {
  std::optional<double> accuracy;  // percent of the held-out images
  gpu::Network net;                // as it was written
  double seconds = 0;
};

nlohmann::json document_of(const Options& options, const Parts& parts, const gpu::Normalisation& normalisation,
                           const Outcome& outcome, const TrainingRun& training) {
  return {{"net", options.net},
          {"out", options.out},
          {"seed", options.training.seed},
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

void tell(const nlohmann::json& document, const Shell& shell) {
  if (shell.json) return shell.print(document);
  const auto& accuracy = document["accuracy"];
  const auto whole = [&](const char* key) { return std::to_string(document[key].get<std::int64_t>()); };
  std::fputs(table({{"net", "accuracy %", "held out", "multiply-adds", "parameters", "seconds", "images/s"},
                    {document["out"], accuracy.is_null() ? "-" : fixed(accuracy.get<double>(), 2), whole("held_out"),
                     whole("macs"), whole("parameters"), fixed(document["seconds"].get<double>(), 1),
                     fixed(document["images_per_second"].get<double>(), 0)}})
                 .c_str(),
             stdout);
}

Expected<nlohmann::json> train(const Options& options, const Seat& seat) {
  if (seat.leads())
    if (auto possible = check_out(options.out); !possible) return tl::unexpected(possible.error());
  const auto parts = parts_of(options);
  if (!parts) return tl::unexpected(parts.error());
  const auto net = net_of(options, parts->data.item, parts->classes);
  if (!net) return tl::unexpected(net.error());
  auto normalisation = rounded_normalisation(*parts);
  normalisation.mean = options.mean.value_or(normalisation.mean);
  normalisation.deviation = options.deviation.value_or(normalisation.deviation);
  const auto replicas = seat.replicas ? " by " + std::to_string(seat.size()) + " replicas" : std::string();
  std::fprintf(stderr, "%s on %zu images%s, normalisation: mean %s, std %s\n", options.net.c_str(), parts->items.size(),
               replicas.c_str(), fixed(static_cast<double>(normalisation.mean), 4).c_str(),
               fixed(static_cast<double>(normalisation.deviation), 4).c_str());
  TrainingRun training(options, *parts, normalisation, seat);
  auto trained = training.run(*net);
  if (!trained) return tl::unexpected(trained.error());
  if (!seat.leads()) return nlohmann::json();
  Outcome outcome{{}, std::move(trained->nets.front()), trained->seconds};
  const auto accuracy = validated(outcome.net, *parts, normalisation);
  if (!accuracy) return tl::unexpected(accuracy.error());
  outcome.accuracy = *accuracy;
  if (options.folded) outcome.net = gpu::simplified(std::move(outcome.net));
  if (auto written = write_onnx(outcome.net, options.out); !written)
    return runtime::bad_input("--out: " + written.error().what);
  return document_of(options, *parts, normalisation, outcome, training);
}

// ---- on a cluster --------------------------------------------------------------------------------------------------

Expected<runtime::Cluster> cluster_of(const Options& options) {
  auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return cluster;
  const auto replicas = static_cast<int>(cluster->hosts.size());
  if (options.training.batch % replicas == 0) return cluster;
  const auto below = options.training.batch / replicas * replicas;
  return runtime::bad_input("--batch " + std::to_string(options.training.batch) + ": " + options.cluster + " has " +
                            std::to_string(replicas) + " hosts, which need equal parts of it; say " +
                            std::to_string(below + replicas));
}

Expected<nlohmann::json> train_as_replica(Options options, const runtime::Cluster& cluster) {
  const auto planner = collectives::planner_of(options.planner);
  if (!planner)
    return runtime::bad_input(
        runtime::one_line("--planner " + options.planner + ": not known; there are exact, mwu, rs_ag, rings and best_ring"));
  const auto bucket = byte_count("--bucket", options.bucket);
  if (!bucket) return tl::unexpected(bucket.error());
  options.training.bucket_bytes = *bucket;
  const auto* host = cluster.find(options.as);
  if (!host) return runtime::bad_input(runtime::one_line("--as " + options.as + ": " + options.cluster + " has no such host"));
  Seat seat;
  seat.device = host->device;
  // Chunks are not tuned: sums are the same bits in every run only while the plan is the same.
  auto group = runtime::Communicator::join({cluster, options.as, *planner, 0, false});
  if (!group) return tl::unexpected(group.error());
  seat.group = std::move(*group);
  seat.replicas = runtime::replicas_over(*seat.group);
  return train(options, seat);
}

// Starts a replica on every host; where one is lost, all begin again from the checkpoint.
Expected<nlohmann::json> train_on_hosts(const Options& options, const runtime::Cluster& cluster, const Shell& shell) {
  // A launcher may start them in another directory, without this process's environment.
  auto arguments = shell.arguments;
  const auto add_path = [&](const char* flag, const std::string& path) {
    if (!path.empty()) arguments.insert(arguments.end(), {flag, std::filesystem::absolute(path).string()});
  };
  add_path("--cluster", options.cluster);
  add_path("--out", options.out);
  add_path("--checkpoint", options.checkpoint);
  add_path("--data", options.data);
  const RanksOptions ranks{options.logs.empty() ? options.cluster + ".logs" : options.logs, true};
  for (int restarts = options.checkpoint.empty() ? 0 : options.restarts;; --restarts) {
    auto result = run_ranks(cluster, arguments, ranks);
    if (result || restarts <= 0 || interrupted || result.error().code == runtime::ErrorCode::bad_input) return result;
    std::fprintf(stderr, "%s; going on from %s\n", result.error().what.c_str(), options.checkpoint.c_str());
  }
}

Expected<void> run_train(const Options& options, const Shell& shell) {
  if (options.cluster.empty()) {
    const auto document = train(options, {});
    if (!document) return tl::unexpected(document.error());
    tell(*document, shell);
    return {};
  }
  const auto cluster = cluster_of(options);
  if (!cluster) return tl::unexpected(cluster.error());
  const bool launches = options.as.empty();
  const auto document = launches ? train_on_hosts(options, *cluster, shell) : train_as_replica(options, *cluster);
  if (!document) return tl::unexpected(document.error());
  if (launches)
    tell(*document, shell);
  else
    tell_result(*document);
  return {};
}

void add_options_of_the_step(CLI::App& command, Options& options) {
  auto& training = options.training;
  command
      .add_option("--schedule", options.schedule,
                  "constant, step (a tenth at a half and at three quarters), cosine or one-cycle")
      ->check(CLI::IsMember(kSchedules))
      ->capture_default_str();
  command.add_option("--peak", training.schedule.peak, "the highest rate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--rising", training.schedule.rising, "one-cycle: the share of all steps in which the rate rises")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--momentum", training.sgd.momentum, "Nesterov's")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--weight-decay", training.sgd.weight_decay, "of all but biases and norms")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--ema", training.sgd.average_decay,
                  "write the running average of the weights, of this decay, say 0.998")
      ->check(CLI::Range(0.0, 0.999999));
  command.add_option("--shift", training.augmentation.shift, "move images by up to so many pixels")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  command.add_flag("--flip", training.augmentation.flip, "mirror half of the images");
}

void add_options_of_a_cluster(CLI::App& command, Options& options) {
  command
      .add_option("--cluster", options.cluster,
                  "train on its hosts together; the first one validates, and writes the net and the checkpoint")
      ->take_last();
  command.add_option("--mode", options.mode, "how: data-parallel shares out every batch")
      ->check(CLI::IsMember({"data-parallel"}))
      ->capture_default_str();
  command.add_option("--planner", options.planner, "of the trees that gradients take: exact, mwu, rs_ag, rings or best_ring")
      ->capture_default_str();
  command.add_option("--bucket", options.bucket, "gradients that travel together, in bytes: 256K, 1M")->capture_default_str();
  command.add_option("--restarts", options.restarts, "from the checkpoint, when a replica is lost")
      ->check(CLI::Range(0, 1'000))
      ->capture_default_str();
  command.add_option("--logs", options.logs, "where each replica's output goes (default: CLUSTER.logs)");
  command.add_option("--as", options.as, "be the replica of this host; without it, all are launched");
}

}  // namespace

void add_train(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  options->data = gpu::fashion_mnist_directory().string();
  auto& training = options->training;
  training.threads = 1;
  auto* command = add_command(
      app, shell, "train", "A net from its description and labelled images, with a validation after every epoch",
      "coppice train --net vgg:32,32,64,64,128,128 --epochs 10 --flip --shift 2 --threads 2 --out net.onnx "
      "--checkpoint net.training",
      [options, &shell] {
        options->training.schedule.kind = kSchedules.at(options->schedule);
        options->training.schedule.milestones = {0.5F, 0.75F};
        return run_train(*options, shell);
      });
  command->add_option("--net", options->net, "vgg:WIDTHS, or a family: resnet-20, mobilenet-v2, shufflenet-v2, …")
      ->required();
  command->add_option("--width", options->width, "of a family: scales the channels")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--out", options->out, "the trained net (ONNX)")->required()->take_last();
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")
      ->envname("COPPICE_DATA")
      ->take_last()
      ->capture_default_str();
  command->add_option("--held-out", options->held_out, "so many of the last training images are for validation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--epochs", training.epochs)->check(CLI::Range(1, 100'000))->capture_default_str();
  command->add_option("--batch", training.batch)->check(CLI::Range(1, 65'536))->capture_default_str();
  command->add_option("--seed", training.seed, "of the first weights, the order and the augmentation")
      ->capture_default_str();
  command->add_option("--threads", training.threads)->check(CLI::Range(1, 1'024))->capture_default_str();
  add_options_of_the_step(*command, *options);
  command->add_option("--checkpoint", options->checkpoint,
                      "kept up to date; where it is there, training goes on from it")
      ->take_last();
  command->add_option("--checkpoint-every", training.checkpoint_every_seconds, "seconds; 0: after every step")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--mean", options->mean, "pixels are (value / 255 - mean) / std; both are measured by default");
  command->add_option("--std", options->deviation)->check(CLI::PositiveNumber);
  command->add_flag("--folded", options->folded, "write batch norms folded into their convolutions");
  add_options_of_a_cluster(*command, *options);
}

}  // namespace coppice::apps
