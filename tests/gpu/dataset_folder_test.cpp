#include <gtest/gtest.h>
#include <jpeglib.h>  // after <cstdio>, which it needs
#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <cstdio>

#include "gpu/dataset.hpp"
#include "tests/gpu/scratch.hpp"

using namespace coppice::gpu;

namespace {

struct Colour {
  std::uint8_t red, green, blue;
};

// Left half one colour, right half another.
std::vector<std::uint8_t> halves(int width, int height, Colour left, Colour right) {
  std::vector<std::uint8_t> out;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const auto& colour = x < width / 2 ? left : right;
      out.insert(out.end(), {colour.red, colour.green, colour.blue});
    }
  return out;
}

std::string png_of(int width, int height, const std::vector<std::uint8_t>& pixels) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(width);
  png.height = static_cast<png_uint_32>(height);
  png.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(png);
  std::string out(size, 0);
  EXPECT_TRUE(::png_image_write_to_memory(&png, out.data(), &size, 0, pixels.data(), 0, nullptr));
  out.resize(size);
  return out;
}

std::string jpeg_of(int width, int height, std::vector<std::uint8_t> pixels, bool progressive = false) {
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr faults{};
  jpeg.err = ::jpeg_std_error(&faults);
  ::jpeg_create_compress(&jpeg);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  ::jpeg_mem_dest(&jpeg, &bytes, &size);
  jpeg.image_width = static_cast<JDIMENSION>(width);
  jpeg.image_height = static_cast<JDIMENSION>(height);
  jpeg.input_components = 3;
  jpeg.in_color_space = JCS_RGB;
  ::jpeg_set_defaults(&jpeg);
  if (progressive) ::jpeg_simple_progression(&jpeg);
  ::jpeg_start_compress(&jpeg, TRUE);
  while (jpeg.next_scanline < jpeg.image_height) {
    JSAMPROW row = pixels.data() + std::size_t{jpeg.next_scanline} * static_cast<std::size_t>(width) * 3;
    ::jpeg_write_scanlines(&jpeg, &row, 1);
  }
  ::jpeg_finish_compress(&jpeg);
  std::string out(reinterpret_cast<const char*>(bytes), size);
  ::jpeg_destroy_compress(&jpeg);
  std::free(bytes);
  return out;
}

constexpr Colour kRed{250, 10, 20}, kBlue{0, 30, 240}, kGreen{20, 200, 30};

class Folder : public testing::Test {
 protected:
  void add(const std::string& name, const std::string& bytes) {
    std::filesystem::create_directories((scratch_ / name).parent_path());
    scratch_.write(name, bytes);
  }
  Expected<Dataset> load(Split split, const DatasetOptions& options = {.side = 8}) {
    return load_dataset(scratch_.path(), split, options);
  }
  std::string refusal(Split split, ErrorCode code, const DatasetOptions& options = {.side = 8}) {
    const auto data = load(split, options);
    EXPECT_FALSE(data);
    if (data) return "";
    EXPECT_EQ(data.error().code, code) << data.error().what;
    EXPECT_EQ(data.error().what.find('\n'), std::string::npos);
    return data.error().what;
  }
  Scratch scratch_;
};

