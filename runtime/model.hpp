// runtime/model.hpp: a decomposed model: manifest.json and one ONNX file a worker, in a directory or in a bundle.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "coding/block.hpp"
#include "coding/decoder.hpp"
#include "coding/generator.hpp"
#include "gpu/dataset.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

// What one worker runs: a net whose outputs are the scores of `classes`, in this order.
struct WorkerNet {
  std::string file;          // in the model's directory, e.g. "subnet0.onnx"
  std::vector<int> classes;  // the encoder scatters the net's outputs to these and applies the generator's rows
  std::int64_t multiply_adds = 0, parameters = 0, bytes = 0;
  bool operator==(const WorkerNet&) const = default;
};

struct Manifest {
  int schema = 1;
  std::string name;                     // e.g. "fashion-mnist/parity"
  std::string source_sha256;            // of the base net's ONNX file
  std::int64_t source_multiply_adds = 0;
  gpu::Dims input;                      // {1, 28, 28}
  gpu::Normalisation normalisation;
  std::vector<std::string> class_names;
  std::vector<std::vector<int>> groups;
  coding::Scheme scheme = coding::Scheme::none;
  coding::CodeShape shape;              // of one block, where there are blocks
  std::vector<WorkerNet> workers;       // [n], or [blocks * n]: worker p of block b is the b * n + p-th
  coding::Generator generator;          // these two: without blocks
  coding::Decoder decoder;
  std::vector<coding::BlockCode> blocks;  // empty: one code over all workers
  nlohmann::json accuracy;              // {"base","clean","missing":[…]}, percent; null where not measured
};

// One worker's part in the code.
struct CodePlace {
  const coding::WorkerRows& rows;
  int classes = 0;           // that the rows are over: all of them, or those of the worker's block and none of these
  std::vector<int> outputs;  // what the net's outputs are among these, in order
};
CodePlace place_of(const Manifest& manifest, std::size_t worker);

nlohmann::json to_json(const Manifest& manifest);
// Errors name the field. Everything is bounded and cross-checked: workers, generator and decoder agree in n and floats,
// file names are plain names (no slash, no leading dot), groups lie in the classes.
Expected<Manifest> parse_manifest(const nlohmann::json& object, const std::string& origin);

// A manifest and the bytes of its files: what a node is handed. File sizes are bounded (64 MiB each).
struct Model {
  Manifest manifest;
  std::map<std::string, std::vector<std::byte>> files;
};

// `manifest`: the name of the manifest in the directory; several may share their nets.
Expected<Model> load_model(const std::filesystem::path& directory, const std::string& manifest = "manifest.json");
// Writes manifest.json and all files; the manifest last, each file by write-and-rename.
Expected<void> save_model(const Model& model, const std::filesystem::path& directory);

// One flat run of bytes (msgpack) for the weight broadcast, and back; the reader trusts nothing.
std::vector<std::byte> bundle(const Model& model);
Expected<Model> unbundle(std::span<const std::byte> bytes);

}  // namespace coppice::runtime
