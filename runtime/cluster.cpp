#include "runtime/cluster.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <span>

#include "gpu/device.hpp"
#include "runtime/keys.hpp"
#include "runtime/launcher.hpp"
#include "runtime/replay.hpp"

namespace coppice::runtime {
namespace {

constexpr std::size_t kFileBytesMax = 1U << 20;
constexpr std::size_t kTextMax = 4'096;         // of one string in the file
constexpr std::int64_t kDeadlineMax = 600'000;  // milliseconds
constexpr int kCudaDevicesMax = 256;

// Where a fault is: line 0 is the file as a whole. Thrown and caught in this file alone.
struct Fault {
  std::size_t line;
  std::string what;
};

bool is_letter_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

std::string in_quotes(std::string_view text) {
  std::string result = "\"";
  result += text;
  result += '"';
  return result;
}

std::string joined(std::span<const std::string_view> words) {
  std::string result;
  for (const auto word : words) {
    if (!result.empty()) result += ", ";
    result += word;
  }
  return result;
}

// ---- before parsing ------------------------------------------------------------------------------------------------

// toml++ bounds neither dotted keys nor what its destructors recurse into: one line of "a.a.a…" overflows the stack. So
// nesting is bounded here first, line by line: strings that span lines are refused, and nothing can hide in one.
class NestingScan {
 public:
  void line(std::string_view text) {
    ++line_;
    int dots = 0;
    for (std::size_t i = 0; i < text.size() && text[i] != '#'; ++i) {
      switch (text[i]) {
        case '"':
        case '\'':
          i = end_of_string(text, i);
          break;
        case '.':
          require(++dots <= kDotsMax, "a key of too many parts");
          break;
        case '[':
        case '{':
          require(++depth_ <= kDepthMax, "brackets nested too deeply");
          break;
        case ']':
        case '}':
          --depth_;
          break;
        default:
          break;
      }
    }
  }

 private:
  static constexpr int kDotsMax = 64, kDepthMax = 8;

  void require(bool holds, const char* what) const {
    if (!holds) throw Fault{line_, what};
  }
  // The index of the closing quote, or past the end: toml++ names an open string as it should.
  std::size_t end_of_string(std::string_view text, std::size_t start) const {
    const char quote = text[start];
    require(text.substr(start, 3) != std::string(3, quote), "strings over several lines are not read here; use \"…\"");
    for (std::size_t i = start + 1; i < text.size(); ++i) {
      if (text[i] == '\\' && quote == '"') {
        ++i;
      } else if (text[i] == quote) {
        return i;
      }
    }
    return text.size();
  }

  std::size_t line_ = 0;
  int depth_ = 0;
};

void check_nesting(std::string_view toml) {
  NestingScan scan;
  while (!toml.empty()) {
    const auto end = toml.find('\n');
    scan.line(toml.substr(0, end));
    toml.remove_prefix(end == std::string_view::npos ? toml.size() : end + 1);
  }
}

toml::table parsed(std::string_view toml) {
  if (toml.size() > kFileBytesMax) throw Fault{0, "larger than 1 MiB, which no cluster file is"};
  check_nesting(toml);
  try {
    return toml::parse(toml);
  } catch (const toml::parse_error& error) {
    throw Fault{error.source().begin.line, std::string(error.description())};
  }
}

// ---- keys ----------------------------------------------------------------------------------------------------------

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

std::string remedy(std::string_view word, std::span<const std::string_view> known) {
  const auto distance = [&](std::string_view candidate) { return edit_distance(word, candidate); };
  if (word.size() <= 32) {
    const auto nearest =
        *std::min_element(known.begin(), known.end(), [&](auto a, auto b) { return distance(a) < distance(b); });
    if (distance(nearest) <= std::min<std::size_t>(3, nearest.size() / 2))
      return "did you mean " + in_quotes(nearest) + "?";
  }
  return "known: " + joined(known);
}

std::size_t line_of(const toml::node& node) { return node.source().begin.line; }

// One table of the file with its place in messages: "code.needed", or "needed" at the top.
class Section {
 public:
  Section(const toml::table& table, std::string prefix, std::span<const std::string_view> known)
      : table_(table), prefix_(std::move(prefix)) {
    for (const auto& [key, value] : table_) {
      if (std::find(known.begin(), known.end(), key.str()) == known.end()) {
        throw Fault{key.source().begin.line,
                    "unknown key " + in_quotes(prefix_ + std::string(key.str())) + "; " + remedy(key.str(), known)};
      }
    }
  }

