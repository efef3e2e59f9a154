// runtime/cluster.hpp: the cluster file (TOML) as a value: who is in it, how they are coded and launched.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "coding/generator.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

struct Host {
  std::string name;     // [A-Za-z0-9._-]{1,64}
  std::string address;  // IPv4, IPv6 or host name
  std::uint16_t port = 7000;  // data; a gateway listens for control on port + 1
  std::string device = "cpu";
  bool gateway = false;       // roles = ["gateway"]; every other host is a worker
  bool operator==(const Host&) const = default;
};

inline constexpr int kBlocksMax = 128;
inline constexpr int kWorkersInAllMax = kBlocksMax * coding::kWorkersMax;

struct CodeSection {
  coding::Scheme scheme = coding::Scheme::parity;
  coding::CodeShape shape{7, 5};  // of one block, where there are blocks
  std::chrono::milliseconds deadline{50};  // after it the best estimate is given and marked degraded
  int blocks = 0;                 // 0: one code over all workers; else worker p of block b is workers()[b * n + p]
  bool gateway_heads = false;     // heads = "gateway": it decodes all blocks itself
  bool operator==(const CodeSection&) const = default;
};

struct Cluster {
  std::string name;
  std::filesystem::path keys;      // directory; relative paths are taken from the cluster file's own directory
  std::filesystem::path model;     // decomposed model directory (manifest.json): what the gateway serves
  std::filesystem::path topology;  // empty: one switch is assumed
  std::string launcher = "{command}";  // command template with {name}, {address} and {command}
  bool faults_allowed = false;     // whether clients may inject faults (coppice chaos, bench --straggler)
  CodeSection code;
  std::vector<Host> hosts;
  bool operator==(const Cluster&) const = default;

  const Host& gateway() const;         // REQUIRES: validated: exactly one host leads
  std::vector<Host> workers() const;   // in file order: worker i of the code is workers()[i]
  const Host* find(std::string_view host) const;
};

// Reads and validates a cluster file. Every fault is one line naming file, line and key: unknown keys, wrong types, two
// hosts of one name or one address and port, no gateway, n that is not the number of workers, k outside 1..n.
Expected<Cluster> load_cluster(const std::filesystem::path& file);
Expected<Cluster> parse_cluster(std::string_view toml, const std::filesystem::path& file);

// The file that reads back as this value, wherever it lies: paths are written as they are here, absolute after loading.
std::string to_toml(const Cluster& cluster);

// ---- shared by the readers of this folder ---------------------------------------------------------------------------

// A name of a host, member or file: [A-Za-z0-9._-]{1,64}, and neither hidden, a parent directory nor an option.
bool is_plain_name(std::string_view name);

// Text of the world in one printable line of at most 400 bytes, fit for an error.
std::string one_line(std::string_view text);

struct ReadLimits {
  std::size_t bytes_max = 1U << 20;
  bool follow_links = true;  // of the last component
  bool secret = false;       // refuse what group or others may read
};

// The bytes of one regular file; `directory` is an open directory that a relative `file` is taken from, or AT_FDCWD.
// Errors name the file as `shown`.
Expected<std::string> read_file(int directory, const std::filesystem::path& file, const std::filesystem::path& shown,
                                const ReadLimits& limits);

}  // namespace coppice::runtime
