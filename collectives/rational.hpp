// collectives/rational.hpp: capacities and rates as exact fractions.
//
// Why exact: an optimum is claimed by rate == bound, and 24/7 has no double.
#pragma once

#include <gmpxx.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "collectives/error.hpp"

namespace coppice::collectives {

using Rational = mpq_class;

// Above and below the line of a fraction in lowest terms: what an untrusted file may make us compute with.
inline constexpr int kDigitsMax = 64;

// At most kDigitsMax digits above and below the line.
bool within_digits_max(const Rational& value);

// "200", "25/2", "12.5", "-3", "1e3"; the sign may be '-' only, and spaces are errors. Result in lowest terms.
// Errors: malformed (no number, a zero below the line, more than kDigitsMax digits written out or in the result).
Expected<Rational> parse_rational(std::string_view text);

// A string as above or a JSON number. A JSON fraction is taken for the shortest decimal that reads back as the same
// double: 0.1 is 1/10. Errors: malformed.
Expected<Rational> rational_of(const nlohmann::json& value);

// In lowest terms: "24/7", "200".
std::string to_string(const Rational& value);

}  // namespace coppice::collectives