  std::size_t line() const { return line_of(table_); }
  std::size_t line(std::string_view key) const {
    const auto* node = table_.get(key);
    return node ? line_of(*node) : line();
  }
  [[noreturn]] void fail(std::string_view key, const std::string& what) const {
    throw Fault{line(key), prefix_ + std::string(key) + ": " + what};
  }

  std::optional<std::string> text(std::string_view key) const {
    const auto* node = table_.get(key);
    if (!node) return std::nullopt;
    const auto* value = node->as_string();
    if (!value) fail(key, "must be a string");
    if (value->get().size() > kTextMax) fail(key, "is longer than " + std::to_string(kTextMax) + " bytes");
    for (const char c : value->get()) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) fail(key, "holds a control character");
    }
    return value->get();
  }
  std::string required_text(std::string_view key) const {
    const auto value = text(key);
    if (!value || value->empty()) fail(key, value ? "is empty" : "is missing");
    return *value;
  }
  std::optional<std::int64_t> number(std::string_view key, std::int64_t low, std::int64_t high) const {
    const auto* node = table_.get(key);
    if (!node) return std::nullopt;
    const auto* value = node->as_integer();
    if (!value) fail(key, "must be a whole number");
    if (value->get() < low || value->get() > high) {
      fail(key, "is " + std::to_string(value->get()) + " but must lie in " + std::to_string(low) + ".." +
                    std::to_string(high));
    }
    return value->get();
  }
  std::optional<bool> flag(std::string_view key) const {
    const auto* node = table_.get(key);
    if (!node) return std::nullopt;
    const auto* value = node->as_boolean();
    if (!value) fail(key, "must be true or false");
    return value->get();
  }
  const toml::array* array(std::string_view key, const char* expected) const {
    const auto* node = table_.get(key);
    if (node && !node->as_array()) fail(key, expected);
    return node ? node->as_array() : nullptr;
  }

 private:
  const toml::table& table_;
  std::string prefix_;
};

// ---- hosts ---------------------------------------------------------------------------------------------------------

bool is_address(std::string_view text) {
  const auto fits = [](char c) {
    return is_letter_or_digit(c) || std::string_view(".:%_-").find(c) != std::string_view::npos;
  };
  return !text.empty() && text.size() <= 253 && text.front() != '-' && std::all_of(text.begin(), text.end(), fits);
}

bool is_device(std::string_view text) {
  if (text.starts_with(kReplay)) return text.size() > kReplay.size();
  const auto device = gpu::parse_device(text);
  return device && device->ordinal.value_or(0) < kCudaDevicesMax;
}

bool leads(const Section& section) {
  const char* const expected = "must be an array of strings";
  const auto* roles = section.array("roles", expected);
  if (!roles) return false;
  for (const auto& role : *roles) {
    const auto* word = role.as_string();
    if (!word) section.fail("roles", expected);
    if (word->get() != "gateway") {
      section.fail("roles",
                   "unknown role " + in_quotes(word->get()) + "; known: gateway (a host without roles is a worker)");
    }
  }
  return !roles->empty();
}

struct PlacedHost {
  Host host;
  std::size_t line;
};

PlacedHost read_host(const toml::table& table) {
  static constexpr std::array<std::string_view, 5> kKnown{"name", "address", "port", "device", "roles"};
  const Section section(table, "host.", kKnown);
  Host host;
  host.name = section.required_text("name");
  if (!is_plain_name(host.name)) {
    section.fail(
        "name", in_quotes(host.name) + " must be 1 to 64 letters, digits, '.', '_' or '-' and start with none of '.-'");
  }
  if (host.name == kClientName || host.name == "ca") {
    section.fail("name", in_quotes(host.name) + " is the name of a key that no host has");
  }
  host.address = section.required_text("address");
  if (!is_address(host.address)) section.fail("address", in_quotes(host.address) + " is no IP address or host name");
  host.gateway = leads(section);
  // The gateway listens for control on port + 1.
  host.port = static_cast<std::uint16_t>(section.number("port", 1, host.gateway ? 65'534 : 65'535).value_or(host.port));
  host.device = section.text("device").value_or(host.device);
  if (!is_device(host.device))
    section.fail("device", in_quotes(host.device) + " is unknown; known: replay:FILE, " + gpu::kDeviceSpecs);
  return {std::move(host), section.line()};
}

