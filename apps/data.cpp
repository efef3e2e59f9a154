// coppice data: makes the data sets that can be made, and says what is in one.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>

#include "apps/assembly.hpp"
#include "apps/command.hpp"
#include "apps/glyphs.hpp"
#include "apps/net_training.hpp"
#include "apps/table.hpp"

namespace coppice::apps {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using runtime::bad_input;
using runtime::Expected;
using runtime::failed;

struct Options {
  GlyphOptions glyphs;
  std::string out;
};

// ---- IDX, MNIST's format -------------------------------------------------------------------------------------------

std::string word(std::int64_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFF);
  return bytes;
}

Expected<void> write_idx(const fs::path& directory, const std::string& prefix, const gpu::Dataset& data) {
  const auto head = word(0x803) + word(data.count()) + word(data.item[1]) + word(data.item[2]);
  const auto* pixels = reinterpret_cast<const char*>(data.pixels.data());
  if (auto written = write_whole(directory / (prefix + "-images-idx3-ubyte"), {head, {pixels, data.pixels.size()}});
      !written)
    return written;
  const std::string labels(data.labels.begin(), data.labels.end());
  return write_whole(directory / (prefix + "-labels-idx1-ubyte"), {word(0x801) + word(data.count()), labels});
}

// ---- glyphs-100 ----------------------------------------------------------------------------------------------------

json faces_json(const std::vector<Face>& faces) {
  json out = json::array();
  for (const auto& face : faces)
    out.push_back({{"file", face.file.string()},
                   {"sha256", face.sha256},
                   {"name", face.name},
                   {"family", face.family},
                   {"split", name(face.side)}});
  return out;
}

Expected<void> make_directory(const fs::path& directory) {
  std::error_code fault;
  if (fs::exists(directory / "train-images-idx3-ubyte", fault))
    return bad_input("--out " + directory.string() + ": a data set is there already; name another directory");
  fs::create_directories(directory, fault);
  if (fault) return bad_input("--out " + directory.string() + ": " + fault.message());
  return {};
}

Expected<void> write_glyphs(const Glyphs& glyphs, const Options& options) {
  const fs::path out = options.out;
  if (auto done = write_idx(out, "t10k", glyphs.test); !done) return done;
  const json document{{"schema", 1},
                      {"name", "glyphs-100"},
                      {"classes", glyphs.class_names},
                      {"seed", options.glyphs.seed},
                      {"held_out", glyphs.held_out},
                      {"freetype", glyphs.freetype},
                      {"faces", faces_json(glyphs.faces)}};
  if (auto done = write_whole(out / "classes.json", {document.dump(1), "\n"}); !done) return done;
  return write_idx(out, "train", glyphs.train);
}

std::pair<std::size_t, std::size_t> faces_and_families(const Glyphs& glyphs, Side side) {
  std::vector<std::string> families;
  for (const auto& face : glyphs.faces)
    if (face.side == side) families.push_back(face.family);
  const auto faces = families.size();
  std::ranges::sort(families);
  families.erase(std::unique(families.begin(), families.end()), families.end());
  return {faces, families.size()};
}

Expected<void> make(const Options& options, const Shell& shell) {
  if (auto made = make_directory(options.out); !made) return made;
  const auto glyphs = make_glyphs(options.glyphs);
  if (!glyphs) return tl::unexpected(glyphs.error());
  if (auto written = write_glyphs(*glyphs, options); !written) return written;
  std::vector<std::vector<std::string>> rows{{"part", "images", "faces", "families"}};
  json parts = json::object();
  for (const auto& [side, images] :
       {std::pair{Side::train, glyphs->train.count() - glyphs->held_out}, std::pair{Side::held_out, glyphs->held_out},
        std::pair{Side::test, glyphs->test.count()}}) {
    const auto [faces, families] = faces_and_families(*glyphs, side);
    rows.push_back({name(side), std::to_string(images), std::to_string(faces), std::to_string(families)});
    parts[name(side)] = {{"images", images}, {"faces", faces}, {"families", families}};
  }
  const auto missing = families_missing(glyphs->faces);
  if (!missing.empty())
    std::fprintf(stderr, "without %zu of the known font families (%s%s): bash apps/deps --fonts installs them all\n",
                 missing.size(), missing.front().c_str(), missing.size() > 1 ? ", ..." : "");
  if (shell.json) {
    shell.print({{"name", "glyphs-100"}, {"out", options.out}, {"parts", parts}, {"families_missing", missing}});
  } else {
    std::fputs((table(rows) + "written to " + options.out + "\n").c_str(), stdout);
  }
  return {};
}

