#include "apps/collective_bench.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "apps/progress.hpp"
#include "apps/table.hpp"
#include "collectives/program.hpp"

namespace coppice::apps {
namespace {

using collectives::Element;
using collectives::Operation;
using collectives::Reduction;
using runtime::Expected;
using Bytes = std::vector<std::byte>;

// ---- contents --------------------------------------------------------------------------------------------------------

// Element i of rank r's whole buffer is a small whole number that repeats every kPeriod elements: sums over ranks are
// exact in every type, whatever the order, and what should come out is known without a second implementation.
constexpr int kPeriod = 13;

class Contents {
 public:
  Contents(const CollectiveLoad& load, int ranks) : load_(load), ranks_(ranks), size_(collectives::size_of(load.element)) {
    // bfloat16 holds whole numbers up to 256 exactly.
    const int most = ranks <= 20 ? kPeriod : 2;
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<int> values;
      for (int i = 0; i < kPeriod; ++i) values.push_back((i * 5 + rank * 3) % kPeriod % most);
      inputs_.push_back(collectives::elements_of(load.element, values));
    }
    combined_ = inputs_.front();
    for (int rank = 1; rank < ranks; ++rank)
      collectives::combine(load.element, load.reduction, combined_, inputs_[static_cast<std::size_t>(rank)]);
    collectives::finish(load.element, load.reduction, ranks, combined_);
  }

  // Elements [first, …) of rank's whole buffer.
  void fill(int rank, std::size_t first, std::span<std::byte> into) const {
    write(inputs_[static_cast<std::size_t>(rank)], first, into);
  }

  // Elements that differ from what `rank` should hold after the operation, in its output that begins at element `first`
  // of the whole of `total` bytes.
  std::int64_t wrong(int root, std::size_t first, std::span<const std::byte> got, std::size_t total) const {
    if (load_.operation != Operation::allgather && load_.operation != Operation::gather)
      return differing(collectives::combines(load_.operation) ? combined_ : inputs_[static_cast<std::size_t>(root)], first, got);
    if (got.empty()) return 0;  // gather, elsewhere than at its root
    std::int64_t count = 0;     // each rank's own part
    const std::size_t part = total / static_cast<std::size_t>(ranks_);
    for (int rank = 0; rank < ranks_; ++rank) {
      const std::size_t at = part * static_cast<std::size_t>(rank);
      count += differing(inputs_[static_cast<std::size_t>(rank)], at / size_, got.subspan(at, part));
    }
    return count;
  }

