#include "collectives/reduction.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

namespace coppice::collectives {
namespace {

std::vector<int> counted(std::size_t count, int step) {
  std::vector<int> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<int>(i) * step % 50;
  return out;
}

TEST(Reduction, EveryTypeAndOperationOnBuffersOfAnyAlignment) {
  for (const Element element : kElements) {
    for (const Reduction reduction : kReductions) {
      for (const std::size_t count : {std::size_t{1}, std::size_t{7}, std::size_t{512}, std::size_t{1'500}}) {
        const auto a = counted(count, 3), b = counted(count, 7);
        std::vector<int> right(count);
        for (std::size_t i = 0; i < count; ++i)
          right[i] = reduction == Reduction::min ? std::min(a[i], b[i]) : reduction == Reduction::max ? std::max(a[i], b[i]) : a[i] + b[i];
        const auto from = elements_of(element, b), wanted = elements_of(element, right);
        std::vector<std::byte> shifted(wanted.size() + 3), other(wanted.size() + 1);
        const auto start = elements_of(element, a);
        std::memcpy(shifted.data() + 3, start.data(), start.size());
        std::memcpy(other.data() + 1, from.data(), from.size());
        combine(element, reduction, std::span(shifted).subspan(3), std::span<const std::byte>(other).subspan(1));
        EXPECT_EQ(std::memcmp(shifted.data() + 3, wanted.data(), wanted.size()), 0) << name(element) << " " << name(reduction) << " " << count;
      }
    }
  }
}

template <class T>
std::vector<std::byte> raw(std::vector<T> values) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

TEST(Reduction, NotANumberStaysOneFromEitherSide) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Reduction reduction : kReductions) {
    auto into = raw<float>({nan, 1, nan});
    combine(Element::float32, reduction, into, raw<float>({1, nan, nan}));
    for (std::size_t i = 0; i < 3; ++i) {
      float got;
      std::memcpy(&got, into.data() + i * 4, 4);
      EXPECT_TRUE(std::isnan(got)) << name(reduction) << " " << i;
    }
  }
}

TEST(Reduction, IntegersWrapAroundAndMeansDropTheRemainder) {
  auto into = raw<std::int32_t>({std::numeric_limits<std::int32_t>::max(), -7});
  combine(Element::int32, Reduction::sum, into, raw<std::int32_t>({1, 0}));
  finish(Element::int32, Reduction::sum, 2, into);
  EXPECT_EQ(into, raw<std::int32_t>({std::numeric_limits<std::int32_t>::min(), -7}));
  auto means = raw<std::int64_t>({-7, 9, 4});
  finish(Element::int64, Reduction::avg, 2, means);
  EXPECT_EQ(means, raw<std::int64_t>({-3, 4, 2}));
}

// bfloat16 keeps eight bits: 256 + 1 is half-way and goes to the even 256, 256 + 3 to 260.
TEST(Reduction, HalvesAreRoundedToNearestEvenAtEachStep) {
  auto into = elements_of(Element::bfloat16, std::vector{256, 256});
  combine(Element::bfloat16, Reduction::sum, into, elements_of(Element::bfloat16, std::vector{1, 3}));
  EXPECT_EQ(into, elements_of(Element::bfloat16, std::vector{256, 260}));
  auto halves = elements_of(Element::float16, std::vector{2048, 2048});
  combine(Element::float16, Reduction::sum, halves, elements_of(Element::float16, std::vector{1, 3}));
  EXPECT_EQ(halves, elements_of(Element::float16, std::vector{2048, 2052}));
}

TEST(Reduction, NamesReadBack) {
  for (const Element element : kElements) EXPECT_EQ(element_of(name(element)), element);
  for (const Reduction reduction : kReductions) EXPECT_EQ(reduction_of(name(reduction)), reduction);
  EXPECT_FALSE(element_of("float64"));
  EXPECT_FALSE(reduction_of(""));
}

}  // namespace
}  // namespace coppice::collectives
