#include "runtime/model.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include "runtime/cluster.hpp"
#include "runtime/msgpack.hpp"

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr int kSchema = 1;
constexpr std::size_t kManifestBytesMax = 16U << 20, kFileBytesMax = 64U << 20;
constexpr int kDepthMax = 16;  // of the JSON; ours has 5
constexpr std::size_t kTextMax = 256, kRankMax = 8;
constexpr std::int64_t kElementsMax = std::int64_t{1} << 24;  // of one item

// Thrown and caught in this file alone.
struct Fault {
  std::string what;
};

[[noreturn]] void fail(const std::string& field, const std::string& why) { throw Fault{field + ": " + why}; }

std::string indexed(const std::string& field, std::size_t index) { return field + "[" + std::to_string(index) + "]"; }

// ---- fields --------------------------------------------------------------------------------------------------------

const json& member(const json& object, const std::string& prefix, const char* key) {
  const auto at = object.find(key);
  if (at == object.end()) fail(prefix + key, "missing");
  return *at;
}

const json& object_of(const json& value, const std::string& field) {
  if (!value.is_object()) fail(field, "must be an object");
  return value;
}

const json& array_of(const json& value, const std::string& field, std::size_t least, std::size_t most) {
  if (!value.is_array() || value.size() < least || value.size() > most) {
    fail(field, "must be a list of " + std::to_string(least) + " to " + std::to_string(most) + " entries");
  }
  return value;
}

std::int64_t whole(const json& value, const std::string& field, std::int64_t low, std::int64_t high) {
  const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                                               : value.is_number_integer() && value.get<std::int64_t>() <= high;
  if (!fits || value.get<std::int64_t>() < low) {
    fail(field, "must be a whole number in " + std::to_string(low) + ".." + std::to_string(high));
  }
  return value.get<std::int64_t>();
}

std::int64_t count(const json& value, const std::string& field) {
  return whole(value, field, 0, std::numeric_limits<std::int64_t>::max());
}

float real(const json& value, const std::string& field) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) fail(field, "must be a finite number");
  return static_cast<float>(number);
}

std::string text(const json& value, const std::string& field, std::size_t least = 1) {
  const auto* string = value.get_ptr<const std::string*>();
  if (!string || string->size() < least || string->size() > kTextMax) {
    fail(field, "must be a string of " + std::to_string(least) + " to " + std::to_string(kTextMax) + " bytes");
  }
  return *string;
}

// Copies nest as deeply as their source, by recursion.
void check_depth(const json& value, const std::string& field, int depth = 0) {
  if (depth > kDepthMax) fail(field, "is nested too deeply");
  if (value.is_structured()) {
    for (const auto& each : value) check_depth(each, field, depth + 1);
  }
}

// Distinct indices of classes.
std::vector<int> classes_of(const json& value, const std::string& field, int classes) {
  std::vector<int> result;
  std::vector<bool> seen(static_cast<std::size_t>(classes));
  for (const auto& each : array_of(value, field, 1, seen.size())) {
    const auto index = static_cast<int>(whole(each, indexed(field, result.size()), 0, classes - 1));
    if (seen[static_cast<std::size_t>(index)]) fail(field, "names class " + std::to_string(index) + " twice");
    seen[static_cast<std::size_t>(index)] = true;
    result.push_back(index);
  }
  return result;
}

// ---- the manifest's parts ------------------------------------------------------------------------------------------

void read_source(const json& source, Manifest& into) {
  object_of(source, "source");
  into.source_sha256 = text(member(source, "source.", "sha256"), "source.sha256", 0);
  const bool hex = into.source_sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!into.source_sha256.empty() && (into.source_sha256.size() != 64 || !hex)) {
    fail("source.sha256", "must be 64 lower-case hexadecimal digits, or empty where there is no file");
  }
  into.source_multiply_adds = count(member(source, "source.", "multiply_adds"), "source.multiply_adds");
}

