#include "collectives/machine_files.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <pugixml.hpp>
#include <set>
#include <sstream>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

tl::unexpected<Error> malformed(std::string what) {
  return tl::unexpected(Error{ErrorCode::malformed, std::move(what)});
}

std::optional<int> whole(std::string_view text, int most) {
  int value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || value < 0 || value > most) return std::nullopt;
  return value;
}

Link link_of(int from, int to, const Rational& capacity, const char* kind) {
  Link link;
  link.from = from;
  link.to = to;
  link.capacity = capacity;
  link.kind = kind;
  return link;
}

// GB/s a direction, NCCL's: src/graph/topo.h.
Rational nvlink_speed(int sm) {
  if (sm < 70) return 18;
  return sm >= 90 ? Rational(103, 5) : Rational(20);
}

const Rational kPcie3 = 12;
const Rational kSockets = 10;  // between two CPUs of the Skylake generation

// ---- XML -----------------------------------------------------------------------------------------------------------

class XmlReader {
 public:
  XmlReader(const pugi::xml_node& system, const std::string& name) : system_(system) {
    topology_.name = name;
    topology_.unit = "GB/s";
  }

  Expected<Topology> run() {
    std::vector<int> sockets;
    for (const auto& cpu : system_.children("cpu")) {
      const int socket = add("cpu" + std::to_string(sockets.size()), true);
      for (const int other : sockets) topology_.links.push_back(link_of(other, socket, kSockets, "qpi"));
      sockets.push_back(socket);
      for (const auto& child : cpu.children()) {
        if (auto read = device(child, socket, kPcie3, 0); !read) return tl::unexpected(read.error());
      }
    }
    if (auto read = join_gpus(); !read) return tl::unexpected(read.error());
    if (auto valid = validate(topology_); !valid) return tl::unexpected(valid.error());
    return std::move(topology_);
  }

 private:
  struct Gpu {
    int node;
    int sm;
    std::string busid;
    pugi::xml_node element;
  };

  int add(std::string id, bool is_switch) {
    topology_.nodes.push_back({.id = std::move(id), .is_switch = is_switch});
    return static_cast<int>(topology_.nodes.size()) - 1;
  }

  // "8.0 GT/s PCIe" and "16": lanes × what NCCL counts of each lane; unknown: PCIe 3 x16.
  static Rational pcie_speed(const pugi::xml_node& pci) {
    const double transfers = std::strtod(pci.attribute("link_speed").as_string(), nullptr);
    const int width = pci.attribute("link_width").as_int(16);
    // Of 1.5, 3, 6, 12, 24 Gbit/s a lane (2.5, 5, 8, 16, 32 GT/s).
    const Rational lane = transfers <= 0   ? Rational(6)
                          : transfers < 4  ? Rational(3, 2)
                          : transfers < 7  ? Rational(3)
                          : transfers < 12 ? Rational(6)
                          : transfers < 24 ? Rational(12)
                                           : Rational(24);
    const int lanes = width >= 1 && width <= 32 ? width : 16;
    Rational speed(lane * lanes / 8);
    speed.canonicalize();
    return speed;
  }

  Expected<void> device(const pugi::xml_node& element, int above, const Rational& speed, int depth) {
    constexpr int kDepthMax = 16;
    if (depth > kDepthMax) return malformed("elements are nested too deeply");
    const std::string_view kind = element.name();
    if (kind == "gpu") return gpu(element, above, speed);
    if (kind == "net") {
      const int card = add("net" + std::to_string(cards_++), true);
      const double megabits = element.attribute("speed").as_double(0);
      const Rational own = megabits >= 1 && megabits < 1e9 ? Rational(static_cast<long>(megabits), 8000) : Rational(12);
      topology_.links.push_back(link_of(above, card, own < speed ? own : speed, "net"));
      topology_.links.back().capacity.canonicalize();
      return {};
    }
    if (kind == "nic") {
      for (const auto& child : element.children()) {
        if (auto read = device(child, above, speed, depth + 1); !read) return read;
      }
      return {};
    }
    return kind == "pci" ? pci(element, above, depth) : Expected<void>{};
  }

