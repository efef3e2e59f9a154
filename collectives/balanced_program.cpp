#include "collectives/balanced_program.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "collectives/flow.hpp"
#include "collectives/linear_program.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

enum class Way : std::uint8_t { out, in };

struct CutRow {
  Way way;
  std::vector<char> inside;  // [nodes]
  int row;
};

class Program {
 public:
  explicit Program(const BalancedProgram& program)
      : program_(program), network_(program.network), arcs_(rated_arcs(program.network)) {
    symmetric_ = program.share.empty() && opposites();
    add_columns();
    add_capacities();
    add_balances(Way::out, out_);
    if (!in_.empty()) add_balances(Way::in, in_);
    for (const int host : program.hosts) {
      std::vector<char> alone(index(network_.nodes()), 0);
      alone[index(host)] = 1;
      std::vector<char> others(index(network_.nodes()), 1);
      others[index(host)] = 0;
      for (const Way way : ways()) {
        add_cut(way, alone);
        if (program.hosts.size() > 1) add_cut(way, others);
      }
    }
  }

  std::optional<BalancedSolution> run() {
    constexpr int kRoundsMax = 400;
    for (int round = 0; round < kRoundsMax; ++round) {
      if (!lp_.solve()) return std::nullopt;
      if (add_broken(lp_.x())) continue;
      const auto exact = lp_.prove();
      if (!exact) return std::nullopt;
      if (!add_broken(exact->x)) return solution(*exact);
    }
    return std::nullopt;
  }

 private:
  std::vector<Way> ways() const { return in_.empty() ? std::vector{Way::out} : std::vector{Way::out, Way::in}; }

