#include "runtime/msgpack.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <random>

namespace coppice::runtime {
namespace {

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string packed(const auto& value) {
  msgpack::sbuffer buffer;
  msgpack::pack(buffer, value);
  return {buffer.data(), buffer.size()};
}

RC_GTEST_PROP(Msgpack, ReadsBackWhatWasPacked, (const std::map<std::string, std::vector<std::int64_t>>& value)) {
  const auto handle = unpack(as_bytes(packed(value)));
  RC_ASSERT(handle.has_value());
  RC_ASSERT((handle->get().as<std::map<std::string, std::vector<std::int64_t>>>() == value));
}

TEST(Msgpack, OutlivesTheBytes) {
  auto text = packed(std::string("a string that is too long to be small"));
  const auto handle = unpack(as_bytes(text));
  ASSERT_TRUE(handle);
  text.assign(text.size(), 'x');
  EXPECT_EQ(handle->get().as<std::string>(), "a string that is too long to be small");
}

struct Bytes {
  std::string bytes, says;
};

TEST(Msgpack, RefusesAndSaysWhy) {
  using namespace std::string_literals;
  const std::vector<Bytes> faults{
      {"", "end inside"},
      {"\x92\x01"s, "end inside"},
      {"\x01\x02"s, "1 bytes follow"},
      {"\xC1"s, "malformed"},
      {"\xDD\xFF\xFF\xFF\xFF"s, "beyond a limit"},           // array of 2^32 - 1
      {"\xDF\xFF\xFF\xFF\xFF"s, "beyond a limit"},           // map
      {"\xDB\xFF\xFF\xFF\xFF"s, "end inside"},               // string: looked for before it is allocated
      {"\xC6\xFF\xFF\xFF\xFF"s, "end inside"},               // binary
      {"\xD6\xFF\x00\x00\x00\x00"s, "beyond a limit"},       // a timestamp: no extension is read
      {std::string(17, '\x91') + "\x01", "beyond a limit"},  // depth
      {std::string(10'000'000, '\x91'), "beyond a limit"},
  };
  for (const auto& fault : faults) {
    const auto handle = unpack(as_bytes(fault.bytes));
    SCOPED_TRACE(testing::PrintToString(fault.bytes.substr(0, 20)));
    ASSERT_FALSE(handle) << fault.says;
    EXPECT_EQ(handle.error().code, ErrorCode::bad_input);
    EXPECT_TRUE(handle.error().what.starts_with("msgpack: ")) << handle.error().what;
    EXPECT_NE(handle.error().what.find(fault.says), std::string::npos) << handle.error().what;
  }
}

TEST(Msgpack, HoldsToTheLimitsAsked) {
  const UnpackLimits limits{.array = 3, .map = 1, .string = 4, .binary = 2, .depth = 2};
  EXPECT_TRUE(unpack(as_bytes(packed(std::vector<int>{1, 2, 3})), limits));
  EXPECT_FALSE(unpack(as_bytes(packed(std::vector<int>{1, 2, 3, 4})), limits));
  EXPECT_TRUE(unpack(as_bytes(packed(std::string("abcd"))), limits));
  EXPECT_FALSE(unpack(as_bytes(packed(std::string("abcde"))), limits));
  EXPECT_TRUE(unpack(as_bytes(packed(std::vector<char>{'a', 'b'})), limits));
  EXPECT_FALSE(unpack(as_bytes(packed(std::vector<char>{'a', 'b', 'c'})), limits));
  EXPECT_FALSE(unpack(as_bytes(packed(std::map<int, int>{{1, 1}, {2, 2}})), limits));
  EXPECT_TRUE(unpack(as_bytes(packed(std::vector<std::vector<int>>{{1}})), limits));
  EXPECT_FALSE(unpack(as_bytes(packed(std::vector<std::vector<std::vector<int>>>{{{1}}})), limits));
}

TEST(Msgpack, MutatedBytesNeverCrash) {
  constexpr unsigned kSeed = 7;
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  const auto original = packed(std::map<std::string, std::vector<std::string>>{{"a", {"b", "cc"}}, {"dd", {"", "e"}}});
  std::mt19937 random(kSeed);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  for (int round = 0; round < 2'000; ++round) {
    auto text = original;
    for (std::size_t edits = 1 + below(4); edits > 0; --edits) text[below(text.size())] = static_cast<char>(below(256));
    text.resize(1 + below(text.size()));
    const auto handle = unpack(as_bytes(text));
    ASSERT_TRUE(handle || handle.error().code == ErrorCode::bad_input);
  }
}

}  // namespace
}  // namespace coppice::runtime
