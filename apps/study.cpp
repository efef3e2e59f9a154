#include "apps/study.hpp"

#include <fcntl.h>

#include <algorithm>
#include <boost/math/distributions/students_t.hpp>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/net_training.hpp"
#include "apps/progress.hpp"
#include "apps/subnets.hpp"
#include "gpu/decompose.hpp"
#include "gpu/distill.hpp"
#include "gpu/onnx.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using runtime::Expected;
using Items = std::vector<std::int64_t>;

struct StudyData {
  gpu::Dataset train, test;
  Items fit, held, scored;  // fit and held are of train, scored of test
  gpu::Normalisation normalisation;
  int classes = 0;
};

Expected<StudyData> load(const StudyOptions& options) {
  auto train = gpu::load_dataset(options.data, gpu::Split::train);
  if (!train) return tl::unexpected(reported(train.error()));
  auto test = gpu::load_dataset(options.data, gpu::Split::test);
  if (!test) return tl::unexpected(reported(test.error()));
  StudyData data{std::move(*train), std::move(*test), {}, {}, {}, {}, 0};
  auto parts = hold_out(data.train, options.held_out, options.data);
  if (!parts) return tl::unexpected(parts.error());
  data.normalisation = gpu::measured(data.train, parts->fit);
  data.fit = std::move(parts->fit);
  if (options.most > 0 && options.most < std::ssize(data.fit)) data.fit.resize(static_cast<std::size_t>(options.most));
  data.held = std::move(parts->held);
  data.scored.resize(static_cast<std::size_t>(data.test.count()));
  std::iota(data.scored.begin(), data.scored.end(), 0);
  data.classes = std::ranges::max(data.train.labels) + 1;
  return data;
}

// ---- one seed ------------------------------------------------------------------------------------------------------

bool is_row(const nlohmann::json& row) {
  const auto number = [&](const char* key) { return row.contains(key) && row[key].is_number(); };
  return row.is_object() && row.contains("seed") && row["seed"].is_number_integer() && row.contains("cell") &&
         row["cell"].is_string() && row.contains("macs_per_worker") && row["macs_per_worker"].is_number_integer() &&
         number("budget") && number("test") && number("held_out") && number("latency_ratio");
}

// Cells that have been measured, by seed, budget and name.
class Results {
 public:
  // A last line that was cut off, as by a full disk, is left out and told of. Errors: bad_input, naming file and line.
  static Expected<Results> open(const std::filesystem::path& file) {
    Results results(file);
    std::error_code ignored;
    if (!std::filesystem::exists(file, ignored)) return results;
    const auto text = runtime::read_file(AT_FDCWD, file, file, {.bytes_max = std::size_t{64} << 20});
    if (!text) return tl::unexpected(text.error());
    std::size_t number = 1;
    for (std::size_t at = 0; at < text->size(); ++number) {
      const auto end = text->find('\n', at);
      auto row = nlohmann::json::parse(text->substr(at, end - at), nullptr, false);
      const auto where = file.string() + ", line " + std::to_string(number);
      if (is_row(row)) {
        results.rows_.push_back(std::move(row));
      } else if (end == std::string::npos) {
        std::fprintf(stderr, "%s: is cut off; its cell is measured again\n", where.c_str());
      } else {
        return runtime::bad_input(where + ": is no result of a cell; remove it");
      }
      if (end == std::string::npos) results.gap_ = true;
      at = end == std::string::npos ? text->size() : end + 1;
    }
    return results;
  }
  bool has(int seed, double budget, const std::string& cell) const {
    return std::ranges::any_of(rows_, [&](const auto& row) {
      return row.value("seed", -1) == seed && row.value("budget", 0.0) == budget && row.value("cell", "") == cell;
    });
  }
  Expected<void> add(const nlohmann::json& row) {
    rows_.push_back(row);
    if (std::exchange(gap_, false))
      if (auto whole = write_all(); !whole) return whole;
    std::ofstream out(file_, std::ios::app);
    out << row.dump() << "\n";
    if (!out.flush()) return runtime::failed("cannot write " + file_.string());
    std::fprintf(stderr, "%s\n", row.dump().c_str());
    return {};
  }
  const std::vector<nlohmann::json>& rows() const { return rows_; }