void add_glyphs(CLI::App& data, Shell& shell) {
  auto options = std::make_shared<Options>();
  auto* command =
      add_command(data, shell, "glyphs-100",
                  "A hundred characters in several hundred typefaces, the test's families unseen: 28 x 28",
                  "coppice data glyphs-100 --out glyphs-100/", [options, &shell] { return make(*options, shell); });
  command->add_option("--out", options->out, "directory to write the four IDX files and classes.json to")->required();
  command->add_option("--seed", options->glyphs.seed, "the same seed and fonts give the same bytes")
      ->capture_default_str();
  command->add_option("--fonts", options->glyphs.fonts, "where the fonts are that bash apps/deps --fonts installs")
      ->capture_default_str();
  command->add_option("--train", options->glyphs.train_per_class, "training images a character")
      ->check(CLI::Range(10, 650))
      ->capture_default_str();
  command->add_option("--test", options->glyphs.test_per_class, "test images a character")
      ->check(CLI::Range(1, 650))
      ->capture_default_str();
}

// ---- describe ------------------------------------------------------------------------------------------------------

struct Described {
  std::string directory;
  gpu::DatasetOptions options;
};

json to_json(const gpu::Dataset& data, std::size_t classes) {
  std::vector<std::int64_t> per_class(classes);
  for (const auto label : data.labels) ++per_class[label];
  const auto [fewest, most] = std::ranges::minmax(per_class);
  const auto normalisation = gpu::measured(data);
  return {{"items", data.count()},   {"shape", data.item},         {"fewest_of_a_class", fewest},
          {"most_of_a_class", most}, {"mean", normalisation.mean}, {"std", normalisation.deviation}};
}

std::string text_of(const json& document) {
  std::vector<std::vector<std::string>> rows{{"part", "items", "shape", "of a class", "mean", "std"}};
  for (const auto& [part, facts] : document["parts"].items())
    rows.push_back({part, facts["items"].dump(), facts["shape"].dump(),
                    facts["fewest_of_a_class"].dump() + " to " + facts["most_of_a_class"].dump(),
                    fixed(facts["mean"].get<double>(), 4), fixed(facts["std"].get<double>(), 4)});
  std::string names;
  for (const auto& name : document["class_names"]) names += " " + name.get<std::string>();
  return table(rows) + document["kind"].get<std::string>() + ", " + document["classes"].dump() + " classes" +
         (names.empty() ? "" : ":" + names) + "\n";
}

Expected<void> describe(const Described& asked, const Shell& shell) {
  const auto kind = gpu::dataset_kind(asked.directory);
  if (!kind) return tl::unexpected(reported(kind.error()));
  const auto train = gpu::load_dataset(asked.directory, gpu::Split::train, asked.options);
  if (!train) return tl::unexpected(reported(train.error()));
  const auto test = gpu::load_dataset(asked.directory, gpu::Split::test, asked.options);
  if (!test) return tl::unexpected(reported(test.error()));
  const auto& names = train->class_names;
  const auto top = std::max(std::ranges::max(train->labels), std::ranges::max(test->labels));
  const auto classes = std::max(names.size(), std::size_t{1} + top);
  const json document{{"directory", asked.directory},
                      {"kind", gpu::name(*kind)},
                      {"classes", classes},
                      {"class_names", names},
                      {"parts", {{"train", to_json(*train, classes)}, {"test", to_json(*test, classes)}}}};
  if (shell.json) {
    shell.print(document);
  } else {
    std::fputs(text_of(document).c_str(), stdout);
  }
  return {};
}

void add_describe(CLI::App& data, Shell& shell) {
  auto asked = std::make_shared<Described>();
  auto* command = add_command(data, shell, "describe",
                              "What a directory holds: IDX, CIFAR's binary version, or folders of images as ImageNet's",
                              "coppice data describe glyphs-100/", [asked, &shell] { return describe(*asked, shell); });
  command->add_option("directory", asked->directory, "the data set")->required();
  command->add_option("--side", asked->options.side, "of a folder's images: pixels a side that they are brought to")
      ->capture_default_str();
  command->add_flag("--grey", asked->options.grey, "of a folder's images: one channel");
  command->add_flag("--coarse", asked->options.coarse, "CIFAR-100's twenty superclasses");
}

}  // namespace

void add_data(CLI::App& app, Shell& shell) {
  auto* command = app.add_subcommand("data", "Make a data set, or say what is in one");
  command->require_subcommand(1);
  command->footer("Example:\n  coppice data glyphs-100 --out glyphs-100/");
  add_glyphs(*command, shell);
  add_describe(*command, shell);
}

}  // namespace coppice::apps
