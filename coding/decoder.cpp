#include "coding/decoder.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "coding/checks.hpp"

namespace coppice::coding {
namespace {

using Result = tl::expected<ClassScores, DecodeError>;
using RowMajorF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Scores stay within this, so that differences of scores are finite floats whatever a worker answers.
constexpr double kScoreMax = 1e37;

float score_of(double value) { return static_cast<float>(std::clamp(value, -kScoreMax, kScoreMax)); }

tl::unexpected<DecodeError> fault(DecodeErrorCode code, std::string what) {
  return tl::unexpected(DecodeError{code, std::move(what)});
}

// Four partial sums: the additions of one sum wait for each other, those of four do not.
double dot(const float* a, const float* b, std::size_t count) {
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    s0 += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    s1 += static_cast<double>(a[i + 1]) * static_cast<double>(b[i + 1]);
    s2 += static_cast<double>(a[i + 2]) * static_cast<double>(b[i + 2]);
    s3 += static_cast<double>(a[i + 3]) * static_cast<double>(b[i + 3]);
  }
  for (; i < count; ++i) s0 += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (s0 + s1) + (s2 + s3);
}

void to_log_probabilities(std::vector<float>& scores) {
  const double top = static_cast<double>(*std::max_element(scores.begin(), scores.end()));
  double sum = 0;
  for (float score : scores) sum += std::exp(static_cast<double>(score) - top);
  const double log_sum = std::log(sum);
  for (float& score : scores) score = score_of((static_cast<double>(score) - top) - log_sum);
}

Result judged(ClassScores result) {
  float runner_up = -std::numeric_limits<float>::infinity();
  result.label = 0;
  for (std::size_t c = 1; c < result.scores.size(); ++c) {
    const float score = result.scores[c], best = result.scores[size_of(result.label)];
    if (score > best) {
      runner_up = best;
      result.label = static_cast<int>(c);
    } else {
      runner_up = std::max(runner_up, score);
    }
  }
  result.margin = result.scores.size() > 1 ? result.scores[size_of(result.label)] - runner_up : 0.0F;
  return result;
}

Result judged(const Eigen::VectorXd& scores, bool log_probabilities) {
  if (!scores.allFinite()) return fault(DecodeErrorCode::not_finite, "the decoder's own numbers are not finite");
  ClassScores result;
  result.scores.resize(static_cast<std::size_t>(scores.size()));
  const double top = log_probabilities ? scores.maxCoeff() : 0.0;  // taken out before float32 rounds it away
  for (Eigen::Index c = 0; c < scores.size(); ++c)
    result.scores[static_cast<std::size_t>(c)] = score_of(scores[c] - top);
  if (log_probabilities) to_log_probabilities(result.scores);
  return judged(std::move(result));
}

// The class that a row names alone, or -1.
int named_alone(const float* row, std::size_t classes) {
  int named = -1;
  for (std::size_t c = 0; c < classes; ++c) {
    if (row[c] == 0.0F) continue;
    if (named >= 0) return -1;
    named = static_cast<int>(c);
  }
  return named;
}

Result scores_of(const SumDecoder&, const Generator& generator, const Arrivals& arrivals) {
  const std::size_t classes = size_of(generator.classes);
  std::array<double, size_of(kClassesMax)> sums;  // on the stack: the result is all that is allocated
  std::array<int, size_of(kClassesMax)> counts;
  std::fill_n(sums.begin(), classes, 0.0);
  std::fill_n(counts.begin(), classes, 0);
  for (std::size_t i = 0; i < arrivals.responses.size(); ++i) {
    const float* row = generator.workers[i].rows.data();
    for (float y : arrivals.responses[i]) {
      if (const int c = named_alone(row, classes); c >= 0) {
        sums[size_of(c)] += static_cast<double>(y) / static_cast<double>(row[c]);
        ++counts[size_of(c)];
      }
      row += classes;
    }
  }
  ClassScores result;
  result.scores.resize(classes);
  float lowest = std::numeric_limits<float>::infinity();
  for (std::size_t c = 0; c < classes; ++c) {
    if (counts[c] == 0) continue;
    result.scores[c] = score_of(sums[c] / counts[c]);
    lowest = std::min(lowest, result.scores[c]);
  }
  if (std::isinf(lowest))
    return fault(DecodeErrorCode::not_fitted,
                 "no row of the workers " + text_of(arrivals.set()) + " names a class alone");
  const float unnamed = lowest - (1.0F + std::abs(lowest));  // below lowest even where lowest - 1 would round to it
  for (std::size_t c = 0; c < classes; ++c)
    if (counts[c] == 0) result.scores[c] = unnamed;
  return judged(std::move(result));
}

Result scores_of(const RidgeDecoder& decoder, const Generator& generator, const Arrivals& arrivals) {
  if (!(decoder.prior > 0) || !std::isfinite(decoder.prior))
    return fault(DecodeErrorCode::not_fitted, "ridge: the prior must be positive and finite");
  const Eigen::Index classes = generator.classes, floats = generator.floats_of(arrivals.set());
  Eigen::MatrixXd rows(floats, classes);
  Eigen::VectorXd y(floats);
  Eigen::Index at = 0;
  for (std::size_t i = 0; i < arrivals.responses.size(); ++i) {
    const auto count = static_cast<Eigen::Index>(arrivals.responses[i].size());
    if (count == 0) continue;
    rows.middleRows(at, count) =
        Eigen::Map<const RowMajorF>(generator.workers[i].rows.data(), count, classes).cast<double>();
    y.segment(at, count) = Eigen::Map<const Eigen::VectorXf>(arrivals.responses[i].data(), count).cast<double>();
    at += count;
  }
  // The same z either way; the smaller system is the cheaper one.
  const bool primal = floats >= classes;
  Eigen::MatrixXd gram = primal ? Eigen::MatrixXd(rows.transpose() * rows) : Eigen::MatrixXd(rows * rows.transpose());
  gram.diagonal().array() += decoder.prior;
  const Eigen::LLT<Eigen::MatrixXd> cholesky(gram);
  if (cholesky.info() != Eigen::Success)
    return fault(DecodeErrorCode::not_fitted,
                 "ridge: the prior is too small for the rows of " + text_of(arrivals.set()));
  const Eigen::VectorXd z = primal ? Eigen::VectorXd(cholesky.solve(rows.transpose() * y))
                                   : Eigen::VectorXd(rows.transpose() * cholesky.solve(y));
  return judged(z, false);
}

Result scores_of(const PosteriorDecoder& decoder, const Generator& generator, const Arrivals& arrivals) {
  const std::size_t classes = size_of(generator.classes), total = size_of(generator.total_floats());
  if (decoder.means.size() != classes * total || decoder.covariance.size() != total * total ||
      decoder.log_prior.size() != classes)
    return fault(DecodeErrorCode::shape_mismatch, "posterior: the statistics are those of another generator");
  std::vector<Eigen::Index> arrived;  // which of all floats
  std::vector<double> values;
  Eigen::Index first = 0;
  for (std::size_t i = 0; i < arrivals.responses.size(); ++i) {
    for (std::size_t j = 0; j < arrivals.responses[i].size(); ++j) {
      arrived.push_back(first + static_cast<Eigen::Index>(j));
      values.push_back(static_cast<double>(arrivals.responses[i][j]));
    }
    first += generator.workers[i].floats;
  }
  const auto full = static_cast<Eigen::Index>(total), count = static_cast<Eigen::Index>(classes);
  const Eigen::Map<const RowMajorD> covariance(decoder.covariance.data(), full, full);
  const Eigen::Map<const RowMajorD> means(decoder.means.data(), count, full);
  const Eigen::LLT<Eigen::MatrixXd> cholesky(Eigen::MatrixXd(covariance(arrived, arrived)));
  if (cholesky.info() != Eigen::Success)
    return fault(DecodeErrorCode::not_fitted,
                 "posterior: the covariance of " + text_of(arrivals.set()) + " is not positive definite");
  // With N = L L^T: mu^T N^-1 y - mu^T N^-1 mu / 2 is w.v - |w|^2 / 2 for w = L^-1 mu, v = L^-1 y.
  Eigen::VectorXd whitened = Eigen::Map<const Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size()));
  cholesky.matrixL().solveInPlace(whitened);
  Eigen::MatrixXd centres = means(Eigen::all, arrived).transpose();
  cholesky.matrixL().solveInPlace(centres);
  const Eigen::VectorXd scores = centres.transpose() * whitened - 0.5 * centres.colwise().squaredNorm().transpose() +
                                 Eigen::Map<const Eigen::VectorXd>(decoder.log_prior.data(), count);
  return judged(scores, true);
}

