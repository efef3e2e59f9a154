// coppice bench class-parallel: the experiment of apps/study.hpp as a command.
#include <memory>

#include "apps/command.hpp"
#include "apps/study.hpp"
#include "apps/table.hpp"
#include "gpu/dataset.hpp"

namespace coppice::apps {
namespace {

std::string with_interval(const nlohmann::json& row, const char* key) {
  if (!row.contains(key)) return "";
  const double mean = row[key]["mean"];
  const auto& half = row[key]["interval"];
  return (mean >= 0 ? "+" : "") + fixed(mean, 2) + " ± " + (half.is_null() ? "-" : fixed(half.get<double>(), 2));
}

std::string text(const nlohmann::json& rows) {
  std::vector<std::vector<std::string>> out{{"cell", "budget", "seeds", "multiply-adds a worker", "accuracy %",
                                             "against base, 95 %", "class parallelism's lead, 95 %", "latency of base"}};
  for (const auto& row : rows)
    out.push_back({row["cell"], fixed(row["budget"], 3), std::to_string(row["seeds"].get<int>()),
                   std::to_string(row["macs_per_worker"].get<std::int64_t>()), fixed(row["test"]["mean"], 2),
                   with_interval(row, "against_base"), with_interval(row, "lead_of_class_parallel"),
                   fixed(row["latency_ratio"], 3)});
  return table(out);
}

runtime::Expected<void> bench(const StudyOptions& options, bool only_summary, const Shell& shell) {
  if (!only_summary)
    if (auto done = run_study(options); !done) return done;
  const auto summary = study_summary(options.out);
  if (!summary) return tl::unexpected(summary.error());
  if (shell.json) {
    shell.print(*summary);
  } else {
    std::fputs(text(*summary).c_str(), stdout);
  }
  return {};
}

}  // namespace

void add_bench_class_parallel(CLI::App& parent, Shell& shell) {
  auto options = std::make_shared<StudyOptions>();
  auto only_summary = std::make_shared<bool>(false);
  options->data = gpu::fashion_mnist_directory().string();
  auto* command = add_command(
      parent, shell, "class-parallel", "Sub-nets against what a user would do instead, at equal compute a worker",
      "coppice bench class-parallel --data glyphs/ --groups 10 --budgets 0.1,0.05 --seeds 5 --out results.jsonl",
      [options, only_summary, &shell] { return bench(*options, *only_summary, shell); });
  command->add_option("--data", options->data, "directory of a data set (see coppice data)")->envname("COPPICE_DATA")->capture_default_str();
  command->add_option("--out", options->out, "a line of JSON for each cell; what is there is not measured again")->required();
  command->add_option("--groups", options->groups, "sub-nets")->check(CLI::Range(1, 1'000))->capture_default_str();
  command->add_option("--budgets", options->budgets, "multiply-adds of a sub-net, as shares of the base's")
      ->delimiter(',')->check(CLI::Range(1e-4, 1.0))->capture_default_str();
  command->add_option("--cells", options->cells, "class_parallel, whole, ensemble, random, scratch, sensai")
      ->delimiter(',')->capture_default_str();
  command->add_option("--widths", options->widths, "of the base's convolutions, pooled after every second")
      ->delimiter(',')->check(CLI::Range(1, 4'096))->capture_default_str();
  command->add_option("--seeds", options->seeds, "repetitions")->check(CLI::Range(1, 1'000))->capture_default_str();
  command->add_option("--first-seed", options->first_seed, "of those: runs with other ones may work beside this, each with its own --out")
      ->check(CLI::Range(0, 1'000'000))->capture_default_str();
  command->add_option("--base-epochs", options->base_epochs, "of the base")->check(CLI::Range(1, 10'000))->capture_default_str();
  command->add_option("--epochs", options->epochs, "of all others")->check(CLI::Range(1, 10'000))->capture_default_str();
  command->add_option("--base-peak", options->base_peak, "highest rate of the base's one-cycle")->capture_default_str();
  command->add_option("--peak", options->peak, "highest rate of all others")->capture_default_str();
  command->add_option("--held-out", options->held_out, "of the training images, for choices")->check(CLI::Range(1, 1'000'000))->capture_default_str();
  command->add_option("--most", options->most, "train on so many images only; 0: on all")->check(CLI::Range(0, 10'000'000))->capture_default_str();
  command->add_option("--shift", options->augmentation.shift, "pixels of padding to crop from")->check(CLI::Range(0, 16))->capture_default_str();
  command->add_flag("--flip", options->augmentation.flip, "mirror half of the images");
  command->add_option("--threads", options->threads, "of training")->check(CLI::Range(1, 1'024))->capture_default_str();
  command->add_flag("--summary", *only_summary, "only the table of what is in --out");
}

}  // namespace coppice::apps
