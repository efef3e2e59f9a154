#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "coding/checks.hpp"
#include "coding/decoder.hpp"
#include "coding/softmax_regression.hpp"

namespace coppice::coding {
namespace {

using RowMajorF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr std::uint64_t kSetsMax = std::uint64_t{1} << 16;

std::optional<DecodeError> data_fault(const Generator& generator, const FitData& data) {
  if (auto found = generator_fault(generator)) return found;
  const std::size_t total = size_of(generator.total_floats());
  if (data.labels.empty()) return DecodeError{DecodeErrorCode::nothing_arrived, "there are no samples to fit to"};
  if (data.responses.size() != data.labels.size() * total)
    return DecodeError{DecodeErrorCode::shape_mismatch, "the responses are not [" + std::to_string(data.labels.size()) +
                                                            ", " + std::to_string(total) + "]"};
  for (std::size_t s = 0; s < data.labels.size(); ++s)
    if (data.labels[s] < 0 || data.labels[s] >= generator.classes)
      return DecodeError{DecodeErrorCode::shape_mismatch, "sample " + std::to_string(s) + " is labelled " +
                                                              std::to_string(data.labels[s]) + " of " +
                                                              std::to_string(generator.classes) + " classes"};
  const auto bad =
      std::find_if(data.responses.begin(), data.responses.end(), [](float y) { return !std::isfinite(y); });
  if (bad == data.responses.end()) return std::nullopt;
  const auto at = static_cast<std::size_t>(bad - data.responses.begin());
  std::size_t worker = 0, column = at % total;
  for (; column >= size_of(generator.workers[worker].floats); ++worker)
    column -= size_of(generator.workers[worker].floats);
  return DecodeError{
      DecodeErrorCode::not_finite,
      "worker " + std::to_string(worker) + ": a response of sample " + std::to_string(at / total) + " is not finite",
      static_cast<int>(worker)};
}

Eigen::MatrixXd responses_of(const Generator& generator, const FitData& data) {
  return Eigen::Map<const RowMajorF>(data.responses.data(), static_cast<Eigen::Index>(data.labels.size()),
                                     generator.total_floats())
      .cast<double>();
}

// All floats of all workers with mean 0 and variance 1, and what undoes it.
struct Standardised {
  Eigen::MatrixXd values;       // [samples, total_floats]
  Eigen::RowVectorXd means;     // [total_floats]
  Eigen::RowVectorXd inverses;  // of the standard deviations; 0 for a constant float, which can tell nothing
};

Standardised standardise(Eigen::MatrixXd values) {
  Standardised result;
  result.means = values.colwise().mean();
  values.rowwise() -= result.means;
  result.inverses = (values.colwise().squaredNorm() / static_cast<double>(values.rows())).cwiseSqrt();
  for (Eigen::Index j = 0; j < values.cols(); ++j) {
    double& entry = result.inverses[j];
    // Below this share of the mean float32 responses are rounding noise, which a weight would only blow up.
    const bool varies = entry > 1e-6 * std::abs(result.means[j]) && entry > 1e-30;
    entry = varies ? 1.0 / entry : 0.0;
    values.col(j) *= entry;
  }
  result.values = std::move(values);
  return result;
}

std::vector<Eigen::Index> columns_of(const Generator& generator, ArrivalSet set) {
  std::vector<Eigen::Index> columns;
  Eigen::Index first = 0;
  for (std::size_t i = 0; i < generator.workers.size(); ++i) {
    const int floats = generator.workers[i].floats;
    if ((set >> i & 1U) != 0)
      for (int j = 0; j < floats; ++j) columns.push_back(first + j);
    first += floats;
  }
  return columns;
}

// The sets of at least arrived_min of n workers, ascending; nothing if they are more than kSetsMax.
std::optional<std::vector<ArrivalSet>> sets_of(int n, int arrived_min) {
  std::vector<ArrivalSet> sets;
  const std::uint64_t end = std::uint64_t{1} << n;
  for (int arrived = std::max(1, arrived_min); arrived <= n; ++arrived) {
    std::uint64_t set = (std::uint64_t{1} << arrived) - 1;
    while (set < end) {
      if (sets.size() == kSetsMax) return std::nullopt;
      sets.push_back(static_cast<ArrivalSet>(set));
      const std::uint64_t lowest = set & (~set + 1), carried = set + lowest;  // the next set as large (Gosper)
      set = carried | ((set ^ carried) / lowest >> 2);
    }
  }
  std::sort(sets.begin(), sets.end());
  return sets;
}

// The weights of raw responses from those of standardised ones: w / sigma, b - sum w mu / sigma.
std::vector<float> folded(const Eigen::MatrixXd& weights, const Standardised& data,
                          const std::vector<Eigen::Index>& columns) {
  const Eigen::Index classes = weights.cols(), floats = weights.rows() - 1;
  const double bias_mean =
      weights.row(floats).mean();  // a shift of all biases changes nothing: leave the one of mean 0
  std::vector<float> raw;
  raw.reserve(static_cast<std::size_t>(classes * (floats + 1)));
  for (Eigen::Index c = 0; c < classes; ++c) {
    double bias = weights(floats, c) - bias_mean;
    for (Eigen::Index j = 0; j < floats; ++j) {
      const Eigen::Index column = columns[static_cast<std::size_t>(j)];
      const float weight = static_cast<float>(weights(j, c) * data.inverses[column]);
      raw.push_back(weight);
      bias -= static_cast<double>(weight) * data.means[column];  // the rounded weight, so that its error cancels
    }
    raw.push_back(static_cast<float>(bias));
  }
  return raw;
}

// A start [floats + 1, classes] for a set whose first floats are those of a fitted set: what it has not seen weighs 0.
Eigen::MatrixXd unfolded(const std::vector<float>& raw, const Standardised& data,
                         const std::vector<Eigen::Index>& columns, Eigen::Index classes) {
  const auto floats = static_cast<Eigen::Index>(columns.size());
  Eigen::MatrixXd weights = Eigen::MatrixXd::Zero(floats + 1, classes);
  const Eigen::Index known = static_cast<Eigen::Index>(raw.size()) / classes - 1;
  const float* next = raw.data();
  for (Eigen::Index c = 0; c < classes; ++c) {
    for (Eigen::Index j = 0; j < known; ++j) {
      const Eigen::Index column = columns[static_cast<std::size_t>(j)];
      const double weight = static_cast<double>(*next++), inverse = data.inverses[column];
      weights(j, c) = inverse > 0 ? weight / inverse : 0.0;
      weights(floats, c) += weight * data.means[column];
    }
    weights(floats, c) += static_cast<double>(*next++);
  }
  return weights;
}

}  // namespace

tl::expected<PosteriorDecoder, DecodeError> fit_posterior(const Generator& generator, const FitData& data,
                                                          double shrinkage) {
  if (auto found = data_fault(generator, data)) return tl::unexpected(*std::move(found));
  if (!(shrinkage >= 0 && shrinkage <= 1))
    return tl::unexpected(DecodeError{DecodeErrorCode::not_fitted, "posterior: the shrinkage must be from 0 to 1"});
  Eigen::MatrixXd values = responses_of(generator, data);
  const Eigen::Index samples = values.rows(), total = values.cols(), classes = generator.classes;

  RowMajorD means = RowMajorD::Zero(classes, total);
  Eigen::VectorXd counts = Eigen::VectorXd::Zero(classes);
  for (Eigen::Index s = 0; s < samples; ++s) {
    const int label = data.labels[static_cast<std::size_t>(s)];
    means.row(label) += values.row(s);
    counts[label] += 1.0;
  }
  const Eigen::RowVectorXd grand_mean = values.colwise().mean();
  for (Eigen::Index c = 0; c < classes; ++c) {
    if (counts[c] > 0)
      means.row(c) /= counts[c];
    else
      means.row(c) = grand_mean;
  }
  for (Eigen::Index s = 0; s < samples; ++s) values.row(s) -= means.row(data.labels[static_cast<std::size_t>(s)]);
  // Unbiased: each class that is there has used up one sample for its mean.
  const double freedom = std::max(1.0, static_cast<double>(samples - (counts.array() > 0).count()));
  RowMajorD covariance = RowMajorD::Zero(total, total);
  covariance.selfadjointView<Eigen::Lower>().rankUpdate(values.transpose(), (1.0 - shrinkage) / freedom);
  covariance.triangularView<Eigen::StrictlyUpper>() = covariance.transpose();
  const double mean_variance = values.squaredNorm() / freedom / static_cast<double>(total);
  covariance.diagonal().array() += shrinkage * (mean_variance > 0 ? mean_variance : 1.0);
  if (Eigen::LLT<Eigen::MatrixXd>(covariance).info() != Eigen::Success)
    return tl::unexpected(
        DecodeError{DecodeErrorCode::not_fitted, "posterior: the covariance is singular, raise the shrinkage"});

  PosteriorDecoder decoder;
  decoder.means.assign(means.data(), means.data() + means.size());
  decoder.covariance.assign(covariance.data(), covariance.data() + covariance.size());
  for (double count : counts)
    decoder.log_prior.push_back(std::log((count + 1.0) / static_cast<double>(samples + classes)));
  return decoder;
}

tl::expected<LogisticDecoder, DecodeError> fit_logistic(const Generator& generator, const FitData& data,
                                                        const LogisticFit& options, const FitProgress& progress) {
  if (auto found = data_fault(generator, data)) return tl::unexpected(*std::move(found));
  if (!(options.l2 >= 0) || !std::isfinite(options.l2))
    return tl::unexpected(DecodeError{DecodeErrorCode::not_fitted, "logistic: l2 must be finite and not negative"});
  const auto sets = sets_of(static_cast<int>(generator.workers.size()), options.arrived_min);
  if (!sets)
    return tl::unexpected(DecodeError{DecodeErrorCode::not_fitted, "logistic: more than " + std::to_string(kSetsMax) +
                                                                       " arrival sets, raise arrived_min"});

  const Standardised standardised = standardise(responses_of(generator, data));
  const Eigen::MatrixXd& values = standardised.values;
  const Eigen::Index samples = values.rows(), classes = generator.classes;
  const Eigen::MatrixXd gram = values.transpose() * values / static_cast<double>(samples);

  LogisticDecoder decoder;
  for (ArrivalSet set : *sets) {
    const std::vector<Eigen::Index> columns = columns_of(generator, set);
    const auto floats = static_cast<Eigen::Index>(columns.size());
    Eigen::MatrixXd features(samples, floats + 1), features_gram = Eigen::MatrixXd::Zero(floats + 1, floats + 1);
    for (Eigen::Index j = 0; j < floats; ++j) features.col(j) = values.col(columns[static_cast<std::size_t>(j)]);
    features.col(floats).setOnes();
    features_gram.topLeftCorner(floats, floats) = gram(columns, columns);
    features_gram(floats, floats) = 1.0;  // the ones and the centred features are orthogonal

    // Start from the set without its last worker: ascending order has fitted it before, if it is fitted at all.
    const auto smaller = decoder.weights.find(set & ~std::bit_floor(set));
    Eigen::MatrixXd start = smaller == decoder.weights.end()
                                ? Eigen::MatrixXd(Eigen::MatrixXd::Zero(floats + 1, classes))
                                : unfolded(smaller->second, standardised, columns, classes);
    const Eigen::MatrixXd weights =
        fit_softmax({features, features_gram, data.labels, options.l2, options.iterations_max}, std::move(start));
    decoder.weights.emplace(set, folded(weights, standardised, columns));
    if (progress) progress(static_cast<int>(decoder.weights.size()), static_cast<int>(sets->size()));
  }
  return decoder;
}

}  // namespace coppice::coding