void read_input(const json& input, Manifest& into) {
  object_of(input, "input");
  std::int64_t elements = 1;
  for (const auto& each : array_of(member(input, "input.", "shape"), "input.shape", 1, kRankMax)) {
    into.input.push_back(whole(each, indexed("input.shape", into.input.size()), 1, kElementsMax));
    if (into.input.back() > kElementsMax / elements) {
      fail("input.shape", "holds more than " + std::to_string(kElementsMax) + " numbers an item");
    }
    elements *= into.input.back();
  }
  into.normalisation.mean = real(member(input, "input.", "mean"), "input.mean");
  into.normalisation.deviation = real(member(input, "input.", "std"), "input.std");
  if (!(into.normalisation.deviation > 0)) fail("input.std", "must be larger than 0");
}

void read_classes(const json& object, Manifest& into) {
  for (const auto& each : array_of(member(object, "", "classes"), "classes", 1, coding::kClassesMax)) {
    into.class_names.push_back(text(each, indexed("classes", into.class_names.size())));
  }
  const auto classes = static_cast<int>(into.class_names.size());
  for (const auto& each : array_of(member(object, "", "groups"), "groups", 1, coding::kClassesMax)) {
    into.groups.push_back(classes_of(each, indexed("groups", into.groups.size()), classes));
  }
}

void read_code(const json& code, Manifest& into) {
  object_of(code, "code");
  const auto scheme = coding::scheme_of(text(member(code, "code.", "scheme"), "code.scheme"));
  if (!scheme) fail("code.scheme", scheme.error());
  into.scheme = *scheme;
  into.shape.workers =
      static_cast<int>(whole(member(code, "code.", "workers"), "code.workers", 1, coding::kWorkersMax));
  into.shape.needed = static_cast<int>(whole(member(code, "code.", "needed"), "code.needed", 1, into.shape.workers));
  if (const auto blocks = code.find("blocks"); blocks != code.end())
    into.blocks.resize(static_cast<std::size_t>(whole(*blocks, "code.blocks", 1, kBlocksMax)));
  if (into.scheme == coding::Scheme::none && into.shape.needed != into.shape.workers) {
    fail("code.needed", "scheme \"none\" needs all " + std::to_string(into.shape.workers) + " workers");
  }
}

WorkerNet read_worker(const json& worker, const std::string& field, int classes) {
  object_of(worker, field);
  const std::string prefix = field + ".";
  WorkerNet net;
  net.file = text(member(worker, prefix, "file"), prefix + "file");
  if (!is_plain_name(net.file) || net.file == kManifest) {
    fail(prefix + "file", "\"" + net.file +
                              "\" must be a plain file name: up to 64 letters, digits, '.', '_' or '-', no slash, "
                              "no leading dot");
  }
  net.classes = classes_of(member(worker, prefix, "classes"), prefix + "classes", classes);
  net.multiply_adds = count(member(worker, prefix, "multiply_adds"), prefix + "multiply_adds");
  net.parameters = count(member(worker, prefix, "parameters"), prefix + "parameters");
  net.bytes = count(member(worker, prefix, "bytes"), prefix + "bytes");
  return net;
}

void read_workers(const json& workers, Manifest& into) {
  const auto n = static_cast<std::size_t>(into.shape.workers) * std::max<std::size_t>(1, into.blocks.size());
  for (const auto& each : array_of(workers, "workers", 1, kWorkersInAllMax)) {
    into.workers.push_back(
        read_worker(each, indexed("workers", into.workers.size()), static_cast<int>(into.class_names.size())));
  }
  if (into.workers.size() != n) {
    fail("workers", "lists " + std::to_string(into.workers.size()) + " but code.workers " +
                        (into.blocks.empty() ? "is " : "and code.blocks make ") + std::to_string(n));
  }
}