bool listens(const Host& host, int port) { return host.port == port || (host.gateway && host.port + 1 == port); }

void check_pair(const PlacedHost& earlier, const PlacedHost& later) {
  const auto clash = [&](const std::string& what) {
    throw Fault{later.line, what + " (the first is on line " + std::to_string(earlier.line) + ")"};
  };
  const Host &a = earlier.host, &b = later.host;
  if (a.name == b.name) clash("host.name: two hosts are called " + in_quotes(b.name));
  if (a.address != b.address) return;
  for (const int port : {b.port + 0, b.port + 1}) {
    if (listens(b, port) && listens(a, port)) {
      clash("host.port: " + in_quotes(a.name) + " and " + in_quotes(b.name) + " would both listen on " + b.address +
            " port " + std::to_string(port));
    }
  }
}

std::vector<Host> read_hosts(const Section& top) {
  const char* const expected = "must be tables, each headed [[host]]";
  const auto* array = top.array("host", expected);
  if (!array || array->empty()) throw Fault{0, "host: none is named; add a [[host]] for the gateway and each worker"};
  if (array->size() > kWorkersInAllMax + 1) {
    top.fail("host", "there are " + std::to_string(array->size()) + ", more than a gateway and " +
                         std::to_string(kWorkersInAllMax) + " workers");
  }
  std::vector<PlacedHost> placed;
  for (const auto& node : *array) {
    if (!node.as_table()) top.fail("host", expected);
    placed.push_back(read_host(*node.as_table()));
    for (std::size_t i = 0; i + 1 < placed.size(); ++i) check_pair(placed[i], placed.back());
  }
  const PlacedHost* gateway = nullptr;
  std::vector<Host> hosts;
  for (const auto& [host, line] : placed) {
    if (host.gateway && gateway) {
      throw Fault{line, "host.roles: a second gateway, " + in_quotes(host.name) + "; " + in_quotes(gateway->host.name) +
                            " leads already (line " + std::to_string(gateway->line) + ")"};
    }
    if (host.gateway) gateway = &placed[hosts.size()];
    hosts.push_back(host);
  }
  if (!gateway) throw Fault{placed.front().line, "host.roles: no host leads; give one roles = [\"gateway\"]"};
  if (hosts.size() == 1) throw Fault{gateway->line, "host: there is no worker; add a [[host]] without roles for each"};
  return hosts;
}

// ---- the file ------------------------------------------------------------------------------------------------------

// Whether the gateway heads the blocks itself.
bool gateway_heads(const Section& section, int blocks) {
  const auto word = section.text("heads");
  if (!word) return false;
  if (*word != "workers" && *word != "gateway")
    section.fail("heads", "unknown: " + in_quotes(*word) + "; known: workers, gateway");
  if (blocks == 0) section.fail("heads", "goes with code.blocks");
  return *word == "gateway";
}

// Left out, n is the number of worker hosts (of one block: its share of them), and k leaves room for two missing workers
// (in a block: for one; none: for none).
CodeSection read_code(const Section& top, const toml::table& root, int workers) {
  static constexpr std::array<std::string_view, 6> kKnown{"scheme", "blocks", "workers", "needed", "heads", "deadline_ms"};
  static const toml::table kEmpty;
  const auto* node = root.get("code");
  if (node && !node->as_table()) top.fail("code", "must be a table, headed [code]");
  const Section section(node ? *node->as_table() : kEmpty, "code.", kKnown);
  CodeSection code;
  if (const auto word = section.text("scheme")) {
    const auto scheme = coding::scheme_of(*word);
    if (!scheme) section.fail("scheme", scheme.error());
    code.scheme = *scheme;
  }
  const bool uncoded = code.scheme == coding::Scheme::none;
  code.blocks = static_cast<int>(section.number("blocks", 1, kBlocksMax).value_or(0));
  code.gateway_heads = gateway_heads(section, code.blocks);
  const int blocks = std::max(1, code.blocks);
  const auto hosts = std::to_string(workers) + " worker hosts (every [[host]] but the gateway)";
  if (workers % blocks != 0)
    section.fail("blocks", "is " + std::to_string(blocks) + " but the file has " + hosts + ", which cannot be shared out over as many");
  const int n = static_cast<int>(section.number("workers", 1, coding::kWorkersMax).value_or(workers / blocks));
  if (n * blocks != workers) {
    section.fail("workers", "is " + std::to_string(n) + (code.blocks > 0 ? " in each of " + std::to_string(blocks) + " blocks" : "") +
                                " but the file has " + hosts);
  }
  if (n > coding::kWorkersMax) {
    section.fail("workers", "one code takes at most " + std::to_string(coding::kWorkersMax) + " workers and the file has " + hosts +
                                "; share them out with code.blocks");
  }
  code.shape.workers = n;
  const int usual = uncoded ? n : std::max(1, n - (code.blocks > 0 ? 1 : 2));
  code.shape.needed = static_cast<int>(section.number("needed", 1, n).value_or(usual));
  if (uncoded && code.shape.needed != n) {
    section.fail("needed", "is " + std::to_string(code.shape.needed) + " but scheme \"none\" needs all " +
                               std::to_string(n) + " workers");
  }
  code.deadline =
      std::chrono::milliseconds(section.number("deadline_ms", 1, kDeadlineMax).value_or(code.deadline.count()));
  return code;
}

