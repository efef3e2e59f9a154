#include "runtime/model.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <fstream>
#include <random>
#include <sstream>

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Five classes, two groups and one companion that answers with all classes.
Model small_model() {
  Manifest manifest;
  manifest.name = "test/parity";
  manifest.source_sha256 = std::string(64, 'a');
  manifest.source_multiply_adds = 1'000'000;
  manifest.input = {1, 28, 28};
  manifest.normalisation = {0.2860F, 0.3530F};
  manifest.class_names = {"shirt", "coat", "bag", "boot", "dress"};
  manifest.groups = {{0, 2}, {1, 3, 4}};
  manifest.scheme = coding::Scheme::parity;
  manifest.shape = {3, 2};
  manifest.workers = {{"subnet0.onnx", {0, 2}, 100, 10, 3},
                      {"subnet1.onnx", {1, 3, 4}, 110, 11, 4},
                      {"companion0.onnx", {0, 1, 2, 3, 4}, 120, 12, 0}};
  manifest.generator = coding::grouped_generator(manifest.groups, 5, 1).value();
  coding::LogisticDecoder decoder;
  for (coding::ArrivalSet set = 1; set < 8; ++set) {
    const auto columns = static_cast<std::size_t>(manifest.generator.floats_of(set)) + 1;
    for (std::size_t i = 0; i < 5 * columns; ++i) decoder.weights[set].push_back(0.1F * static_cast<float>(i));
  }
  manifest.decoder = decoder;
  manifest.accuracy = {{"base", 93.4}, {"clean", 93.1}, {"missing", json::array({{{"count", 1}, {"mean", 92.0}}})}};
  return {std::move(manifest),
          {{"subnet0.onnx", {std::byte{1}, std::byte{0}, std::byte{255}}},
           {"subnet1.onnx", {std::byte{9}, std::byte{8}, std::byte{7}, std::byte{6}}},
           {"companion0.onnx", {}}}};
}

// Two blocks of three classes: two workers and a companion each.
Manifest blocked_manifest() {
  auto manifest = small_model().manifest;
  manifest.class_names = {"a", "b", "c", "d", "e", "f"};
  manifest.groups = {{0}, {1, 2}, {5}, {3, 4}};
  manifest.generator = {};
  manifest.decoder = {};
  manifest.workers.clear();
  const auto generator = coding::with_none(coding::grouped_generator({{0}, {1, 2}}, 3, 1).value());
  coding::LogisticDecoder decoder;
  decoder.weights[7].assign(4 * (6 + 1), 0.5F);
  manifest.blocks = {{{0, 1, 2}, generator, decoder}, {{5, 3, 4}, generator, coding::RidgeDecoder{}}};
  for (const auto& classes : std::vector<std::vector<int>>{{0}, {1, 2}, {0, 1, 2}, {5}, {3, 4}, {3, 4, 5}})
    manifest.workers.push_back({"net" + std::to_string(manifest.workers.size()) + ".onnx", classes, 1, 1, 1});
  return manifest;
}

void expect_same(const Model& a, const Model& b) {
  EXPECT_EQ(to_json(a.manifest), to_json(b.manifest));
  EXPECT_EQ(a.manifest.workers, b.manifest.workers);
  EXPECT_EQ(a.manifest.generator, b.manifest.generator);
  EXPECT_EQ(a.manifest.decoder, b.manifest.decoder);
  EXPECT_EQ(a.manifest.normalisation.mean, b.manifest.normalisation.mean);
  EXPECT_EQ(a.files, b.files);
}

class ModelDirectory : public testing::Test {
 protected:
  ModelDirectory() {
    auto pattern = (fs::temp_directory_path() / "coppice-model-XXXXXX").string();
    scratch_ = ::mkdtemp(pattern.data());
    directory_ = scratch_ / "deep" / "model";
  }
  ~ModelDirectory() override { fs::remove_all(scratch_); }

