#include "collectives/builtin.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "collectives/text.hpp"

namespace coppice::collectives {
namespace {

std::size_t index(int node) { return static_cast<std::size_t>(node); }

// A topology as it is put together.
class Builder {
 public:
  Builder(std::string name, std::string unit) {
    topology_.name = std::move(name);
    topology_.unit = std::move(unit);
  }

  int host(std::string id, std::string server = "") { return add({std::move(id), false, std::move(server)}); }
  int middle(std::string id, std::string server = "") { return add({std::move(id), true, std::move(server)}); }

  void join(int a, int b, const Rational& capacity, const char* kind) {
    Link link;
    link.from = a;
    link.to = b;
    link.capacity = capacity;
    link.kind = kind;
    topology_.links.push_back(std::move(link));
  }

  void send(int from, int to, const Rational& capacity, const char* kind) {
    join(from, to, capacity, kind);
    topology_.links.back().duplex = false;
  }

  Topology take() { return std::move(topology_); }

 private:
  int add(Node node) {
    topology_.nodes.push_back(std::move(node));
    return static_cast<int>(topology_.nodes.size()) - 1;
  }

  Topology topology_;
};

struct Joined {
  int a;
  int b;
  int links;
};

Topology gpus(const std::string& name, int count, const std::vector<Joined>& joined) {
  Builder builder(name, "links");
  for (int gpu = 0; gpu < count; ++gpu) builder.host(numbered("g", gpu));
  for (const Joined& each : joined) builder.join(each.a, each.b, each.links, "nvlink");
  return builder.take();
}

std::string in_box(int boxes, int box, const std::string& id) {
  return boxes == 1 ? id : numbered("b", box) + "." + id;
}

// The same machine in GB/s, with its PCIe: pairs of GPUs on a switch of 12, two of these on each socket, 10 between
// sockets.
Topology dgx_1v_with_pcie() {
  Topology topology = dgx_1v();
  topology.name = "dgx-1v-pcie";
  topology.unit = "GB/s";
  for (Link& link : topology.links) link.capacity *= 25;
  const int first = static_cast<int>(topology.nodes.size());
  for (int at = 0; at < 4; ++at) topology.nodes.push_back({.id = numbered("plx", at), .is_switch = true});
  for (int at = 0; at < 2; ++at) topology.nodes.push_back({.id = numbered("cpu", at), .is_switch = true});
  const auto join = [&](int a, int b, int capacity) {
    Link link;
    link.from = a;
    link.to = b;
    link.capacity = capacity;
    link.kind = "pcie";
    topology.links.push_back(std::move(link));
  };
  for (int gpu = 0; gpu < 8; ++gpu) join(gpu, first + gpu / 2, 12);
  for (int plx = 0; plx < 4; ++plx) join(first + plx, first + 4 + plx / 2, 12);
  join(first + 4, first + 5, 10);
  return topology;
}

// Boxes of eight GPUs on one NVSwitch, each GPU with a network card of its own on one of `rails` switches.
Topology boxes_of_eight(const std::string& name, int boxes, int nvlink, int network, int rails) {
  Builder builder(name, "GB/s");
  std::vector<int> rail;
  for (int at = 0; boxes > 1 && at < rails; ++at) rail.push_back(builder.middle(numbered("ib", at)));
  for (int box = 0; box < boxes; ++box) {
    const std::string server = boxes == 1 ? "" : numbered("b", box);
    const int middle = builder.middle(in_box(boxes, box, "nvswitch"), server);
    for (int gpu = 0; gpu < 8; ++gpu) {
      const int host = builder.host(in_box(boxes, box, numbered("g", gpu)), server);
      builder.join(host, middle, nvlink, "nvlink");
      if (boxes > 1) builder.join(host, rail[index(gpu % rails)], network, "ib");
    }
  }
  return builder.take();
}

Topology dgx_2() {
  Builder builder("dgx-2", "GB/s");
  const int middle = builder.middle("nvswitch");
  for (int gpu = 0; gpu < 16; ++gpu) builder.join(builder.host(numbered("g", gpu)), middle, 150, "nvlink");
  return builder.take();
}

Topology mi250(int boxes) {
  constexpr int kLink = 50;
  constexpr int kNetwork = 16;
  const std::vector<Joined> joined = {{0, 1, 4},   {2, 3, 4},   {4, 5, 4},   {6, 7, 4},  {8, 9, 4},  {10, 11, 4},
                                      {12, 13, 4}, {14, 15, 4}, {0, 4, 2},   {3, 7, 2},  {8, 12, 2}, {11, 15, 2},
                                      {0, 8, 1},   {1, 5, 1},   {1, 9, 1},   {1, 10, 1}, {2, 6, 1},  {2, 9, 1},
                                      {2, 10, 1},  {3, 11, 1},  {4, 6, 1},   {5, 6, 1},  {5, 7, 1},  {9, 13, 1},
                                      {10, 14, 1}, {12, 14, 1}, {13, 14, 1}, {13, 15, 1}};
  Builder builder(boxes == 1 ? "mi250" : numbered("mi250x", boxes), "GB/s");
  const int network = boxes > 1 ? builder.middle("ib") : -1;
  for (int box = 0; box < boxes; ++box) {
    const std::string server = boxes == 1 ? "" : numbered("b", box);
    std::vector<int> gcd;
    for (int at = 0; at < 16; ++at) gcd.push_back(builder.host(in_box(boxes, box, numbered("g", at)), server));
    for (const Joined& each : joined) builder.join(gcd[index(each.a)], gcd[index(each.b)], kLink * each.links, "xgmi");
    for (const int host : gcd) {
      if (boxes > 1) builder.join(host, network, kNetwork, "ib");
    }
  }
  return builder.take();
}

Topology two_racks(int hosts) {
  Builder builder("two-racks", "Gbit/s");
  const int left = builder.middle("s0");
  const int right = builder.middle("s1");
  for (int rack = 0; rack < 2; ++rack) {
    const std::string server = numbered("rack", rack);
    for (int host = 0; host < hosts; ++host) {
      builder.join(builder.host(numbered(rack == 0 ? "a" : "b", host), server), rack == 0 ? left : right, 25, "tcp");
    }
  }
  builder.join(left, right, 100, "trunk");
  return builder.take();
}

// Al-Fares, Loukissas and Vahdat, 2008: k pods of k/2 edge and k/2 aggregation switches, k/2 hosts an edge switch.
Topology fat_tree(int k) {
  Builder builder(numbered("fat-tree-", k), "Gbit/s");
  const int half = k / 2;
  std::vector<int> core;
  for (int at = 0; at < half * half; ++at) core.push_back(builder.middle(numbered("core", at)));
  int hosts = 0;
  for (int pod = 0; pod < k; ++pod) {
    std::vector<int> aggregation;
    for (int at = 0; at < half; ++at) {
      aggregation.push_back(builder.middle(numbered("agg", pod * half + at)));
      for (int up = 0; up < half; ++up) builder.join(aggregation.back(), core[index(at * half + up)], 10, "tcp");
    }
    for (int at = 0; at < half; ++at) {
      const int edge = builder.middle(numbered("edge", pod * half + at));
      for (const int up : aggregation) builder.join(edge, up, 10, "tcp");
      for (int down = 0; down < half; ++down) builder.join(builder.host(numbered("h", hosts++)), edge, 10, "tcp");
    }
  }
  return builder.take();
}

Topology torus(const std::string& name, const std::vector<int>& sides) {
  Builder builder(name, "links");
  const int count = std::accumulate(sides.begin(), sides.end(), 1, std::multiplies{});
  for (int host = 0; host < count; ++host) builder.host(numbered("h", host));
  for (int host = 0; host < count; ++host) {
    int stride = 1;
    for (const int side : sides) {
      const int at = host / stride % side;
      const int next = host + ((at + 1) % side - at) * stride;
      // A side of two has one link, not two between the same hosts.
      if (side > 2 || at == 0) builder.join(host, next, 1, "link");
      stride *= side;
    }
  }
  return builder.take();
}

// The numbers in "AxBxC" or "A-B"; nothing when it is not that.
std::optional<std::vector<int>> numbers_in(std::string_view text, char between) {
  std::vector<int> numbers;
  while (true) {
    int value = 0;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (fault != std::errc() || value < 0) return std::nullopt;
    numbers.push_back(value);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (text.empty()) return numbers;
    if (text.front() != between) return std::nullopt;
    text.remove_prefix(1);
  }
}

std::optional<std::vector<int>> after(std::string_view name, std::string_view prefix, char between) {
  if (!name.starts_with(prefix)) return std::nullopt;
  return numbers_in(name.substr(prefix.size()), between);
}

// B of "machine" (1) or "machinexB".
std::optional<int> boxes_in(std::string_view name, std::string_view machine) {
  if (name == machine) return 1;
  const auto numbers = after(name, std::string(machine) + "x", 'x');
  if (!numbers || numbers->size() != 1 || numbers->front() < 1 || numbers->front() > 448) return std::nullopt;
  return numbers->front();
}

std::optional<Topology> machine(std::string_view name) {
  const std::string own(name);
  if (name == "dgx-1p") return dgx_1p();
  if (name == "dgx-1v") return dgx_1v();
  if (name == "dgx-1v-pcie") return dgx_1v_with_pcie();
  if (name == "dgx-2") return dgx_2();
  if (const auto boxes = boxes_in(name, "dgx-a100")) return boxes_of_eight(own, *boxes, 300, 25, 2);
  if (const auto boxes = boxes_in(name, "h100")) return boxes_of_eight(own, *boxes, 450, 50, 8);
  if (const auto boxes = boxes_in(name, "mi250"); boxes && *boxes <= 240) return mi250(*boxes);
  return std::nullopt;
}

std::optional<Topology> plain_shape(std::string_view name) {
  const std::string own(name);
  if (const auto size = after(name, "star-", 'x'); size && size->size() == 1 && (*size)[0] >= 1 && (*size)[0] < 4096) {
    Builder builder(own, "links");
    const int middle = builder.middle("switch");
    for (int host = 0; host < (*size)[0]; ++host) builder.join(builder.host(numbered("h", host)), middle, 1, "link");
    return builder.take();
  }
  const auto complete = after(name, "complete-", 'x');
  const auto ring = after(name, "ring-", 'x');
  const auto& size = complete ? complete : ring;
  if (!size || size->size() != 1 || (*size)[0] < 2 || (*size)[0] > (complete ? 1024 : 4096)) return std::nullopt;
  Builder builder(own, "links");
  const int count = (*size)[0];
  for (int host = 0; host < count; ++host) builder.host(numbered("h", host));
  for (int a = 0; a < count; ++a) {
    for (int b = a + 1; b < count; ++b) {
      if (complete || b == a + 1 || (a == 0 && b == count - 1)) builder.join(a, b, 1, "link");
    }
  }
  return builder.take();
}

std::optional<Topology> shape(std::string_view name) {
  if (const auto hosts = boxes_in(name, "two-racks")) return two_racks(name == "two-racks" ? 4 : *hosts);
  if (const auto size = after(name, "fat-tree-", 'x'); size && size->size() == 1) {
    const int k = size->front();
    if (k >= 2 && k <= 20 && k % 2 == 0) return fat_tree(k);
    return std::nullopt;
  }
  if (const auto sides = after(name, "torus-", 'x')) {
    long count = 1;
    for (const int side : *sides) count = side < 2 ? kNodesMax + 1L : std::min<long>(count * side, kNodesMax + 1L);
    if (count > kNodesMax) return std::nullopt;
    return torus(std::string(name), *sides);
  }
  if (const auto numbers = after(name, "random-", '-'); numbers && numbers->size() <= 2) {
    if (numbers->front() < 1 || numbers->front() > 1024) return std::nullopt;
    RandomShape random;
    random.hosts = numbers->front();
    random.density = std::min(1.0, 6.0 / random.hosts);
    Topology topology =
        random_topology(random, numbers->size() == 2 ? static_cast<std::uint32_t>(numbers->back()) : 1U);
    topology.name = name;
    return topology;
  }
  return plain_shape(name);
}

// ---- allocations ---------------------------------------------------------------------------------------------------

using Capacities = std::vector<std::vector<Rational>>;  // between hosts, of each direction

Capacities capacities_of(const Topology& topology) {
  Capacities between(topology.nodes.size(), std::vector<Rational>(topology.nodes.size()));
  for (const Link& link : topology.links) {
    between[index(link.from)][index(link.to)] += link.capacity;
    if (link.duplex) between[index(link.to)][index(link.from)] += link.capacity;
  }
  return between;
}

bool connected(const Capacities& between, const std::vector<int>& hosts) {
  std::set<int> seen = {hosts.front()};
  std::vector<int> open = {hosts.front()};
  while (!open.empty()) {
    const int host = open.back();
    open.pop_back();
    for (const int next : hosts) {
      if (sgn(between[index(host)][index(next)]) > 0 && seen.insert(next).second) open.push_back(next);
    }
  }
  return seen.size() == hosts.size();
}

// What no renaming changes, and mostly tells classes apart: each host's capacities, sorted, sorted.
std::vector<std::vector<Rational>> profile(const Capacities& between, const std::vector<int>& hosts) {
  std::vector<std::vector<Rational>> rows;
  for (const int host : hosts) {
    std::vector<Rational>& row = rows.emplace_back();
    for (const int other : hosts) row.push_back(between[index(host)][index(other)]);
    std::ranges::sort(row);
  }
  std::ranges::sort(rows);
  return rows;
}

bool isomorphic(const Capacities& between, const std::vector<int>& a, const std::vector<int>& b,
                std::vector<int>& mapped) {
  if (mapped.size() == a.size()) return true;
  const int next = a[mapped.size()];
  for (const int candidate : b) {
    if (std::ranges::count(mapped, candidate) > 0) continue;
    bool fits = true;
    for (std::size_t at = 0; at < mapped.size() && fits; ++at) {
      fits = between[index(next)][index(a[at])] == between[index(candidate)][index(mapped[at])] &&
             between[index(a[at])][index(next)] == between[index(mapped[at])][index(candidate)];
    }
    if (!fits) continue;
    mapped.push_back(candidate);
    if (isomorphic(between, a, b, mapped)) return true;
    mapped.pop_back();
  }
  return false;
}

}  // namespace

Topology dgx_1p() {
  // Two complete graphs of four and a perfect matching between them.
  return gpus("dgx-1p", 8,
              {{0, 1, 1},
               {0, 2, 1},
               {0, 3, 1},
               {1, 2, 1},
               {1, 3, 1},
               {2, 3, 1},
               {4, 5, 1},
               {4, 6, 1},
               {4, 7, 1},
               {5, 6, 1},
               {5, 7, 1},
               {6, 7, 1},
               {0, 4, 1},
               {1, 5, 1},
               {2, 6, 1},
               {3, 7, 1}});
}

Topology dgx_1v() {
  // One Hamiltonian cycle of double links and one of single links.
  return gpus("dgx-1v", 8,
              {{0, 3, 2},
               {0, 4, 2},
               {1, 2, 2},
               {1, 5, 2},
               {2, 3, 2},
               {4, 7, 2},
               {5, 6, 2},
               {6, 7, 2},
               {0, 1, 1},
               {0, 2, 1},
               {1, 3, 1},
               {2, 6, 1},
               {3, 7, 1},
               {4, 5, 1},
               {4, 6, 1},
               {5, 7, 1}});
}

Expected<Topology> builtin_topology(std::string_view name) {
  auto topology = machine(name);
  if (!topology) topology = shape(name);
  if (!topology) return tl::unexpected(Error{ErrorCode::malformed, "there is no built-in topology " + in_quotes(name)});
  if (auto valid = validate(*topology); !valid) return tl::unexpected(valid.error());
  return *std::move(topology);
}

std::vector<std::pair<std::string, std::string>> builtin_names() {
  return {{"dgx-1p", "8 P100, in NVLinks of 20 GB/s"},
          {"dgx-1v", "8 V100, in NVLinks of 25 GB/s"},
          {"dgx-1v-pcie", "the same in GB/s, with its PCIe switches, for hybrid plans"},
          {"dgx-2", "16 V100 on an NVSwitch, 150 GB/s"},
          {"dgx-a100[xB]", "B boxes of 8 A100: 300 GB/s inside, 25 GB/s a GPU outside, on 2 rails"},
          {"h100[xB]", "B boxes of 8 H100: 450 GB/s inside, 50 GB/s a GPU outside, on 8 rails"},
          {"mi250[xB]", "B boxes of 16 GCDs: xGMI of 50 GB/s a link, 16 GB/s a GCD outside"},
          {"two-racks[xH]", "2 racks of H hosts (4) at 25 Gbit/s and a trunk of 100"},
          {"fat-tree-K", "K³/4 hosts in K pods, 10 Gbit/s"},
          {"torus-AxB[xC]", "hosts on a torus, one link to each neighbour"},
          {"random-N[-SEED]", "N hosts, random links of 1 to 10"},
          {"star-N, ring-N, complete-N", "N hosts at 1 link"}};
}

Topology without_others(const Topology& topology, const std::vector<int>& hosts) {
  Topology part{.name = topology.name, .unit = topology.unit, .nodes = {}, .links = {}};
  std::vector<int> renamed(topology.nodes.size(), -1);
  for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
    if (!topology.nodes[node].is_switch && std::ranges::count(hosts, static_cast<int>(node)) == 0) continue;
    renamed[node] = static_cast<int>(part.nodes.size());
    part.nodes.push_back(topology.nodes[node]);
  }
  for (Link link : topology.links) {
    link.from = renamed[index(link.from)];
    link.to = renamed[index(link.to)];
    if (link.from >= 0 && link.to >= 0) part.links.push_back(std::move(link));
  }
  return part;
}

