#include "coding/softmax_regression.hpp"

#include <Eigen/Cholesky>
#include <cmath>
#include <deque>
#include <utility>
#include <vector>

namespace coppice::coding {
namespace {

constexpr std::size_t kMemory = 12;  // curvature pairs kept

// Stop when half the squared gradient in the bound's metric, which estimates the distance to the minimum in nats,
// is below this: a thousandth of what one sample in a million could change.
constexpr double kGapMax = 1e-9;

struct Pair {
  Eigen::MatrixXd step, change;  // of the weights and of the gradient
  double inverse_product;
};

double inner(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) { return a.cwiseProduct(b).sum(); }

// The loss at `weights`; writes its gradient.
double evaluate(const SoftmaxProblem& problem, const Eigen::MatrixXd& weights, Eigen::MatrixXd& scratch,
                Eigen::MatrixXd& gradient) {
  const Eigen::Index samples = problem.features.rows(), last = weights.rows() - 1;
  scratch.noalias() = problem.features * weights;
  scratch.colwise() -= scratch.rowwise().maxCoeff().eval();
  double picked = 0;
  for (Eigen::Index s = 0; s < samples; ++s) picked += scratch(s, problem.labels[static_cast<std::size_t>(s)]);
  scratch = scratch.array().exp();
  const Eigen::ArrayXd sums = scratch.rowwise().sum();
  scratch.array().colwise() /= sums;
  for (Eigen::Index s = 0; s < samples; ++s) scratch(s, problem.labels[static_cast<std::size_t>(s)]) -= 1.0;
  const double scale = 1.0 / static_cast<double>(samples);
  gradient.noalias() = scale * (problem.features.transpose() * scratch);
  gradient.topRows(last) += problem.l2 * weights.topRows(last);
  return scale * (sums.log().sum() - picked) + 0.5 * problem.l2 * weights.topRows(last).squaredNorm();
}

Eigen::MatrixXd newton_like_step(const Eigen::LLT<Eigen::MatrixXd>& bound, const std::deque<Pair>& pairs,
                                 const Eigen::MatrixXd& gradient) {
  Eigen::MatrixXd step = -gradient;
  std::vector<double> shares(pairs.size());
  for (std::size_t i = pairs.size(); i-- > 0;) {
    shares[i] = inner(pairs[i].step, step) * pairs[i].inverse_product;
    step -= shares[i] * pairs[i].change;
  }
  step = bound.solve(step).eval();
  if (!pairs.empty()) {
    const Eigen::MatrixXd& change = pairs.back().change;
    step *= 1.0 / (pairs.back().inverse_product * inner(change, bound.solve(change)));
  }
  for (std::size_t i = 0; i < pairs.size(); ++i)
    step += (shares[i] - inner(pairs[i].change, step) * pairs[i].inverse_product) * pairs[i].step;
  return step;
}

}  // namespace

Eigen::MatrixXd fit_softmax(const SoftmaxProblem& problem, Eigen::MatrixXd start) {
  const Eigen::Index features = problem.features.cols();
  Eigen::MatrixXd bound_matrix = 0.5 * problem.gram;
  bound_matrix.diagonal().head(features - 1).array() += problem.l2;
  bound_matrix.diagonal().array() += 1e-9;  // constant features have no curvature of their own
  const Eigen::LLT<Eigen::MatrixXd> bound(bound_matrix);

  Eigen::MatrixXd weights = std::move(start), scratch, gradient, next_gradient;
  double loss = evaluate(problem, weights, scratch, gradient);
  std::deque<Pair> pairs;
  for (int iteration = 0; iteration < problem.iterations_max; ++iteration) {
    if (0.5 * inner(gradient, bound.solve(gradient)) < kGapMax) break;
    Eigen::MatrixXd step = newton_like_step(bound, pairs, gradient);
    double slope = inner(step, gradient);
    if (!(slope < 0)) {  // the pairs have gone stale in rounding: start over from the bound
      pairs.clear();
      step = newton_like_step(bound, pairs, gradient);
      slope = inner(step, gradient);
    }
    double length = 1.0, next_loss = 0;
    Eigen::MatrixXd next;
    bool lower = false;
    for (int halving = 0; halving < 30 && !lower; ++halving, length *= 0.5) {
      next = weights + length * step;
      next_loss = evaluate(problem, next, scratch, next_gradient);
      lower = next_loss <= loss + 1e-4 * length * slope;
    }
    if (!lower) break;  // rounding leaves nothing to gain
    Pair pair{next - weights, next_gradient - gradient, 0};
    const double product = inner(pair.step, pair.change);
    if (product > 1e-12 * inner(pair.step, pair.step)) {
      pair.inverse_product = 1.0 / product;
      pairs.push_back(std::move(pair));
      if (pairs.size() > kMemory) pairs.pop_front();
    }
    weights = std::move(next);
    gradient.swap(next_gradient);
    loss = next_loss;
  }
  return weights;
}

}  // namespace coppice::coding
