#include "coding/generator.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "coding/checks.hpp"

namespace coppice::coding {
namespace {

constexpr std::array<std::pair<Scheme, std::string_view>, 7> kSchemes{{{Scheme::none, "none"},
                                                                       {Scheme::replicate, "replicate"},
                                                                       {Scheme::sparse, "sparse"},
                                                                       {Scheme::harmonic, "harmonic"},
                                                                       {Scheme::parity, "parity"},
                                                                       {Scheme::wide, "wide"},
                                                                       {Scheme::control, "control"}}};

WorkerRows whole_rows(int classes) {
  WorkerRows worker{classes, std::vector<float>(size_of(classes) * size_of(classes), 0.0F)};
  for (std::size_t c = 0; c < size_of(classes); ++c) worker.rows[c * size_of(classes) + c] = 1.0F;
  return worker;
}

}  // namespace

std::string_view name(Scheme scheme) {
  for (const auto& [known, word] : kSchemes)
    if (known == scheme) return word;
  check(false, "every scheme has a word");
  return {};
}

tl::expected<Scheme, std::string> scheme_of(std::string_view word) {
  std::string words;
  for (const auto& [scheme, known] : kSchemes) {
    if (known == word) return scheme;
    words.append(words.empty() ? "" : ", ").append(known);
  }
  return tl::unexpected("unknown scheme '" + std::string(word) + "': the known ones are " + words);
}

int Generator::total_floats() const {
  int total = 0;
  for (const WorkerRows& worker : workers) total += worker.floats;
  return total;
}

int Generator::floats_of(ArrivalSet set) const {
  int total = 0;
  for (std::size_t i = 0; i < workers.size() && i < size_of(kWorkersMax); ++i)
    if ((set >> i & 1U) != 0) total += workers[i].floats;
  return total;
}

WorkerRows select_rows(std::span<const int> group, int classes) {
  check(classes >= 1 && !group.empty(), "select_rows: a group of at least one class");
  WorkerRows worker{static_cast<int>(group.size()), std::vector<float>(group.size() * size_of(classes), 0.0F)};
  for (std::size_t row = 0; row < group.size(); ++row) {
    check(group[row] >= 0 && group[row] < classes, "select_rows: classes of a group are in [0, classes)");
    worker.rows[row * size_of(classes) + size_of(group[row])] = 1.0F;
  }
  return worker;
}

tl::expected<Generator, std::string> grouped_generator(const std::vector<std::vector<int>>& groups, int classes,
                                                       int companions) {
  if (classes < 1 || classes > std::min(kClassesMax, kFloatsMax))
    return tl::unexpected("the number of classes must be 1 to " + std::to_string(kClassesMax) + ", not " +
                          std::to_string(classes));
  if (companions < 0) return tl::unexpected<std::string>("the number of companions must not be negative");
  // Compared apart, because the sum could overflow.
  if (groups.empty() || groups.size() > size_of(kWorkersMax) || size_of(companions) > kWorkersMax - groups.size())
    return tl::unexpected(std::to_string(groups.size()) + " groups and " + std::to_string(companions) +
                          " companions: there must be at least one group and at most " + std::to_string(kWorkersMax) +
                          " workers");
  std::vector<bool> seen(size_of(classes), false);
  std::size_t covered = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].empty()) return tl::unexpected("group " + std::to_string(g) + " is empty");
    for (int c : groups[g]) {
      if (c < 0 || c >= classes)
        return tl::unexpected("group " + std::to_string(g) + " names class " + std::to_string(c) + " of " +
                              std::to_string(classes));
      if (seen[size_of(c)])
        return tl::unexpected("group " + std::to_string(g) + " names class " + std::to_string(c) + " again");
      seen[size_of(c)] = true;
      ++covered;
    }
  }
  if (covered != size_of(classes)) {
    const auto missing = std::find(seen.begin(), seen.end(), false) - seen.begin();
    return tl::unexpected("no group names class " + std::to_string(missing));
  }

  Generator generator{classes, {}};
  generator.workers.reserve(groups.size() + size_of(companions));
  for (const std::vector<int>& group : groups) generator.workers.push_back(select_rows(group, classes));
  for (int i = 0; i < companions; ++i) generator.workers.push_back(whole_rows(classes));
  return generator;
}

std::vector<double> harmonic_frame(CodeShape shape) {
  const int n = shape.workers, k = shape.needed;
  check(1 <= k && k <= n && n <= kWorkersMax, "harmonic_frame: 1 <= needed <= workers <= kWorkersMax");
  // Cosine and sine at whole frequencies 1, 2, … beside the constant when k is odd; at 1/2, 3/2, … when k is even.
  // Either way all rows have norm sqrt(k / n): no worker matters more than another.
  const bool odd = k % 2 == 1;
  std::vector<double> frame(size_of(n) * size_of(k));
  for (int i = 0; i < n; ++i) {
    double* row = frame.data() + size_of(i) * size_of(k);
    if (odd) *row++ = std::sqrt(1.0 / n);
    for (int pair = 0; pair < k / 2; ++pair) {
      const double frequency = odd ? pair + 1.0 : pair + 0.5;
      const double angle = 2.0 * std::numbers::pi * frequency * i / n;
      *row++ = std::sqrt(2.0 / n) * std::cos(angle);
      *row++ = std::sqrt(2.0 / n) * std::sin(angle);
    }
  }
  return frame;
}

std::vector<float> encode(const WorkerRows& worker, std::span<const float> scores) {
  check(worker.rows.size() == size_of(worker.floats) * scores.size(), "encode: scores are [classes]");
  std::vector<float> response(size_of(worker.floats));
  const float* row = worker.rows.data();
  for (float& y : response) {
    double sum = 0;
    // Zero entries are skipped, so that a worker is untouched by a class (and its NaN) that it does not combine.
    for (std::size_t c = 0; c < scores.size(); ++c)
      if (row[c] != 0.0F) sum += static_cast<double>(row[c]) * static_cast<double>(scores[c]);
    y = static_cast<float>(sum);
    row += scores.size();
  }
  return response;
}

}  // namespace coppice::coding
