#include "gpu/dataset.hpp"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>

#include "tests/gpu/scratch.hpp"

using namespace coppice::gpu;

namespace {

std::string word(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}
std::string images(std::uint32_t count, std::uint32_t rows, std::uint32_t columns, std::size_t bytes) {
  std::string out = word(0x803) + word(count) + word(rows) + word(columns);
  for (std::size_t i = 0; i < bytes; ++i) out += static_cast<char>(i * 51);
  return out;
}
std::string labels(std::uint32_t count, std::size_t bytes) {
  std::string out = word(0x801) + word(count);
  for (std::size_t i = 0; i < bytes; ++i) out += static_cast<char>(i);
  return out;
}
void write_gz(const std::filesystem::path& file, const std::string& bytes) {
  const gzFile out = ::gzopen(file.c_str(), "wb");
  ASSERT_EQ(::gzwrite(out, bytes.data(), static_cast<unsigned>(bytes.size())), static_cast<int>(bytes.size()));
  ::gzclose(out);
}

const std::string kImages = "t10k-images-idx3-ubyte", kLabels = "t10k-labels-idx1-ubyte";

// The message of the error; fails when there is none.
std::string refusal(const Scratch& scratch, ErrorCode code) {
  const auto data = load_idx(scratch.path(), Split::test);
  EXPECT_FALSE(data);
  if (data) return "";
  EXPECT_EQ(data.error().code, code) << data.error().what;
  return data.error().what;
}

TEST(Dataset, ReadsPlainAndGzippedFilesAlike) {
  const Scratch scratch;
  scratch.write(kImages, images(2, 3, 4, 24));
  write_gz(scratch / (kLabels + ".gz"), labels(2, 2));
  const auto data = load_idx(scratch.path(), Split::test);
  ASSERT_TRUE(data) << data.error().what;
  EXPECT_EQ(data->item, (Dims{1, 3, 4}));
  EXPECT_EQ(data->count(), 2);
  EXPECT_EQ(data->labels, (std::vector<std::uint16_t>{0, 1}));
  std::vector<float> out(12);
  item(*data, 1, {0.5F, 0.25F}, out);
  EXPECT_FLOAT_EQ(out[1], (static_cast<float>(13 * 51 % 256) / 255.0F - 0.5F) / 0.25F);
}

TEST(Dataset, NamesTheFileThatIsNotThere) {
  const Scratch scratch;
  EXPECT_NE(refusal(scratch, ErrorCode::unreadable).find(kImages), std::string::npos);
  scratch.write(kImages, images(2, 3, 4, 24));
  EXPECT_NE(refusal(scratch, ErrorCode::unreadable).find(kLabels), std::string::npos);
}

TEST(Dataset, NamesTheFieldThatIsWrong) {
  const Scratch scratch;
  scratch.write(kLabels, labels(2, 2));
  const auto with = [&](const std::string& bytes) {
    scratch.write(kImages, bytes);
    return refusal(scratch, ErrorCode::malformed);
  };
  for (const auto& [bytes, field] :
       std::vector<std::pair<std::string, std::string>>{{"", "\"magic\""},
                                                        {labels(2, 100), "\"magic\""},
                                                        {images(2, 3, 4, 24).substr(0, 9), "\"rows\""},
                                                        {images(0, 3, 4, 0), "\"count\""},
                                                        {images(2'000'000, 3, 4, 24), "\"count\""},
                                                        {images(0xFFFFFFFF, 3, 4, 24), "\"count\""},
                                                        {images(2, 257, 4, 24), "\"rows\""},
                                                        {images(2, 3, 0xFFFFFFFF, 24), "\"columns\""},
                                                        {images(2, 3, 4, 23), "\"pixels\""},
                                                        {images(65'536, 64, 64, 23), "\"pixels\""},
                                                        {images(1'000'000, 256, 256, 23), "\"pixels\""},
                                                        {images(2, 3, 4, 25), "\"pixels\""}}) {
    const auto what = with(bytes);
    EXPECT_NE(what.find(kImages), std::string::npos) << what;
    EXPECT_NE(what.find(field), std::string::npos) << what;
  }
}

TEST(Dataset, NeedsALabelForEachImage) {
  const Scratch scratch;
  scratch.write(kImages, images(2, 3, 4, 24));
  scratch.write(kLabels, labels(3, 3));
  const auto what = refusal(scratch, ErrorCode::malformed);
  EXPECT_NE(what.find(kLabels), std::string::npos) << what;
  EXPECT_NE(what.find("\"count\""), std::string::npos) << what;
}

TEST(Dataset, NoticesACutOrDamagedGzip) {
  const Scratch scratch;
  scratch.write(kLabels, labels(20, 20));
  write_gz(scratch / "whole", images(20, 8, 8, 1280));
  std::string bytes;
  {
    std::ifstream in(scratch / "whole", std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  scratch.write(kImages + ".gz", bytes.substr(0, bytes.size() / 2));
  refusal(scratch, ErrorCode::malformed);
  auto damaged = bytes;
  damaged[damaged.size() - 6] = static_cast<char>(damaged[damaged.size() - 6] ^ 0x55);  // in the checksum
  scratch.write(kImages + ".gz", damaged);
  refusal(scratch, ErrorCode::malformed);
}

TEST(Dataset, TakesTheClassesNamesFromBesideTheImages) {
  const Scratch scratch;
  scratch.write(kImages, images(2, 3, 4, 24));
  scratch.write(kLabels, labels(2, 2));
  scratch.write("classes.json", R"({"classes": ["shirt", "shoe"]})");
  const auto data = load_dataset(scratch.path(), Split::test);
  ASSERT_TRUE(data) << data.error().what;
  EXPECT_EQ(data->class_names, (std::vector<std::string>{"shirt", "shoe"}));
  for (const char* wrong :
       {"", "[]", "{}", R"({"classes": 2})", R"({"classes": ["shirt", 2]})", R"({"classes": ["shirt"]})"}) {
    scratch.write("classes.json", wrong);
    const auto what = refusal(scratch, ErrorCode::malformed);
    EXPECT_NE(what.find("classes.json: its field \"classes\""), std::string::npos) << what;
  }
}

TEST(Dataset, MeasuresMeanAndDeviation) {
  Dataset data{{1, 1, 2}, {0, 255, 255, 0, 255, 255, 0, 0}, {0, 0, 0, 0}};
  EXPECT_FLOAT_EQ(measured(data).mean, 0.5F);
  EXPECT_FLOAT_EQ(measured(data).deviation, 0.5F);
  data.pixels.assign(8, 51);
  EXPECT_FLOAT_EQ(measured(data).mean, 0.2F);
  EXPECT_FLOAT_EQ(measured(data).deviation, 1);
}

TEST(Dataset, SaysWhatItLookedForWhereThereIsNone) {
  const Scratch scratch;
  for (const auto& directory : {scratch.path(), scratch / "absent"}) {
    const auto data = load_dataset(directory, Split::train);
    ASSERT_FALSE(data);
    EXPECT_EQ(data.error().code, ErrorCode::unreadable);
    EXPECT_NE(data.error().what.find("data_batch_1.bin"), std::string::npos) << data.error().what;
  }
}

TEST(Dataset, ReadsFashionMnistWhereItIsInstalled) {
  if (!std::filesystem::exists(fashion_mnist_directory())) GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  const auto data = load_idx(fashion_mnist_directory(), Split::test);
  ASSERT_TRUE(data) << data.error().what;
  EXPECT_EQ(data->count(), 10'000);
  EXPECT_EQ(std::count(data->labels.begin(), data->labels.end(), 9), 1'000);
  ASSERT_EQ(data->class_names.size(), 10U);
  EXPECT_EQ(data->class_names.back(), "Ankle boot");
}

}  // namespace
