#include "apps/subnets.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "apps/session.hpp"
#include "gpu/distill.hpp"
#include "gpu/onnx.hpp"

namespace coppice::apps {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using runtime::bad_input;
using runtime::Expected;
using Items = std::vector<std::int64_t>;

constexpr int kLatencyRuns = 600, kLatencyWarmUp = 100;
constexpr int kLatencyRounds = 200, kRunsARound = 20;
// Where the search for a budget looks, from the largest.
constexpr std::array kBudgets{0.5, 0.35, 0.25, 0.18, 0.125, 0.1, 0.07, 0.05, 0.035, 0.025};

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
  std::vector<gpu::Kept> kept;                // [sub-net], of the base
  std::vector<gpu::Network> subnets, wholes;  // wholes: the companions, then the control
  gpu::Ensemble ensemble;
  // Of the wholes, in order: one net of all classes each; with blocks one net a block.
  std::vector<gpu::Ensemble> whole_ensembles;
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
    auto parts = hold_out(data_, options_.held_out, options_.data);
    if (!parts) return tl::unexpected(parts.error());
    fit_ = std::move(parts->fit);
    held_ = std::move(parts->held);
    const auto beside = find_normalisation(options_.model.parent_path());
    if (!beside) return tl::unexpected(beside.error());
    normalisation_ = *beside ? (*beside)->normalisation : gpu::measured(data_, fit_);