std::filesystem::path resolved(const std::filesystem::path& directory, const std::string& text) {
  if (text.empty()) return {};
  const auto path = (directory / text).lexically_normal();
  return path.has_filename() ? path : path.parent_path();  // "keys/" and "keys" are one directory
}

std::filesystem::path directory_of(const std::filesystem::path& file) {
  std::error_code ignored;
  const auto absolute = std::filesystem::absolute(file.empty() ? "cluster.toml" : file, ignored);
  return absolute.parent_path();
}

Host probe_host() { return {.name = "probe", .address = "127.0.0.1", .port = 7000, .device = "cpu", .gateway = false}; }

Cluster read_cluster(const toml::table& root, const std::filesystem::path& file) {
  static constexpr std::array<std::string_view, 8> kKnown{"name",     "keys",         "model", "topology",
                                                          "launcher", "allow_faults", "code",  "host"};
  const Section top(root, "", kKnown);
  const auto directory = directory_of(file);
  Cluster cluster;
  cluster.name = top.required_text("name");
  cluster.keys = resolved(directory, top.text("keys").value_or("keys"));
  if (cluster.keys.empty()) top.fail("keys", "is empty; name the directory that `coppice keys` makes");
  cluster.model = resolved(directory, top.text("model").value_or(""));
  cluster.topology = resolved(directory, top.text("topology").value_or(""));
  cluster.launcher = top.text("launcher").value_or(cluster.launcher);
  if (const auto words = launch_command(cluster.launcher, probe_host(), {"coppice"}); !words) {
    throw Fault{top.line("launcher"), words.error().what};
  }
  cluster.faults_allowed = top.flag("allow_faults").value_or(false);
  cluster.hosts = read_hosts(top);
  for (auto& host : cluster.hosts)
    if (host.device.starts_with(kReplay))
      host.device = std::string(kReplay) + resolved(directory, host.device.substr(kReplay.size())).string();
  cluster.code = read_code(top, root, static_cast<int>(cluster.hosts.size()) - 1);
  return cluster;
}

std::string toml_string(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

}  // namespace

const Host& Cluster::gateway() const {
  return *std::find_if(hosts.begin(), hosts.end(), [](const Host& host) { return host.gateway; });
}

std::vector<Host> Cluster::workers() const {
  std::vector<Host> result;
  std::copy_if(hosts.begin(), hosts.end(), std::back_inserter(result), [](const Host& host) { return !host.gateway; });
  return result;
}

const Host* Cluster::find(std::string_view host) const {
  const auto at = std::find_if(hosts.begin(), hosts.end(), [&](const Host& each) { return each.name == host; });
  return at == hosts.end() ? nullptr : &*at;
}

Expected<Cluster> parse_cluster(std::string_view toml, const std::filesystem::path& file) {
  const auto at = [&](std::size_t line) {
    return file.string() + (line == 0 ? std::string() : ":" + std::to_string(line)) + ": ";
  };
  try {
    return read_cluster(parsed(toml), file);
  } catch (const Fault& fault) {
    return bad_input(at(fault.line) + one_line(fault.what));
  } catch (const std::exception& error) {
    return bad_input(at(0) + one_line(error.what()));
  }
}