  void save() const {
    const auto saved = save_model(small_model(), directory_);
    ASSERT_TRUE(saved) << saved.error().what;
  }
  void expect_refused(const std::string& file, const std::string& says) const {
    const auto model = load_model(directory_);
    ASSERT_FALSE(model) << file << " " << says;
    EXPECT_EQ(model.error().code, ErrorCode::bad_input);
    EXPECT_TRUE(model.error().what.starts_with((directory_ / file).string() + ": ")) << model.error().what;
    EXPECT_NE(model.error().what.find(says), std::string::npos) << model.error().what;
  }
  // In place: ext4 flushes a file that is truncated to nothing and written again, 2,000 times here.
  static void write(const fs::path& file, const std::string& text) {
    if (!fs::exists(file)) std::ofstream(file, std::ios::binary) << "";
    std::fstream(file, std::ios::binary | std::ios::in | std::ios::out) << text;
    fs::resize_file(file, text.size());
  }

  fs::path scratch_, directory_;
};

TEST(Manifest, ReadsBackWhatItWrites) {
  const auto manifest = small_model().manifest;
  const auto back = parse_manifest(json::parse(to_json(manifest).dump()), "m");
  ASSERT_TRUE(back) << back.error().what;
  expect_same({manifest, {}}, {*back, {}});
  EXPECT_EQ(back->schema, 1);
  EXPECT_EQ(back->input, manifest.input);
  EXPECT_EQ(back->groups, manifest.groups);
  EXPECT_EQ(back->shape, manifest.shape);
  EXPECT_EQ(back->accuracy, manifest.accuracy);
}

TEST(Manifest, ReadsBackItsBlocks) {
  const auto manifest = blocked_manifest();
  const auto back = parse_manifest(json::parse(to_json(manifest).dump()), "m");
  ASSERT_TRUE(back) << back.error().what;
  EXPECT_EQ(back->blocks, manifest.blocks);
  EXPECT_EQ(back->workers, manifest.workers);
  EXPECT_EQ(to_json(*back), to_json(manifest));
  EXPECT_EQ(place_of(*back, 5).outputs, (std::vector<int>{1, 2, 0})) << "classes 3, 4, 5 as the second block counts them";
  EXPECT_EQ(place_of(*back, 5).classes, 4);
  EXPECT_EQ(place_of(*back, 3).rows, manifest.blocks[1].generator.workers[0]);
}

TEST(Manifest, BlocksShareOutTheClassesAndTheWorkers) {
  const auto refused = [](const char* pointer, const json& value, const char* says) {
    auto object = to_json(blocked_manifest());
    object[json::json_pointer(pointer)] = value;
    const auto back = parse_manifest(object, "m");
    ASSERT_FALSE(back) << pointer;
    EXPECT_NE(back.error().what.find(says), std::string::npos) << back.error().what;
  };
  refused("/code/blocks", 3, "workers: lists 6 but code.workers and code.blocks make 9");
  refused("/code/blocks", 0, "code.blocks");
  refused("/decoder/type", "logistic", "decoder.type");
  refused("/decoder/blocks/1/type", "sum", "decoder.blocks[1]: a sum has no score");
  refused("/decoder/blocks/1/classes", {0, 3, 4}, "class 0 is in another block too");
  refused("/decoder/blocks/1/classes", {3, 4}, "its own and none of these");
  refused("/workers/0/classes", {5}, "workers[0].classes: class 5 is of another block");
}

TEST(Manifest, AccuracyAndSourceHashMayBeUnknown) {
  auto object = to_json(small_model().manifest);
  object.erase("accuracy");
  object["source"]["sha256"] = "";
  const auto manifest = parse_manifest(object, "m");
  ASSERT_TRUE(manifest) << manifest.error().what;
  EXPECT_TRUE(manifest->accuracy.is_null());
}

struct Edit {
  std::string pointer, says;
  json value;
};

json deep(int depth) {
  json value = 1;
  for (int i = 0; i < depth; ++i) value = json::array({std::move(value)});
  return value;
}

