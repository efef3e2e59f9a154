#include "apps/study.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "apps/assembly.hpp"
#include "apps/progress.hpp"
#include "apps/subnets.hpp"
#include "gpu/decompose.hpp"
#include "gpu/distill.hpp"
#include "gpu/onnx.hpp"
#include "gpu/onnx_writer.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using runtime::Expected;
using Items = std::vector<std::int64_t>;

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

struct StudyData {
  gpu::Dataset train, test;
  Items fit, held, scored;  // fit and held are of train, scored of test
  gpu::Normalisation normalisation;
  int classes = 0;
};

Items range(std::int64_t begin, std::int64_t end) {
  Items out(static_cast<std::size_t>(end - begin));
  std::iota(out.begin(), out.end(), begin);
  return out;
}

Expected<StudyData> load(const StudyOptions& options) {
  auto train = gpu::load_dataset(options.data, gpu::Split::train);
  if (!train) return tl::unexpected(reported(train.error()));
  auto test = gpu::load_dataset(options.data, gpu::Split::test);
  if (!test) return tl::unexpected(reported(test.error()));
  StudyData data{std::move(*train), std::move(*test), {}, {}, {}, {}, 0};
  if (data.train.count() <= options.held_out)
    return runtime::bad_input("--held-out " + std::to_string(options.held_out) + ": there are only " +
                              std::to_string(data.train.count()) + " training images");
  const auto last = data.train.count() - options.held_out;
  data.fit = range(0, options.most > 0 ? std::min(options.most, last) : last);
  data.held = range(last, data.train.count());
  data.scored = range(0, data.test.count());
  data.normalisation = gpu::measured(data.train, range(0, last));
  data.classes = std::ranges::max(data.train.labels) + 1;
  return data;
}

// ---- one seed ------------------------------------------------------------------------------------------------------

// Cells that have been measured, by seed, budget and name.
class Results {
 public:
  explicit Results(std::filesystem::path file) : file_(std::move(file)) {
    std::ifstream in(file_);
    for (std::string line; std::getline(in, line);)
      if (const auto row = nlohmann::json::parse(line, nullptr, false); row.is_object()) rows_.push_back(row);
  }
  bool has(int seed, double budget, const std::string& cell) const {
    return std::ranges::any_of(rows_, [&](const auto& row) {
      return row.value("seed", -1) == seed && row.value("budget", 0.0) == budget && row.value("cell", "") == cell;
    });
  }
  Expected<void> add(const nlohmann::json& row) {
    rows_.push_back(row);
    std::ofstream out(file_, std::ios::app);
    out << row.dump() << "\n";
    if (!out.flush()) return runtime::failed("cannot write " + file_.string());
    std::fprintf(stderr, "%s\n", row.dump().c_str());
    return {};
  }
  const std::vector<nlohmann::json>& rows() const { return rows_; }