 private:
  explicit Results(std::filesystem::path file) : file_(std::move(file)) {}

  // But for the newest, which is about to be added.
  Expected<void> write_all() const {
    std::string text;
    for (std::size_t row = 0; row + 1 < rows_.size(); ++row) text += rows_[row].dump() + "\n";
    return write_whole(file_, {text});
  }

  std::filesystem::path file_;
  std::vector<nlohmann::json> rows_;
  bool gap_ = false;  // the file's last line has no end
};

struct Cell {  // nets that answer together, or each of which answers whole
  std::string name;
  std::vector<gpu::Network> nets;
  std::vector<gpu::Ensemble> ensembles;
};

class SeedRun {
 public:
  SeedRun(const StudyOptions& options, const StudyData& data, Results& results, int seed)
      : options_(options), data_(data), results_(results), seed_(seed) {}

  Expected<void> run() {
    bool todo = !results_.has(seed_, 1, "base");
    for (const double budget : options_.budgets)
      for (const auto& cell : options_.cells) todo = todo || !results_.has(seed_, budget, cell);
    if (!todo) return {};
    auto single = gpu::make_cpu_device({1}), all = gpu::make_cpu_device({options_.threads});
    if (!single) return tl::unexpected(reported(single.error()));
    if (!all) return tl::unexpected(reported(all.error()));
    single_ = std::move(*single);
    all_ = std::move(*all);
    if (auto made = make_base(); !made) return made;
    for (const double budget : options_.budgets)
      if (auto done = at_budget(budget); !done) return done;
    return {};
  }

 private:
  gpu::TrainerOptions trainer(int epochs, float peak, const std::string& label) {
    gpu::TrainerOptions t;
    t.epochs = epochs;
    t.schedule.peak = peak;
    t.augmentation = options_.augmentation;
    t.normalisation = data_.normalisation;
    t.seed = static_cast<std::uint64_t>(seed_);
    t.threads = options_.threads;
    t.progress = training_bar(label);
    return t;
  }
  std::string label(const std::string& what) const { return "seed " + std::to_string(seed_) + ", " + what; }