TEST(Manifest, EveryFaultNamesTheField) {
  const std::vector<Edit> edits{
      {"/schema", "schema: is 2 but this program reads 1", 2},
      {"/schema", "schema: must be a whole number", "1"},
      {"/name", "name: must be a string", ""},
      {"/name", "name: must be a string", std::string(257, 'n')},
      {"/source", "source: must be an object", 1},
      {"/source/sha256", "source.sha256: must be 64", "abc"},
      {"/source/multiply_adds", "source.multiply_adds: must be a whole number", -1},
      {"/source/multiply_adds", "source.multiply_adds: must be a whole number", 18446744073709551615U},
      {"/input/shape", "input.shape: must be a list", json::array()},
      {"/input/shape", "input.shape: must be a list", json::array({1, 1, 1, 1, 1, 1, 1, 1, 1})},
      {"/input/shape/1", "input.shape[1]: must be a whole number", 0},
      {"/input/shape", "input.shape: holds more than", json::array({4096, 4096, 4096, 4096, 4096, 4096})},
      {"/input/mean", "input.mean: must be a finite number", nullptr},
      {"/input/mean", "input.mean: must be a finite number", 1e300},
      {"/input/std", "input.std: must be larger than 0", 0},
      {"/classes", "classes: must be a list", json::array()},
      {"/classes/3", "classes[3]: must be a string", 7},
      {"/classes", "groups[0][1]: must be a whole number", {"a", "b"}},
      {"/groups/1/0", "groups[1][0]: must be a whole number", 5},
      {"/groups/1/0", "groups[1]: names class 3 twice", 3},
      {"/groups/0", "groups[0]: must be a list", json::array()},
      {"/code/scheme", "code.scheme: ", "fancy"},
      {"/code/scheme", "code.needed: scheme \"none\" needs all 3", "none"},
      {"/code/workers", "code.workers: must be a whole number in 1..32", 33},
      {"/code/workers", "workers: lists 3 but code.workers is 4", 4},
      {"/code/needed", "code.needed: must be a whole number in 1..3", 4},
      {"/workers/0/file", "workers[0].file: \"../x\" must be a plain file name", "../x"},
      {"/workers/0/file", "workers[0].file", "/etc/passwd"},
      {"/workers/0/file", "workers[0].file", ".hidden"},
      {"/workers/0/file", "workers[0].file", "manifest.json"},
      {"/workers/1/classes", "workers[1].classes: must be a list", json::array()},
      {"/workers/1/classes/0", "workers[1].classes[0]", 99},
      {"/workers/2/bytes", "workers[2].bytes: must be a whole number", 1.5},
      {"/workers/2/parameters", "workers[2].parameters", nullptr},
      {"/workers/2", "workers[2]: must be an object", 3},
      {"/decoder/type", "decoder: type", "oracle"},
      {"/decoder/floats/0", "decoder: ", 99999},
      {"/decoder", "decoder: ", nullptr},
      {"/accuracy", "accuracy: is nested too deeply", deep(100)},
  };
  for (const auto& [pointer, says, value] : edits) {
    SCOPED_TRACE(pointer + " " + says);
    auto object = to_json(small_model().manifest);
    object[json::json_pointer(pointer)] = value;
    const auto manifest = parse_manifest(object, "x/manifest.json");
    ASSERT_FALSE(manifest);
    EXPECT_EQ(manifest.error().code, ErrorCode::bad_input);
    EXPECT_TRUE(manifest.error().what.starts_with("x/manifest.json: ")) << manifest.error().what;
    EXPECT_NE(manifest.error().what.find(says), std::string::npos) << manifest.error().what;
  }
}

TEST(Manifest, EveryMissingFieldIsNamed) {
  const auto whole = to_json(small_model().manifest);
  for (const char* field : {"schema",
                            "name",
                            "source",
                            "source/sha256",
                            "source/multiply_adds",
                            "input",
                            "input/shape",
                            "input/mean",
                            "input/std",
                            "classes",
                            "groups",
                            "code",
                            "code/scheme",
                            "code/workers",
                            "code/needed",
                            "workers",
                            "workers/0/file",
                            "workers/0/classes",
                            "workers/0/bytes",
                            "decoder"}) {
    const json::json_pointer pointer("/" + std::string(field));
    auto object = whole;
    object[pointer.parent_pointer()].erase(pointer.back());
    const auto manifest = parse_manifest(object, "m");
    ASSERT_FALSE(manifest) << field;
    EXPECT_NE(manifest.error().what.find(pointer.back() + ": missing"), std::string::npos) << manifest.error().what;
  }
  EXPECT_FALSE(parse_manifest(json(1), "m"));
}

