// .npy and IDX files cut short anywhere, and with bytes changed at random.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <random>

#include "gpu/dataset.hpp"
#include "gpu/file.hpp"
#include "gpu/npy.hpp"
#include "tests/gpu/scratch.hpp"

namespace coppice::gpu {
namespace {

std::string npy(const std::string& shape, const std::string& data, int version = 1) {
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }\n";
  std::string out = "\x93NUMPY";
  out += static_cast<char>(version);
  out += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return out + header + data;
}

void refused(const std::string& bytes) {
  const Scratch scratch;
  scratch.write("array.npy", bytes);
  const auto array = load_npy(scratch / "array.npy");
  ASSERT_FALSE(array) << bytes;
  EXPECT_EQ(array.error().code, ErrorCode::malformed);
}

// Up to four bytes changed; half of the changes fall into the first ones.
void mutate(std::string& bytes, std::size_t first, std::mt19937_64& random) {
  for (auto changes = random() % 4 + 1; changes > 0; --changes)
    bytes[random() % (random() % 2 == 0 ? first : bytes.size())] = static_cast<char>(random());
}

RC_GTEST_PROP(DamagedNpy, EveryPatternOfBitsComesBackFromAWholeFile, (std::uint32_t seed)) {
  const Scratch scratch;
  std::mt19937 random(seed);
  Dims dims(random() % 5);
  for (auto& dim : dims) dim = random() % 5;
  std::vector<float> values(static_cast<std::size_t>(elements(dims)));
  for (auto& value : values) value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));  // NaNs among them
  RC_ASSERT(save_npy(scratch / "a.npy", dims, values).has_value());
  const auto array = load_npy(scratch / "a.npy");
  RC_ASSERT(array.has_value());
  RC_ASSERT(array->dims == dims);
  RC_ASSERT(array->values.size() == values.size());
  const auto bits = [](float value) { return std::bit_cast<std::uint32_t>(value); };
  RC_ASSERT(std::ranges::equal(array->values, values, {}, bits, bits));
}

TEST(DamagedNpy, CutShortAnywhereIsRefused) {
  for (const int version : {1, 2}) {
    const std::string whole = npy("(2,)", std::string(8, 'x'), version);
    for (std::size_t size = 0; size < whole.size(); ++size) refused(whole.substr(0, size));
  }
}

TEST(DamagedNpy, ShapesThatCannotBeAreRefused) {
  const std::string four(4, '\0');
  for (const std::string shape : {"(2,)", "(1.0,)", "(65536,65536,65536,65536)", "(4294967296,4294967296)",
                                  "(0,99999999999,99999999999)", "(1,", "1", "(x,)", "(1 1,)", "(1,,1)", "(,1)", "(,)"})
    refused(npy(shape, four));
  for (const int version : {0, 3, 200}) refused(npy("(1,)", four, version));
}

TEST(DamagedNpy, ChangedBytesNeverCrash) {
  const Scratch scratch;
  std::mt19937_64 random(1);
  int loaded = 0;
  for (int i = 0; i < 500; ++i) {
    std::string bytes = npy("(2, 3)", std::string(24, 'x'));
    mutate(bytes, 12, random);
    scratch.write("a.npy", bytes);
    const auto array = load_npy(scratch / "a.npy");
    if (array) {
      ++loaded;
      EXPECT_EQ(static_cast<std::int64_t>(array->values.size()), elements(array->dims));
    } else {
      EXPECT_EQ(array.error().code, ErrorCode::malformed);
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 500);
}

std::string words(std::initializer_list<std::uint32_t> values) {
  std::string out;
  for (const auto value : values)
    for (const int shift : {24, 16, 8, 0}) out += static_cast<char>(value >> shift & 0xFF);
  return out;
}
const std::string kImages = words({0x803, 2, 2, 3}) + std::string(12, 'p'), kLabels = words({0x801, 2}) + "\x07\x09";

std::string gzipped(const std::string& bytes) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(bytes.size() + 256, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Expected<Dataset> load(const Scratch& scratch, const std::string& images, const std::string& labels,
                       const std::string& end) {
  scratch.write("train-images-idx3-ubyte" + end, images);
  scratch.write("train-labels-idx1-ubyte" + end, labels);
  return load_idx(scratch.path(), Split::train);
}

TEST(DamagedIdx, CutShortAnywhereIsRefusedAndTheFileNamed) {
  for (const bool gz : {false, true}) {
    const Scratch scratch;
    const std::string end = gz ? ".gz" : "", images = gz ? gzipped(kImages) : kImages,
                      labels = gz ? gzipped(kLabels) : kLabels;
    ASSERT_TRUE(load(scratch, images, labels, end));
    for (std::size_t size = 0; size < images.size(); ++size) {
      const auto data = load(scratch, images.substr(0, size), labels, end);
      ASSERT_FALSE(data) << size;
      EXPECT_EQ(data.error().code, ErrorCode::malformed);
      EXPECT_NE(data.error().what.find("train-images-idx3-ubyte" + end), std::string::npos) << data.error().what;
    }
    for (std::size_t size = 0; size < labels.size(); ++size) {
      const auto data = load(scratch, images, labels.substr(0, size), end);
      ASSERT_FALSE(data) << size;
      EXPECT_NE(data.error().what.find("train-labels-idx1-ubyte" + end), std::string::npos) << data.error().what;
    }
  }
}

TEST(DamagedIdx, ChangedBytesNeverCrash) {
  std::mt19937_64 random(1);
  for (const bool gz : {false, true}) {
    const Scratch scratch;
    const std::string end = gz ? ".gz" : "";
    for (int i = 0; i < 200; ++i) {
      std::string images = gz ? gzipped(kImages) : kImages, labels = gz ? gzipped(kLabels) : kLabels;
      mutate(i % 2 == 0 ? images : labels, 8, random);
      const auto data = load(scratch, images, labels, end);
      if (data) {
        EXPECT_EQ(static_cast<std::int64_t>(data->pixels.size()), data->count() * elements(data->item));
      } else {
        EXPECT_NE(data.error().what.find(scratch.path().string()), std::string::npos);
      }
    }
  }
}

TEST(ReadFile, RefusesDirectoriesDevicesAndWhatIsTooLarge) {
  const Scratch scratch;
  scratch.write("five", "12345");
  EXPECT_EQ(read_file(scratch / "five", 5).value().size(), 5U);
  for (const auto& [file, bytes_max] : std::vector<std::pair<std::filesystem::path, std::int64_t>>{
           {scratch / "five", 4}, {scratch.path(), 100}, {"/dev/zero", 100}, {scratch / "absent", 100}}) {
    const auto bytes = read_file(file, bytes_max);
    ASSERT_FALSE(bytes) << file;
    EXPECT_EQ(bytes.error().code, ErrorCode::unreadable);
    EXPECT_NE(bytes.error().what.find(file.string()), std::string::npos);
  }
}

}  // namespace
}  // namespace coppice::gpu
