// apps/assembly.hpp: trained nets made into a decomposed model: which nets are the workers of a scheme, a decoder
// fitted to what they answer to held-out images, and the accuracy with every set of workers missing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/accuracy.hpp"
#include "coding/generator.hpp"
#include "gpu/dataset.hpp"
#include "gpu/error.hpp"
#include "runtime/error.hpp"
#include "runtime/model.hpp"
#include "runtime/offline.hpp"

namespace coppice::apps {

// ---- the nets ------------------------------------------------------------------------------------------------------

struct NetFile {
  std::string file;          // a plain name in the directory of nets.json
  std::vector<int> classes;  // what its outputs are the scores of, in this order
};

// nets.json: which trained nets lie beside it, and for what.
struct Nets {
  std::string data;  // name of the data set, e.g. "fashion-mnist"
  gpu::Dims input;
  gpu::Normalisation normalisation;
  std::vector<std::string> class_names;
  std::int64_t held_out = 0;             // so many of the last training images no net was trained on
  std::vector<std::vector<int>> groups;  // sub-net i scores groups[i]
  std::string base, control;             // files: the net that was decomposed; a whole net of a sub-net's size
  // companions: nets that score every class; with blocks, every class of one block.
  std::vector<NetFile> subnets, companions;
  int blocks = 0;  // 0: none; else block b has the b-th run of so many equal runs of groups
};

// Errors name the file and the field.
runtime::Expected<Nets> load_nets(const std::filesystem::path& directory);

// What nets.json or manifest.json in `directory` says of the pixels its nets want; nothing where neither is there.
struct FoundNormalisation {
  gpu::Normalisation normalisation;
  std::filesystem::path file;  // that said so
};
runtime::Expected<std::optional<FoundNormalisation>> find_normalisation(const std::filesystem::path& directory);

// ---- assembly ------------------------------------------------------------------------------------------------------

struct AssemblyData {
  gpu::Dataset held_out;  // decoders are fitted and chosen here
  gpu::Dataset test;      // scored once, at the end
};

runtime::Expected<AssemblyData> load_assembly_data(const std::filesystem::path& directory, const Nets& nets);

struct Assembly {
  runtime::Model model;
  std::vector<double> alone;  // [n], percent: each worker's own pick among its classes, on the test items of those
  double l2 = 0;              // penalty that cross-validation chose; 0 where nothing was fitted
  double choose_seconds = 0, fit_seconds = 0;
};

enum class DecoderKind : std::uint8_t { logistic, posterior, ridge, sum };

// none       the sub-nets, all needed                   the decoder that is asked for
// parity     and the companions: any k of n             the decoder that is asked for, with blocks one a block
// control    as many copies of the control net: any one   sum decoder
// replicate  two copies of the base net: any one          sum decoder
// Other schemes are refused. Progress goes to standard error.
runtime::Expected<Assembly> assemble(const std::filesystem::path& directory, const Nets& nets, const AssemblyData& data,
                                     coding::Scheme scheme, DecoderKind decoder);

// A fault of gpu/ as this program reports it: files and shapes are bad input, a device that fails is not.
runtime::Error reported(const gpu::Error& error);

}  // namespace coppice::apps
