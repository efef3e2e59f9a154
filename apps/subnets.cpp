#include "apps/subnets.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <numeric>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/progress.hpp"
#include "gpu/distill.hpp"
#include "gpu/onnx.hpp"
#include "gpu/onnx_writer.hpp"

namespace coppice::apps {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using runtime::bad_input;
using runtime::Expected;
using Items = std::vector<std::int64_t>;

constexpr int kLatencyRuns = 600, kLatencyWarmUp = 100;
// Where the search for a budget looks, from the largest.
constexpr std::array kBudgets{0.5, 0.35, 0.25, 0.18, 0.125, 0.1, 0.07, 0.05, 0.035, 0.025};

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

std::vector<int> all_classes(int classes) {
  std::vector<int> all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Expected<gpu::ClassGroups> groups_from(const fs::path& file) {
  std::ifstream in(file);
  if (!in) return bad_input("--grouping " + file.string() + ": expected similar, contiguous or a file that can be read");
  const auto json = nlohmann::json::parse(in, nullptr, false);
  try {
    return json.get<gpu::ClassGroups>();
  } catch (const nlohmann::json::exception&) {
    return bad_input(file.string() + ": expected a list of lists of classes, e.g. [[0, 6], [1, 3]]");
  }
}

// The nets of one budget, trained or about to be.
struct Nets {
  gpu::Decomposition parts;
  std::vector<gpu::Network> subnets, wholes;  // wholes: the companions, then the control
  gpu::Ensemble ensemble;
};

class Maker {
 public:
  Maker(const SubnetsOptions& options, fs::path out) : options_(options), out_(std::move(out)) {}

  Expected<SubnetsReport> run() {
    const auto begun = Clock::now();
    if (auto ready = load(); !ready) return tl::unexpected(ready.error());
    auto budget = options_.accuracy_drop ? search(*options_.accuracy_drop) : Expected<double>(options_.flops);
    if (!budget) return tl::unexpected(budget.error());
    auto nets = trained(*budget, options_.epochs, true);
    if (!nets) return tl::unexpected(nets.error());
    auto report = reported_on(*nets, *budget);
    if (!report) return report;
    if (auto written = write(*nets); !written) return tl::unexpected(written.error());
    report->seconds = seconds_since(begun);
    return report;
  }

 private:
  Expected<void> load() {
    auto single = gpu::make_cpu_device({1}), all = gpu::make_cpu_device({options_.threads});
    if (!single) return tl::unexpected(reported(single.error()));
    if (!all) return tl::unexpected(reported(all.error()));
    single_ = std::move(*single);
    all_ = std::move(*all);
    auto data = gpu::load_dataset(options_.data, gpu::Split::train);
    if (!data) return tl::unexpected(reported(data.error()));
    data_ = std::move(*data);
    if (data_.count() <= options_.held_out)
      return bad_input("--held-out " + std::to_string(options_.held_out) + ": " + options_.data + " has only " +
                       std::to_string(data_.count()) + " training images");
    const auto last = data_.count() - options_.held_out;
    fit_.resize(static_cast<std::size_t>(last));
    std::iota(fit_.begin(), fit_.end(), 0);
    held_.resize(static_cast<std::size_t>(options_.held_out));
    std::iota(held_.begin(), held_.end(), last);
    const auto beside = find_normalisation(options_.model.parent_path());
    if (!beside) return tl::unexpected(beside.error());
    normalisation_ = *beside ? (*beside)->normalisation : gpu::measured(data_, fit_);

    auto base = gpu::load_onnx(options_.model);
    if (!base) return tl::unexpected(reported(base.error()));
    if (base->input != data_.item)
      return bad_input(options_.model.string() + ": takes " + gpu::to_string(base->input) + ", the images of " +
                       options_.data + " are " + gpu::to_string(data_.item));
    auto normed = gpu::with_norms(*all_, *base, data_, fit_, normalisation_);
    if (!normed) return tl::unexpected(reported(normed.error()));
    base_ = std::move(*normed);
    const auto shapes = gpu::infer_shapes(base_);
    classes_ = static_cast<int>(shapes->back()[0]);
    const int labels = std::ranges::max(data_.labels) + 1;
    if (labels > classes_)
      return bad_input(options_.model.string() + ": scores " + std::to_string(classes_) + " classes, " + options_.data +
                       " has " + std::to_string(labels));
    if (options_.grouping == "contiguous") {
      if (options_.groups > classes_) return too_many_groups();
      given_ = gpu::contiguous_groups(classes_, options_.groups);
    } else if (options_.grouping != "similar") {
      auto read = groups_from(options_.grouping);
      if (!read) return tl::unexpected(read.error());
      if (auto good = gpu::check_groups(*read, classes_); !good)
        return bad_input(options_.grouping + ": " + good.error().what);
      given_ = std::move(*read);
    } else if (options_.groups > classes_) {
      return too_many_groups();
    }
    const auto accuracy = accuracy_of({&base_, 1}, {{all_classes(classes_)}});
    if (!accuracy) return tl::unexpected(accuracy.error());
    base_held_out_ = *accuracy;
    return {};
  }
  tl::unexpected<runtime::Error> too_many_groups() const {
    return bad_input("--groups " + std::to_string(options_.groups) + ": " + options_.model.string() + " scores only " +
                     std::to_string(classes_) + " classes");
  }

  // The smallest budget at which a short training keeps the accuracy; each is tried at most once.
  Expected<double> search(double drop) {
    std::size_t good = kBudgets.size(), low = 0, high = kBudgets.size();
    while (low < high) {
      const auto middle = (low + high) / 2;
      const auto nets = trained(kBudgets[middle], std::max(1, options_.epochs / 3), false);
      if (!nets) return tl::unexpected(nets.error());
      const auto accuracy = accuracy_of(nets->subnets, nets->ensemble);
      if (!accuracy) return tl::unexpected(accuracy.error());
      const bool kept = *accuracy >= base_held_out_ - drop;
      std::fprintf(stderr, "budget %.3f: held out %.2f %%, base %.2f %%: %s\n", kBudgets[middle], *accuracy, base_held_out_,
                   kept ? "kept, smaller next" : "lost, larger next");
      if (kept) {
        good = middle;
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (good == kBudgets.size())
      return runtime::failed("no budget up to 0.5 keeps the accuracy within " + std::to_string(drop) +
                             " points after a third of the epochs: allow more, or more --epochs");
    return kBudgets[good];
  }

  Expected<Nets> trained(double budget, int epochs, bool with_wholes) {
    gpu::DecomposeOptions how;
    how.groups = options_.groups;
    how.given = given_;
    how.budget.multiply_adds = budget;
    how.budget.latency = options_.latency;
    how.ranking = options_.ranking;
    how.seed = options_.seed;
    how.normalisation = normalisation_;
    std::unique_ptr<Progress> bar;
    std::string shown;
    how.progress = [&](const std::string& stage, std::int64_t done, std::int64_t all) {
      if (stage != shown) bar = std::make_unique<Progress>(shown = stage, all);
      bar->at(done);
    };
    auto parts = gpu::decompose(*all_, base_, data_, fit_, how);
    bar.reset();
    if (!parts) return tl::unexpected(reported(parts.error()));
    Nets nets{std::move(*parts), {}, {}, {}};
    for (const auto& subnet : nets.parts.subnets) {
      nets.subnets.push_back(subnet.net);
      nets.ensemble.outputs.push_back(subnet.classes);
    }
    if (with_wholes) {
      const auto whole = gpu::slim_for(*all_, nets.parts, all_classes(classes_), data_, fit_, how);
      if (!whole) return tl::unexpected(reported(whole.error()));
      for (int i = 0; i <= options_.companions; ++i)  // companions differ in their start; the control keeps the base's
        nets.wholes.push_back(i < options_.companions
                                  ? gpu::reinitialised(whole->net, options_.seed * 100 + static_cast<std::uint64_t>(i))
                                  : whole->net);
    }
    auto done = options_.retrain == Retrain::none    ? Expected<void>{}
                : options_.retrain == Retrain::joint ? train_jointly(nets, epochs)
                                                     : train_alone(nets, epochs);
    if (!done) return tl::unexpected(done.error());
    return nets;
  }

  gpu::TrainerOptions trainer(int epochs, const std::string& label) {
    gpu::TrainerOptions t;
    t.epochs = epochs;
    t.batch = options_.batch;
    t.schedule.peak = options_.peak;
    t.augmentation = options_.augmentation;
    t.normalisation = normalisation_;
    t.seed = options_.seed;
    t.threads = options_.threads;
    auto bar = std::make_shared<std::unique_ptr<Progress>>();
    t.progress = [bar, label](const gpu::TrainingProgress& p) {
      if (!*bar) *bar = std::make_unique<Progress>(label, p.steps);
      (*bar)->at(p.step);
    };
    return t;
  }

  // One softmax over all sub-nets' scores; companions and control on the same batches, taught by the same teacher.
  Expected<void> train_jointly(Nets& nets, int epochs) {
    std::vector<gpu::Network> all = nets.subnets;
    all.insert(all.end(), nets.wholes.begin(), nets.wholes.end());
    std::vector<gpu::Ensemble> ensembles{nets.ensemble};
    ensembles.resize(1 + nets.wholes.size(), {{all_classes(classes_)}});
    auto teacher = gpu::Teacher::make(*all_, base_, options_.batch);
    if (!teacher) return tl::unexpected(reported(teacher.error()));
    auto trained = gpu::train(*single_, all, data_, fit_, gpu::ensemble_loss(ensembles, classes_, *teacher, {}),
                              trainer(epochs, "training " + std::to_string(all.size()) + " nets together"));
    if (!trained) return tl::unexpected(reported(trained.error()));
    auto next = trained->nets.begin();
    for (auto* part : {&nets.subnets, &nets.wholes})
      for (auto& net : *part) net = std::move(*next++);
    return {};
  }

  // Each by itself, "other" as one more class, then made comparable on held-out images.
  Expected<void> train_alone(Nets& nets, int epochs) {
    for (std::size_t i = 0; i < nets.subnets.size(); ++i) {
      const auto& group = nets.ensemble.outputs[i];
      auto start = gpu::with_other(nets.subnets[i], options_.seed + i);
      if (!start) return tl::unexpected(reported(start.error()));
      const auto items = gpu::balanced_items(data_, fit_, group);
      auto trained = gpu::train(*all_, {*start}, data_, items, gpu::alone_loss(group),
                                trainer(epochs, "sub-net " + std::to_string(i)));
      if (!trained) return tl::unexpected(reported(trained.error()));
      auto compared = gpu::without_other(std::move(trained->nets.front()));
      if (!compared) return tl::unexpected(reported(compared.error()));
      nets.subnets[i] = std::move(*compared);
    }
    const auto scores = gpu::ensemble_scores(*all_, nets.subnets, nets.ensemble, classes_, data_, held_, normalisation_);
    if (!scores) return tl::unexpected(reported(scores.error()));
    if (auto done = gpu::calibrate(nets.subnets, nets.ensemble, *scores, classes_, data_, held_); !done)
      return tl::unexpected(reported(done.error()));
    if (nets.wholes.empty()) return {};
    Nets rest{nets.parts, {}, std::move(nets.wholes), {}};
    auto done = train_wholes(rest, epochs);
    nets.wholes = std::move(rest.wholes);
    return done;
  }
  Expected<void> train_wholes(Nets& nets, int epochs) {
    auto teacher = gpu::Teacher::make(*all_, base_, options_.batch);
    if (!teacher) return tl::unexpected(reported(teacher.error()));
    const std::vector<gpu::Ensemble> ensembles(nets.wholes.size(), {{all_classes(classes_)}});
    auto trained = gpu::train(*single_, nets.wholes, data_, fit_, gpu::ensemble_loss(ensembles, classes_, *teacher, {}),
                              trainer(epochs, "companions and control"));
    if (!trained) return tl::unexpected(reported(trained.error()));
    nets.wholes = std::move(trained->nets);
    return {};
  }

  Expected<double> accuracy_of(std::span<const gpu::Network> nets, const gpu::Ensemble& ensemble) {
    const auto scores = gpu::ensemble_scores(*all_, nets, ensemble, classes_, data_, held_, normalisation_);
    if (!scores) return tl::unexpected(reported(scores.error()));
    return gpu::accuracy_percent(*scores, classes_, data_, held_);
  }

  Expected<SubnetsReport> reported_on(const Nets& nets, double budget) {
    SubnetsReport report;
    report.model = options_.model.string();
    report.data = options_.data;
    report.groups = nets.ensemble.outputs;
    report.class_names = class_names();
    report.flops = budget;
    report.base_held_out = base_held_out_;
    report.base_multiply_adds = gpu::multiply_adds(base_);
    report.base_parameters = gpu::parameters(base_);
    const auto combined = accuracy_of(nets.subnets, nets.ensemble);
    if (!combined) return tl::unexpected(combined.error());
    report.combined_held_out = *combined;
    const auto control = accuracy_of({&nets.wholes.back(), 1}, {{all_classes(classes_)}});
    if (!control) return tl::unexpected(control.error());
    report.control_held_out = *control;
    const auto base_latency = latency_us(base_);
    if (!base_latency) return tl::unexpected(base_latency.error());
    report.base_latency_us = *base_latency;
    for (std::size_t i = 0; i < nets.subnets.size(); ++i) {
      auto row = row_of("subnet" + std::to_string(i), nets.subnets[i], nets.ensemble.outputs[i]);
      if (!row) return tl::unexpected(row.error());
      report.rows.push_back(std::move(*row));
    }
    auto row = row_of("control", nets.wholes.back(), all_classes(classes_));
    if (!row) return tl::unexpected(row.error());
    report.rows.push_back(std::move(*row));
    const auto& sets = nets.parts.base.graph.sets;
    for (std::size_t s = 0; s < sets.size(); ++s) {
      if (sets[s].pinned) continue;
      report.layers.push_back({sets[s].name, {}});
      for (const auto& subnet : nets.parts.subnets) report.layers.back().kept.push_back(subnet.kept[s]);
    }
    return report;
  }

  Expected<SubnetsReport::Row> row_of(const std::string& name, const gpu::Network& net, const std::vector<int>& classes) {
    SubnetsReport::Row row{name, classes, gpu::multiply_adds(net), gpu::parameters(net), 0, 0};
    const auto latency = latency_us(net);
    if (!latency) return tl::unexpected(latency.error());
    row.latency_us = *latency;
    Items own;
    std::vector<std::size_t> place;
    for (const auto index : held_) {
      const auto found = std::ranges::find(classes, static_cast<int>(data_.labels[static_cast<std::size_t>(index)]));
      if (found == classes.end()) continue;
      own.push_back(index);
      place.push_back(static_cast<std::size_t>(found - classes.begin()));
    }
    const auto scores = gpu::scores_of(*all_, net, data_, own, normalisation_);
    if (!scores) return tl::unexpected(reported(scores.error()));
    std::size_t right = 0;
    for (std::size_t i = 0; i < own.size(); ++i) {
      const auto answers = std::span(*scores).subspan(i * classes.size(), classes.size());
      right += static_cast<std::size_t>(std::ranges::max_element(answers) - answers.begin()) == place[i] ? 1U : 0U;
    }
    row.accuracy = own.empty() ? std::nan("") : 100.0 * static_cast<double>(right) / static_cast<double>(own.size());
    return row;
  }

  std::vector<std::string> class_names() const {
    std::vector<std::string> names = data_.class_names;
    for (int c = static_cast<int>(names.size()); c < classes_; ++c) names.push_back(std::to_string(c));
    return names;
  }

  Expected<void> write_net(const gpu::Network& net, const std::string& file) {
    const auto bytes = gpu::to_onnx(gpu::simplified(net));
    if (!bytes) return tl::unexpected(reported(bytes.error()));
    std::ofstream out(out_ / file, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes->data()), std::ssize(*bytes));
    if (!out.flush()) return runtime::failed("cannot write " + (out_ / file).string());
    return {};
  }

  Expected<void> write(const Nets& nets) {
    std::error_code fault;
    fs::create_directories(out_, fault);
    if (fault) return bad_input("cannot make " + out_.string() + ": " + fault.message());
    nlohmann::json json = {{"schema", 1},
                           {"data", fs::path(options_.data).filename().string()},
                           {"input", {{"shape", data_.item}, {"mean", normalisation_.mean}, {"std", normalisation_.deviation}}},
                           {"seed", options_.seed},
                           {"classes", class_names()},
                           {"held_out", options_.held_out},
                           {"groups", nets.ensemble.outputs},
                           {"base", "base.onnx"},
                           {"control", "control.onnx"},
                           {"subnets", nlohmann::json::array()},
                           {"companions", nlohmann::json::array()}};
    if (auto done = write_net(base_, "base.onnx"); !done) return done;
    if (auto done = write_net(nets.wholes.back(), "control.onnx"); !done) return done;
    for (std::size_t i = 0; i < nets.subnets.size(); ++i) {
      const auto file = "subnet" + std::to_string(i) + ".onnx";
      if (auto done = write_net(nets.subnets[i], file); !done) return done;
      json["subnets"].push_back({{"file", file}, {"classes", nets.ensemble.outputs[i]}});
    }
    for (std::size_t i = 0; i + 1 < nets.wholes.size(); ++i) {
      const auto file = "companion" + std::to_string(i) + ".onnx";
      if (auto done = write_net(nets.wholes[i], file); !done) return done;
      json["companions"].push_back({{"file", file}, {"classes", all_classes(classes_)}});
    }
    std::ofstream out(out_ / "nets.json", std::ios::trunc);
    out << json.dump(2) << "\n";
    if (!out.flush()) return runtime::failed("cannot write " + (out_ / "nets.json").string());
    return {};
  }

  const SubnetsOptions& options_;
  fs::path out_;
  std::unique_ptr<gpu::Device> single_, all_;
  gpu::Dataset data_;
  Items fit_, held_;
  gpu::Normalisation normalisation_;
  gpu::Network base_;
  gpu::ClassGroups given_;
  int classes_ = 0;
  double base_held_out_ = 0;
};

}  // namespace

Expected<SubnetsReport> make_subnets(const SubnetsOptions& options, const fs::path& out) {
  return Maker(options, out).run();
}

Expected<double> latency_us(const gpu::Network& net) {
  auto device = gpu::make_cpu_device({1});
  if (!device) return tl::unexpected(reported(device.error()));
  auto compiled = (*device)->compile(net, {});
  if (!compiled) return tl::unexpected(reported(compiled.error()));
  std::vector<float> in(static_cast<std::size_t>((*compiled)->input_elements()), 0.5F);
  std::vector<float> out(static_cast<std::size_t>((*compiled)->output_elements()));
  std::vector<double> times;
  for (int i = 0; i < kLatencyWarmUp + kLatencyRuns; ++i) {
    const auto begun = Clock::now();
    if (auto ran = (*compiled)->run(in, out); !ran) return tl::unexpected(reported(ran.error()));
    if (i >= kLatencyWarmUp) times.push_back(1e6 * seconds_since(begun));
  }
  std::ranges::nth_element(times, times.begin() + kLatencyRuns / 2);
  return times[kLatencyRuns / 2];
}

}  // namespace coppice::apps