std::vector<std::vector<int>> allocation_classes(const Topology& topology, int from, int to) {
  const Capacities between = capacities_of(topology);
  const std::vector<int> all = hosts(topology);
  std::map<std::pair<std::size_t, std::vector<std::vector<Rational>>>, std::vector<std::vector<int>>> classes;
  std::vector<std::vector<int>> found;
  for (unsigned mask = 1; mask < 1U << all.size(); ++mask) {
    std::vector<int> chosen;
    for (std::size_t host = 0; host < all.size(); ++host) {
      if ((mask >> host & 1U) != 0) chosen.push_back(all[host]);
    }
    const int size = static_cast<int>(chosen.size());
    if (size < from || size > to || !connected(between, chosen)) continue;
    auto& alike = classes[{chosen.size(), profile(between, chosen)}];
    const bool known = std::ranges::any_of(alike, [&](const std::vector<int>& other) {
      std::vector<int> mapped;
      return isomorphic(between, chosen, other, mapped);
    });
    if (known) continue;
    alike.push_back(chosen);
    found.push_back(std::move(chosen));
  }
  std::ranges::stable_sort(found, {}, [](const std::vector<int>& hosts) { return hosts.size(); });
  return found;
}

Topology random_topology(const RandomShape& shape, std::uint32_t seed) {
  std::mt19937 rng(seed);
  // Not std::uniform_int_distribution, whose numbers differ from library to library.
  const auto below = [&](int end) { return static_cast<int>(rng() % static_cast<std::uint32_t>(end)); };
  Builder builder(numbered("random ", seed), "links");
  const int count = shape.hosts + shape.switches;
  for (int host = 0; host < shape.hosts; ++host) builder.host(numbered("h", host));
  for (int middle = 0; middle < shape.switches; ++middle) builder.middle(numbered("s", middle));
  const auto capacity = [&] {
    Rational value(1 + below(shape.capacity_max), 1 + below(shape.denominator_max));
    value.canonicalize();
    return value;
  };
  const auto link = [&](int a, int b) {
    if (shape.symmetric) return builder.join(a, b, capacity(), "link");
    builder.send(a, b, capacity(), "link");
    builder.send(b, a, capacity(), "link");
  };
  std::set<std::pair<int, int>> joined;
  for (int node = 1; node < count; ++node) {
    const int other = below(node);
    joined.emplace(other, node);
    link(other, node);
  }
  const auto wanted = static_cast<std::size_t>(shape.density * count * (count - 1) / 2);
  for (int tries = 0; joined.size() < wanted && tries < 20 * count * count; ++tries) {
    const int a = below(count);
    const int b = below(count);
    if (a < b && joined.emplace(a, b).second) link(a, b);
  }
  return builder.take();
}

}  // namespace coppice::collectives