Expected<Cluster> load_cluster(const std::filesystem::path& file) {
  const auto text = read_file(AT_FDCWD, file, file, {.bytes_max = kFileBytesMax});
  if (!text) return tl::unexpected(text.error());
  return parse_cluster(*text, file);
}

std::string to_toml(const Cluster& cluster) {
  std::string text;
  const auto line = [&](const char* key, const std::string& value) { text += std::string(key) + " = " + value + "\n"; };
  line("name", toml_string(cluster.name));
  line("keys", toml_string(cluster.keys.string()));
  if (!cluster.model.empty()) line("model", toml_string(cluster.model.string()));
  if (!cluster.topology.empty()) line("topology", toml_string(cluster.topology.string()));
  line("launcher", toml_string(cluster.launcher));
  line("allow_faults", cluster.faults_allowed ? "true" : "false");
  text += "\n[code]\n";
  line("scheme", toml_string(coding::name(cluster.code.scheme)));
  if (cluster.code.blocks > 0) {
    line("blocks", std::to_string(cluster.code.blocks));
    line("heads", cluster.code.gateway_heads ? "\"gateway\"" : "\"workers\"");
  }
  line("workers", std::to_string(cluster.code.shape.workers));
  line("needed", std::to_string(cluster.code.shape.needed));
  line("deadline_ms", std::to_string(cluster.code.deadline.count()));
  for (const auto& host : cluster.hosts) {
    text += "\n[[host]]\n";
    line("name", toml_string(host.name));
    line("address", toml_string(host.address));
    line("port", std::to_string(host.port));
    line("device", toml_string(host.device));
    if (host.gateway) line("roles", "[\"gateway\"]");
  }
  return text;
}

// ---- shared --------------------------------------------------------------------------------------------------------

bool is_plain_name(std::string_view name) {
  const auto fits = [](char c) {
    return is_letter_or_digit(c) || std::string_view("._-").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= 64 && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(), fits);
}

std::string one_line(std::string_view text) {
  constexpr std::size_t kBytesMax = 400;
  std::string result;
  for (const char c : text.substr(0, kBytesMax)) {
    result += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? ' ' : c;
  }
  while (!result.empty() && result.back() == ' ') result.pop_back();
  return text.size() > kBytesMax ? result + "…" : result;
}

namespace {

struct OpenFile {
  int fd;
  explicit OpenFile(int descriptor) : fd(descriptor) {}
  ~OpenFile() {
    if (fd >= 0) ::close(fd);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
};

}  // namespace

Expected<std::string> read_file(int directory, const std::filesystem::path& file, const std::filesystem::path& shown,
                                const ReadLimits& limits) {
  const auto fault = [&](const std::string& what) { return bad_input(one_line(shown.string()) + ": " + what); };
  // O_NONBLOCK: a FIFO must not hold up the opener; regular files ignore it.
  const OpenFile open_file(
      ::openat(directory, file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | (limits.follow_links ? 0 : O_NOFOLLOW)));
  if (open_file.fd < 0) return fault(errno == ELOOP ? "is a symbolic link" : std::strerror(errno));
  struct stat status {};
  if (::fstat(open_file.fd, &status) != 0) return fault(std::strerror(errno));
  if (!S_ISREG(status.st_mode)) return fault("is not a regular file");
  if (limits.secret && (status.st_mode & 0077) != 0) {
    return fault("others may read this secret; run: chmod 600 " + one_line(shown.string()));
  }
  const auto too_large = [&] { return fault("is larger than " + std::to_string(limits.bytes_max) + " bytes"); };
  if (static_cast<std::uintmax_t>(status.st_size) > limits.bytes_max) return too_large();
  // One byte more than there is, so that a file that grows meanwhile is noticed and never followed.
  std::string bytes(static_cast<std::size_t>(status.st_size) + 1, '\0');
  std::size_t length = 0;
  while (length < bytes.size()) {
    const auto got = ::read(open_file.fd, bytes.data() + length, bytes.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fault(std::strerror(errno));
    if (got == 0) break;
    length += static_cast<std::size_t>(got);
  }
  if (length == bytes.size()) return fault("grew while it was read; try again");
  bytes.resize(length);
  return bytes;
}

}  // namespace coppice::runtime
