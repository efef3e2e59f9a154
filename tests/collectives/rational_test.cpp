#include "collectives/rational.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace coppice::collectives {
namespace {

TEST(Rational, ReadsEveryWayOfWritingANumber) {
  EXPECT_EQ(parse_rational("200").value(), 200);
  EXPECT_EQ(parse_rational("25/2").value(), Rational(25, 2));
  EXPECT_EQ(parse_rational("50/4").value(), Rational(25, 2));
  EXPECT_EQ(parse_rational("12.5").value(), Rational(25, 2));
  EXPECT_EQ(parse_rational("0.10").value(), Rational(1, 10));
  EXPECT_EQ(parse_rational("-3").value(), -3);
  EXPECT_EQ(parse_rational("1e3").value(), 1000);
  EXPECT_EQ(parse_rational("2.5E-3").value(), Rational(1, 400));
  EXPECT_EQ(parse_rational("000000000000000000000000000000000000000000000000000000000000000000000007").value(), 7);
}

TEST(Rational, TakesAJsonFractionForItsShortestDecimal) {
  EXPECT_EQ(rational_of(0.1).value(), Rational(1, 10));
  EXPECT_EQ(rational_of(12.5).value(), Rational(25, 2));
  EXPECT_EQ(rational_of(7).value(), 7);
  EXPECT_EQ(rational_of(-7).value(), -7);
  EXPECT_EQ(rational_of(1e20).value(), parse_rational("100000000000000000000").value());
  EXPECT_EQ(rational_of("24/7").value(), Rational(24, 7));
  EXPECT_EQ(rational_of(std::numeric_limits<std::uint64_t>::max()).value().get_str(), "18446744073709551615");
}

TEST(Rational, RefusesWhatIsNoNumber) {
  for (const char* text :
       {"",   "-",  "--1", "+1",    " 1",   "1 ",  "1/",  "/2",  "1/0",   "1/-2", "1.5/2", "1.",
        ".5", "1e", "e1",  "1e1.5", "0x10", "nan", "inf", "1,5", "1/2/3", "1e99", "1e-99", "1e99999999999999999999"}) {
    const auto value = parse_rational(text);
    ASSERT_FALSE(value) << text;
    EXPECT_EQ(value.error().code, ErrorCode::malformed) << text;
  }
  for (const nlohmann::json& value :
       {nlohmann::json(), nlohmann::json(true), nlohmann::json::array({1}),
        nlohmann::json(std::numeric_limits<double>::infinity()),
        nlohmann::json(std::numeric_limits<double>::quiet_NaN()), nlohmann::json(1e300)}) {
    EXPECT_FALSE(rational_of(value)) << value;
  }
}

TEST(Rational, BoundsTheDigits) {
  const std::string most(kDigitsMax, '9');
  EXPECT_TRUE(parse_rational(most));
  EXPECT_TRUE(parse_rational("1/" + most));
  for (const std::string& text : {"1" + most, "1/1" + most, most + "." + most, "1." + most + "1", most + "e9",
                                  std::string(1000, '7'), "1/" + std::string(1000, '7')}) {
    const auto value = parse_rational(text);
    ASSERT_FALSE(value);
    EXPECT_LT(value.error().what.size(), 200U);
  }
}

RC_GTEST_PROP(Rational, ReadsBackWhatItWrites, (std::int64_t above, std::int64_t below)) {
  RC_PRE(below > 0);
  Rational value{mpz_class(above), mpz_class(below)};
  value.canonicalize();
  RC_ASSERT(parse_rational(to_string(value)).value() == value);
}

}  // namespace
}  // namespace coppice::collectives
