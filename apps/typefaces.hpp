// apps/typefaces.hpp: the faces that glyphs-100 is drawn from: which of the installed fonts, which of them are kin, and
// which side of the split a family is on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/error.hpp"

struct FT_LibraryRec_;
struct FT_FaceRec_;
struct FT_Outline_;

namespace coppice::apps {

// One library for all faces; it ends with the last of them.
class FreeType {
 public:
  static runtime::Expected<FreeType> start();
  FT_LibraryRec_* handle() const { return library_.get(); }
  // The outline's ink, 0 to 255, in side x side pixels; its origin is their lower left corner. REQUIRES: they are 0.
  void draw(FT_Outline_* outline, unsigned side, std::span<unsigned char> pixels) const;
  std::string version() const;

 private:
  explicit FreeType(FT_LibraryRec_* library);
  std::shared_ptr<FT_LibraryRec_> library_;
};

class Typeface {
 public:
  // Nothing where FreeType cannot scale what the file holds.
  static std::optional<Typeface> open(const FreeType& freetype, const std::filesystem::path& file);

  std::string family_name() const, style_name() const;
  // The character's outline, unhinted, kPixels to the em; null where the face lacks it, or has a blank or its box for
  // missing characters in its place. Valid until the next call; the caller may bend it.
  FT_Outline_* outline(char32_t character) const;
  // Height of "H" (of the em's 7/10 where there is none) in outline units, 1/64 pixel: what sizes are told by.
  long cap_height() const { return cap_height_; }

  static constexpr unsigned kPixels = 256;

 private:
  Typeface(FreeType freetype, FT_FaceRec_* face);
  FT_Outline_* load(unsigned glyph) const;
  FreeType freetype_;  // above the face, so that it goes after it
  std::unique_ptr<FT_FaceRec_, int (*)(FT_FaceRec_*)> face_;
  std::vector<long> missing_;  // points of glyph 0
  long cap_height_ = 0;
};

enum class Side : std::uint8_t { train, held_out, test };
const char* name(Side side);

struct Face {
  std::filesystem::path file;  // relative to where the fonts are
  std::string name;            // "DejaVu Sans Mono Bold"
  std::string family;          // of its kin: "DejaVu"
  std::string sha256;          // of the file
  Side side = Side::train;
  std::vector<char> has;  // [characters]
  Typeface typeface;
};

// Every face under `directory` whose family is one that apps/deps --fonts installs, in an order that depends on names
// alone, and what of `characters` each can stand for: where two of a face's characters look the same (small capitals
// for lower case, one sign for several), only the first counts.
// Error: none is there.
runtime::Expected<std::vector<Face>> find_faces(const FreeType& freetype, const std::filesystem::path& directory,
                                                std::span<const char32_t> characters);

// Families, not faces, go to one side or another: of those that have almost all characters, and of the others, a fifth
// to the test and a tenth to the held-out end of training.
void split_by_family(std::vector<Face>& faces, std::uint64_t seed);

// Families that are known and that none of the faces is of.
std::vector<std::string> families_missing(const std::vector<Face>& faces);

}  // namespace coppice::apps