void read_decoder(const json& decoder, Manifest& into) {
  auto pair = coding::from_json(decoder);
  if (!pair) fail("decoder", pair.error().what);
  std::tie(into.generator, into.decoder) = *std::move(pair);
  const auto disagree = [](const char* of, std::size_t here, const char* there, std::size_t other) {
    fail("decoder", "is made for " + std::to_string(here) + " " + of + " but " + there + " " + std::to_string(other));
  };
  if (into.generator.workers.size() != into.workers.size()) {
    disagree("workers", into.generator.workers.size(), "code.workers is", into.workers.size());
  }
  const auto classes = static_cast<std::size_t>(into.generator.classes);
  if (classes != into.class_names.size()) disagree("classes", classes, "classes lists", into.class_names.size());
}

coding::BlockCode read_block(const json& block, const std::string& field, const Manifest& of) {
  object_of(block, field);
  coding::BlockCode code;
  code.classes = classes_of(member(block, field + ".", "classes"), field + ".classes", static_cast<int>(of.class_names.size()));
  auto pair = coding::from_json(block);
  if (!pair) fail(field, pair.error().what);
  std::tie(code.generator, code.decoder) = *std::move(pair);
  if (std::holds_alternative<coding::SumDecoder>(code.decoder)) fail(field, "a sum has no score for none of these");
  if (code.generator.workers.size() != static_cast<std::size_t>(of.shape.workers))
    fail(field, "is made for " + std::to_string(code.generator.workers.size()) + " workers but code.workers is " +
                    std::to_string(of.shape.workers));
  if (static_cast<std::size_t>(code.generator.classes) != code.classes.size() + 1)
    fail(field, "is made for " + std::to_string(code.generator.classes) + " classes, which must be its own and none of these, " +
                    std::to_string(code.classes.size() + 1));
  return code;
}

// Every class is in one block, and every net knows classes of its own block.
void check_blocks(const Manifest& manifest) {
  std::vector<int> block_of(manifest.class_names.size(), -1);
  for (std::size_t b = 0; b < manifest.blocks.size(); ++b)
    for (const int c : manifest.blocks[b].classes) {
      auto& block = block_of[static_cast<std::size_t>(c)];
      if (block >= 0) fail(indexed("decoder.blocks", b), "class " + std::to_string(c) + " is in another block too");
      block = static_cast<int>(b);
    }
  if (const auto none = std::ranges::find(block_of, -1); none != block_of.end())
    fail("decoder.blocks", "class " + std::to_string(none - block_of.begin()) + " is in no block");
  for (std::size_t w = 0; w < manifest.workers.size(); ++w)
    for (const int c : manifest.workers[w].classes)
      if (block_of[static_cast<std::size_t>(c)] != static_cast<int>(w) / manifest.shape.workers)
        fail(indexed("workers", w) + ".classes", "class " + std::to_string(c) + " is of another block");
}

void read_blocks(const json& decoder, Manifest& into) {
  object_of(decoder, "decoder");
  if (const auto type = text(member(decoder, "decoder.", "type"), "decoder.type"); type != "blocks")
    fail("decoder.type", "is \"" + type + "\", and with code.blocks it must be \"blocks\"");
  std::size_t at = 0;
  for (const auto& each :
       array_of(member(decoder, "decoder.", "blocks"), "decoder.blocks", into.blocks.size(), into.blocks.size())) {
    into.blocks[at] = read_block(each, indexed("decoder.blocks", at), into);
    ++at;
  }
  check_blocks(into);
}

json decoder_json(const Manifest& manifest) {
  if (manifest.blocks.empty()) return coding::to_json(manifest.decoder, manifest.generator);
  auto blocks = json::array();
  for (const auto& block : manifest.blocks) {
    blocks.push_back(coding::to_json(block.decoder, block.generator));
    blocks.back()["classes"] = block.classes;
  }
  return {{"type", "blocks"}, {"blocks", std::move(blocks)}};
}