  // A bridge becomes a switch; a device at the end of a slot hangs on what is above.
  Expected<void> pci(const pugi::xml_node& element, int above, int depth) {
    const Rational speed = pcie_speed(element);
    const bool bridge = !element.child("pci").empty();
    int here = above;
    if (bridge) {
      here = add("pci" + std::to_string(bridges_++), true);
      topology_.links.push_back(link_of(above, here, speed, "pcie"));
    }
    for (const auto& child : element.children()) {
      if (std::string_view(child.name()) == "gpu") busid_ = element.attribute("busid").as_string();
      if (auto read = device(child, here, speed, depth + 1); !read) return read;
    }
    return {};
  }

  Expected<void> gpu(const pugi::xml_node& element, int above, const Rational& speed) {
    const auto dev = whole(element.attribute("dev").as_string(), 4095);
    if (!dev) return malformed("a <gpu> without a number \"dev\"");
    const int node = add("g" + std::to_string(*dev), false);
    topology_.links.push_back(link_of(above, node, speed, "pcie"));
    std::string busid = busid_;
    std::ranges::transform(busid, busid.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    gpus_.push_back({node, element.attribute("sm").as_int(70), busid, element});
    return {};
  }

  // "910", "gfx90a", "942": RCCL's speeds of one xGMI link, GB/s.
  static Rational xgmi_speed(const pugi::xml_node& gpu) {
    const std::string chip = gpu.attribute("gcn").as_string();
    if (chip.find("94") != std::string::npos || chip.find("95") != std::string::npos) return 48;
    return chip.find("910") != std::string::npos || chip.find("90a") != std::string::npos ? 36 : 24;
  }

  Expected<void> join_gpus() {
    std::map<std::string, int> by_busid;
    for (const Gpu& gpu : gpus_) by_busid.emplace(gpu.busid, gpu.node);
    for (const Gpu& gpu : gpus_) {
      for (const char* kind : {"nvlink", "xgmi"}) {
        for (const auto& element : gpu.element.children(kind)) {
          if (auto read = gpu_link(gpu, element, kind, by_busid); !read) return read;
        }
      }
    }
    return {};
  }

  Expected<void> gpu_link(const Gpu& gpu, const pugi::xml_node& element, const char* kind,
                          const std::map<std::string, int>& by_busid) {
    const std::string& id = topology_.nodes[static_cast<std::size_t>(gpu.node)].id;
    const auto count = whole(element.attribute("count").as_string("1"), 1024);
    if (!count || *count == 0) return malformed("gpu " + id + ": a <" + kind + "> without a number \"count\"");
    const bool nvidia = std::string_view(kind) == "nvlink";
    const Rational capacity((nvidia ? nvlink_speed(gpu.sm) : xgmi_speed(gpu.element)) * *count);
    const std::string_view target_class = element.attribute("tclass").as_string();
    if (target_class.starts_with("0x0680")) {
      if (nvswitch_ < 0) nvswitch_ = add("nvswitch", true);
      topology_.links.push_back(link_of(gpu.node, nvswitch_, capacity, kind));
      return {};
    }
    std::string target = element.attribute("target").as_string();
    std::ranges::transform(target, target.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto found = by_busid.find(target);
    if (found == by_busid.end()) {
      // Links to a CPU or to a GPU that this process does not see are no way between GPUs.
      return {};
    }
    if (found->second == gpu.node) return malformed("gpu " + id + ": a <" + kind + "> to itself");
    // Each end lists the link; each list gives its own direction.
    topology_.links.push_back(link_of(gpu.node, found->second, capacity, kind));
    topology_.links.back().duplex = false;
    return {};
  }

  pugi::xml_node system_;
  Topology topology_;
  std::vector<Gpu> gpus_;
  std::string busid_;
  int nvswitch_ = -1;  // all NVSwitches as one: they are alike to every GPU
  int bridges_ = 0;
  int cards_ = 0;
};

// ---- nvidia-smi ----------------------------------------------------------------------------------------------------

// Without the escapes that underline the header.
std::string plain(std::string_view text) {
  std::string kept;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\x1b' && at + 1 < text.size() && text[at + 1] == '[') {
      while (at < text.size() && text[at] != 'm') ++at;
    } else {
      kept += text[at];
    }
  }
  return kept;
}

std::vector<std::string> words(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> list;
  for (std::string word; stream >> word;) list.push_back(word);
  return list;
}

// "GPU3": 3.
std::optional<int> gpu_number(std::string_view word) {
  return word.starts_with("GPU") ? whole(word.substr(3), 4095) : std::nullopt;
}

class SmiReader {
 public:
  explicit SmiReader(const std::string& name) {
    topology_.name = name;
    topology_.unit = "GB/s";
  }