    auto base = gpu::load_onnx(options_.model);
    if (!base) return tl::unexpected(reported(base.error()));
    if (base->input != data_.item)
      return bad_input(options_.model.string() + ": takes " + gpu::to_string(base->input) + ", the images of " +
                       options_.data + " are " + gpu::to_string(data_.item));
    if (auto learns = gpu::check_learnable(*base, *gpu::infer_shapes(*base), "decomposition"); !learns)
      return bad_input(options_.model.string() + ": " + learns.error().what);
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
    if (auto fits = check_blocks(); !fits) return fits;
    const auto accuracy = accuracy_of({&base_, 1}, {{all_classes(classes_)}});
    if (!accuracy) return tl::unexpected(accuracy.error());
    base_held_out_ = *accuracy;
    return dissect();
  }
  // Once: no budget changes what channels are worth.
  Expected<void> dissect() {
    how_.groups = options_.groups;
    how_.given = given_;
    how_.ranking = options_.ranking;
    how_.seed = options_.seed;
    how_.normalisation = normalisation_;
    std::unique_ptr<Progress> bar;
    std::string shown;
    how_.progress = [&](const std::string& stage, std::int64_t done, std::int64_t all) {
      if (stage != shown) bar = std::make_unique<Progress>(shown = stage, all);
      bar->at(done);
    };
    auto anatomy = gpu::dissect(*all_, base_, data_, fit_, how_);
    how_.progress = nullptr;
    if (!anatomy) return tl::unexpected(reported(anatomy.error()));
    anatomy_ = std::move(*anatomy);
    return {};
  }
  Expected<void> check_blocks() const {
    const auto groups = given_.empty() ? options_.groups : static_cast<int>(given_.size());
    if (options_.blocks == 0 || groups % options_.blocks == 0) return {};
    return bad_input("--blocks " + std::to_string(options_.blocks) + ": " + std::to_string(groups) +
                     " groups cannot be shared out over as many");
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
    gpu::Budget within;
    within.multiply_adds = budget;
    within.latency = options_.latency;
    auto subnets = gpu::subnets_of(anatomy_, within);
    if (!subnets) return tl::unexpected(reported(subnets.error()));
    Nets nets;
    for (auto& subnet : *subnets) {
      nets.kept.push_back(std::move(subnet.kept));
      nets.subnets.push_back(std::move(subnet.net));
      nets.ensemble.outputs.push_back(std::move(subnet.classes));
    }
    if (with_wholes) {
      auto whole = slimmed(all_classes(classes_), within);
      if (!whole) return tl::unexpected(whole.error());
      if (auto done = add_companions(nets, *whole, within); !done) return tl::unexpected(done.error());
      nets.wholes.push_back(std::move(*whole));
      nets.whole_ensembles.push_back({{all_classes(classes_)}});
    }
    auto done = options_.retrain == Retrain::none    ? Expected<void>{}
                : options_.retrain == Retrain::joint ? train_jointly(nets, epochs)
                                                     : train_alone(nets, epochs);
    if (!done) return tl::unexpected(done.error());
    return nets;
  }

  // The base slimmed to what tells these classes from one another.
  Expected<gpu::Network> slimmed(const std::vector<int>& classes, const gpu::Budget& within) {
    const auto group = gpu::study_group(*all_, anatomy_, classes, data_, fit_, how_);
    if (!group) return tl::unexpected(reported(group.error()));
    auto net = gpu::slim_for(anatomy_, *group, within);
    if (!net) return tl::unexpected(reported(net.error()));
    return std::move(net->net);
  }

  // They differ in their start; the control keeps the base's.
  Expected<void> add_companions(Nets& nets, const gpu::Network& whole, const gpu::Budget& within) {
    const auto seed = [&](int i) { return options_.seed * 100 + static_cast<std::uint64_t>(i); };
    std::vector<gpu::Network> of_blocks;
    gpu::Ensemble blocks;
    const auto count = static_cast<std::size_t>(options_.blocks);
    for (std::size_t b = 0; b < count; ++b) {
      auto& classes = blocks.outputs.emplace_back();
      const auto run = nets.ensemble.outputs.size() / count;
      for (std::size_t g = b * run; g < (b + 1) * run; ++g)
        classes.insert(classes.end(), nets.ensemble.outputs[g].begin(), nets.ensemble.outputs[g].end());
      auto net = slimmed(classes, within);
      if (!net) return tl::unexpected(net.error());
      of_blocks.push_back(std::move(*net));
    }
    for (int i = 0; i < options_.companions; ++i) {
      if (count == 0) nets.wholes.push_back(gpu::reinitialised(whole, seed(i)));
      for (const auto& net : of_blocks) nets.wholes.push_back(gpu::reinitialised(net, seed(i)));
      nets.whole_ensembles.push_back(count > 0 ? blocks : gpu::Ensemble{{all_classes(classes_)}});
    }
    return {};
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
    t.progress = training_bar(label);
    t.stop = [] { return interrupted.load(); };
    return t;
  }

  // Several ensembles on the same batches, taught by the same teacher.
  Expected<std::vector<gpu::Network>> taught(const std::vector<gpu::Network>& nets,
                                             const std::vector<gpu::Ensemble>& ensembles, int epochs,
                                             const std::string& label) {
    auto teacher = gpu::Teacher::make(*all_, base_, options_.batch);
    if (!teacher) return tl::unexpected(reported(teacher.error()));
    auto trained = gpu::train(*single_, nets, data_, fit_, gpu::ensemble_loss(ensembles, classes_, *teacher, {}),
                              trainer(epochs, label));
    if (!trained) return tl::unexpected(reported(trained.error()));
    return std::move(trained->nets);
  }

  // One softmax over all sub-nets' scores; companions and control beside them.
  Expected<void> train_jointly(Nets& nets, int epochs) {
    std::vector<gpu::Network> all = nets.subnets;
    all.insert(all.end(), nets.wholes.begin(), nets.wholes.end());
    std::vector<gpu::Ensemble> ensembles{nets.ensemble};
    ensembles.insert(ensembles.end(), nets.whole_ensembles.begin(), nets.whole_ensembles.end());
    auto trained = taught(all, ensembles, epochs, "training " + std::to_string(all.size()) + " nets together");
    if (!trained) return tl::unexpected(trained.error());
    auto next = trained->begin();
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
    auto wholes = taught(nets.wholes, nets.whole_ensembles, epochs, "companions and control");
    if (!wholes) return tl::unexpected(wholes.error());
    nets.wholes = std::move(*wholes);
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
    const auto& sets = anatomy_.base.graph.sets;
    for (std::size_t s = 0; s < sets.size(); ++s) {
      if (sets[s].pinned) continue;
      report.layers.push_back({sets[s].name, {}});
      for (const auto& kept : nets.kept) report.layers.back().kept.push_back(kept[s]);
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
    return write_onnx(gpu::simplified(net), out_ / file);
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
    if (options_.blocks > 0) json["blocks"] = options_.blocks;
    std::size_t i = 0;
    for (std::size_t e = 0; e + 1 < nets.whole_ensembles.size(); ++e)
      for (const auto& classes : nets.whole_ensembles[e].outputs) {
        const auto file = "companion" + std::to_string(i) + ".onnx";
        if (auto done = write_net(nets.wholes[i++], file); !done) return done;
        json["companions"].push_back({{"file", file}, {"classes", classes}});
      }
    return write_whole(out_ / "nets.json", {json.dump(2), "\n"});
  }

  const SubnetsOptions& options_;
  fs::path out_;
  std::unique_ptr<gpu::Device> single_, all_;
  gpu::Dataset data_;
  Items fit_, held_;
  gpu::Normalisation normalisation_;
  gpu::Network base_;
  gpu::ClassGroups given_;
  gpu::DecomposeOptions how_;
  gpu::Anatomy anatomy_;
  int classes_ = 0;
  double base_held_out_ = 0;
};

}  // namespace