Manifest read_manifest(const json& object) {
  if (!object.is_object()) throw Fault{"must be a JSON object"};
  Manifest manifest;
  manifest.schema = static_cast<int>(whole(member(object, "", "schema"), "schema", 0, std::numeric_limits<int>::max()));
  if (manifest.schema != kSchema) {
    fail("schema", "is " + std::to_string(manifest.schema) + " but this program reads " + std::to_string(kSchema) +
                       "; decompose the model again");
  }
  manifest.name = text(member(object, "", "name"), "name");
  read_source(member(object, "", "source"), manifest);
  read_input(member(object, "", "input"), manifest);
  read_classes(object, manifest);
  read_code(member(object, "", "code"), manifest);
  read_workers(member(object, "", "workers"), manifest);
  const auto& decoder = member(object, "", "decoder");
  manifest.blocks.empty() ? read_decoder(decoder, manifest) : read_blocks(decoder, manifest);
  if (const auto accuracy = object.find("accuracy"); accuracy != object.end()) {
    check_depth(*accuracy, "accuracy");
    manifest.accuracy = *accuracy;
  }
  return manifest;
}

// Text to JSON, bounded in depth: the library itself nests without end.
Expected<json> parse_json(std::string_view bytes, const std::string& origin) {
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > kDepthMax) throw Fault{"is nested more than " + std::to_string(kDepthMax) + " deep"};
    return true;
  };
  try {
    return json::parse(bytes, shallow);
  } catch (const Fault& fault) {
    return bad_input(origin + ": " + fault.what);
  } catch (const std::exception& error) {
    return bad_input(origin + ": " + one_line(error.what()));
  }
}

Expected<Manifest> manifest_from(std::string_view bytes, const std::string& origin) {
  const auto object = parse_json(bytes, origin);
  if (!object) return tl::unexpected(object.error());
  return parse_manifest(*object, origin);
}

