#include "apps/glyphs.hpp"

#include <ft2build.h>
#include FT_FREETYPE_H
#include FT_OUTLINE_H

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "apps/progress.hpp"
#include "apps/seeded.hpp"

namespace coppice::apps {
namespace {

using runtime::bad_input;
using runtime::Expected;

constexpr int kSide = 28;
constexpr std::size_t kPixels = kSide * kSide;
constexpr std::size_t kFamiliesMin = 3;  // a side and character: fewer would ask about a font, not about a character

// Left out: lower case that is the upper case made smaller (c k o p s u v w x z), what many faces draw alike (0 and O,
// l and I, A and Greek or Cyrillic A), and signs of few strokes that noise would hide.
constexpr std::u32string_view kCharacters =
    U"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    U"abdefghijmnqrty"
    U"123456789"
    U"ΓΔΘΛΞΠΣΦΨΩ"
    U"βγδεζηλμξπσω"
    U"БДЖИЙЦЧШЩЪЫЭЮЯ"
    U"!?&@#$%*+=(§£€";
static_assert(kCharacters.size() == 100);

std::string utf8(char32_t c) {
  const auto byte = [](char32_t value) { return static_cast<char>(value); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
  return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
}

// ---- one image -----------------------------------------------------------------------------------------------------

FT_Fixed fixed16(double value) { return static_cast<FT_Fixed>(value * 65536.0 + (value < 0 ? -0.5 : 0.5)); }

// Turned by `turn`, twice the arc tangent of it, and leaning, wider or narrower. Only + - * /: the bytes must not
// depend on whose sine it is.
FT_Matrix distortion(double scale, double aspect, double lean, double turn) {
  const double cosine = (1 - turn * turn) / (1 + turn * turn), sine = 2 * turn / (1 + turn * turn);
  const double x = scale * aspect, y = scale / aspect;
  return {fixed16(x * cosine), fixed16(y * (lean * cosine - sine)), fixed16(x * sine),
          fixed16(y * (lean * sine + cosine))};
}

// Ink of 0 to 255, the character somewhere about the middle.
std::array<unsigned char, kPixels> draw(const FreeType& freetype, const Typeface& typeface, char32_t character,
                                        Seeded& random) {
  constexpr double kUnits = kSide * 64, kMargin = 1.5 * 64;
  std::array<unsigned char, kPixels> ink{};
  auto* outline = typeface.outline(character);
  double scale = random.between(0.46, 0.72) * kUnits / static_cast<double>(typeface.cap_height());
  const double aspect = random.between(0.88, 1.14), lean = random.between(-0.22, 0.22);
  auto matrix = distortion(scale, aspect, lean, random.between(-0.06, 0.06));
  FT_Outline_Transform(outline, &matrix);
  FT_Outline_Embolden(outline, static_cast<FT_Pos>(random.between(-0.2, 0.9) * 64));
  FT_BBox box;
  FT_Outline_Get_CBox(outline, &box);
  const auto longer = static_cast<double>(std::max(box.xMax - box.xMin, box.yMax - box.yMin));
  if (longer > kUnits - 2 * kMargin) {  // wide ones are made to fit
    const auto smaller = fixed16((kUnits - 2 * kMargin) / longer);
    const FT_Matrix shrink{smaller, 0, 0, smaller};
    FT_Outline_Transform(outline, &shrink);
    FT_Outline_Get_CBox(outline, &box);
  }
  const auto shift = [&] { return static_cast<FT_Pos>(random.between(-2.0, 2.0) * 64); };
  const auto x = kSide * 32 - (box.xMin + box.xMax) / 2 + shift();
  FT_Outline_Translate(outline, x, kSide * 32 - (box.yMin + box.yMax) / 2 + shift());
  freetype.draw(outline, kSide, ink);
  return ink;
}

// Out of focus by `weight` of 64: towards the mean of the 3 x 3 around.
void blur(std::array<unsigned char, kPixels>& ink, int weight) {
  const auto sharp = ink;
  for (int y = 0; y < kSide; ++y)
    for (int x = 0; x < kSide; ++x) {
      int sum = 0;
      for (int v = std::max(y - 1, 0); v <= std::min(y + 1, kSide - 1); ++v)
        for (int u = std::max(x - 1, 0); u <= std::min(x + 1, kSide - 1); ++u) sum += sharp[v * kSide + u];
      const int at = y * kSide + x;
      ink[at] = static_cast<unsigned char>((sharp[at] * (64 - weight) + sum / 9 * weight) / 64);
    }
}

// Hairlines thinner than a pixel would drown in the noise: what is darkest is made as dark as other faces' strokes.
void strengthen(std::array<unsigned char, kPixels>& ink) {
  constexpr int kPeak = 210;
  const int peak = std::max<int>(*std::ranges::max_element(ink), 1);
  if (peak >= kPeak) return;
  for (auto& grey : ink) grey = static_cast<unsigned char>(grey * kPeak / peak);
}

// Bright ink on a dark ground, less contrast here and there, and noise as of a sensor.
void expose(const std::array<unsigned char, kPixels>& ink, Seeded& random, std::uint8_t* pixels) {
  const int dark = static_cast<int>(random.below(64)), bright = 150 + static_cast<int>(random.below(106));
  const int noise = 4 + static_cast<int>(random.below(28));
  for (std::size_t i = 0; i < kPixels; ++i) {
    const auto bits = random.next();
    const int jitter = static_cast<int>((bits & 0xFF) + (bits >> 8 & 0xFF)) - 255;  // a triangle about 0
    const int grey = dark + (bright - dark) * ink[i] / 255 + noise * jitter / 255;
    pixels[i] = static_cast<std::uint8_t>(std::clamp(grey, 0, 255));
  }
}

// ---- which face for which image ------------------------------------------------------------------------------------

using Pool = std::vector<std::vector<std::size_t>>;  // of one character and side: the faces of each family

Expected<std::vector<Pool>> pools(const std::vector<Face>& faces, Side side, const GlyphOptions& options) {
  std::vector<Pool> out;
  for (std::size_t c = 0; c < kCharacters.size(); ++c) {
    std::map<std::string, std::vector<std::size_t>> by_family;
    for (std::size_t f = 0; f < faces.size(); ++f)
      if (faces[f].side == side && faces[f].has[c]) by_family[faces[f].family].push_back(f);
    if (by_family.size() < kFamiliesMin)
      return bad_input(options.fonts.string() + ": " + std::to_string(by_family.size()) + " families for \"" +
                       utf8(kCharacters[c]) + "\" on the side \"" + name(side) + "\", not the " +
                       std::to_string(kFamiliesMin) +
                       " it takes: install Debian's font packages "
                       "(bash apps/deps --fonts)");
    Pool pool;
    for (auto& [family, members] : by_family) pool.push_back(std::move(members));
    Seeded random(seed_of(options.seed, "order of " + utf8(kCharacters[c]) + name(side)));
    random.shuffle(pool);
    out.push_back(std::move(pool));
  }
  return out;
}

// Draws `rounds` images of each character. Families take turns, however many faces they have: Inter's thirty-six are
// not more worth than the one of Havana.
Expected<void> draw_rounds(const FreeType& freetype, const std::vector<Face>& faces, Side side, int rounds,
                           const GlyphOptions& options, gpu::Dataset& data, std::set<std::size_t>& used,
                           Progress& bar) {
  const auto by_character = pools(faces, side, options);
  if (!by_character) return tl::unexpected(by_character.error());
  data.item = {1, kSide, kSide};
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::size_t> order(kCharacters.size());
    for (std::size_t c = 0; c < order.size(); ++c) order[c] = c;
    Seeded(seed_of(options.seed, std::string("round") + name(side) + std::to_string(round))).shuffle(order);
    for (const auto c : order) {
      Seeded random(seed_of(options.seed, utf8(kCharacters[c]) + name(side) + std::to_string(round)));
      const auto& family = (*by_character)[c][static_cast<std::size_t>(round) % (*by_character)[c].size()];
      const auto face = family[random.below(family.size())];
      used.insert(face);
      auto ink = draw(freetype, faces[face].typeface, kCharacters[c], random);
      blur(ink, static_cast<int>(random.below(56)));
      strengthen(ink);
      data.pixels.resize(data.pixels.size() + kPixels);
      expose(ink, random, data.pixels.data() + data.pixels.size() - kPixels);
      data.labels.push_back(static_cast<std::uint16_t>(c));
    }
    bar.at(data.count());
  }
  return {};
}

}  // namespace

Expected<Glyphs> make_glyphs(const GlyphOptions& options) {
  const auto freetype = FreeType::start();
  if (!freetype) return tl::unexpected(freetype.error());
  auto faces = find_faces(*freetype, options.fonts, kCharacters);
  if (!faces) return tl::unexpected(faces.error());
  split_by_family(*faces, options.seed);
  Glyphs out;
  out.freetype = freetype->version();
  for (const auto character : kCharacters) out.class_names.push_back(utf8(character));
  std::set<std::size_t> used;
  const auto classes = static_cast<std::int64_t>(kCharacters.size());
  const auto draw_side = [&](Side side, int rounds, gpu::Dataset& data, Progress& bar) {
    return draw_rounds(*freetype, *faces, side, rounds, options, data, used, bar);
  };
  const int held_out = options.train_per_class / 10;
  {
    Progress bar("training images", options.train_per_class * classes);
    if (auto done = draw_side(Side::train, options.train_per_class - held_out, out.train, bar); !done)
      return tl::unexpected(done.error());
    if (auto done = draw_side(Side::held_out, held_out, out.train, bar); !done) return tl::unexpected(done.error());
  }
  out.held_out = held_out * classes;
  Progress bar("test images", options.test_per_class * classes);
  if (auto done = draw_side(Side::test, options.test_per_class, out.test, bar); !done)
    return tl::unexpected(done.error());
  for (const auto face : used) out.faces.push_back(std::move((*faces)[face]));
  return out;
}

}  // namespace coppice::apps