  Expected<Topology> run(std::string_view text) {
    if (auto read = read_table(plain(text)); !read) return tl::unexpected(read.error());
    const int count = static_cast<int>(cells_.size());
    for (int gpu = 0; gpu < count; ++gpu)
      topology_.nodes.push_back({.id = "g" + std::to_string(gpu), .is_switch = false});
    if (auto read = join_by_nvlink(count); !read) return tl::unexpected(read.error());
    join_by_pcie(count);
    if (auto valid = validate(topology_); !valid) return tl::unexpected(valid.error());
    return std::move(topology_);
  }

 private:
  Expected<void> read_table(const std::string& text) {
    std::istringstream stream(text);
    std::size_t columns = 0;
    for (std::string line; std::getline(stream, line);) {
      const auto list = words(line);
      if (list.empty()) continue;
      if (columns == 0) {
        while (columns < list.size() && gpu_number(list[columns]) == static_cast<int>(columns)) ++columns;
        continue;
      }
      const auto row = gpu_number(list.front());
      if (!row) continue;  // network cards, the legend
      if (*row != static_cast<int>(cells_.size()) || cells_.size() >= columns) {
        return malformed("row " + in_quotes(list.front()) + " is out of order");
      }
      if (list.size() < columns + 1) return malformed("row " + in_quotes(list.front()) + " has too few columns");
      cells_.emplace_back(list.begin() + 1, list.begin() + 1 + static_cast<std::ptrdiff_t>(columns));
    }
    if (columns == 0 || cells_.size() != columns) return malformed("the table needs as many GPU rows as columns");
    return {};
  }

  Expected<int> links(int row, int column) const {
    const std::string& cell = cells_[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)];
    static const std::set<std::string> kOther = {"X", "PIX", "PXB", "PHB", "NODE", "SYS", "SOC"};
    if (kOther.contains(cell)) return 0;
    const auto count = cell.starts_with("NV") ? whole(std::string_view(cell).substr(2), 1024) : std::nullopt;
    if (!count) return malformed(numbered("row GPU", row) + numbered(", column GPU", column) + ": " + in_quotes(cell));
    return *count;
  }

