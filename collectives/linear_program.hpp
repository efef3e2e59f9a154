// collectives/linear_program.hpp: linear programs solved in floating point, and then proven in fractions. Private.
//
// Clp finds the optimal basis; the equations of that basis are solved again exactly, and the solution and its dual are
// checked exactly. What the floating-point solver got wrong is thus noticed, never believed.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "collectives/rational.hpp"

namespace coppice::collectives {

// Maximise objective · x with x >= 0, rows · x <= limit or = limit.
class LinearProgram {
 public:
  LinearProgram();
  ~LinearProgram();
  LinearProgram(const LinearProgram&) = delete;
  LinearProgram& operator=(const LinearProgram&) = delete;

  int add_column(const Rational& objective);
  // coefficients: (column, value), each column once.
  void add_row(std::vector<std::pair<int, Rational>> coefficients, const Rational& limit, bool equal = false);
  int rows() const { return static_cast<int>(rows_.size()); }

  // In floating point; from where the last one ended. False: not solved (numbers, or no bound).
  bool solve();
  const std::vector<double>& x() const { return x_; }
  const std::vector<double>& price() const { return price_; }  // [rows]: the dual

  struct Exact {
    Rational value;
    std::vector<Rational> x;
    std::vector<Rational> price;  // [rows]
  };
  // The last solution exactly; nothing when it is not optimal exactly.
  std::optional<Exact> prove() const;

 private:
  struct Row {
    std::vector<std::pair<int, Rational>> coefficients;
    Rational limit;
    bool equal;
  };
  struct Solver;  // keeps Clp's headers out of this one

  std::vector<Rational> objective_;
  std::vector<Row> rows_;
  std::vector<double> x_;
  std::vector<double> price_;
  std::unique_ptr<Solver> solver_;
};

}  // namespace coppice::collectives
