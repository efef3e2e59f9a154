#include "collectives/rational.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

tl::unexpected<Error> not_a_number(std::string_view text, std::string_view why) {
  return tl::unexpected(Error{ErrorCode::malformed, in_quotes(text) + " " + std::string(why)});
}

bool is_digits(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

// Leading zeros say nothing, so they do not count against the bound.
std::string_view without_leading_zeros(std::string_view digits) {
  const auto first = digits.find_first_not_of('0');
  return first == std::string_view::npos ? digits.substr(digits.size() - 1) : digits.substr(first);
}

mpz_class integer(std::string_view digits) { return mpz_class(std::string(digits), 10); }

mpz_class power_of_ten(int exponent) {
  mpz_class power;
  mpz_ui_pow_ui(power.get_mpz_t(), 10, static_cast<unsigned long>(exponent));
  return power;
}

std::optional<int> small_exponent(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  int exponent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), exponent);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (std::abs(exponent) > kDigitsMax) return std::nullopt;
  return exponent;
}

Expected<Rational> parse_fraction(std::string_view whole, std::string_view above, std::string_view below) {
  if (!is_digits(above) || !is_digits(below)) return not_a_number(whole, "is no fraction of two whole numbers");
  above = without_leading_zeros(above);
  below = without_leading_zeros(below);
  if (above.size() > kDigitsMax || below.size() > kDigitsMax) return not_a_number(whole, "has too many digits");
  if (below == "0") return not_a_number(whole, "divides by zero");
  Rational value(integer(above), integer(below));
  value.canonicalize();
  return value;
}

Expected<Rational> parse_decimal(std::string_view whole, std::string_view text) {
  int exponent = 0;
  if (const auto at = text.find_first_of("eE"); at != std::string_view::npos) {
    const auto parsed = small_exponent(text.substr(at + 1));
    if (!parsed) return not_a_number(whole, "has no usable power of ten");
    exponent = *parsed;
    text = text.substr(0, at);
  }
  std::string_view fraction;
  if (const auto at = text.find('.'); at != std::string_view::npos) {
    fraction = text.substr(at + 1);
    text = text.substr(0, at);
    if (!is_digits(fraction)) return not_a_number(whole, "has no digits after its point");
  }
  if (!is_digits(text)) return not_a_number(whole, "is no number");
  text = without_leading_zeros(text);
  if (text.size() > kDigitsMax || fraction.size() > kDigitsMax) return not_a_number(whole, "has too many digits");
  Rational value(integer(std::string(text) + std::string(fraction)), power_of_ten(static_cast<int>(fraction.size())));
  value.canonicalize();
  if (exponent >= 0) return Rational(value * power_of_ten(exponent));
  return Rational(value / power_of_ten(-exponent));
}

}  // namespace

bool within_digits_max(const Rational& value) {
  const mpz_class limit = power_of_ten(kDigitsMax);
  return abs(value.get_num()) < limit && value.get_den() < limit;
}

Expected<Rational> parse_rational(std::string_view text) {
  const bool negative = text.starts_with('-');
  const std::string_view magnitude = text.substr(negative ? 1 : 0);
  const auto line = magnitude.find('/');
  auto value = line == std::string_view::npos
                   ? parse_decimal(text, magnitude)
                   : parse_fraction(text, magnitude.substr(0, line), magnitude.substr(line + 1));
  if (!value) return value;
  if (!within_digits_max(*value)) return not_a_number(text, "has too many digits");
  if (negative) *value = -*value;
  return value;
}

Expected<Rational> rational_of(const nlohmann::json& value) {
  if (value.is_string()) return parse_rational(value.get_ref<const std::string&>());
  if (value.is_number_unsigned()) return parse_rational(std::to_string(value.get<std::uint64_t>()));
  if (value.is_number_integer()) return parse_rational(std::to_string(value.get<std::int64_t>()));
  if (!value.is_number_float() || !std::isfinite(value.get<double>())) {
    return tl::unexpected(Error{ErrorCode::malformed, "a number or a string holding one is needed"});
  }
  std::array<char, 32> shortest{};
  const auto end = std::to_chars(shortest.data(), shortest.data() + shortest.size(), value.get<double>(),
                                 std::chars_format::scientific);
  return parse_rational(std::string_view(shortest.data(), static_cast<std::size_t>(end.ptr - shortest.data())));
}

std::string to_string(const Rational& value) { return value.get_str(); }

}  // namespace coppice::collectives
