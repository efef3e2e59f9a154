// coding/softmax_regression.hpp: multinomial logistic regression. Private to coding/.
#pragma once

#include <Eigen/Core>
#include <span>

namespace coppice::coding {

struct SoftmaxProblem {
  const Eigen::MatrixXd& features;  // [samples, features]; standardised, the last column all ones
  const Eigen::MatrixXd& gram;      // features^T features / samples
  std::span<const int> labels;      // [samples], each in [0, classes)
  double l2 = 0;                    // on all weights but those of the last column
  int iterations_max = 100;
};

// The weights [features, classes] that minimise mean cross-entropy + l2 / 2 |weights|^2, from `start` on.
// Deterministic. Method: L-BFGS whose first inverse Hessian is that of Böhning's bound,
//   Hessian <= 1/2 features^T features / samples + l2 per class     (Böhning, Ann. Inst. Stat. Math. 1992),
// so correlated features do not slow it and a step of one cannot overshoot before the curvature is known.
Eigen::MatrixXd fit_softmax(const SoftmaxProblem& problem, Eigen::MatrixXd start);

}  // namespace coppice::coding