std::string dumped(const Manifest& manifest) {
  return to_json(manifest).dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

// ---- files ---------------------------------------------------------------------------------------------------------

class Directory {
 public:
  explicit Directory(const fs::path& path) : fd_(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}
  ~Directory() {
    if (fd_ >= 0) ::close(fd_);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

std::set<std::string> file_names(const Manifest& manifest) {
  std::set<std::string> names;
  for (const auto& worker : manifest.workers) names.insert(worker.file);
  return names;
}

// A model holds the files that its manifest names and no other.
Expected<void> check_files(const Model& model, const std::string& origin) {
  const auto names = file_names(model.manifest);
  for (const auto& name : names) {
    const auto at = model.files.find(name);
    if (at == model.files.end()) return bad_input(origin + ": file \"" + name + "\" of a worker is missing");
    if (at->second.size() > kFileBytesMax) {
      return bad_input(origin + ": file \"" + name + "\" is larger than " + std::to_string(kFileBytesMax) + " bytes");
    }
  }
  for (const auto& [name, bytes] : model.files) {
    if (!names.contains(name)) return bad_input(origin + ": file \"" + one_line(name) + "\" belongs to no worker");
  }
  return {};
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

bool write_whole(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

// A reader sees the old file or the new one, after a power cut too.
Expected<void> replace_file(const Directory& directory, const std::string& name, std::span<const std::byte> bytes,
                            const fs::path& shown) {
  const auto temporary = "." + name + "." + std::to_string(::getpid());
  const int fd =
      ::openat(directory.fd(), temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  bool good = fd >= 0 && write_whole(fd, bytes) && ::fsync(fd) == 0;
  int error = errno;
  if (fd >= 0) ::close(fd);
  if (good && ::renameat(directory.fd(), temporary.c_str(), directory.fd(), name.c_str()) != 0) {
    good = false;
    error = errno;
  }
  if (good) return {};
  if (fd >= 0) ::unlinkat(directory.fd(), temporary.c_str(), 0);
  return failed(one_line((shown / name).string()) + ": cannot be written: " + std::strerror(error));
}

// ---- the bundle ----------------------------------------------------------------------------------------------------

struct ByteSink {  // what msgpack's packer writes to
  std::vector<std::byte>& bytes;
  void write(const char* data, std::size_t size) {
    const auto* first = reinterpret_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), first, first + size);
  }
};

constexpr const char* kBundle = "model bundle";
constexpr UnpackLimits kBundleLimits{
    .array = 0, .map = kWorkersInAllMax, .string = kManifestBytesMax, .binary = kFileBytesMax, .depth = 4};

std::string_view string_of(const msgpack::object& object, const char* field) {
  if (object.type != msgpack::type::STR) fail(field, "must be a string");
  return {object.via.str.ptr, object.via.str.size};
}

std::span<const msgpack::object_kv> map_of(const msgpack::object& object, const char* field) {
  if (object.type != msgpack::type::MAP) fail(field, "must be a map");
  return {object.via.map.ptr, object.via.map.size};
}

std::map<std::string, std::vector<std::byte>> read_files(const msgpack::object& object) {
  std::map<std::string, std::vector<std::byte>> files;
  for (const auto& [key, value] : map_of(object, "files")) {
    const std::string name(string_of(key, "files"));
    if (!is_plain_name(name)) fail("files", "\"" + one_line(name) + "\" is not a plain file name");
    if (value.type != msgpack::type::BIN) fail("files." + name, "must be bytes");
    if (files.contains(name)) fail("files." + name, "is there twice");
    files.emplace(name, bytes_of({value.via.bin.ptr, value.via.bin.size}));
  }
  return files;
}

Model read_bundle(const msgpack::object& object) {
  const auto entries = map_of(object, "bundle");
  const msgpack::object* manifest = nullptr;
  const msgpack::object* files = nullptr;
  for (const auto& [key, value] : entries) {
    const auto name = string_of(key, "key");
    if (name == "manifest") manifest = &value;
    if (name == "files") files = &value;
  }
  if (entries.size() != 2 || !manifest || !files) throw Fault{"must hold \"manifest\" and \"files\", and nothing else"};
  auto read = manifest_from(string_of(*manifest, "manifest"), "manifest");
  if (!read) throw Fault{read.error().what};
  return {*std::move(read), read_files(*files)};
}

}  // namespace

CodePlace place_of(const Manifest& manifest, std::size_t worker) {
  const auto& own = manifest.workers[worker].classes;
  if (manifest.blocks.empty()) return {manifest.generator.workers[worker], manifest.generator.classes, own};
  const auto n = static_cast<std::size_t>(manifest.shape.workers);
  const auto& block = manifest.blocks[worker / n];
  CodePlace place{block.generator.workers[worker % n], block.generator.classes, {}};
  for (const int c : own)
    place.outputs.push_back(static_cast<int>(std::ranges::find(block.classes, c) - block.classes.begin()));
  return place;
}

nlohmann::json to_json(const Manifest& manifest) {
  json code = {{"scheme", coding::name(manifest.scheme)},
               {"workers", manifest.shape.workers},
               {"needed", manifest.shape.needed}};
  if (!manifest.blocks.empty()) code["blocks"] = manifest.blocks.size();
  auto workers = json::array();
  for (const auto& worker : manifest.workers) {
    workers.push_back({{"file", worker.file},
                       {"classes", worker.classes},
                       {"multiply_adds", worker.multiply_adds},
                       {"parameters", worker.parameters},
                       {"bytes", worker.bytes}});
  }
  return {
      {"schema", manifest.schema},
      {"name", manifest.name},
      {"source", {{"sha256", manifest.source_sha256}, {"multiply_adds", manifest.source_multiply_adds}}},
      {"input",
       {{"shape", manifest.input}, {"mean", manifest.normalisation.mean}, {"std", manifest.normalisation.deviation}}},
      {"classes", manifest.class_names},
      {"groups", manifest.groups},
      {"code", std::move(code)},
      {"workers", std::move(workers)},
      {"decoder", decoder_json(manifest)},
      {"accuracy", manifest.accuracy}};
}

Expected<Manifest> parse_manifest(const nlohmann::json& object, const std::string& origin) {
  try {
    return read_manifest(object);
  } catch (const Fault& fault) {
    return bad_input(origin + ": " + one_line(fault.what));
  } catch (const std::exception& error) {
    return bad_input(origin + ": " + one_line(error.what()));
  }
}

Expected<Model> load_model(const fs::path& directory, const std::string& manifest_name) {
  const auto shown = one_line(directory.string());
  const Directory open_directory(directory);
  if (open_directory.fd() < 0) {
    return bad_input(shown + ": " + std::strerror(errno) + "; name a directory that `coppice decompose` made");
  }
  const auto read = [&](const std::string& name, std::size_t bytes_max) {
    return read_file(open_directory.fd(), name, directory / name, {.bytes_max = bytes_max, .follow_links = false});
  };
  const auto text = read(manifest_name, kManifestBytesMax);
  if (!text) return tl::unexpected(text.error());
  auto manifest = manifest_from(*text, one_line((directory / manifest_name).string()));
  if (!manifest) return tl::unexpected(manifest.error());
  Model model{*std::move(manifest), {}};
  for (const auto& name : file_names(model.manifest)) {
    const auto bytes = read(name, kFileBytesMax);
    if (!bytes) return tl::unexpected(bytes.error());
    model.files.emplace(name, bytes_of(*bytes));
  }
  return model;
}

Expected<void> save_model(const Model& model, const fs::path& directory) {
  const auto shown = one_line(directory.string());
  const auto text = dumped(model.manifest);
  if (const auto readable = manifest_from(text, shown + "/" + kManifest); !readable)
    return tl::unexpected(readable.error());
  if (const auto complete = check_files(model, shown); !complete) return complete;
  std::error_code error;
  fs::create_directories(directory, error);
  const Directory open_directory(directory);
  if (open_directory.fd() < 0) {
    return failed(shown + ": cannot make the directory: " + (error ? error.message() : std::strerror(errno)));
  }
  for (const auto& [name, bytes] : model.files) {
    if (auto written = replace_file(open_directory, name, bytes, directory); !written) return written;
  }
  if (auto written = replace_file(open_directory, kManifest, bytes_of(text), directory); !written) return written;
  ::fsync(open_directory.fd());
  return {};
}

std::vector<std::byte> bundle(const Model& model) {
  const auto manifest = dumped(model.manifest);
  std::size_t size = manifest.size() + 64;
  for (const auto& [name, bytes] : model.files) size += name.size() + bytes.size() + 16;
  std::vector<std::byte> result;
  result.reserve(size);
  ByteSink sink{result};
  msgpack::packer<ByteSink> packer(sink);
  packer.pack_map(2);
  packer.pack(std::string_view("manifest"));
  packer.pack(manifest);
  packer.pack(std::string_view("files"));
  packer.pack_map(static_cast<std::uint32_t>(model.files.size()));
  for (const auto& [name, bytes] : model.files) {
    packer.pack(name);
    packer.pack_bin(static_cast<std::uint32_t>(bytes.size()));
    packer.pack_bin_body(reinterpret_cast<const char*>(bytes.data()), static_cast<std::uint32_t>(bytes.size()));
  }
  return result;
}

Expected<Model> unbundle(std::span<const std::byte> bytes) {
  const auto handle = unpack(bytes, kBundleLimits);
  if (!handle) return bad_input(std::string(kBundle) + ": " + handle.error().what);
  try {
    auto model = read_bundle(handle->get());
    if (auto complete = check_files(model, kBundle); !complete) return tl::unexpected(complete.error());
    return model;
  } catch (const Fault& fault) {
    return bad_input(std::string(kBundle) + ": " + one_line(fault.what));
  } catch (const std::exception& error) {
    return bad_input(std::string(kBundle) + ": " + one_line(error.what()));
  }
}

}  // namespace coppice::runtime
