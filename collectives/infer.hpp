// collectives/infer.hpp: what network would have given the rates that were measured. Pure.
//
// Only three shapes are told from one another, and only from rates: hosts on one switch; a cable of its own between every
// two; racks, each with a switch, joined by a trunk that is slower than what its hosts could send together. Anything else
// (trunks in a row, loops, hosts with several ports) must be declared in a topology file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/topology.hpp"

namespace coppice::collectives {

// Bytes a second; NaN: not known. pair[a][b]: alone, from a to b. out and in: with all others at once.
struct HostRates {
  std::vector<std::vector<double>> pair;
  std::vector<double> out, in;
};

enum class Shape { star, cables, racks };

struct Inference {
  Shape shape = Shape::star;
  std::vector<std::vector<int>> racks;  // the hosts of each; one: a star
  std::vector<double> up, down;         // between each host and its switch; NaN: not known
  // Pairs of hosts that carry less than the shape lets them: it is not the whole truth.
  std::vector<std::pair<int, int>> unexplained;
};

// REQUIRES: square.
Inference infer(const HostRates& rates);

// `digits` digits and zeros: 98.76 at 3 is 494/5. REQUIRES: value > 0.
Rational rounded(double value, int digits = 3);

// Rates that lie within `tolerance` of one another are one rate, in the middle of them: planners make more of small
// differences than measuring can tell. NaN and what is not above 0 stays.
std::vector<double> common_rates(std::vector<double> rates, double tolerance = 0.02);

}  // namespace coppice::collectives