Result scores_of(const LogisticDecoder& decoder, const Generator& generator, const Arrivals& arrivals) {
  const ArrivalSet set = arrivals.set();
  const auto entry = decoder.weights.find(set);
  if (entry == decoder.weights.end())
    return fault(DecodeErrorCode::not_fitted, "logistic: not fitted for the workers " + text_of(set));
  const std::size_t classes = size_of(generator.classes), floats = size_of(generator.floats_of(set));
  if (entry->second.size() != classes * (floats + 1))
    return fault(DecodeErrorCode::shape_mismatch, "logistic: the weights of " + text_of(set) + " are not [" +
                                                      std::to_string(classes) + ", " + std::to_string(floats + 1) +
                                                      "]");
  ClassScores result;
  result.scores.resize(classes);
  const float* weight = entry->second.data();
  for (float& score : result.scores) {
    double logit = 0;
    for (const std::vector<float>& response : arrivals.responses) {
      logit += dot(weight, response.data(), response.size());
      weight += response.size();
    }
    score = score_of(logit + static_cast<double>(*weight++));
  }
  to_log_probabilities(result.scores);
  return judged(std::move(result));
}

}  // namespace

ArrivalSet Arrivals::set() const {
  ArrivalSet arrived = 0;
  for (std::size_t i = 0; i < responses.size() && i < size_of(kWorkersMax); ++i)
    if (!responses[i].empty()) arrived |= ArrivalSet{1} << i;
  return arrived;
}

std::string_view name(const Decoder& decoder) {
  constexpr std::array<std::string_view, 4> names{"sum", "ridge", "posterior", "logistic"};
  static_assert(names.size() == std::variant_size_v<Decoder>);
  return names[decoder.index()];
}

tl::expected<ClassScores, DecodeError> decode(const Decoder& decoder, const Generator& generator,
                                              const Arrivals& arrivals) {
  if (auto found = arrivals_fault(generator, arrivals)) return tl::unexpected(*std::move(found));
  return std::visit([&](const auto& kind) { return scores_of(kind, generator, arrivals); }, decoder);
}

}  // namespace coppice::coding
