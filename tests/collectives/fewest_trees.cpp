// Offline proof that no broadcast of a DGX-1 allocation reaches its optimum with fewer trees than the planner's: where
// the planner's own bound does not say so, a mixed-integer program over all sets of one tree fewer has no solution
// (Cbc).
//   fewest_trees            every root of the 14 DGX-1P and 46 DGX-1V allocations
// Prints one line a root that needed the program, and a sum; exits 1 if some root was left unproved.
#include <coin/Cbc_C_Interface.h>

#include <cstdio>
#include <limits>
#include <map>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"

namespace coppice::collectives {
namespace {

struct Arc {
  int from;
  int to;
  double capacity;
};

// A model built row by row; Cbc takes columns of a sparse matrix.
class Model {
 public:
  int column(double lower, double upper, bool whole) {
    lower_.push_back(lower);
    upper_.push_back(upper);
    whole_.push_back(whole);
    columns_.emplace_back();
    return static_cast<int>(columns_.size()) - 1;
  }

  void row(double lower, double upper, const std::map<int, double>& values) {
    for (const auto& [column, value] : values) {
      columns_[static_cast<std::size_t>(column)].emplace_back(static_cast<int>(row_lower_.size()), value);
    }
    row_lower_.push_back(lower);
    row_upper_.push_back(upper);
  }

  bool infeasible() const {
    std::vector<int> start = {0};
    std::vector<int> rows;
    std::vector<double> values;
    for (const auto& column : columns_) {
      for (const auto& [row, value] : column) {
        rows.push_back(row);
        values.push_back(value);
      }
      start.push_back(static_cast<int>(rows.size()));
    }
    const std::vector<double> objective(columns_.size(), 0);
    Cbc_Model* model = Cbc_newModel();
    Cbc_setParameter(model, "log", "0");
    Cbc_loadProblem(model, static_cast<int>(columns_.size()), static_cast<int>(row_lower_.size()), start.data(),
                    rows.data(), values.data(), lower_.data(), upper_.data(), objective.data(), row_lower_.data(),
                    row_upper_.data());
    for (std::size_t column = 0; column < columns_.size(); ++column) {
      if (whole_[column]) Cbc_setInteger(model, static_cast<int>(column));
    }
    Cbc_solve(model);
    const bool none = Cbc_isProvenInfeasible(model) != 0;
    Cbc_deleteModel(model);
    return none;
  }

 private:
  std::vector<double> lower_, upper_, row_lower_, row_upper_;
  std::vector<bool> whole_;
  std::vector<std::vector<std::pair<int, double>>> columns_;
};

// Whether no `trees` out-trees of any rates, whole or not, add up to `rate` within the capacities.
bool none_with(int nodes, const std::vector<Arc>& arcs, int root, int trees, double rate) {
  constexpr double kFree = std::numeric_limits<double>::max();
  Model model;
  std::map<int, double> sum;
  std::vector<std::map<int, double>> load(arcs.size());
  int before = -1;
  for (int tree = 0; tree < trees; ++tree) {
    const int weight = model.column(0, rate, false);
    sum[weight] = 1;
    if (before >= 0) model.row(0, kFree, {{before, 1}, {weight, -1}});  // trees are alike: the widest first
    before = weight;
    std::vector<std::map<int, double>> entering(static_cast<std::size_t>(nodes));
    std::vector<std::map<int, double>> kept(static_cast<std::size_t>(nodes));
    for (std::size_t at = 0; at < arcs.size(); ++at) {
      if (arcs[at].to == root) continue;
      const int used = model.column(0, 1, true);
      const int carried = model.column(0, arcs[at].capacity, false);
      const int flow = model.column(0, nodes - 1, false);  // one unit to each node shows that it is reached
      model.row(-rate, kFree, {{carried, 1}, {weight, -1}, {used, -rate}});
      model.row(0, kFree, {{used, nodes - 1}, {flow, -1}});
      load[at][carried] = 1;
      entering[static_cast<std::size_t>(arcs[at].to)][used] = 1;
      kept[static_cast<std::size_t>(arcs[at].to)][flow] += 1;
      kept[static_cast<std::size_t>(arcs[at].from)][flow] -= 1;
    }
    for (int node = 0; node < nodes; ++node) {
      if (node == root) continue;
      model.row(1, 1, entering[static_cast<std::size_t>(node)]);
      model.row(1, 1, kept[static_cast<std::size_t>(node)]);
    }
  }
  model.row(rate, rate, sum);
  for (std::size_t at = 0; at < arcs.size(); ++at) model.row(-kFree, arcs[at].capacity, load[at]);
  return model.infeasible();
}

int prove() {
  int roots = 0;
  int by_program = 0;
  int unproved = 0;
  std::size_t most = 0;
  for (const Topology& machine : {dgx_1p(), dgx_1v()}) {
    for (const auto& hosts : allocation_classes(machine, 3, 8)) {
      const Topology allocation = without_others(machine, hosts);
      std::vector<Arc> arcs;
      for (const Link& link : allocation.links) {
        arcs.push_back({link.from, link.to, link.capacity.get_d()});
        arcs.push_back({link.to, link.from, link.capacity.get_d()});
      }
      const int nodes = static_cast<int>(hosts.size());
      for (int root = 0; root < nodes; ++root) {
        PlanRequest request;
        request.root = root;
        const Plan plan = make_plan(allocation, request).value();
        const int trees = static_cast<int>(plan.trees.size());
        ++roots;
        most = std::max(most, plan.trees.size());
        if (trees == plan.trees_bound) continue;
        ++by_program;
        // The program must find what is there, or it could not be believed when it finds nothing.
        const bool proved = none_with(nodes, arcs, root, trees - 1, plan.rate.get_d()) &&
                            !none_with(nodes, arcs, root, trees, plan.rate.get_d());
        if (!proved) ++unproved;
        std::printf("%s, %d GPUs, root %d: %d trees, %s with %d\n", machine.name.c_str(), nodes, root, trees,
                    proved ? "none" : "not disproved", trees - 1);
      }
    }
  }
  std::printf("%d roots, at most %zu trees; %d proved by counting, %d by Cbc, %d unproved\n", roots, most,
              roots - by_program, by_program - unproved, unproved);
  return unproved == 0 ? 0 : 1;
}

}  // namespace
}  // namespace coppice::collectives

int main() { return coppice::collectives::prove(); }
