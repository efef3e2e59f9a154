#include "gpu/npy.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <fstream>

#include "tests/gpu/scratch.hpp"

using namespace coppice::gpu;

namespace {

std::string file_of(const std::string& version, const std::string& header, const std::string& data) {
  std::string length{static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  if (version[0] == 2) length += std::string(2, '\0');
  return "\x93NUMPY" + version + length + header + data;
}
const std::string kOne("\1\0", 2), kTwo("\2\0", 2);
const std::string kHeader = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";

TEST(Npy, ReturnsWhatWasSaved) {
  const Scratch scratch;
  EXPECT_TRUE(rc::check([&](const std::vector<float>& values, std::uint8_t split) {
    Dims dims{static_cast<std::int64_t>(values.size())};
    if (split % 2 == 0 && values.size() % 2 == 0) dims = {2, dims[0] / 2, 1};
    RC_ASSERT(save_npy(scratch / "a.npy", dims, values).has_value());
    const auto array = load_npy(scratch / "a.npy");
    RC_ASSERT(array.has_value());
    RC_ASSERT(array->dims == dims);
    RC_ASSERT(array->values == values);
  }));
}

TEST(Npy, SavesScalars) {
  const Scratch scratch;
  ASSERT_TRUE(save_npy(scratch / "a.npy", {}, std::vector<float>{3}));
  const auto array = load_npy(scratch / "a.npy");
  ASSERT_TRUE(array);
  EXPECT_TRUE(array->dims.empty());
  EXPECT_EQ(array->values, std::vector<float>{3});
}

TEST(Npy, ReadsBytesAsFloatsAndTheSecondFormat) {
  const Scratch scratch;
  scratch.write("u.npy",
                file_of(kOne, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1), }", std::string("\0\xFF", 2)));
  const auto bytes = load_npy(scratch / "u.npy");
  ASSERT_TRUE(bytes) << bytes.error().what;
  EXPECT_EQ(bytes->values, (std::vector<float>{0, 255}));
  scratch.write("2.npy", file_of(kTwo, kHeader, std::string(4, '\0')));
  EXPECT_TRUE(load_npy(scratch / "2.npy"));
}

TEST(Npy, NamesTheFileThatIsWrong) {
  const Scratch scratch;
  const std::string four(4, '\0');
  const auto shape = [](const std::string& text) {
    return "{'descr': '<f4', 'fortran_order': False, 'shape': (" + text + "), }";
  };
  for (const auto& bytes :
       {std::string(), std::string("\x93NUMPY"), std::string(40, 'x'), file_of(kOne, kHeader, "abc"),
        file_of(kOne, kHeader, four + "x"), file_of(std::string("\3\0", 2), kHeader, four),
        file_of(kOne, shape("99999999999, 99999999999"), four), file_of(kOne, shape("1, 1, 1, 1, 1, 1, 1, 1, 1"), four),
        file_of(kOne, shape("-1"), four), file_of(kOne, shape("123456789012345"), four),
        file_of(kOne, "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", four + four),
        file_of(kOne, "{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", four),
        file_of(kOne, "{'descr': '<f4', 'fortran_order': False, 'shape': (1", four),
        file_of(kOne, kHeader, four).substr(0, 30)}) {
    scratch.write("bad.npy", bytes);
    const auto array = load_npy(scratch / "bad.npy");
    ASSERT_FALSE(array) << bytes;
    EXPECT_EQ(array.error().code, ErrorCode::malformed);
    EXPECT_NE(array.error().what.find("bad.npy: "), std::string::npos);
  }
  EXPECT_EQ(load_npy(scratch / "absent.npy").error().code, ErrorCode::unreadable);
  EXPECT_EQ(load_npy(scratch / "").error().code, ErrorCode::unreadable);
  EXPECT_EQ(save_npy(scratch / "no/such/place.npy", {1}, std::vector<float>{1}).error().code, ErrorCode::unreadable);
  EXPECT_EQ(save_npy(scratch / "a.npy", {3}, std::vector<float>{1}).error().code, ErrorCode::shape_mismatch);
}

}  // namespace
