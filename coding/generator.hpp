// coding/generator.hpp: which combinations of the class scores each worker answers with.
//
// Scores z in R^classes; worker i answers y_i = G_i z with G_i of shape [floats_i, classes]. The code is (n, k): n
// workers, any k of which are enough for an answer that is not marked degraded.
// Source: Robust Class Parallelism (abstract); real-number codes as in Dau, Song, Dong, Yuen, arXiv 1301.5108.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace coppice::coding {

// Workers are counted from 0; bit i of an ArrivalSet is worker i. More than 32 workers are coded in blocks.
using ArrivalSet = std::uint32_t;
inline constexpr int kWorkersMax = 32;
inline constexpr int kClassesMax = 4096;
inline constexpr int kFloatsMax = 4096;  // of one worker

// n workers, any k of which are enough. 1 <= k <= n <= kWorkersMax.
struct CodeShape {
  int workers = 0;
  int needed = 0;
  bool operator==(const CodeShape&) const = default;
};

// How a worker's rows come about; the words of the cluster file.
enum class Scheme : std::uint8_t { none, replicate, sparse, harmonic, parity, wide, control };

std::string_view name(Scheme scheme);
tl::expected<Scheme, std::string> scheme_of(std::string_view word);  // error: lists the words that are known

struct WorkerRows {
  int floats = 0;           // how many numbers the worker answers with
  std::vector<float> rows;  // [floats, classes] row-major
  bool operator==(const WorkerRows&) const = default;
};

struct Generator {
  int classes = 0;
  std::vector<WorkerRows> workers;  // [n]
  bool operator==(const Generator&) const = default;

  int total_floats() const;
  int floats_of(ArrivalSet set) const;  // bits beyond the last worker count for nothing
};

// Rows that pick the classes of one group, one float a class: an uncoded (systematic) worker.
// REQUIRES: the group is not empty and its classes are in [0, classes).
WorkerRows select_rows(std::span<const int> group, int classes);

// One systematic worker a group, then `companions` more, each of which answers with all classes' scores.
// Error: why the groups do not partition [0, classes), or which limit is exceeded.
tl::expected<Generator, std::string> grouped_generator(const std::vector<std::vector<int>>& groups, int classes,
                                                       int companions);

// Real-DFT harmonic frame [n, k] with orthonormal columns: the best-conditioned dense real code known at small sizes
// (worst-subset condition 2.0 at (4,3), 4.7 at (6,4), 13 at (12,10)). Row-major.
std::vector<double> harmonic_frame(CodeShape shape);

// y = rows * z. Classes whose entry is zero are not read, so their NaN does not spread.
// REQUIRES: scores.size() == classes.
std::vector<float> encode(const WorkerRows& worker, std::span<const float> scores);

}  // namespace coppice::coding