Expected<SubnetsReport> make_subnets(const SubnetsOptions& options, const fs::path& out) {
  return Maker(options, out).run();
}

namespace {

// A net alone on one thread.
class Stopwatch {
 public:
  static Expected<Stopwatch> make(const gpu::Network& net) {
    Stopwatch out;
    auto device = gpu::make_cpu_device({1});
    if (!device) return tl::unexpected(reported(device.error()));
    out.device_ = std::move(*device);
    auto compiled = out.device_->compile(net, {});
    if (!compiled) return tl::unexpected(reported(compiled.error()));
    out.net_ = std::move(*compiled);
    out.in_.assign(static_cast<std::size_t>(out.net_->input_elements()), 0.5F);
    out.out_.resize(static_cast<std::size_t>(out.net_->output_elements()));
    return out;
  }
  Expected<double> microseconds(int runs) {
    const auto begun = Clock::now();
    for (int i = 0; i < runs; ++i)
      if (auto ran = net_->run(in_, out_); !ran) return tl::unexpected(reported(ran.error()));
    return 1e6 * seconds_since(begun) / runs;
  }

 private:
  std::unique_ptr<gpu::Device> device_;
  std::unique_ptr<gpu::CompiledNet> net_;
  std::vector<float> in_, out_;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace

Expected<double> latency_us(const gpu::Network& net) {
  auto watch = Stopwatch::make(net);
  if (!watch) return tl::unexpected(watch.error());
  std::vector<double> times;
  for (int i = 0; i < kLatencyWarmUp + kLatencyRuns; ++i) {
    const auto took = watch->microseconds(1);
    if (!took) return took;
    if (i >= kLatencyWarmUp) times.push_back(*took);
  }
  return median(std::move(times));
}

Expected<double> latency_ratio(const gpu::Network& net, const gpu::Network& base) {
  auto ours = Stopwatch::make(net), whole = Stopwatch::make(base);
  if (!ours) return tl::unexpected(ours.error());
  if (!whole) return tl::unexpected(whole.error());
  std::vector<double> ratios;
  for (int round = -1; round < kLatencyRounds; ++round) {
    const auto fast = ours->microseconds(kRunsARound), slow = whole->microseconds(kRunsARound);
    if (!fast) return fast;
    if (!slow) return slow;
    if (round >= 0) ratios.push_back(*fast / *slow);
  }
  return median(std::move(ratios));
}

}  // namespace coppice::apps