 private:
  std::filesystem::path file_;
  std::vector<nlohmann::json> rows_;
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
    auto bar = std::make_shared<std::optional<Progress>>();
    t.progress = [bar, label](const gpu::TrainingProgress& p) {
      if (!*bar) bar->emplace(label, p.steps);
      (*bar)->at(p.step);
    };
    return t;
  }
  std::string label(const std::string& what) const { return "seed " + std::to_string(seed_) + ", " + what; }

  // The base is kept beside the results: what depends on it can go on without training it again.
  Expected<void> make_base() {
    const auto file = options_.out.string() + ".base" + std::to_string(seed_) + ".onnx";
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
    const auto bytes = gpu::to_onnx(base_);
    if (!bytes) return tl::unexpected(reported(bytes.error()));
    std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(bytes->data()), std::ssize(*bytes));
    return judge({"base", {base_}, {whole()}}, 1, seconds_since(begun));
  }

  gpu::Ensemble whole() const {
    std::vector<int> classes(static_cast<std::size_t>(data_.classes));
    std::iota(classes.begin(), classes.end(), 0);
    return {{classes}};
  }

  bool wanted(double budget, const std::string& cell) const {
    return std::ranges::find(options_.cells, cell) != options_.cells.end() && !results_.has(seed_, budget, cell);
  }

  gpu::DecomposeOptions decomposing(double budget, gpu::Ranking ranking) const {
    gpu::DecomposeOptions d;
    d.groups = options_.groups;
    d.budget.multiply_adds = budget;
    d.ranking = ranking;
    d.seed = static_cast<std::uint64_t>(seed_);
    d.normalisation = data_.normalisation;
    return d;
  }

  Expected<void> at_budget(double budget) {
    bool todo = false;
    for (const auto& cell : options_.cells) todo = todo || wanted(budget, cell);
    if (!todo) return {};
    const auto how = decomposing(budget, gpu::Ranking::taylor);
    const auto parts = gpu::decompose(*all_, base_, data_.train, data_.fit, how);
    if (!parts) return tl::unexpected(reported(parts.error()));
    const auto control = gpu::slim_for(*all_, *parts, whole().outputs.front(), data_.train, data_.fit, how);
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
        const auto scores = gpu::importance(parts->statistics, subnet.classes, gpu::Ranking::random, seed_of(200 + i));
        auto net = gpu::slimmed(parts->base, subnet.shape, gpu::dearest(parts->base, subnet.shape, scores), subnet.classes);
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

  template <class Make>
  Cell together(const std::string& name, const gpu::Decomposition& parts, Make make) {
    Cell cell{name, {}, {{}}};
    for (const auto& subnet : parts.subnets) {
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
  Expected<void> sensai(const gpu::Decomposition& parts, double budget) {
    const auto begun = Clock::now();
    Cell cell{"sensai", {}, {{}}};
    for (const auto& subnet : parts.subnets) {
      const auto scores = gpu::importance(parts.statistics, subnet.classes, gpu::Ranking::apoz, 0);
      auto net = gpu::slimmed(parts.base, subnet.shape, gpu::dearest(parts.base, subnet.shape, scores), subnet.classes);
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
      const auto took = latency_us(net);
      if (!took) return tl::unexpected(took.error());
      slowest = std::max(slowest, *took);
    }
    return results_.add({{"seed", seed_},
                         {"budget", budget},
                         {"cell", cell.name},
                         {"nets", cell.nets.size()},
                         {"macs_per_worker", most},
                         {"macs_total", total},
                         {"latency_us", std::round(slowest * 10) / 10},
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
};

// Two-sided 95 % of Student's t, one to nine degrees of freedom.
constexpr std::array kT975{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262};

}  // namespace

Expected<void> run_study(const StudyOptions& options) {
  const auto data = load(options);
  if (!data) return tl::unexpected(data.error());
  Results results(options.out);
  for (int seed = 0; seed < options.seeds; ++seed)
    if (auto done = SeedRun(options, *data, results, seed).run(); !done) return done;
  return {};
}

Expected<nlohmann::json> study_summary(const std::filesystem::path& file) {
  const Results results(file);
  std::map<int, double> base;
  std::map<int, double> base_latency;
  for (const auto& row : results.rows())
    if (row.at("cell") == "base") {
      base[row.at("seed")] = row.at("test");
      base_latency[row.at("seed")] = row.at("latency_us");
    }
  if (base.empty()) return runtime::bad_input(file.string() + " holds no results");
  std::map<std::pair<double, std::string>, std::vector<const nlohmann::json*>> cells;
  for (const auto& row : results.rows())
    if (base.contains(row.at("seed"))) cells[{-row.at("budget").get<double>(), row.at("cell")}].push_back(&row);
  nlohmann::json out = nlohmann::json::array();
  for (const auto& [key, rows] : cells) {
    double mean = 0, difference = 0, squares = 0, latency = 0;
    const auto n = static_cast<double>(rows.size());
    for (const auto* row : rows) {
      mean += row->at("test").get<double>() / n;
      difference += (row->at("test").get<double>() - base[row->at("seed")]) / n;
      latency += row->at("latency_us").get<double>() / base_latency[row->at("seed")] / n;
    }
    for (const auto* row : rows) {
      const double d = row->at("test").get<double>() - base[row->at("seed")] - difference;
      squares += d * d;
    }
    const auto freedom = rows.size() - 1;
    out.push_back({{"budget", -key.first},
                   {"cell", key.second},
                   {"seeds", rows.size()},
                   {"macs_per_worker", rows.front()->at("macs_per_worker")},
                   {"test", mean},
                   {"difference", difference},
                   {"interval", freedom > 0 ? nlohmann::json(kT975[std::min(freedom, kT975.size()) - 1] *
                                                             std::sqrt(squares / static_cast<double>(freedom) / n))
                                            : nlohmann::json()},
                   {"latency_ratio", latency}});
  }
  return out;
}

}  // namespace coppice::apps