  Expected<void> join_by_nvlink(int count) {
    std::vector<std::vector<int>> joined(static_cast<std::size_t>(count),
                                         std::vector<int>(static_cast<std::size_t>(count)));
    bool alike = count > 1;
    for (int row = 0; row < count; ++row) {
      for (int column = 0; column < count; ++column) {
        const auto number = links(row, column);
        if (!number) return tl::unexpected(number.error());
        joined[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)] = *number;
        alike = alike && (row == column || *number == joined[0][1]);
      }
    }
    constexpr int kLinksOfAGpuMax = 18;
    constexpr int kLink = 20;
    if (alike && joined[0][1] * (count - 1) > kLinksOfAGpuMax) {
      topology_.nodes.push_back({.id = "nvswitch", .is_switch = true});
      for (int gpu = 0; gpu < count; ++gpu) {
        topology_.links.push_back(link_of(gpu, count, joined[0][1] * kLink, "nvlink"));
      }
      return {};
    }
    for (int row = 0; row < count; ++row) {
      for (int column = row + 1; column < count; ++column) {
        const int number = joined[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)];
        if (number != joined[static_cast<std::size_t>(column)][static_cast<std::size_t>(row)]) {
          return malformed(numbered("row GPU", row) + numbered(", column GPU", column) +
                           ": the other half of the table differs");
        }
        if (number > 0) topology_.links.push_back(link_of(row, column, number * kLink, "nvlink"));
      }
    }
    return {};
  }

  bool within(int row, int column, const std::set<std::string>& kinds) const {
    return kinds.contains(cells_[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)]);
  }

  // The table shows one way a pair: where that is an NVLink, nothing is known of PCIe, so only machines whose GPUs are
  // not all joined by NVLinks get a tree of switches and sockets, of what the table does show.
  void join_by_pcie(int count) {
    const auto group = [&](const std::set<std::string>& kinds) {
      std::vector<int> of(static_cast<std::size_t>(count), -1);
      int groups = 0;
      for (int gpu = 0; gpu < count; ++gpu) {
        for (int other = 0; other < gpu && of[static_cast<std::size_t>(gpu)] < 0; ++other) {
          if (within(gpu, other, kinds)) of[static_cast<std::size_t>(gpu)] = of[static_cast<std::size_t>(other)];
        }
        if (of[static_cast<std::size_t>(gpu)] < 0) of[static_cast<std::size_t>(gpu)] = groups++;
      }
      return std::pair(of, groups);
    };
    const std::set<std::string> all = {"PIX", "PXB", "PHB", "NODE", "SYS", "SOC"};
    bool shown = false;
    for (int gpu = 1; gpu < count; ++gpu) {
      for (int other = 0; other < gpu; ++other) shown = shown || within(gpu, other, all);
    }
    if (!shown) return;
    const auto [socket, sockets] = group({"PIX", "PXB", "PHB", "NODE"});
    const auto [bridge, bridges] = group({"PIX", "PXB"});
    const int first = static_cast<int>(topology_.nodes.size());
    for (int at = 0; at < sockets; ++at) {
      topology_.nodes.push_back({.id = "cpu" + std::to_string(at), .is_switch = true});
      for (int other = 0; other < at; ++other) {
        topology_.links.push_back(link_of(first + other, first + at, kSockets, "qpi"));
      }
    }
    std::vector<int> made(static_cast<std::size_t>(bridges), -1);
    for (int gpu = 0; gpu < count; ++gpu) {
      int& node = made[static_cast<std::size_t>(bridge[static_cast<std::size_t>(gpu)])];
      if (node < 0) {
        node = static_cast<int>(topology_.nodes.size());
        topology_.nodes.push_back(
            {.id = "pci" + std::to_string(bridge[static_cast<std::size_t>(gpu)]), .is_switch = true});
        topology_.links.push_back(link_of(first + socket[static_cast<std::size_t>(gpu)], node, kPcie3, "pcie"));
      }
      topology_.links.push_back(link_of(node, gpu, kPcie3, "pcie"));
    }
  }

  Topology topology_;
  std::vector<std::vector<std::string>> cells_;
};

}  // namespace

Expected<Topology> read_nccl_xml(std::string_view text, const std::string& name) {
  pugi::xml_document document;
  const auto parsed = document.load_buffer(text.data(), text.size());
  if (!parsed)
    return malformed("is not XML: " + std::string(parsed.description()) + " at byte " + std::to_string(parsed.offset));
  const auto system = document.child("system");
  if (system.empty()) return malformed("there is no <system>");
  return XmlReader(system, name).run();
}

Expected<Topology> read_smi_table(std::string_view text, const std::string& name) { return SmiReader(name).run(text); }

MachineFileReader machine_file_reader(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return nullptr;
  if (text[begin] == '<') return &read_nccl_xml;
  const bool json = text[begin] == '{' || text[begin] == '[' || text[begin] == '"';
  return !json && text.substr(0, 4096).find("GPU0") != std::string_view::npos ? &read_smi_table : nullptr;
}

}  // namespace coppice::collectives