TEST(Manifest, DecoderMustFitWorkersAndClasses) {
  auto object = to_json(small_model().manifest);
  object["classes"].push_back("hat");
  EXPECT_NE(parse_manifest(object, "m").error().what.find("decoder: is made for 5 classes but classes lists 6"),
            std::string::npos);
  object = to_json(small_model().manifest);
  object["workers"].push_back(object["workers"][0]);
  object["code"]["workers"] = 4;
  EXPECT_NE(parse_manifest(object, "m").error().what.find("decoder: is made for 3 workers but code.workers is 4"),
            std::string::npos);
}

TEST_F(ModelDirectory, LoadsWhatItSaved) {
  save();
  const auto model = load_model(directory_);
  ASSERT_TRUE(model) << model.error().what;
  expect_same(*model, small_model());
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()),
            4);  // nothing temporary is left
  save();
  EXPECT_TRUE(load_model(directory_));
}

TEST_F(ModelDirectory, SavesNothingThatItCouldNotLoad) {
  auto missing = small_model();
  missing.files.erase("subnet1.onnx");
  auto stray = small_model();
  stray.files["../evil"] = {};
  auto wrong = small_model();
  wrong.manifest.shape.needed = 9;
  for (const auto& [model, says] :
       {std::pair{missing, "\"subnet1.onnx\""}, {stray, "\"../evil\""}, {wrong, "code.needed"}}) {
    const auto saved = save_model(model, directory_);
    ASSERT_FALSE(saved);
    EXPECT_NE(saved.error().what.find(says), std::string::npos) << saved.error().what;
    EXPECT_FALSE(fs::exists(directory_));
  }
  write(scratch_ / "file", "");
  const auto saved = save_model(small_model(), scratch_ / "file");
  ASSERT_FALSE(saved);
  EXPECT_NE(saved.error().what.find((scratch_ / "file").string()), std::string::npos);
}

TEST_F(ModelDirectory, NamesTheFileThatIsAtFault) {
  EXPECT_NE(load_model(directory_).error().what.find(directory_.string()), std::string::npos);
  save();
  fs::remove(directory_ / "subnet1.onnx");
  expect_refused("subnet1.onnx", "No such file");
  write(scratch_ / "secret", "abcd");
  fs::create_symlink(scratch_ / "secret", directory_ / "subnet1.onnx");
  expect_refused("subnet1.onnx", "symbolic link");
  fs::remove(directory_ / "subnet1.onnx");
  fs::create_directory(directory_ / "subnet1.onnx");
  expect_refused("subnet1.onnx", "not a regular file");
  fs::remove(directory_ / "subnet1.onnx");
  write(directory_ / "subnet1.onnx", "");
  fs::resize_file(directory_ / "subnet1.onnx", (64U << 20) + 1);
  expect_refused("subnet1.onnx", "larger than 67108864");
  write(directory_ / "manifest.json", "{\"schema\": ");
  expect_refused("manifest.json", "parse error");
  write(directory_ / "manifest.json", std::string(5'000'000, '['));
  expect_refused("manifest.json", "nested");
  fs::resize_file(directory_ / "manifest.json", (16U << 20) + 1);
  expect_refused("manifest.json", "larger than");
  fs::remove(directory_ / "manifest.json");
  expect_refused("manifest.json", "No such file");
}

TEST(Bundle, ReadsBackWhatItWrites) {
  const auto model = small_model();
  const auto back = unbundle(bundle(model));
  ASSERT_TRUE(back) << back.error().what;
  expect_same(*back, model);
}

RC_GTEST_PROP(Bundle, CarriesAnyBytes,
              (const std::vector<std::uint8_t>& first, const std::vector<std::uint8_t>& second)) {
  auto model = small_model();
  const auto fill = [&](const char* name, const std::vector<std::uint8_t>& from) {
    model.files[name].assign(reinterpret_cast<const std::byte*>(from.data()),
                             reinterpret_cast<const std::byte*>(from.data()) + from.size());
  };
  fill("subnet0.onnx", first);
  fill("companion0.onnx", second);
  const auto back = unbundle(bundle(model));
  RC_ASSERT(back.has_value());
  RC_ASSERT(back->files == model.files);
}

