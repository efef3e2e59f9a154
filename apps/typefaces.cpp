#include "apps/typefaces.hpp"

#include <ft2build.h>
#include FT_FREETYPE_H
#include FT_OUTLINE_H

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>

#include "apps/progress.hpp"
#include "apps/seeded.hpp"
#include "gpu/file.hpp"
#include "runtime/sha256.hpp"

namespace coppice::apps {
namespace {

using runtime::bad_input;
using runtime::Expected;
using runtime::failed;

constexpr std::int64_t kFontBytesMax = 64 << 20;

// The names of a family's faces, or how they begin: whole words, and "=" where no more words may follow; what stands
// behind "-" is left out. Kin stand in one line: redrawings of one design (Hack is DejaVu Sans Mono, FreeSans is Nimbus
// Sans, Carlito is Lato, Noto Sans is Open Sans) would tell the test's letters to the training. A font that is not
// named here is not used, whoever installed it. Every one has been looked at: those are left out whose lower case is
// small capitals, or whose Greek and Cyrillic stand at other characters' places.
constexpr std::string_view kFamilies[] = {
    "DejaVu,Hack,Bitstream Vera,Verana,Verana Sans,-DejaVu Math",
    "Nimbus Mono PS,Nimbus Roman,Nimbus Sans,FreeMono,FreeSans,FreeSerif,Switzera ADF",
    "Open Sans,=Noto Sans,Noto Sans Display,Noto Sans Mono,=Noto Serif,Noto Serif Display,Noto Mono",
    "Lato,Carlito",
    "Charis SIL,Doulos SIL",
    "Gentium",
    "Karla,Karmilla",
    "Yrsa,Rasa",
    "STIX,STIXGeneral,-STIX Math",
    "Linux Libertine,Linux Biolinum,-Linux Biolinum Keyboard,-Linux Libertine Initials",
    "eurofurence,monofur",
    "Dustismo",
    "Monoid,Monoisome",
    "Quattrocento",
    "Go,-Go Smallcaps",
    "Roboto",
    "Inter,Inter Display",
    "Breip",
    "OCRA,OCRABold,OCRACondensed,OCRAItalic",
    "BetecknaGS,BetecknaGSCondensed",
    "Berenika,Klaudia",
    "Lobster",
    "C059",
    "P052",
    "URW Bookman",
    "URW Gothic",
    "Z003",
    "Liberation",
    "Accanthis ADF",
    "Agave",
    "Allerta",
    "Andika",
    "Anonymous Pro",
    "Apropal",
    "Arapey",
    "Averia",
    "B612",
    "Bajaderka",
    "Balker",
    "Baskervald ADF",
    "CMU",
    "Cabin",
    "Caladea",
    "Caliban",
    "Cantarell",
    "Cardo",
    "Caslon",
    "Century Catalogue",
    "Cherry Bomb",
    "Clear Sans",
    "Comfortaa",
    "Comic Neue",
    "Courier Prime",
    "Cupola",
    "Dancing Script",
    "Delphine",
    "DkgHandwriting",
    "Domestic Manners",
    "Dosis",
    "EB Garamond,-EB Garamond Initials",
    "Ecolier_court",
    "El Abogado Loco",
    "Engadget",
    "Essays1743",
    "Fantasma",
    "Fantasque Sans",
    "Fanwood",
    "Ferrite Core",
    "Fira",
    "GFS Artemisia",
    "GFS Baskerville",
    "GFS BodoniClassic",
    "GFS Didot",
    "GFS Neohellenic",
    "GFS Olga",
    "GNUTypewriter",
    "GWMonospace",
    "Gillius ADF",
    "Goudy Bookletter 1911",
    "Havana",
    "Hermit",
    "Humor Sans",
    "IBM 3270",
    "Ikarius ADF",
    "Inconsolata",
    "Irianis ADF,-Irianis ADF Style",
    "Isabella",
    "It wasn't me",
    "JetBrains Mono",
    "Junction",
    "Junicode",
    "Junkyard",
    "Jura",
    "Kaushan Script",
    "League Mono",
    "League Spartan",
    "Leckerli One",
    "Libris ADF",
    "Linden Hill",
    "Manrope",
    "Mekanus ADF,-Mekanus ADF Titling",
    "National Park",
    "=OCR B",
    "OSP-DIN",
    "Old Standard",
    "Oldania ADF",
    "OpenDyslexic",
    "Oxygen",
    "PT",
    "Penguin Attack",
    "Play",
    "Prociono",
    "Quicksand",
    "Radis Sans",
    "Roadgeek",
    "Romande ADF,-Romande ADF Style,-Romande ADF Script",
    "Routed Gothic",
    "Rufscript",
    "Sora",
    "StayPuft",
    "Steve",
    "Summersby",
    "Swift",
    "Tiresias",
    "Tomson Talks",
    "Tribun ADF",
    "TriodPostnaja",
    "Tuffy",
    "Universalis ADF",
    "Vollkorn",
    "Wargames",
    "femkeklaver",
    "mononoki",
    "okolaks",
    "osifont",
    "progenisis",
};

std::vector<std::string_view> split_names(std::string_view line) {
  std::vector<std::string_view> names;
  for (std::size_t at = 0; at <= line.size();) {
    const auto end = std::min(line.find(',', at), line.size());
    names.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  return names;
}

// A name of kFamilies with its mark read.
struct Beginning {
  std::string_view words;
  bool whole, left_out;
  bool fits(std::string_view name) const {
    if (!name.starts_with(words)) return false;
    if (name.size() == words.size()) return true;
    return !whole && (name[words.size()] == ' ' || name[words.size()] == '-');
  }
};

Beginning beginning_of(std::string_view text) {
  const bool whole = text.front() == '=', left_out = text.front() == '-';
  return {text.substr(whole || left_out ? 1 : 0), whole, left_out};
}

std::string family_of(std::string_view line) { return std::string(beginning_of(split_names(line).front()).words); }

// The family of the longest beginning that fits; empty where it is left out or unknown.
std::string family_named(const std::string& name) {
  std::size_t longest = 0;
  std::string family;
  for (const auto line : kFamilies)
    for (const auto text : split_names(line)) {
      const auto beginning = beginning_of(text);
      if (beginning.words.size() < longest || !beginning.fits(name)) continue;
      longest = beginning.words.size();
      family = beginning.left_out ? "" : family_of(line);
    }
  return family;
}

std::vector<long> points_of(const FT_Outline& outline) {
  std::vector<long> points;
  for (int i = 0; i < outline.n_points; ++i) points.insert(points.end(), {outline.points[i].x, outline.points[i].y});
  return points;
}

// ---- what a face's characters look like, to tell whether two are the same ------------------------------------------

constexpr int kPrint = 16;  // pixels a side
using Print = std::array<unsigned char, kPrint * kPrint>;

// The character alone, as large as fits, its proportions kept. Blank where there is none.
Print print_of(const FreeType& freetype, const Typeface& typeface, char32_t character) {
  Print print{};
  auto* outline = typeface.outline(character);
  if (!outline) return print;
  FT_BBox box;
  FT_Outline_Get_CBox(outline, &box);
  const auto side = std::max<FT_Pos>({box.xMax - box.xMin, box.yMax - box.yMin, 1});
  const FT_Fixed scale = FT_DivFix(kPrint * 64, side);
  const FT_Matrix matrix{scale, 0, 0, scale};
  FT_Outline_Translate(outline, -(box.xMin + box.xMax) / 2, -(box.yMin + box.yMax) / 2);
  FT_Outline_Transform(outline, &matrix);
  FT_Outline_Translate(outline, kPrint * 32, kPrint * 32);
  freetype.draw(outline, kPrint, print);
  return print;
}

// Of the ink that either has, the percentage that only one of them has.
int difference_percent(const Print& a, const Print& b) {
  int differs = 0, ink = 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    differs += std::abs(a[i] - b[i]);
    ink += std::max(a[i], b[i]);
  }
  return 100 * differs / ink;
}

bool is_lower_of(char32_t lower, char32_t upper) {
  return lower >= U'a' && lower <= U'z' && lower - U'a' == upper - U'A';
}

std::vector<char> told_apart(const FreeType& freetype, const Typeface& typeface, std::span<const char32_t> characters) {
  constexpr int kSmallCapital = 15, kSame = 3;  // percent
  std::vector<Print> prints;
  for (const auto character : characters) prints.push_back(print_of(freetype, typeface, character));
  std::vector<char> has;
  for (std::size_t i = 0; i < prints.size(); ++i) {
    const auto& print = prints[i];
    const auto inked = std::ranges::count_if(print, [](unsigned char grey) { return grey > 127; });
    bool good = inked > 0 && inked < kPrint * kPrint * 9 / 10;  // a block stands for what is still to be drawn
    for (std::size_t j = 0; j < i && good; ++j)
      good = difference_percent(print, prints[j]) > (is_lower_of(characters[i], characters[j]) ? kSmallCapital : kSame);
    has.push_back(good);
  }
  return has;
}

// ---- the files -----------------------------------------------------------------------------------------------------

std::vector<std::filesystem::path> font_files(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  std::error_code fault;
  for (auto entry = std::filesystem::recursive_directory_iterator(directory, fault);
       !fault && entry != std::filesystem::recursive_directory_iterator(); entry.increment(fault)) {
    const auto kind = entry->path().extension();
    if ((kind == ".ttf" || kind == ".otf" || kind == ".ttc") && entry->is_regular_file(fault))
      files.push_back(entry->path().lexically_relative(directory));
  }
  std::ranges::sort(files);
  return files;
}

std::uint64_t rank_of(std::uint64_t seed, const std::string& family) { return Seeded(seed_of(seed, family)).next(); }

}  // namespace

// ---- FreeType ------------------------------------------------------------------------------------------------------

FreeType::FreeType(FT_LibraryRec_* library) : library_(library, &::FT_Done_FreeType) {}

Expected<FreeType> FreeType::start() {
  FT_Library library = nullptr;
  if (::FT_Init_FreeType(&library) != 0) return failed("FreeType does not start");
  return FreeType(library);
}

std::string FreeType::version() const {
  FT_Int major = 0, minor = 0, patch = 0;
  ::FT_Library_Version(library_.get(), &major, &minor, &patch);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

void FreeType::draw(FT_Outline_* outline, unsigned side, std::span<unsigned char> pixels) const {
  FT_Bitmap bitmap{};
  bitmap.rows = bitmap.width = side;
  bitmap.pitch = static_cast<int>(side);
  bitmap.buffer = pixels.data();
  bitmap.num_grays = 256;
  bitmap.pixel_mode = FT_PIXEL_MODE_GRAY;
  ::FT_Outline_Get_Bitmap(library_.get(), outline, &bitmap);
}

Typeface::Typeface(FreeType freetype, FT_FaceRec_* face)
    : freetype_(std::move(freetype)), face_(face, &::FT_Done_Face) {
  if (const auto* box = load(0)) missing_ = points_of(*box);
  cap_height_ = long{kPixels} * 64 * 7 / 10;
  if (auto* letter = outline(U'H')) {
    FT_BBox box;
    FT_Outline_Get_CBox(letter, &box);
    cap_height_ = std::max<long>(box.yMax - box.yMin, kPixels * 64 / 5);  // small ones are not blown up without end
  }
}

std::optional<Typeface> Typeface::open(const FreeType& freetype, const std::filesystem::path& file) {
  FT_Face face = nullptr;
  if (::FT_New_Face(freetype.handle(), file.c_str(), 0, &face) != 0) return {};
  if (!FT_IS_SCALABLE(face) || !face->family_name || !face->charmap || face->charmap->encoding != FT_ENCODING_UNICODE ||
      ::FT_Set_Pixel_Sizes(face, kPixels, kPixels) != 0) {
    ::FT_Done_Face(face);
    return {};
  }
  return Typeface(freetype, face);
}

std::string Typeface::family_name() const { return face_->family_name; }
std::string Typeface::style_name() const { return face_->style_name ? face_->style_name : ""; }

FT_Outline_* Typeface::load(unsigned glyph) const {
  if (::FT_Load_Glyph(face_.get(), glyph, FT_LOAD_NO_HINTING | FT_LOAD_NO_BITMAP) != 0) return nullptr;
  if (face_->glyph->format != FT_GLYPH_FORMAT_OUTLINE || face_->glyph->outline.n_points == 0) return nullptr;
  return &face_->glyph->outline;
}

FT_Outline_* Typeface::outline(char32_t character) const {
  const auto glyph = ::FT_Get_Char_Index(face_.get(), character);
  auto* outline = glyph != 0 ? load(glyph) : nullptr;
  return outline && points_of(*outline) != missing_ ? outline : nullptr;
}

// ---- faces and families --------------------------------------------------------------------------------------------

const char* name(Side side) { return side == Side::train ? "train" : side == Side::held_out ? "held out" : "test"; }

Expected<std::vector<Face>> find_faces(const FreeType& freetype, const std::filesystem::path& directory,
                                       std::span<const char32_t> characters) {
  std::vector<Face> faces;
  std::set<std::string> known;  // some packages bring a face twice, as TrueType and as OpenType
  const auto files = font_files(directory);
  Progress bar("looking at fonts", static_cast<std::int64_t>(files.size()));
  for (std::size_t i = 0; i < files.size(); ++i) {
    bar.at(static_cast<std::int64_t>(i + 1));
    auto typeface = Typeface::open(freetype, directory / files[i]);
    if (!typeface) continue;
    const auto family = family_named(typeface->family_name());
    const auto name = typeface->family_name() + " " + typeface->style_name();
    if (family.empty() || !known.insert(name).second) continue;
    const auto bytes = gpu::read_file(directory / files[i], kFontBytesMax);
    if (!bytes) return bad_input(bytes.error().what);
    auto has = told_apart(freetype, *typeface, characters);
    faces.push_back(
        {files[i], name, family, runtime::sha256(*bytes), Side::train, std::move(has), std::move(*typeface)});
  }
  if (faces.empty())
    return bad_input(directory.string() +
                     ": none of the fonts that glyphs-100 is drawn from is there: "
                     "install Debian's font packages (bash apps/deps --fonts)");
  return faces;
}

void split_by_family(std::vector<Face>& faces, std::uint64_t seed) {
  std::map<std::string, std::size_t> coverage;  // of the best face
  for (const auto& face : faces) {
    auto& best = coverage[face.family];
    best = std::max(best, static_cast<std::size_t>(std::ranges::count(face.has, 1)));
  }
  std::map<std::string, Side> sides;
  for (const bool full : {true, false}) {
    std::vector<std::pair<std::uint64_t, std::string>> ranked;
    for (const auto& [family, count] : coverage)
      if ((count * 10 >= faces.front().has.size() * 9) == full) ranked.emplace_back(rank_of(seed, family), family);
    std::ranges::sort(ranked);
    const auto test = (ranked.size() + 2) / 5, held_out = (ranked.size() + 5) / 10;
    for (std::size_t i = 0; i < ranked.size(); ++i)
      sides[ranked[i].second] = i < test ? Side::test : i < test + held_out ? Side::held_out : Side::train;
  }
  for (auto& face : faces) face.side = sides[face.family];
}

std::vector<std::string> families_missing(const std::vector<Face>& faces) {
  std::set<std::string> there;
  for (const auto& face : faces) there.insert(face.family);
  std::vector<std::string> missing;
  for (const auto line : kFamilies)
    if (auto family = family_of(line); !there.contains(family)) missing.push_back(std::move(family));
  return missing;
}

}  // namespace coppice::apps