 private:
  void write(const Bytes& period, std::size_t first, std::span<std::byte> into) const {
    const std::size_t skip = first % kPeriod * size_;
    // One period, turned to begin at `first`; then the written doubles itself.
    const std::size_t turn = std::min(into.size(), period.size());
    Bytes turned(period.begin() + static_cast<std::ptrdiff_t>(skip), period.end());
    turned.insert(turned.end(), period.begin(), period.begin() + static_cast<std::ptrdiff_t>(skip));
    std::memcpy(into.data(), turned.data(), turn);
    for (std::size_t done = turn; done < into.size();) {
      const std::size_t more = std::min(done, into.size() - done);
      std::memcpy(into.data() + done, into.data(), more);
      done += more;
    }
  }
  std::int64_t differing(const Bytes& period, std::size_t first, std::span<const std::byte> got) const {
    Bytes right(std::min(got.size(), period.size() * 4'096));  // whole periods: every block looks alike
    write(period, first, right);
    std::int64_t count = 0;
    for (std::size_t at = 0; at < got.size(); at += right.size()) {
      const std::size_t bytes = std::min(right.size(), got.size() - at);
      if (std::memcmp(got.data() + at, right.data(), bytes) == 0) continue;
      for (std::size_t i = 0; i < bytes; i += size_) count += std::memcmp(got.data() + at + i, right.data() + i, size_) != 0;
    }
    return count;
  }

  const CollectiveLoad& load_;
  int ranks_;
  std::size_t size_;
  std::vector<Bytes> inputs_;  // one period of each rank's
  Bytes combined_;
};

// ---- one rank --------------------------------------------------------------------------------------------------------

class Rank {
 public:
  Rank(runtime::Communicator& group, const CollectiveLoad& load, int root, actors::HopLog* hops)
      : group_(group), load_(load), root_(root), hops_(hops), contents_(load, group.size()) {}

  struct Measured {
    double seconds = 0;
    std::int64_t wrong = 0;
    actors::CallReport report;
  };

  Expected<Measured> once(std::int64_t bytes) {
    shape(bytes);
    const auto me = group_.rank();
    const auto size = collectives::size_of(load_.element);
    contents_.fill(me, in_first_ / size, in_);
    if (out_.data() != in_.data()) std::ranges::fill(out_, std::byte{0xa5});
    if (auto met = meet(); !met) return tl::unexpected(met.error());

    if (hops_) hops_->record(true);
    const auto begun = std::chrono::steady_clock::now();
    const bool in_place = load_.operation == Operation::broadcast || load_.operation == Operation::allreduce;
    const std::span<std::byte> out = in_place ? std::span(in_) : std::span(out_);
    const auto completion = group_.call(load_.operation, load_.element, load_.reduction, root_, in_, out);
    const auto done = completion.wait();
    const auto took = std::chrono::steady_clock::now() - begun;
    if (hops_) hops_->record(false);
    if (!done) return tl::unexpected(done.error());

    Measured measured;
    measured.report = *done;
    std::vector<std::int64_t> shared{std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()};
    if (const auto slowest = group_.allreduce(std::span(shared), Reduction::max).wait(); !slowest) return tl::unexpected(slowest.error());
    measured.seconds = static_cast<double>(shared[0]) * 1e-9;
    shared = {contents_.wrong(root_, out_first_ / size, out, static_cast<std::size_t>(bytes)), done->settled ? 0 : 1};
    if (const auto counted = group_.allreduce(std::span(shared), Reduction::sum).wait(); !counted) return tl::unexpected(counted.error());
    measured.wrong = shared[0];
    measured.report.settled = shared[1] == 0;  // all ranks must agree on when warming up is over
    return measured;
  }

 private:
  Expected<void> meet() {
    std::vector<std::int32_t> one{1};
    const auto met = group_.allreduce(std::span(one)).wait();
    if (!met) return tl::unexpected(met.error());
    return {};
  }

  // Which buffers this rank has, and where they begin in the whole.
  void shape(std::int64_t bytes) {
    const auto whole = static_cast<std::size_t>(bytes), part = whole / static_cast<std::size_t>(group_.size());
    const std::size_t own = part * static_cast<std::size_t>(group_.rank());
    const bool at_root = group_.rank() == root_;
    std::size_t in = whole, out = whole;
    in_first_ = out_first_ = 0;
    switch (load_.operation) {
      case Operation::broadcast:
      case Operation::allreduce: out = 0; break;
      case Operation::reduce: out = at_root ? whole : 0; break;
      case Operation::allgather:
        in = part;
        in_first_ = own;
        break;
      case Operation::reduce_scatter:
        out = part;
        out_first_ = own;
        break;
      case Operation::gather:
        in = part;
        in_first_ = own;
        out = at_root ? whole : 0;
        break;
      case Operation::scatter:
        in = at_root ? whole : 0;
        out = part;
        out_first_ = own;
        break;
    }
    in_.resize(in);
    out_.resize(out);
  }

  runtime::Communicator& group_;
  const CollectiveLoad& load_;
  int root_;
  actors::HopLog* hops_;
  Contents contents_;
  Bytes in_, out_;
  std::size_t in_first_ = 0, out_first_ = 0;  // bytes
};

constexpr int kWarmUpMax = 24;  // calls, for links so uneven that nothing settles

// What nccl-tests multiplies by to compare operations with one another.
double bus_factor(Operation operation, int ranks) {
  const double n = ranks;
  if (operation == Operation::allreduce) return 2 * (n - 1) / n;
  return collectives::has_parts(operation) ? (n - 1) / n : 1;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

Expected<nlohmann::json> run_collective(runtime::Communicator& group, const runtime::Cluster& cluster,
                                        const CollectiveLoad& load, actors::HopLog* hops) {
  int root = 0;
  for (std::size_t i = 0; i < cluster.hosts.size(); ++i)
    if (cluster.hosts[i].name == load.root) root = static_cast<int>(i);
  const auto topology = group.topology();
  const auto plan = group.plan(load.operation, root);
  if (!plan) return tl::unexpected(plan.error());
  const auto unit = collectives::unit_bytes_per_s(topology.unit);

  Rank rank(group, load, root, hops);
  auto runs = nlohmann::json::array();
  const auto total = static_cast<std::int64_t>(load.bytes.size()) * (load.repeat + load.warm_up);
  Progress bar("repetitions", total);
  std::int64_t done = 0;
  for (const auto bytes : load.bytes) {
    std::vector<double> seconds;
    std::int64_t wrong = 0;
    actors::CallReport report;
    int warm = 0, replans = 0;
    for (bool settled = false; std::ssize(seconds) < load.repeat;) {
      const auto once = rank.once(bytes);
      if (!once) return tl::unexpected(once.error());
      wrong += once->wrong;
      report = once->report;
      replans += report.attempts - 1;
      if (settled || load.warm_up == 0)
        seconds.push_back(once->seconds);
      else
        settled = ++warm >= load.warm_up && (report.settled || warm >= kWarmUpMax);
      bar.at(std::min(++done, total));
    }
    done = std::min(done, total);
    const double middle = median(seconds);
    const double algorithm = static_cast<double>(bytes) / middle / (unit ? unit->get_d() : 1.0);
    nlohmann::json run{{"op", name(load.operation)},
                       {"bytes", bytes},
                       {"ranks", group.size()},
                       {"element", name(load.element)},
                       {"seconds", seconds},
                       {"median_s", middle},
                       {"algbw", algorithm},
                       {"busbw", algorithm * bus_factor(load.operation, group.size())},
                       {"unit", unit ? topology.unit : "B/s"},
                       {"bound", unit ? nlohmann::json(plan->bound.get_d()) : nlohmann::json()},
                       {"fraction_of_bound", unit ? nlohmann::json(algorithm / plan->bound.get_d()) : nlohmann::json()},
                       {"rate", plan->rate.get_d()},
                       {"wrong", wrong},
                       {"verified", wrong == 0},
                       {"trees", report.trees},
                       {"chunks", report.chunks},
                       {"attempts", report.attempts},
                       {"replans", replans}};
    if (collectives::combines(load.operation)) run["reduction"] = name(load.reduction);
    runs.push_back(std::move(run));
  }
  return runs;
}

std::string collective_table(const nlohmann::json& runs) {
  if (runs.empty()) return "";
  const std::string unit = runs.front()["unit"];
  std::vector<std::vector<std::string>> rows{
      {"op", "bytes", "time us", "algbw " + unit, "busbw " + unit, "#wrong", "bound " + unit, "of bound", "trees", "chunks"}};
  for (const auto& run : runs) {
    const auto number = [&](const char* key, int digits) {
      return run[key].is_null() ? std::string("-") : fixed(run[key].get<double>(), digits);
    };
    rows.push_back({run["op"], std::to_string(run["bytes"].get<std::int64_t>()), fixed(run["median_s"].get<double>() * 1e6, 0),
                    number("algbw", 1), number("busbw", 1), std::to_string(run["wrong"].get<std::int64_t>()), number("bound", 1),
                    number("fraction_of_bound", 3), std::to_string(run["trees"].get<int>()), std::to_string(run["chunks"].get<int>())});
  }
  return table(rows);
}

}  // namespace coppice::apps
