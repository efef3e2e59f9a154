// coppice train: a net from its description and labelled images, on this machine or on all hosts of a cluster.
#include <filesystem>
#include <map>
#include <memory>

#include "apps/command.hpp"
#include "apps/ranks.hpp"
#include "apps/session.hpp"
#include "apps/table.hpp"
#include "apps/training_run.hpp"
#include "runtime/replicas.hpp"

namespace coppice::apps {
namespace {

using runtime::Expected;

struct Options {
  TrainingJob job;
  std::string schedule = "one-cycle";
  // On a cluster:
  std::string cluster, mode = "data-parallel", planner = "exact", bucket = "1M", logs, as;
  int restarts = 3;
};

const std::map<std::string, gpu::Schedule::Kind> kSchedules{{"constant", gpu::Schedule::Kind::constant},
                                                            {"step", gpu::Schedule::Kind::step},
                                                            {"cosine", gpu::Schedule::Kind::cosine},
                                                            {"one-cycle", gpu::Schedule::Kind::one_cycle}};

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

// ---- on a cluster --------------------------------------------------------------------------------------------------

Expected<runtime::Cluster> cluster_of(const Options& options) {
  auto cluster = runtime::load_cluster(options.cluster);
  if (!cluster) return cluster;
  const auto replicas = static_cast<int>(cluster->hosts.size());
  if (options.job.training.batch % replicas == 0) return cluster;
  const auto below = options.job.training.batch / replicas * replicas;
  return runtime::bad_input("--batch " + std::to_string(options.job.training.batch) + ": " + options.cluster + " has " +
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
  options.job.training.bucket_bytes = *bucket;
  const auto* host = cluster.find(options.as);
  if (!host) return runtime::bad_input(runtime::one_line("--as " + options.as + ": " + options.cluster + " has no such host"));
  Seat seat;
  seat.device = host->device;
  // Chunks are not tuned: sums are the same bits in every run only while the plan is the same.
  auto group = runtime::Communicator::join({cluster, options.as, *planner, 0, false});
  if (!group) return tl::unexpected(group.error());
  seat.group = std::move(*group);
  seat.replicas = runtime::replicas_over(*seat.group);
  return run_training(options.job, seat);
}

// Starts a replica on every host; where one is lost, all begin again from the checkpoint.
Expected<nlohmann::json> train_on_hosts(const Options& options, const runtime::Cluster& cluster, const Shell& shell) {
  // A launcher may start them in another directory, without this process's environment.
  auto arguments = shell.arguments;
  const auto add_path = [&](const char* flag, const std::string& path) {
    if (!path.empty()) arguments.insert(arguments.end(), {flag, std::filesystem::absolute(path).string()});
  };
  add_path("--cluster", options.cluster);
  add_path("--out", options.job.out);
  add_path("--checkpoint", options.job.checkpoint);
  add_path("--data", options.job.data);
  RanksOptions ranks;
  ranks.cluster_file = options.cluster;
  ranks.logs = options.logs;
  ranks.command = arguments;
  ranks.output = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  for (int restarts = options.job.checkpoint.empty() ? 0 : options.restarts;; --restarts) {
    const auto outcome = run_ranks(cluster, ranks);
    if (!outcome) return tl::unexpected(outcome.error());
    if (outcome->failures.empty() && outcome->result) return *outcome->result;
    if (outcome->failures.empty()) return runtime::failed("the first replica gave no result; see its log");
    auto fault = fault_of(outcome->failures);
    if (restarts <= 0 || fault.code == runtime::ErrorCode::bad_input) return tl::unexpected(std::move(fault));
    std::fprintf(stderr, "%s; going on from %s\n", fault.what.c_str(), options.job.checkpoint.c_str());
  }
}

Expected<void> run_train(const Options& options, const Shell& shell) {
  if (options.cluster.empty()) {
    const auto document = run_training(options.job, {});
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
    print_result(*document);
  return {};
}

void add_options_of_the_step(CLI::App& command, Options& options) {
  auto& training = options.job.training;
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
  options->job.data = gpu::fashion_mnist_directory().string();
  auto& training = options->job.training;
  training.threads = 1;
  auto* command = add_command(
      app, shell, "train", "A net from its description and labelled images, with a validation after every epoch",
      "coppice train --net vgg:32,32,64,64,128,128 --epochs 10 --flip --shift 2 --threads 2 --out net.onnx "
      "--checkpoint net.training",
      [options, &shell] {
        options->job.training.schedule.kind = kSchedules.at(options->schedule);
        options->job.training.schedule.milestones = {0.5F, 0.75F};
        return run_train(*options, shell);
      });
  command->add_option("--net", options->job.net, "vgg:WIDTHS, or a family: resnet-20, mobilenet-v2, shufflenet-v2, …")
      ->required();
  command->add_option("--width", options->job.width, "of a family: scales the channels")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--out", options->job.out, "the trained net (ONNX)")->required()->take_last();
  command->add_option("--data", options->job.data, "directory of a data set (see coppice data)")
      ->envname("COPPICE_DATA")
      ->take_last()
      ->capture_default_str();
  command->add_option("--held-out", options->job.held_out, "so many of the last training images are for validation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--epochs", training.epochs)->check(CLI::Range(1, 100'000))->capture_default_str();
  command->add_option("--batch", training.batch)->check(CLI::Range(1, 65'536))->capture_default_str();
  command->add_option("--seed", training.seed, "of the first weights, the order and the augmentation")
      ->capture_default_str();
  command->add_option("--threads", training.threads)->check(CLI::Range(1, 1'024))->capture_default_str();
  add_options_of_the_step(*command, *options);
  command->add_option("--checkpoint", options->job.checkpoint,
                      "kept up to date; where it is there, training goes on from it")
      ->take_last();
  command->add_option("--checkpoint-every", training.checkpoint_every_seconds, "seconds; 0: after every step")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--mean", options->job.mean, "pixels are (value / 255 - mean) / std; both are measured by default");
  command->add_option("--std", options->job.deviation)->check(CLI::PositiveNumber);
  command->add_flag("--folded", options->job.folded, "write batch norms folded into their convolutions");
  add_options_of_a_cluster(*command, *options);
}

}  // namespace coppice::apps
