#include "collectives/linear_program.hpp"

#include <ClpSimplex.hpp>
#include <algorithm>
#include <map>

namespace coppice::collectives {
namespace {

std::size_t index(int at) { return static_cast<std::size_t>(at); }

using SparseRow = std::map<int, Rational>;

// rows · x = right, as many rows as columns; nothing when they are dependent. The pivots are taken from the shortest
// rows, which keeps systems as sparse as these nearly free of fill-in.
std::optional<std::vector<Rational>> solve_exactly(std::vector<SparseRow> rows, std::vector<Rational> right) {
  const std::size_t count = rows.size();
  std::vector<std::vector<int>> users(count);  // by column: rows that may have it
  for (std::size_t row = 0; row < count; ++row) {
    for (const auto& [column, value] : rows[row]) users[index(column)].push_back(static_cast<int>(row));
  }
  std::vector<int> pivot_of(count, -1);  // by row: its column
  std::vector<int> order;
  for (std::size_t step = 0; step < count; ++step) {
    int shortest = -1;
    for (std::size_t row = 0; row < count; ++row) {
      if (pivot_of[row] >= 0) continue;
      if (shortest < 0 || rows[row].size() < rows[index(shortest)].size()) shortest = static_cast<int>(row);
    }
    SparseRow& pivot_row = rows[index(shortest)];
    if (pivot_row.empty()) return std::nullopt;
    const auto fewest =
        std::ranges::min_element(pivot_row, {}, [&](const auto& entry) { return users[index(entry.first)].size(); });
    const int column = fewest->first;
    const Rational pivot = fewest->second;
    pivot_of[index(shortest)] = column;
    order.push_back(shortest);
    for (const int user : std::vector<int>(users[index(column)])) {
      if (pivot_of[index(user)] >= 0) continue;
      const auto found = rows[index(user)].find(column);
      if (found == rows[index(user)].end()) continue;
      const Rational factor = found->second / pivot;
      for (const auto& [other, value] : pivot_row) {
        auto [entry, added] = rows[index(user)].try_emplace(other, 0);
        if (added) users[index(other)].push_back(user);
        entry->second -= factor * value;
        if (sgn(entry->second) == 0) rows[index(user)].erase(entry);
      }
      right[index(user)] -= factor * right[index(shortest)];
    }
  }
  std::vector<Rational> x(count);
  for (auto row = order.rbegin(); row != order.rend(); ++row) {
    Rational rest = right[index(*row)];
    const int own = pivot_of[index(*row)];
    for (const auto& [column, value] : rows[index(*row)]) {
      if (column != own) rest -= value * x[index(column)];
    }
    x[index(own)] = rest / rows[index(*row)].at(own);
  }
  return x;
}

}  // namespace

struct LinearProgram::Solver {
  ClpSimplex clp;
};

LinearProgram::LinearProgram() : solver_(std::make_unique<Solver>()) {
  solver_->clp.setLogLevel(0);
  solver_->clp.setOptimizationDirection(-1);
  solver_->clp.setPerturbation(100);
  solver_->clp.setPrimalTolerance(1e-9);
  solver_->clp.setDualTolerance(1e-9);
}

LinearProgram::~LinearProgram() = default;

int LinearProgram::add_column(const Rational& objective) {
  objective_.push_back(objective);
  solver_->clp.addColumn(0, nullptr, nullptr, 0, COIN_DBL_MAX, objective.get_d());
  return static_cast<int>(objective_.size()) - 1;
}

void LinearProgram::add_row(std::vector<std::pair<int, Rational>> coefficients, const Rational& limit, bool equal) {
  std::vector<int> columns;
  std::vector<double> values;
  for (const auto& [column, value] : coefficients) {
    columns.push_back(column);
    values.push_back(value.get_d());
  }
  const double upper = limit.get_d();
  solver_->clp.addRow(static_cast<int>(columns.size()), columns.data(), values.data(), equal ? upper : -COIN_DBL_MAX,
                      upper);
  rows_.push_back({std::move(coefficients), limit, equal});
}

bool LinearProgram::solve() {
  ClpSimplex& clp = solver_->clp;
  clp.dual();
  if (clp.status() != 0) clp.primal();
  if (clp.status() != 0) return false;
  x_.assign(clp.primalColumnSolution(), clp.primalColumnSolution() + objective_.size());
  price_.assign(clp.dualRowSolution(), clp.dualRowSolution() + rows_.size());
  return true;
}

std::optional<LinearProgram::Exact> LinearProgram::prove() const {
  const ClpSimplex& clp = solver_->clp;
  std::vector<int> tight;                         // rows whose slack is not in the basis
  std::vector<int> basic;                         // columns that are
  std::vector<int> place(objective_.size(), -1);  // among the basic
  for (int row = 0; row < rows(); ++row) {
    if (clp.getRowStatus(row) != ClpSimplex::basic) tight.push_back(row);
  }
  for (std::size_t column = 0; column < objective_.size(); ++column) {
    if (clp.getColumnStatus(static_cast<int>(column)) != ClpSimplex::basic) continue;
    place[column] = static_cast<int>(basic.size());
    basic.push_back(static_cast<int>(column));
  }
  if (tight.size() != basic.size()) return std::nullopt;
  std::vector<SparseRow> forward(tight.size());
  std::vector<SparseRow> backward(tight.size());
  std::vector<Rational> limits;
  std::vector<Rational> gains;
  for (std::size_t at = 0; at < tight.size(); ++at) {
    for (const auto& [column, value] : rows_[index(tight[at])].coefficients) {
      if (place[index(column)] < 0) continue;
      forward[at][place[index(column)]] = value;
      backward[index(place[index(column)])][static_cast<int>(at)] = value;
    }
    limits.push_back(rows_[index(tight[at])].limit);
    gains.push_back(objective_[index(basic[at])]);
  }
  const auto x = solve_exactly(std::move(forward), std::move(limits));
  const auto price = solve_exactly(std::move(backward), std::move(gains));
  if (!x || !price) return std::nullopt;
  Exact exact{.value = 0, .x = std::vector<Rational>(objective_.size()), .price = std::vector<Rational>(rows_.size())};
  for (std::size_t at = 0; at < basic.size(); ++at) {
    if (sgn((*x)[at]) < 0) return std::nullopt;
    exact.x[index(basic[at])] = (*x)[at];
    exact.value += objective_[index(basic[at])] * (*x)[at];
    if (sgn((*price)[at]) < 0 && !rows_[index(tight[at])].equal) return std::nullopt;
    exact.price[index(tight[at])] = (*price)[at];
  }
  std::vector<Rational> worth(objective_.size());
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    Rational sum = 0;
    for (const auto& [column, value] : rows_[row].coefficients) {
      sum += value * exact.x[index(column)];
      worth[index(column)] += value * exact.price[row];
    }
    if (sum > rows_[row].limit || (rows_[row].equal && sum != rows_[row].limit)) return std::nullopt;
  }
  for (std::size_t column = 0; column < objective_.size(); ++column) {
    if (worth[column] < objective_[column]) return std::nullopt;
  }
  return exact;
}

}  // namespace coppice::collectives