  // The base is kept beside the results: what depends on it can go on without training it again.
  Expected<void> make_base() {
    const auto file = options_.out.string() + ".nets/seed" + std::to_string(seed_) + "-1.0-base-0.onnx";
    if (results_.has(seed_, 1, "base")) {
      auto known = gpu::load_onnx(file);
      if (known) {
        base_ = std::move(*known);
        return {};
      }
    }
    const auto begun = Clock::now();
    const auto start = gpu::vgg(data_.train.item, options_.widths, data_.classes, 1'000 + static_cast<std::uint64_t>(seed_));
    auto trained = gpu::train(*all_, {start}, data_.train, data_.fit,
                              gpu::ensemble_loss({whole()}, data_.classes, nullptr, {}),
                              trainer(options_.base_epochs, options_.base_peak, label("base")));
    if (!trained) return tl::unexpected(reported(trained.error()));
    base_ = std::move(trained->nets.front());
    return judge({"base", {base_}, {whole()}}, 1, seconds_since(begun));
  }

  gpu::Ensemble whole() const { return {{all_classes(data_.classes)}}; }

  bool wanted(double budget, const std::string& cell) const {
    return std::ranges::find(options_.cells, cell) != options_.cells.end() && !results_.has(seed_, budget, cell);
  }

  // Once a seed: no budget changes what channels are worth.
  Expected<void> dissect() {
    gpu::DecomposeOptions how;
    how.groups = options_.groups;
    how.seed = static_cast<std::uint64_t>(seed_);
    how.normalisation = data_.normalisation;
    auto anatomy = gpu::dissect(*all_, base_, data_.train, data_.fit, how);
    if (!anatomy) return tl::unexpected(reported(anatomy.error()));
    anatomy_ = std::move(*anatomy);
    auto group = gpu::study_group(*all_, *anatomy_, whole().outputs.front(), data_.train, data_.fit, how);
    if (!group) return tl::unexpected(reported(group.error()));
    all_together_ = std::move(*group);
    return {};
  }

  Expected<void> at_budget(double budget) {
    bool todo = false;
    for (const auto& cell : options_.cells) todo = todo || wanted(budget, cell);
    if (!todo) return {};
    if (!anatomy_)
      if (auto done = dissect(); !done) return done;
    gpu::Budget within;
    within.multiply_adds = budget;
    const auto parts = gpu::subnets_of(*anatomy_, within);
    if (!parts) return tl::unexpected(reported(parts.error()));
    const auto control = gpu::slim_for(*anatomy_, all_together_, within);
    if (!control) return tl::unexpected(reported(control.error()));

    std::vector<Cell> cells;
    if (wanted(budget, "class_parallel")) cells.push_back(together("class_parallel", *parts, [](const auto& s, int) { return s.net; }));
    if (wanted(budget, "whole")) cells.push_back({"whole", {control->net}, {whole()}});
    if (wanted(budget, "ensemble")) {
      cells.push_back({"ensemble", {}, {}});
      for (int i = 0; i < options_.groups; ++i) {
        cells.back().nets.push_back(gpu::reinitialised(control->net, seed_of(100 + i)));
        cells.back().ensembles.push_back(whole());
      }
    }
    if (wanted(budget, "random")) {
      std::optional<runtime::Error> fault;
      cells.push_back(together("random", *parts, [&](const gpu::Subnet& subnet, int i) {
        auto net = reranked(subnet, gpu::Ranking::random, seed_of(200 + i));
        if (!net) fault = reported(net.error());
        return net ? std::move(*net) : gpu::Network{};
      }));
      if (fault) return tl::unexpected(*fault);
    }
    if (wanted(budget, "scratch"))
      cells.push_back(together("scratch", *parts, [&](const gpu::Subnet& s, int i) { return gpu::reinitialised(s.net, seed_of(300 + i)); }));
    if (auto done = distil(std::move(cells), budget); !done) return done;
    if (wanted(budget, "sensai")) return sensai(*parts, budget);
    return {};
  }

  std::uint64_t seed_of(int what) const { return static_cast<std::uint64_t>(seed_) * 1'000 + static_cast<std::uint64_t>(what); }

  // A sub-net of the same shape, its channels chosen in another way.
  gpu::Expected<gpu::Network> reranked(const gpu::Subnet& subnet, gpu::Ranking ranking, std::uint64_t seed) const {
    const auto scores = gpu::importance(anatomy_->statistics, subnet.classes, ranking, seed);
    const auto& base = anatomy_->base;
    return gpu::slimmed(base, subnet.shape, gpu::dearest(base, subnet.shape, scores), subnet.classes);
  }

  template <class Make>
  Cell together(const std::string& name, const std::vector<gpu::Subnet>& parts, Make make) {
    Cell cell{name, {}, {{}}};
    for (const auto& subnet : parts) {
      cell.nets.push_back(make(subnet, static_cast<int>(cell.nets.size())));
      cell.ensembles.front().outputs.push_back(subnet.classes);
    }
    return cell;
  }

  // All cells at once: the same batches for each, and the teacher answers once for all of them.
  Expected<void> distil(std::vector<Cell> cells, double budget) {
    if (cells.empty()) return {};
    const auto begun = Clock::now();
    std::vector<gpu::Network> nets;
    std::vector<gpu::Ensemble> ensembles;
    std::string names;
    for (const auto& cell : cells) {
      nets.insert(nets.end(), cell.nets.begin(), cell.nets.end());
      ensembles.insert(ensembles.end(), cell.ensembles.begin(), cell.ensembles.end());
      names += (names.empty() ? "" : " ") + cell.name;
    }
    const auto how = trainer(options_.epochs, options_.peak, label(std::to_string(budget).substr(0, 5) + ": " + names));
    auto teacher = gpu::Teacher::make(*all_, base_, how.batch);
    if (!teacher) return tl::unexpected(reported(teacher.error()));
    auto trained = gpu::train(*single_, nets, data_.train, data_.fit,
                              gpu::ensemble_loss(ensembles, data_.classes, *teacher, {}), how);
    if (!trained) return tl::unexpected(reported(trained.error()));
    auto next = trained->nets.begin();
    for (auto& cell : cells) {
      for (auto& net : cell.nets) net = std::move(*next++);
      if (auto judged = judge(cell, budget, seconds_since(begun)); !judged) return judged;
    }
    return {};
  }

  // The reference's recipe: channels by APoZ, each net alone, "other" as one more class, every class as heavy as all
  // others; as many images a sub-net as the rest of the cells saw, and no teacher.
  Expected<void> sensai(const std::vector<gpu::Subnet>& parts, double budget) {
    const auto begun = Clock::now();
    Cell cell{"sensai", {}, {{}}};
    for (const auto& subnet : parts) {
      auto net = reranked(subnet, gpu::Ranking::apoz, 0);
      if (net) net = gpu::with_other(std::move(*net), seed_of(400));
      if (!net) return tl::unexpected(reported(net.error()));
      auto items = gpu::balanced_items(data_.train, data_.fit, subnet.classes);
      std::mt19937_64 random(seed_of(500));
      std::ranges::shuffle(items, random);
      items.resize(std::min(items.size(), data_.fit.size()));
      auto trained = gpu::train(*all_, {*net}, data_.train, items, gpu::alone_loss(subnet.classes),
                                trainer(options_.epochs, options_.peak, label("sensai")));
      if (!trained) return tl::unexpected(reported(trained.error()));
      auto compared = gpu::without_other(std::move(trained->nets.front()));
      if (!compared) return tl::unexpected(reported(compared.error()));
      cell.nets.push_back(std::move(*compared));
      cell.ensembles.front().outputs.push_back(subnet.classes);
    }
    return judge(cell, budget, seconds_since(begun));
  }

  // [items, classes]; several ensembles average their log-probabilities.
  Expected<std::vector<float>> answers(const Cell& cell, const gpu::Dataset& data, const Items& items) {
    std::vector<float> sum;
    std::size_t first = 0;
    for (const auto& ensemble : cell.ensembles) {
      const auto nets = std::span(cell.nets).subspan(first, ensemble.outputs.size());
      first += ensemble.outputs.size();
      auto scores = gpu::ensemble_scores(*all_, nets, ensemble, data_.classes, data, items, data_.normalisation);
      if (!scores) return tl::unexpected(reported(scores.error()));
      if (cell.ensembles.size() == 1) return std::move(*scores);
      log_softmax(*scores);
      sum.resize(scores->size(), 0.0F);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += (*scores)[i];
    }
    return sum;
  }
  void log_softmax(std::vector<float>& scores) const {
    const auto width = static_cast<std::size_t>(data_.classes);
    for (std::size_t row = 0; row < scores.size(); row += width) {
      const auto own = std::span(scores).subspan(row, width);
      const float top = std::ranges::max(own);
      double total = 0;
      for (const float value : own) total += std::exp(static_cast<double>(value - top));
      const auto log_total = static_cast<float>(std::log(total)) + top;
      for (float& value : own) value -= log_total;
    }
  }

  // The nets beside the results, so that a figure can be looked into.
  Expected<void> keep(const Cell& cell, double budget) {
    const std::filesystem::path directory = options_.out.string() + ".nets";
    std::error_code fault;
    std::filesystem::create_directories(directory, fault);
    if (fault) return runtime::failed(directory.string() + ": " + fault.message());
    for (std::size_t i = 0; i < cell.nets.size(); ++i) {
      const auto name = "seed" + std::to_string(seed_) + "-" + nlohmann::json(budget).dump() + "-" + cell.name + "-" + std::to_string(i);
      if (auto written = write_onnx(cell.nets[i], directory / (name + ".onnx")); !written) return written;
    }
    return {};
  }

  Expected<void> judge(const Cell& cell, double budget, double seconds) {
    const auto held = answers(cell, data_.train, data_.held);
    if (!held) return tl::unexpected(held.error());
    const auto test = answers(cell, data_.test, data_.scored);
    if (!test) return tl::unexpected(test.error());
    std::int64_t most = 0, total = 0;
    double slowest = 0;
    for (const auto& net : cell.nets) {
      const auto products = gpu::multiply_adds(net);
      most = std::max(most, products);
      total += products;
      const auto took = latency_ratio(net, base_);
      if (!took) return tl::unexpected(took.error());
      slowest = std::max(slowest, *took);
    }
    if (auto kept = keep(cell, budget); !kept) return kept;
    return results_.add({{"seed", seed_},
                         {"budget", budget},
                         {"cell", cell.name},
                         {"nets", cell.nets.size()},
                         {"macs_per_worker", most},
                         {"macs_total", total},
                         {"latency_ratio", std::round(slowest * 1e4) / 1e4},
                         {"held_out", gpu::accuracy_percent(*held, data_.classes, data_.train, data_.held)},
                         {"test", gpu::accuracy_percent(*test, data_.classes, data_.test, data_.scored)},
                         {"seconds", std::round(seconds)}});
  }

  const StudyOptions& options_;
  const StudyData& data_;
  Results& results_;
  int seed_;
  std::unique_ptr<gpu::Device> single_, all_;
  gpu::Network base_;
  std::optional<gpu::Anatomy> anatomy_;
  gpu::GroupStudy all_together_;  // of all classes: for the whole nets
};

// A mean over seeds with the two-sided 95 % of Student's t.
struct Estimate {
  double mean = 0;
  std::optional<double> half_width;  // none from a single seed
};

Estimate estimate(const std::vector<double>& values) {
  Estimate out;
  const auto n = static_cast<double>(values.size());
  for (const double value : values) out.mean += value / n;
  if (values.size() < 2) return out;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  const boost::math::students_t t(n - 1);
  out.half_width = boost::math::quantile(t, 0.975) * std::sqrt(squares / (n - 1) / n);
  return out;
}

nlohmann::json to_json(const Estimate& e) {
  return {{"mean", e.mean}, {"interval", e.half_width ? nlohmann::json(*e.half_width) : nlohmann::json()}};
}

}  // namespace

Expected<void> run_study(const StudyOptions& options) {
  if (auto possible = check_writable(options.out, "--out"); !possible) return possible;
  auto results = Results::open(options.out);
  if (!results) return tl::unexpected(results.error());
  const auto data = load(options);
  if (!data) return tl::unexpected(data.error());
  for (int seed = options.first_seed; seed < options.first_seed + options.seeds; ++seed)
    if (auto done = SeedRun(options, *data, *results, seed).run(); !done) return done;
  return {};
}

Expected<nlohmann::json> study_summary(const std::filesystem::path& file) {
  using Rows = std::map<int, const nlohmann::json*>;  // by seed
  const auto results = Results::open(file);
  if (!results) return tl::unexpected(results.error());
  std::map<std::pair<double, std::string>, Rows> cells;
  for (const auto& row : results->rows()) cells[{-row.at("budget").get<double>(), row.at("cell")}][row.at("seed")] = &row;
  const auto base = cells.find({-1.0, "base"});
  if (base == cells.end()) return runtime::bad_input(file.string() + " holds no results");

  // One number a seed that both have; against nothing: the number itself.
  const auto paired = [](const Rows& ours, const Rows* theirs, const char* key) {
    std::vector<double> out;
    for (const auto& [seed, row] : ours) {
      const double value = row->at(key);
      if (theirs == nullptr) out.push_back(value);
      else if (const auto other = theirs->find(seed); other != theirs->end()) out.push_back(value - other->second->at(key).get<double>());
    }
    return estimate(out);
  };
  nlohmann::json out = nlohmann::json::array();
  for (const auto& [key, rows] : cells) {
    std::int64_t most = 0;
    for (const auto& [seed, row] : rows) most = std::max(most, row->at("macs_per_worker").get<std::int64_t>());
    nlohmann::json line{{"budget", -key.first},
                        {"cell", key.second},
                        {"seeds", rows.size()},
                        {"macs_per_worker", most},
                        {"test", to_json(paired(rows, nullptr, "test"))},
                        {"held_out", to_json(paired(rows, nullptr, "held_out"))},
                        {"against_base", to_json(paired(rows, &base->second, "test"))},
                        {"latency_ratio", paired(rows, nullptr, "latency_ratio").mean}};
    const auto ours = cells.find({key.first, "class_parallel"});
    if (ours != cells.end() && key.second != "class_parallel")
      line["lead_of_class_parallel"] = to_json(paired(ours->second, &rows, "test"));
    out.push_back(std::move(line));
  }
  return out;
}

}  // namespace coppice::apps
