#include "gpu/dataset_image.hpp"

#include <png.h>

#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>

// After <cstdio>, which they need and do not include.
#include <jerror.h>
#include <jpeglib.h>

namespace coppice::gpu {
namespace {

unexpected<Error> malformed(const std::string& shown, const std::string& why) {
  return unexpected(Error{ErrorCode::malformed, shown + ": " + why});
}

// Empty where the sizes are ones that are read.
std::string check_sizes(std::int64_t width, std::int64_t height) {
  for (const auto& [field, size] : {std::pair{"width", width}, std::pair{"height", height}})
    if (size < 1 || size > kImageSideMax)
      return "its field \"" + std::string(field) + "\" is " + std::to_string(size) + ", not 1 to " +
             std::to_string(kImageSideMax);
  if (width * height > kImagePixelsMax)
    return "its fields \"width\" and \"height\" are " + std::to_string(width) + " x " + std::to_string(height) +
           ": more than " + std::to_string(kImagePixelsMax) + " pixels";
  return "";
}

// ---- PNG -----------------------------------------------------------------------------------------------------------

Expected<Image> decode_png(std::span<const std::byte> bytes, bool grey, const std::string& shown) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  struct Freed {
    png_image* png;
    ~Freed() { ::png_image_free(png); }
  } freed{&png};
  if (!::png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()))
    return malformed(shown, "not a PNG file that can be read: " + std::string(png.message));
  if (const auto why = check_sizes(png.width, png.height); !why.empty()) return malformed(shown, why);
  png.format = grey ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  Image image{static_cast<int>(png.width), static_cast<int>(png.height), grey ? 1 : 3, {}};
  image.pixels.resize(PNG_IMAGE_SIZE(png));
  const png_color black{};
  if (!::png_image_finish_read(&png, &black, image.pixels.data(), 0, nullptr))
    return malformed(shown, "its pixels are truncated or corrupt: " + std::string(png.message));
  return image;
}

// ---- JPEG ----------------------------------------------------------------------------------------------------------

// libjpeg's faults jump; nothing that has a destructor may be made between where they start and where they land.
struct JpegFaults {
  jpeg_error_mgr manager;
  std::jmp_buf landing;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void land(j_common_ptr jpeg) {
  auto* faults = reinterpret_cast<JpegFaults*>(jpeg->err);
  faults->manager.format_message(jpeg, faults->message);
  std::longjmp(faults->landing, 1);
}

// A file that ends early is only warned of, and filled up with grey; other warnings are of no consequence.
void warned(j_common_ptr jpeg, int level) {
  const int code = jpeg->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) land(jpeg);
}

// A progressive file can ask for thousands of passes over all its pixels.
void count_scans(j_common_ptr jpeg) {
  constexpr int kScansMax = 200;
  if (reinterpret_cast<j_decompress_ptr>(jpeg)->input_scan_number <= kScansMax) return;
  auto* faults = reinterpret_cast<JpegFaults*>(jpeg->err);
  std::snprintf(faults->message, sizeof faults->message, "more than %d scans", kScansMax);
  std::longjmp(faults->landing, 1);
}

// These three are false with a message in `faults`.
bool start(jpeg_decompress_struct& jpeg, JpegFaults& faults) {
  jpeg.err = ::jpeg_std_error(&faults.manager);
  faults.manager.error_exit = &land;
  faults.manager.emit_message = &warned;
  if (setjmp(faults.landing)) return false;
  ::jpeg_create_decompress(&jpeg);
  return true;
}

bool read_pixels(jpeg_decompress_struct& jpeg, JpegFaults& faults, std::uint8_t* pixels, std::size_t row_bytes) {
  if (setjmp(faults.landing)) return false;
  ::jpeg_start_decompress(&jpeg);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = pixels + jpeg.output_scanline * row_bytes;
    ::jpeg_read_scanlines(&jpeg, &row, 1);
  }
  ::jpeg_finish_decompress(&jpeg);
  return true;
}

