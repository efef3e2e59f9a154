#include <gtest/gtest.h>

#include "gpu/dataset.hpp"
#include "tests/gpu/scratch.hpp"

using namespace coppice::gpu;

namespace {

// A record: its labels, then pixels that count up from the first label.
std::string record(const std::string& labels) {
  std::string out = labels;
  for (int i = 0; i < 3072; ++i) out += static_cast<char>(labels.back() + i);
  return out;
}
std::string label(int value) { return {static_cast<char>(value)}; }

std::string refusal(const Scratch& scratch, Split split, ErrorCode code) {
  const auto data = load_dataset(scratch.path(), split);
  EXPECT_FALSE(data);
  if (data) return "";
  EXPECT_EQ(data.error().code, code) << data.error().what;
  return data.error().what;
}

TEST(Cifar, ReadsTenClassesFromFiveBatchesAndATest) {
  const Scratch scratch;
  for (int i = 1; i <= 5; ++i)
    scratch.write("data_batch_" + std::to_string(i) + ".bin", record(label(i)) + record(label(i + 1)));
  scratch.write("test_batch.bin", record(label(9)));
  scratch.write("batches.meta.txt", "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
  const auto train = load_dataset(scratch.path(), Split::train), test = load_dataset(scratch.path(), Split::test);
  ASSERT_TRUE(train) << train.error().what;
  ASSERT_TRUE(test) << test.error().what;
  EXPECT_EQ(train->item, (Dims{3, 32, 32}));
  EXPECT_EQ(train->labels, (std::vector<std::uint16_t>{1, 2, 2, 3, 3, 4, 4, 5, 5, 6}));
  EXPECT_EQ(train->pixels[3072 + 1], 3);
  EXPECT_EQ(train->class_names.at(9), "truck");
  EXPECT_EQ(test->labels, (std::vector<std::uint16_t>{9}));
}

TEST(Cifar, ReadsFineOrCoarseLabelsOfAHundredClasses) {
  const Scratch scratch;
  scratch.write("train.bin", record(label(19) + label(99)) + record(label(0) + label(7)));
  const auto fine = load_dataset(scratch.path(), Split::train);
  ASSERT_TRUE(fine) << fine.error().what;
  EXPECT_EQ(fine->labels, (std::vector<std::uint16_t>{99, 7}));
  EXPECT_EQ(fine->pixels[0], 99);
  const auto coarse = load_dataset(scratch.path(), Split::train, {.coarse = true});
  ASSERT_TRUE(coarse) << coarse.error().what;
  EXPECT_EQ(coarse->labels, (std::vector<std::uint16_t>{19, 0}));
}

TEST(Cifar, NamesTheFileAndTheFieldThatIsWrong) {
  const Scratch scratch;
  scratch.write("test_batch.bin", record(label(10)));
  EXPECT_NE(refusal(scratch, Split::test, ErrorCode::malformed).find("test_batch.bin: its field \"label\""),
            std::string::npos);
  for (const auto& bytes : {std::string(), record(label(1)).substr(0, 3000), record(label(1)) + "x"}) {
    scratch.write("test_batch.bin", bytes);
    EXPECT_NE(refusal(scratch, Split::test, ErrorCode::malformed).find("truncated"), std::string::npos);
  }
  EXPECT_NE(refusal(scratch, Split::train, ErrorCode::unreadable).find("data_batch_1.bin"), std::string::npos);
  scratch.write("test_batch.bin", record(label(1)));
  scratch.write("batches.meta.txt", "airplane\n");
  EXPECT_NE(refusal(scratch, Split::test, ErrorCode::malformed).find("batches.meta.txt"), std::string::npos);
}

TEST(Cifar, IsNotReadBeyondItsBound) {
  const Scratch scratch;
  scratch.write("test_batch.bin", "");
  std::filesystem::resize_file(scratch / "test_batch.bin", std::uintmax_t{1} << 40);  // sparse
  EXPECT_NE(refusal(scratch, Split::test, ErrorCode::unreadable).find("more than"), std::string::npos);
}

}  // namespace