  bool opposites() {
    std::map<std::pair<int, int>, std::size_t> at;
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) at[{arcs_[arc].from, arcs_[arc].to}] = arc;
    for (const RatedArc& arc : arcs_) {
      const auto found = at.find({arc.to, arc.from});
      if (found == at.end() || arcs_[found->second].capacity != arc.capacity) return false;
      opposite_.push_back(static_cast<int>(found->second));
    }
    return true;
  }

  void add_columns() {
    root_.assign(index(network_.nodes()), -1);
    if (program_.share.empty()) {
      for (const int host : program_.hosts) root_[index(host)] = lp_.add_column(1);
    } else {
      rate_ = lp_.add_column(1);
    }
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) out_.push_back(lp_.add_column(0));
    if (!program_.share.empty() || symmetric_) return;
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) in_.push_back(lp_.add_column(0));
  }

  void add_capacities() {
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
      std::vector<std::pair<int, Rational>> used = {{out_[arc], 1}};
      if (!in_.empty()) used.emplace_back(in_[arc], 1);
      if (symmetric_) {
        if (opposite_[arc] < static_cast<int>(arc)) continue;
        used.emplace_back(out_[index(opposite_[arc])], 1);
      }
      capacity_row_[static_cast<int>(arc)] = lp_.rows();
      lp_.add_row(used, arcs_[arc].capacity);
    }
  }

  void add_balances(Way way, const std::vector<int>& columns) {
    for (int node = 0; node < network_.nodes(); ++node) {
      if (network_.is_switch[index(node)] == 0) continue;
      std::vector<std::pair<int, Rational>> balance;
      for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
        if (arcs_[arc].to == node) balance.emplace_back(columns[arc], 1);
        if (arcs_[arc].from == node) balance.emplace_back(columns[arc], -1);
      }
      balance_row_[{way, node}] = lp_.rows();
      lp_.add_row(balance, 0, true);
    }
  }

  // What is outside the set must not exceed what crosses; false when the row is there already.
  bool add_cut(Way way, const std::vector<char>& inside) {
    if (!known_.insert({way, inside}).second) return false;
    std::vector<std::pair<int, Rational>> row;
    Rational outside = 0;
    for (const int host : program_.hosts) {
      if (inside[index(host)] != 0) continue;
      if (program_.share.empty()) {
        row.emplace_back(root_[index(host)], 1);
      } else {
        outside += program_.share[index(host)];
      }
    }
    if (sgn(outside) != 0) row.emplace_back(rate_, outside);
    const std::vector<int>& columns = way == Way::out ? out_ : in_;
    for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
      if (crosses(way, inside, arcs_[arc])) row.emplace_back(columns[arc], -1);
    }
    cuts_.push_back({way, inside, lp_.rows()});
    lp_.add_row(row, 0);
    return true;
  }

  static bool crosses(Way way, const std::vector<char>& inside, const RatedArc& arc) {
    const bool from = inside[index(arc.from)] != 0;
    const bool to = inside[index(arc.to)] != 0;
    return way == Way::out ? !from && to : from && !to;
  }

  // Columns as whole numbers of one scale: exact for fractions, to 40 bits below the largest for doubles.
  std::vector<mpz_class> whole(const std::vector<Rational>& x) const {
    mpz_class scale = 1;
    for (const Rational& value : x) scale = lcm(scale, value.get_den());
    if (!program_.share.empty()) {
      for (const Rational& share : program_.share) scale = lcm(scale, share.get_den() * x[index(rate_)].get_den());
    }
    std::vector<mpz_class> numbers;
    for (const Rational& value : x) numbers.emplace_back(value.get_num() * (scale / value.get_den()));
    return numbers;
  }

  std::vector<mpz_class> whole(const std::vector<double>& x) const {
    double most = 1e-300;
    for (const double value : x) most = std::max(most, value);
    std::vector<mpz_class> numbers;
    for (const double value : x) numbers.emplace_back(std::floor(std::max(value, 0.0) / most * 0x1p40));
    return numbers;
  }

  template <class Number>
  bool add_broken(const std::vector<Number>& x) {
    const std::vector<mpz_class> numbers = whole(x);
    mpz_class total = 0;
    for (const mpz_class& number : numbers) total += number;
    total *= static_cast<unsigned long>(program_.hosts.size());
    // A solution in doubles may fall short by its rounding; what that hides is found in the exact one.
    const bool rounded = std::is_same_v<Number, double>;
    return total < (mpz_class(1) << 60) ? add_broken_in<std::int64_t>(numbers, rounded)
                                        : add_broken_in<mpz_class>(numbers, rounded);
  }

  template <class Value>
  bool add_broken_in(const std::vector<mpz_class>& numbers, bool rounded) {
    const auto value = [](const mpz_class& number) {
      if constexpr (std::is_same_v<Value, mpz_class>) {
        return number;
      } else {
        return static_cast<Value>(number.get_si());
      }
    };
    bool added = false;
    for (const Way way : ways()) {
      const std::vector<int>& columns = way == Way::out ? out_ : in_;
      FlowGraph<Value> flow(network_.nodes() + 1);
      for (std::size_t arc = 0; arc < arcs_.size(); ++arc) {
        const Value capacity = value(numbers[index(columns[arc])]);
        way == Way::out ? flow.add_arc(arcs_[arc].from, arcs_[arc].to, capacity)
                        : flow.add_arc(arcs_[arc].to, arcs_[arc].from, capacity);
      }
      Value wanted = 0;
      for (const int host : program_.hosts) {
        const Value each = value(carried(numbers, host));
        flow.add_arc(network_.nodes(), host, each);
        wanted += each;
      }
      const Value slack = rounded ? Value(wanted / 100'000'000 + 4096) : Value(0);
      const Value enough = wanted - slack;
      const std::vector<int> sources = {network_.nodes()};
      for (const int host : program_.hosts) {
        const std::vector<int> sinks = {host};
        if (flow.max_flow(sources, sinks, wanted) >= enough) continue;
        std::vector<char> far = flow.source_side();
        far.resize(index(network_.nodes()));
        for (char& inside : far) inside = inside == 0 ? 1 : 0;
        std::vector<char> near = flow.sink_side();
        near.resize(index(network_.nodes()));
        const bool far_is_new = add_cut(way, far);
        const bool near_is_new = add_cut(way, near);
        added = added || far_is_new || near_is_new;
      }
    }
    return added;
  }

  mpz_class carried(const std::vector<mpz_class>& numbers, int host) const {
    if (program_.share.empty()) return numbers[index(root_[index(host)])];
    const Rational& share = program_.share[index(host)];
    return numbers[index(rate_)] * share.get_num() / share.get_den();
  }

  BalancedSolution solution(const LinearProgram::Exact& exact) const {
    BalancedSolution solved{.rate = exact.value,
                            .root = std::vector<Rational>(index(network_.nodes())),
                            .out = {},
                            .in = {},
                            .dual = dual(exact.price)};
    for (const int host : program_.hosts) {
      solved.root[index(host)] = program_.share.empty() ? exact.x[index(root_[index(host)])]
                                                        : Rational(exact.value * program_.share[index(host)]);
    }
    const auto rated = [&](const std::vector<int>& columns) {
      std::vector<RatedArc> rates;
      for (std::size_t arc = 0; arc < columns.size(); ++arc) {
        const Rational& capacity = exact.x[index(columns[arc])];
        if (sgn(capacity) > 0) rates.push_back({arcs_[arc].from, arcs_[arc].to, capacity});
      }
      return rates;
    };
    solved.out = rated(out_);
    solved.in = rated(in_);
    return solved;
  }

  // Where one solution serves both ways, half of its dual proves each.
  Dual dual(const std::vector<Rational>& price) const {
    Dual dual;
    const Rational half = symmetric_ ? Rational(1, 2) : Rational(1);
    for (const auto& [arc, row] : capacity_row_) {
      const Rational each(price[index(row)] * half);
      if (sgn(each) == 0) continue;
      const RatedArc& rated = arcs_[index(arc)];
      dual.price.push_back({rated.from, rated.to, each});
      if (symmetric_) dual.price.push_back({rated.to, rated.from, each});
    }
    for (const CutRow& cut : cuts_) {
      const Rational weight(price[index(cut.row)] * half);
      if (sgn(weight) == 0) continue;
      std::vector<int> nodes;
      for (int node = 0; node < network_.nodes(); ++node) {
        if (cut.inside[index(node)] != 0) nodes.push_back(node);
      }
      if (cut.way == Way::out) dual.out.push_back({nodes, weight});
      if (cut.way == Way::in || symmetric_) dual.in.push_back({nodes, weight});
    }
    add_potentials(price, half, dual);
    return dual;
  }

  void add_potentials(const std::vector<Rational>& price, const Rational& half, Dual& dual) const {
    for (int node = 0; node < network_.nodes(); ++node) {
      if (network_.is_switch[index(node)] == 0) continue;
      const Rational out(-price[index(balance_row_.at({Way::out, node}))] * half);
      Rational in = 0;
      if (!in_.empty()) in = -price[index(balance_row_.at({Way::in, node}))];
      if (symmetric_) in = -out;
      if (sgn(out) != 0 || sgn(in) != 0) dual.switches.push_back({node, out, in});
    }
  }

  const BalancedProgram& program_;
  const Network& network_;
  std::vector<RatedArc> arcs_;
  bool symmetric_ = false;
  std::vector<int> opposite_;  // [arcs], where symmetric
  LinearProgram lp_;
  std::vector<int> root_;  // [nodes]: column of x, or -1
  int rate_ = -1;          // column, where shares are given
  std::vector<int> out_;   // [arcs]: column of b
  std::vector<int> in_;    // [arcs]: column of a, or empty
  std::map<int, int> capacity_row_;
  std::map<std::pair<Way, int>, int> balance_row_;
  std::set<std::pair<Way, std::vector<char>>> known_;
  std::vector<CutRow> cuts_;
};

}  // namespace

std::optional<BalancedSolution> solve_balanced(const BalancedProgram& program) { return Program(program).run(); }

}  // namespace coppice::collectives
