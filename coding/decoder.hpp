// coding/decoder.hpp: class scores from whatever responses have arrived.
//
// Worker i of n answers one item with floats_i numbers (its coded response). A decoder turns the responses of any
// non-empty set of workers into one score per class. Four are given, because no single one is best at every arrival
// count (measured in apps/docs/decoders.md):
//
//   sum        scores_c = mean over the arrived rows that name class c alone    (replication, uncoded, control)
//   ridge      z = argmin |G_A z - y_A|^2 + prior |z|^2                         (RCP's linear decode, regularised)
//   posterior  class-ML under y | c ~ N(mu_c, N), pooled covariance             (fitted on held-out responses)
//   logistic   softmax(W_A y_A + b_A), one (W, b) per arrival set               (fitted on held-out responses)
//
// Everything here is pure: no clock, no thread, no I/O. Values copy and compare.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>
#include <variant>
#include <vector>

#include "coding/generator.hpp"

namespace coppice::coding {

enum class DecodeErrorCode : std::uint8_t {
  nothing_arrived = 1,  // an empty arrival set: there is no estimate to give
  shape_mismatch,       // a response has another number of floats than its worker's rows
  not_finite,           // a response holds NaN or infinity: that worker is at fault
  not_fitted,           // the decoder has no entry for this arrival set
  malformed,            // a stored decoder that cannot be read
};

struct DecodeError {
  DecodeErrorCode code;
  std::string what;  // names the worker, file field or arrival set at fault
  int worker = -1;   // the worker at fault, when one is; -1 where the decoder itself is
};

// The responses of one item, by worker index; an absent worker's vector is empty.
struct Arrivals {
  std::vector<std::vector<float>> responses;  // [n], each [floats_i] or empty

  ArrivalSet set() const;  // bit i: worker i answered
};

// Always finite, whatever finite numbers arrived: scores are held within 1e37 of zero (unnamed classes: 4e37).
struct ClassScores {
  std::vector<float> scores;  // [classes]; larger is likelier; log-probabilities for posterior and logistic
  int label = -1;             // argmax of scores, the lowest index among equals
  float margin = 0;           // score of label minus the runner-up's; 0 when there is one class only
};

// A row with exactly one nonzero entry v, at class c, says that z_c = y / v; scores_c is the mean of what such rows
// say, every other row is passed over. A class that no arrived row names scores low - (1 + |low|), where low is the
// lowest score of the named: it can be the label only if it is the only class there is, and the answer stays finite.
// Arrivals that name no class at all are not_fitted.
struct SumDecoder {
  bool operator==(const SumDecoder&) const = default;
};

struct RidgeDecoder {
  double prior = 0.01;  // variance ratio noise : score; must be > 0 (else not_fitted)
  bool operator==(const RidgeDecoder&) const = default;
};

struct PosteriorDecoder {
  std::vector<double> means;       // [classes, total_floats] row-major: E[y | c]
  std::vector<double> covariance;  // [total_floats, total_floats], pooled, positive definite
  std::vector<double> log_prior;   // [classes]
  bool operator==(const PosteriorDecoder&) const = default;
};

struct LogisticDecoder {
  // weights[set]: float32 [classes, floats_of_set + 1] row-major, the last column is the bias; the floats are those of
  // the arrived workers in ascending order of worker.
  std::map<ArrivalSet, std::vector<float>> weights;
  bool operator==(const LogisticDecoder&) const = default;
};

using Decoder = std::variant<SumDecoder, RidgeDecoder, PosteriorDecoder, LogisticDecoder>;

std::string_view name(const Decoder& decoder);  // "sum", "ridge", "posterior", "logistic"

// Errors: every code above but malformed. Cost: O(classes * floats) for sum and logistic, O(floats^3) otherwise.
tl::expected<ClassScores, DecodeError> decode(const Decoder& decoder, const Generator& generator,
                                              const Arrivals& arrivals);

// Held-out responses of all workers: row s of responses is worker 0's floats, then worker 1's, and so on.
struct FitData {
  std::vector<float> responses;  // [samples, total_floats] row-major
  std::vector<int> labels;       // [samples], each in [0, classes)
};

struct LogisticFit {
  double l2 = 1e-3;  // per-sample weight penalty, the bias is free
  int iterations_max = 100;
  // Sets with fewer workers than this are left out. 1: every non-empty set.
  int arrived_min = 1;
};

// Called after every fitted set with (done, total): for progress bars.
using FitProgress = std::function<void(int done, int total)>;

// Pooled covariance (1 - shrinkage) S + shrinkage * (mean variance) I, S unbiased within classes; priors are counts
// with one added to each (Laplace); a class without samples has the mean of all of them. Errors: nothing_arrived (no
// samples), shape_mismatch (names the sample), not_finite (names worker and sample), not_fitted (shrinkage outside [0,
// 1], or too small for a singular covariance).
tl::expected<PosteriorDecoder, DecodeError> fit_posterior(const Generator& generator, const FitData& data,
                                                          double shrinkage = 1e-3);
// One convex fit an arrival set, deterministic: the same data give the same bits. The penalty is on the weights of
// floats scaled to variance 1; a float that does not vary weighs 0. At most 65,536 sets (2^n - 1 of them: raise
// arrived_min). Errors: as above; not_fitted for too many sets or an l2 that is negative or not finite.
tl::expected<LogisticDecoder, DecodeError> fit_logistic(const Generator& generator, const FitData& data,
                                                        const LogisticFit& options, const FitProgress& progress = {});

// The manifest's "decoder" object. Every array is {"shape": […], "float32" | "float64": base64} of its row-major
// little-endian numbers; rows and weights are float32, statistics float64:
//   {"type": "logistic", "floats": [2, 2, …], "generator": [{"shape": [f, classes], "float32": "…"}, …],
//    "sets": {"127": {"shape": [10, 31], "float32": "…"}}}
// ridge has "prior" (a number) in place of "sets"; posterior "means" [classes, floats], "covariance" [floats, floats]
// and "log_prior" [classes]; sum nothing. to_json REQUIRES a decoder and a generator that fit together. from_json
// bounds every size before it allocates and holds all numbers to be finite, the prior positive, the covariance positive
// definite; its error is always malformed, and `what` begins with the field at fault ("generator[1].float32: not
// base64").
nlohmann::json to_json(const Decoder& decoder, const Generator& generator);
tl::expected<std::pair<Generator, Decoder>, DecodeError> from_json(const nlohmann::json& object);

}  // namespace coppice::coding
