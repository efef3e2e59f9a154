// apps/glyphs.hpp: glyphs-100, a hundred characters in several hundred typefaces, 28 x 28 grey: a problem with many
// classes whose test asks about typefaces that no training image shows. Made on the spot from installed fonts and a
// seed; nothing of it is shipped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/typefaces.hpp"
#include "gpu/dataset.hpp"

namespace coppice::apps {

struct GlyphOptions {
  std::filesystem::path fonts = "/usr/share/fonts";
  std::uint64_t seed = 1;
  int train_per_class = 600;  // a tenth of them, the last, in families that the others lack: to be held out
  int test_per_class = 120;
};

struct Glyphs {
  std::vector<std::string> class_names;  // the characters, UTF-8
  gpu::Dataset train, test;              // classes in turn: any run of 100 images has each class once
  std::int64_t held_out = 0;             // so many of the last training images
  std::vector<Face> faces;               // without those that no image shows
  std::string freetype;                  // version
};

// The same bytes for the same font files, FreeType version and options. Errors: fonts that are not there, naming the
// remedy. Progress goes to standard error.
runtime::Expected<Glyphs> make_glyphs(const GlyphOptions& options);

}  // namespace coppice::apps