TEST(Bundle, RefusesWhatIsNotOne) {
  const auto refused = [](const std::vector<std::byte>& bytes, const std::string& says) {
    const auto model = unbundle(bytes);
    ASSERT_FALSE(model) << says;
    EXPECT_TRUE(model.error().what.starts_with("model bundle: ")) << model.error().what;
    EXPECT_NE(model.error().what.find(says), std::string::npos) << model.error().what;
  };
  refused({}, "msgpack");
  refused({std::byte{0x80}}, "must hold \"manifest\" and \"files\"");
  refused({std::byte{1}}, "bundle: must be a map");
  auto extra = small_model();
  extra.files["extra.onnx"] = {};
  refused(bundle(extra), "\"extra.onnx\" belongs to no worker");
  auto stray = small_model();
  stray.files["../evil"] = {};
  refused(bundle(stray), "\"../evil\" is not a plain file name");
  auto missing = small_model();
  missing.files.erase("subnet0.onnx");
  refused(bundle(missing), "\"subnet0.onnx\"");
  auto wrong = small_model();
  wrong.manifest.shape.needed = 7;
  refused(bundle(wrong), "code.needed");
  auto cut = bundle(small_model());
  cut.pop_back();
  refused(cut, "msgpack");
}

// ---- mutations -----------------------------------------------------------------------------------------------------

class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}
  std::size_t below(std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random_); }

  // Bytes changed, put in, taken out and repeated.
  template <class Bytes>
  void bytes(Bytes& text) {
    using Byte = typename Bytes::value_type;
    for (std::size_t edits = 1 + below(3); edits > 0 && text.size() > 1; --edits) {
      const auto at = text.begin() + static_cast<std::ptrdiff_t>(below(text.size()));
      switch (below(4)) {
        case 0:
          *at = static_cast<Byte>(below(256));
          break;
        case 1:
          text.insert(at, static_cast<Byte>(below(256)));
          break;
        case 2:
          text.erase(at);
          break;
        default:
          *at = static_cast<Byte>(static_cast<unsigned>(*at) ^ (1U << below(7)));
          break;
      }
    }
  }

  // One value somewhere in the document becomes something else.
  void value(json& document) {
    json* at = &document;
    while (at->is_structured() && !at->empty() && below(5) != 0) {
      at = &*std::next(at->begin(), static_cast<std::ptrdiff_t>(below(at->size())));
    }
    static const std::vector<json> kOthers{
        nullptr,       true,           -1,         0,  1,        2,      33,     5000,  1.5,
        1e308,         INT64_MIN,      UINT64_MAX, "", "parity", "none", "../x", "sum", "ridge",
        json::array(), json::object(), deep(20)};
    *at = kOthers[below(kOthers.size())];
  }

 private:
  std::mt19937 random_;
};

constexpr unsigned kSeed = 31;

TEST(Manifest, MutatedDocumentsNeverCrash) {
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  Mutator mutator(kSeed);
  const auto original = to_json(small_model().manifest);
  int read = 0;
  for (int round = 0; round < 2'000; ++round) {
    auto object = original;
    mutator.value(object);
    const auto manifest = parse_manifest(object, "m");
    if (!manifest) {
      ASSERT_TRUE(manifest.error().what.starts_with("m: ")) << manifest.error().what;
      continue;
    }
    ++read;
    const auto again = parse_manifest(to_json(*manifest), "m");
    ASSERT_TRUE(again) << again.error().what;
    ASSERT_EQ(to_json(*again), to_json(*manifest));
  }
  EXPECT_GT(read, 0);
}

TEST_F(ModelDirectory, MutatedManifestTextNeverCrashes) {
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  Mutator mutator(kSeed);
  save();
  const auto original = to_json(small_model().manifest).dump();
  for (int round = 0; round < 2'000; ++round) {
    auto text = original;
    mutator.bytes(text);
    write(directory_ / "manifest.json", text);
    const auto model = load_model(directory_);
    if (!model) {
      ASSERT_TRUE(model.error().what.starts_with(directory_.string())) << model.error().what;
    }
  }
}

TEST(Bundle, MutatedBytesNeverCrash) {
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  Mutator mutator(kSeed);
  const auto original = bundle(small_model());
  for (int round = 0; round < 2'000; ++round) {
    auto bytes = original;
    mutator.bytes(bytes);
    const auto model = unbundle(bytes);
    if (!model) {
      ASSERT_TRUE(model.error().what.starts_with("model bundle: ")) << model.error().what;
    }
  }
}

}  // namespace
}  // namespace coppice::runtime