bool read_header(jpeg_decompress_struct& jpeg, JpegFaults& faults, jpeg_progress_mgr& progress,
                 std::span<const std::byte> bytes, bool grey) {
  if (setjmp(faults.landing)) return false;
  jpeg.progress = &progress;
  ::jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  ::jpeg_read_header(&jpeg, TRUE);
  const bool inks = jpeg.jpeg_color_space == JCS_CMYK || jpeg.jpeg_color_space == JCS_YCCK;
  jpeg.out_color_space = inks ? JCS_CMYK : grey ? JCS_GRAYSCALE : JCS_RGB;
  ::jpeg_calc_output_dimensions(&jpeg);
  return true;
}

// Printers' files; ImageNet has some. Adobe's programs store how much of an ink is left out, others how much there is.
void inks_to_light(Image& image, bool grey, bool left_out) {
  if (!left_out)
    for (auto& ink : image.pixels) ink = static_cast<std::uint8_t>(255 - ink);
  const auto count = image.pixels.size() / 4;
  const auto channels = grey ? std::size_t{1} : std::size_t{3};
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* ink = image.pixels.data() + 4 * i;
    std::array<int, 3> light{};
    for (std::size_t c = 0; c < 3; ++c) light[c] = ink[c] * ink[3] / 255;
    if (grey) light[0] = (299 * light[0] + 587 * light[1] + 114 * light[2]) / 1000;
    for (std::size_t c = 0; c < channels; ++c) image.pixels[channels * i + c] = static_cast<std::uint8_t>(light[c]);
  }
  image.pixels.resize(count * channels);
  image.channels = static_cast<int>(channels);
}

Expected<Image> decode_jpeg(std::span<const std::byte> bytes, bool grey, const std::string& shown) {
  JpegFaults faults{};
  jpeg_decompress_struct jpeg{};
  if (!start(jpeg, faults)) return malformed(shown, std::string("libjpeg does not start: ") + faults.message);
  struct Destroyed {
    jpeg_decompress_struct* jpeg;
    ~Destroyed() { ::jpeg_destroy_decompress(jpeg); }
  } destroyed{&jpeg};
  jpeg_progress_mgr progress{};
  progress.progress_monitor = &count_scans;
  if (!read_header(jpeg, faults, progress, bytes, grey))
    return malformed(shown, std::string("not a JPEG file that can be read: ") + faults.message);
  if (const auto why = check_sizes(jpeg.output_width, jpeg.output_height); !why.empty()) return malformed(shown, why);
  Image image{static_cast<int>(jpeg.output_width), static_cast<int>(jpeg.output_height), jpeg.output_components, {}};
  const auto row_bytes = std::size_t{jpeg.output_width} * static_cast<std::size_t>(jpeg.output_components);
  image.pixels.resize(row_bytes * jpeg.output_height);
  if (!read_pixels(jpeg, faults, image.pixels.data(), row_bytes))
    return malformed(shown, std::string("its pixels are truncated or corrupt: ") + faults.message);
  if (image.channels == 4) inks_to_light(image, grey, jpeg.saw_Adobe_marker != 0);
  return image;
}

}  // namespace

// By the bytes and not by the name: ImageNet has a PNG that calls itself JPEG.
Expected<Image> decode_image(std::span<const std::byte> bytes, bool grey, const std::string& shown) {
  constexpr std::array<unsigned char, 4> kPng{0x89, 'P', 'N', 'G'};
  constexpr std::array<unsigned char, 2> kJpeg{0xFF, 0xD8};
  if (bytes.size() >= 8 && std::memcmp(bytes.data(), kPng.data(), kPng.size()) == 0)
    return decode_png(bytes, grey, shown);
  if (bytes.size() >= 8 && std::memcmp(bytes.data(), kJpeg.data(), kJpeg.size()) == 0)
    return decode_jpeg(bytes, grey, shown);
  return malformed(shown, "its field \"magic\" is neither JPEG's nor PNG's");
}

}  // namespace coppice::gpu