TEST_F(Folder, ReadsJpegAndPngOfEverySize) {
  add("train/cat/b.JPEG", jpeg_of(40, 20, halves(40, 20, kRed, kRed)));
  add("train/cat/a.png", png_of(8, 30, halves(8, 30, kBlue, kBlue)));
  add("train/cat/notes.txt", "not an image");
  add("train/dog/c.jpg", jpeg_of(3, 3, halves(3, 3, kGreen, kGreen), true));
  add("val/dog/d.png", png_of(16, 16, halves(16, 16, kGreen, kRed)));
  const auto train = load(Split::train);
  ASSERT_TRUE(train) << train.error().what;
  EXPECT_EQ(train->item, (Dims{3, 8, 8}));
  EXPECT_EQ(train->class_names, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(train->labels, (std::vector<std::uint16_t>{0, 0, 1}));
  for (const auto& [image, colour] : {std::pair{0, kBlue}, std::pair{1, kRed}, std::pair{2, kGreen}}) {
    const auto* planes = train->pixels.data() + image * 192;
    for (std::size_t i = 0; i < 64; ++i) {
      ASSERT_NEAR(planes[i], colour.red, 3) << image;
      ASSERT_NEAR(planes[64 + i], colour.green, 3) << image;
      ASSERT_NEAR(planes[128 + i], colour.blue, 3) << image;
    }
  }
  const auto test = load(Split::test);
  ASSERT_TRUE(test) << test.error().what;
  EXPECT_EQ(test->labels, (std::vector<std::uint16_t>{1}));
  EXPECT_EQ(test->pixels[0], kGreen.red);
  EXPECT_EQ(test->pixels[7], kRed.red);
}

TEST_F(Folder, CutsOutTheMiddle) {
  add("train/a/a.png", png_of(24, 8, [] {  // red, green, blue, a third each
        std::vector<std::uint8_t> out;
        for (int i = 0; i < 24 * 8; ++i) {
          const auto& colour = i % 24 < 8 ? kRed : i % 24 < 16 ? kGreen : kBlue;
          out.insert(out.end(), {colour.red, colour.green, colour.blue});
        }
        return out;
      }()));
  const auto whole = load(Split::train);
  ASSERT_TRUE(whole) << whole.error().what;
  EXPECT_TRUE(std::all_of(whole->pixels.begin(), whole->pixels.begin() + 64, [](int red) { return red == 20; }));
  const auto inner = load(Split::train, {.side = 8, .resize = 16});
  ASSERT_TRUE(inner) << inner.error().what;
  EXPECT_EQ(inner->pixels[0], kGreen.red);
  const auto grey = load(Split::train, {.side = 4, .grey = true});
  ASSERT_TRUE(grey) << grey.error().what;
  EXPECT_EQ(grey->item, (Dims{1, 4, 4}));
}

TEST_F(Folder, AveragesWhatItMakesSmaller) {
  std::vector<std::uint8_t> stripes;  // one pixel white, one black: every second pixel would be all white
  for (int i = 0; i < 64 * 64; ++i) stripes.insert(stripes.end(), 3, static_cast<std::uint8_t>(i % 2 ? 0 : 255));
  add("train/a/a.png", png_of(64, 64, stripes));
  const auto data = load(Split::train);
  ASSERT_TRUE(data) << data.error().what;
  for (const auto pixel : data->pixels) ASSERT_NEAR(pixel, 127, 12);
}

TEST_F(Folder, RefusesWhatIsCutShort) {
  const auto picture = halves(64, 64, kRed, kBlue);
  for (const auto& [name, bytes] : {std::pair{"train/a/a.jpg", jpeg_of(64, 64, picture)},
                                    std::pair{"train/a/a.jpg", jpeg_of(64, 64, picture, true)},
                                    std::pair{"train/a/a.png", png_of(64, 64, picture)}}) {
    std::filesystem::remove_all(scratch_ / "train");
    for (std::size_t size = 0; size + 12 < bytes.size(); size += 7) {  // a PNG's last 12 bytes say that it ends
      add(name, bytes.substr(0, size));
      ASSERT_NE(refusal(Split::train, ErrorCode::malformed).find(name), std::string::npos) << size;
    }
    add(name, bytes);
    EXPECT_TRUE(load(Split::train));
  }
}

TEST_F(Folder, RefusesHugeSizesBeforeUnpacking) {
  auto png = png_of(4, 4, halves(4, 4, kRed, kRed));
  const auto claim = [&](std::uint32_t width, std::uint32_t height) {  // with IHDR's checksum made right again
    auto bytes = png;
    for (int i = 0; i < 4; ++i) {
      bytes[16 + i] = static_cast<char>(width >> (24 - 8 * i));
      bytes[20 + i] = static_cast<char>(height >> (24 - 8 * i));
    }
    const auto sum = ::crc32(0, reinterpret_cast<const Bytef*>(bytes.data() + 12), 17);
    for (int i = 0; i < 4; ++i) bytes[29 + i] = static_cast<char>(sum >> (24 - 8 * i));
    return bytes;
  };
  add("train/a/a.png", claim(40'000, 4));
  EXPECT_NE(refusal(Split::train, ErrorCode::malformed).find("\"width\" is 40000"), std::string::npos);
  add("train/a/a.png", claim(30'000, 30'000));
  EXPECT_NE(refusal(Split::train, ErrorCode::malformed).find("30000 x 30000"), std::string::npos);
  std::filesystem::remove(scratch_ / "train/a/a.png");
  auto jpeg = jpeg_of(8, 8, halves(8, 8, kRed, kRed));
  const auto frame = jpeg.find("\xFF\xC0");
  ASSERT_NE(frame, std::string::npos);
  jpeg[frame + 5] = jpeg[frame + 7] = '\x7F';
  add("train/a/a.jpg", jpeg);
  EXPECT_NE(refusal(Split::train, ErrorCode::malformed).find("more than"), std::string::npos);
}

TEST_F(Folder, RefusesMoreThanIsHeldInMemory) {
  add("train/a/a.png", png_of(4, 4, halves(4, 4, kRed, kRed)));
  EXPECT_NE(refusal(Split::train, ErrorCode::unreadable, {.side = 100, .bytes_max = 29'999}).find("30000 bytes"),
            std::string::npos);
  EXPECT_TRUE(load(Split::train, {.side = 100, .bytes_max = 30'000}));
  refusal(Split::train, ErrorCode::shape_mismatch, {.side = 2'000'000});
  refusal(Split::train, ErrorCode::shape_mismatch, {.side = 8, .resize = 7});
}

TEST_F(Folder, NamesWhatIsNotAsItShouldBe) {
  add("train/a/a.png", "GIF89a, for all its name says");
  EXPECT_NE(refusal(Split::train, ErrorCode::malformed).find("\"magic\""), std::string::npos);
  EXPECT_NE(refusal(Split::test, ErrorCode::unreadable).find("val/"), std::string::npos);
  add("val/b/a.png", png_of(4, 4, halves(4, 4, kRed, kRed)));
  EXPECT_NE(refusal(Split::test, ErrorCode::malformed).find("train/ does not have"), std::string::npos);
  std::filesystem::remove(scratch_ / "train/a/a.png");
  EXPECT_NE(refusal(Split::train, ErrorCode::malformed).find("holds no"), std::string::npos);
}

}  // namespace
