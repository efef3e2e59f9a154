#include "coding/base64.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <array>
#include <cstdint>
#include <vector>

using namespace coppice::coding;

namespace {

std::string encoded(std::string_view text) { return base64_encode(std::as_bytes(std::span(text))); }

bool readable(std::string_view text, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  return base64_decode(text, out);
}

TEST(Base64, GivesTheVectorsOfRfc4648) {
  const std::array<std::string_view, 7> plain{"", "f", "fo", "foo", "foob", "fooba", "foobar"};
  const std::array<std::string_view, 7> text{"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(encoded(plain[i]), text[i]);
}

TEST(Base64, ReturnsEveryByteString) {
  EXPECT_TRUE(rc::check([](const std::vector<std::uint8_t>& bytes) {
    std::vector<std::uint8_t> out(bytes.size());
    RC_ASSERT(base64_decode(base64_encode(std::as_bytes(std::span(bytes))), std::as_writable_bytes(std::span(out))));
    RC_ASSERT(out == bytes);
  }));
}

TEST(Base64, RefusesWhatIsNotStrict) {
  EXPECT_TRUE(readable("Zg==", 1));
  EXPECT_FALSE(readable("Zg==", 2));     // another length
  EXPECT_FALSE(readable("Zg==", 3));     // padding in place of data
  EXPECT_FALSE(readable("Zh==", 1));     // spare bits set
  EXPECT_FALSE(readable("Zm9=", 2));     // the same with one sign of padding
  EXPECT_FALSE(readable("Zg", 1));       // no padding
  EXPECT_FALSE(readable("Zg=A", 1));     // data after padding
  EXPECT_FALSE(readable("Zm9v\n", 3));   // white space
  EXPECT_FALSE(readable("Zm-_", 3));     // the URL alphabet
  EXPECT_FALSE(readable("Zm9\xC3", 3));  // beyond ASCII
  EXPECT_FALSE(readable("====", 1));
}

}  // namespace
