#include "collectives/program.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "collectives/bottleneck.hpp"
#include "collectives/hybrid.hpp"
#include "collectives/plan.hpp"
#include "collectives/schedule.hpp"

namespace coppice::collectives {
namespace {

constexpr double kChunkBytesLeast = 16 << 10;  // whatever the rate: links are judged by plans that may be wrong


std::size_t index(std::int64_t at) { return static_cast<std::size_t>(at); }

tl::unexpected<Error> malformed(std::string what) {
  return tl::unexpected(Error{ErrorCode::malformed, "program: " + std::move(what)});
}

// Edges of nodes as edges of ranks, with the addresses of the links at both ends.
class Translator {
 public:
  // nodes: of each rank.
  Translator(const std::vector<int>& nodes, const Topology& topology) : topology_(topology) {
    for (std::size_t rank = 0; rank < nodes.size(); ++rank) ranks_[nodes[rank]] = static_cast<int>(rank);
  }
  int rank(int node) const { return ranks_.at(node); }

  RankEdge edge(const TreeEdge& tree_edge) const {
    const std::vector<int> path =
        tree_edge.path.empty() ? std::vector{tree_edge.from, tree_edge.to} : tree_edge.path;
    RankEdge out{rank(tree_edge.from), rank(tree_edge.to)};
    const std::size_t last = path.size() - 2;
    out.from_address = addresses(tree_edge, path, 0).first;
    out.to_address = addresses(tree_edge, path, last).second;
    out.switched = path.size() > 2;
    return out;
  }

  std::vector<RankEdge> edges(const std::vector<TreeEdge>& list) const {
    std::vector<RankEdge> out;
    for (const TreeEdge& each : list) out.push_back(edge(each));
    return out;
  }

 private:
  // Of the link that this hop takes: the one that the edge names, or the first.
  std::pair<std::string, std::string> addresses(const TreeEdge& edge, const std::vector<int>& path, std::size_t hop) const {
    const auto link = edge.links.empty() ? link_between(topology_, path[hop], path[hop + 1]) : std::optional(edge.links[hop]);
    if (!link) return {};
    return addresses_from(topology_.links[index(*link)], path[hop]);
  }

  const Topology& topology_;
  std::map<int, int> ranks_;
};

TreeProgram tree_program(const Plan& plan, const Tree& tree, const Translator& translator) {
  TreeProgram out{.root = translator.rank(tree.root), .up = {}, .down = {}, .share = {}};
  switch (plan.operation) {
    case Operation::allreduce:
      out.up = translator.edges(tree.reduce_edges.empty() ? turned(tree.edges) : tree.reduce_edges);
      out.down = translator.edges(tree.edges);
      break;
    case Operation::reduce:
    case Operation::reduce_scatter:
      out.up = translator.edges(turned(tree.edges));
      out.keeper = out.root;
      break;
    case Operation::gather:  // from the host that the path is for, unaltered on the way
      out.keeper = out.root;
      out.down = translator.edges(turned(tree.edges));
      if (tree.target) out.root = translator.rank(*tree.target);
      break;
    case Operation::scatter:
      out.down = translator.edges(tree.edges);
      if (tree.target) out.keeper = translator.rank(*tree.target);
      break;
    case Operation::broadcast:
    case Operation::allgather: out.down = translator.edges(tree.edges); break;
  }
  return out;
}

using Stretches = std::vector<Stretch>;

constexpr int kWhole = -1;  // the part of operations that have none

constexpr double kAsSoon = 1.1;  // one tree may take so much longer than all of them

// The rank whose part of the buffer a tree carries.
int part_of(Operation operation, const TreeProgram& tree) {
  if (!has_parts(operation)) return kWhole;
  return operation == Operation::scatter ? tree.keeper : tree.root;
}

// The bytes of chunks [first, end) of a tree.
void cut(const TreeProgram& tree, std::int64_t first, std::int64_t end, Stretches& into) {
  for (std::int64_t i = first; i < end; ++i) {
    const Stretch chunk = chunk_at(tree, i);
    if (!into.empty() && into.back().offset + into.back().bytes == chunk.offset)
      into.back().bytes += chunk.bytes;
    else
      into.push_back(chunk);
  }
}

// The bytes [first, end) of stretches laid end to end.
Stretches slice(const Stretches& all, std::int64_t first, std::int64_t end) {
  Stretches out;
  std::int64_t at = 0;
  for (const Stretch& stretch : all) {
    const std::int64_t from = std::max(first, at), to = std::min(end, at + stretch.bytes);
    if (from < to) out.push_back({stretch.offset + from - at, to - from});
    at += stretch.bytes;
  }
  return out;
}

std::int64_t rounded_up(std::int64_t value, std::int64_t granule) { return (value + granule - 1) / granule * granule; }

// A plan's trees carry these bytes, each in proportion to its rate among those of its part.
void add_trees(Program& program, const Plan& plan, const std::vector<int>& nodes, const Topology& topology,
               const std::map<int, Stretches>& work, std::int64_t chunks, bool known_at_root) {
  const auto granule = static_cast<std::int64_t>(size_of(program.element));
  const auto unit = unit_bytes_per_s(topology.unit);
  const Translator translator(nodes, topology);
  const auto part = [&](const TreeProgram& tree) { return part_of(plan.operation, tree); };
  std::map<int, Rational> rate, dealt;  // by part: of all its trees, of those that have their share
  std::vector<TreeProgram> trees;
  for (const Tree& tree : plan.trees) {
    trees.push_back(tree_program(plan, tree, translator));
    rate[part(trees.back())] += tree.rate;
  }
  for (std::size_t i = 0; i < trees.size(); ++i) {
    TreeProgram& tree = trees[i];
    const auto own = work.find(part(tree));
    if (own == work.end()) continue;
    std::int64_t bytes = 0;
    for (const Stretch& stretch : own->second) bytes += stretch.bytes;
    // Cut where sums of rates say, so that none is lost to rounding. Where a rank is alone its one tree has no rate.
    const bool alone = sgn(rate[own->first]) == 0;
    const auto place = [&](const Rational& sum) {
      if (sum == rate[own->first]) return bytes;
      const Rational at(sum * mpz_class(std::to_string(bytes)) / rate[own->first]);
      return static_cast<std::int64_t>(mpz_class(at.get_num() / at.get_den()).get_si()) / granule * granule;
    };
    const std::int64_t first = alone ? 0 : place(dealt[own->first]);
    dealt[own->first] += plan.trees[i].rate;
    const std::int64_t end = place(dealt[own->first]);
    if (first == end) continue;
    tree.share = slice(own->second, first, end);
    tree.known_at_root = known_at_root;
    // What is only passed on goes beside the rest: links are judged by the rest alone, which takes all that they have.
    if (unit && !known_at_root) tree.bytes_per_s = static_cast<std::int64_t>(plan.trees[i].rate.get_d() * unit->get_d());
    const std::int64_t wanted = (end - first + chunks - 1) / std::max<std::int64_t>(chunks, 1);
    // On a slow link a chunk is no longer than a second: what else goes by the link waits behind it.
    const double second = unit ? plan.trees[i].rate.get_d() * unit->get_d() : 0;
    const auto most = second > 0 ? static_cast<std::int64_t>(std::clamp(second, kChunkBytesLeast, double{kChunkBytesMax})) : kChunkBytesMax;
    tree.chunk_bytes = std::clamp<std::int64_t>(rounded_up(wanted, granule), granule, most / granule * granule);
    program.trees.push_back(std::move(tree));
  }
}

Expected<Program> empty_program(const Plan& plan, const ProgramOptions& options) {
  const auto granule = static_cast<std::int64_t>(size_of(options.element));
  const std::vector<int>& nodes = options.nodes.empty() ? plan.participants : options.nodes;
  const auto ranks = static_cast<std::int64_t>(nodes.size());
  const std::int64_t together = has_parts(plan.operation) ? granule * ranks : granule;
  if (options.bytes < 0 || options.bytes > kProgramBytesMax || options.bytes % together != 0)
    return malformed("a buffer of " + std::to_string(options.bytes) + " bytes is no whole number of " +
                     std::string(name(options.element)) +
                     (has_parts(plan.operation) ? " a rank, of " + std::to_string(ranks) + " ranks" : ""));
  Program program{plan.operation, options.element, options.reduction, static_cast<int>(ranks), options.root, options.bytes, {}, {}};
  if (plan.participants.size() < nodes.size())
    for (int rank = 0; rank < program.ranks; ++rank)
      if (std::ranges::find(plan.participants, nodes[index(rank)]) != plan.participants.end()) program.members.push_back(rank);
  return program;
}

// By part: the whole buffer.
std::map<int, Stretches> whole_of(const Program& program) {
  if (!has_parts(program.operation)) return {{kWhole, {{0, program.bytes}}}};
  std::map<int, Stretches> work;
  for (const int rank : members_of(program)) work[rank] = {part_of(program, rank)};
  return work;
}

// The trees of a plan carry these bytes, in as many chunks as are asked for or as the pipeline's model says.
void add_plan(Program& program, const Plan& plan, const Topology& topology, const std::map<int, Stretches>& work,
              const ProgramOptions& options) {
  std::int64_t bytes = 0;
  for (const auto& [part, stretches] : work)
    for (const Stretch& stretch : stretches) bytes += stretch.bytes;
  const auto unit = unit_bytes_per_s(topology.unit);
  const ScheduleOptions timing{.bytes = bytes, .latency_s = options.latency_s, .unit_bytes_per_s = unit ? unit->get_d() : 1e9};
  Schedule model = schedule(plan, timing);
  Plan own = plan;
  // A small buffer is done as soon over one tree, and a chunk of it costs as much as a chunk of a large one.
  if (!has_parts(plan.operation) && options.chunks <= 0 && !options.as_planned) {
    std::optional<Schedule> best;
    for (const Tree& tree : plan.trees) {
      Plan single = plan;
      single.trees = {tree};
      single.trees[0].rate = bottleneck(plan, tree, topology);
      Schedule alone = schedule(single, timing);
      single.trees[0].rate = tree.rate;  // what links are judged by
      if (alone.seconds > kAsSoon * model.seconds || (best && alone.seconds >= best->seconds)) continue;
      best = std::move(alone);
      own = std::move(single);
    }
    if (best) model = std::move(*best);
  }
  std::int64_t chunks = options.chunks;
  if (chunks <= 0)
    for (const TreeSchedule& tree : model.trees) chunks = std::max(chunks, tree.chunking.count);
  add_trees(program, own, options.nodes.empty() ? plan.participants : options.nodes, topology, work, chunks, options.known_at_root);
}

// Whether the edges make one tree that all leave from the root; `towards`: that all lead to it.
bool is_tree(const std::vector<RankEdge>& edges, int root, int ranks, bool towards) {
  std::set<int> known{root};
  const auto step = [&](const RankEdge& edge) {
    const int near = towards ? edge.to : edge.from, far = towards ? edge.from : edge.to;
    return near >= 0 && near < ranks && far >= 0 && far < ranks && known.contains(near) && known.insert(far).second &&
           edge.from_address.size() <= kNameBytesMax && edge.to_address.size() <= kNameBytesMax;
  };
  return towards ? std::all_of(edges.rbegin(), edges.rend(), step) : std::all_of(edges.begin(), edges.end(), step);
}

}  // namespace

RankEdge reversed(const RankEdge& edge) {
  return {edge.to, edge.from, edge.to_address, edge.from_address, edge.switched};
}

Expected<Program> make_program(const Plan& plan, const Topology& topology, const ProgramOptions& options) {
  auto program = empty_program(plan, options);
  if (!program) return program;
  add_plan(*program, plan, topology, whole_of(*program), options);
  return program;
}

Expected<Program> make_program(const HybridPlan& plan, const ProgramOptions& options) {
  auto program = empty_program(plan.first, options);
  if (!program) return program;
  const auto granule = static_cast<std::int64_t>(size_of(program->element));
  const double share = options.bytes > 0 ? plan.split.first_bytes / static_cast<double>(options.bytes) : 1;
  std::map<int, Stretches> first, second;
  for (const auto& [part, stretches] : whole_of(*program)) {
    std::int64_t bytes = 0;
    for (const Stretch& stretch : stretches) bytes += stretch.bytes;
    const auto cut = std::clamp<std::int64_t>(std::llround(share * static_cast<double>(bytes)) / granule * granule, 0, bytes);
    if (cut > 0) first[part] = slice(stretches, 0, cut);
    if (cut < bytes) second[part] = slice(stretches, cut, bytes);
  }
  add_plan(*program, plan.first, plan.first_links, first, options);
  const std::size_t own = program->trees.size();
  if (!second.empty()) add_plan(*program, plan.second, plan.second_links, second, options);
  for (std::size_t i = own; i < program->trees.size(); ++i)
    program->trees[i].wait_us = static_cast<std::int64_t>(plan.waits_s * 1e6);
  return program;
}

Expected<Program> resume(const Program& program, const std::vector<RankProgress>& progress, int root, const Replan& plan,
                         const std::vector<int>& nodes, const Topology& topology, std::int64_t chunks) {
  const auto members = members_of(program);
  std::map<int, Stretches> work;     // by part: from the contributions
  std::map<int, Stretches> passing;  // by the rank that passes it on
  for (std::size_t i = 0; i < program.trees.size(); ++i) {
    const TreeProgram& tree = program.trees[i];
    const std::int64_t all = chunk_count(tree);
    // Who lacks most of the result, and who that can still send knows most.
    std::int64_t everywhere = all, most = 0;
    int best = -1;
    bool contributions = true;  // of all ranks, still there
    for (const int rank : members) {
      const RankProgress& own = progress[index(rank)];
      const std::int64_t known = own.over ? all : own.known[i];
      contributions = contributions && !own.over;
      if (tree.keeper < 0 || tree.keeper == rank) everywhere = std::min(everywhere, known);
      if (!own.over && known > most) {
        most = known;
        best = rank;
      }
    }
    const bool source_here = tree.up.empty() && !tree.known_at_root && !progress[index(tree.root)].over;
    if (source_here || (tree.keeper >= 0 && !tree.up.empty())) most = everywhere;  // begun again where it broke off
    if (most > everywhere) cut(tree, everywhere, most, passing[best]);
    const std::int64_t first = std::max(most, everywhere);
    if (first == all) continue;
    if (tree.known_at_root || (tree.up.empty() ? !source_here : !contributions))
      return malformed("tree " + std::to_string(i) + ": nobody has all of what it carried any more");
    cut(tree, first, all, work[part_of(program.operation, tree)]);
  }

  // A pipeline's best number of chunks goes by the root of its bytes. What is passed on is only a few chunks as they were.
  const auto share = [&](const Stretches& stretches) {
    std::int64_t bytes = 0;
    for (const Stretch& stretch : stretches) bytes += stretch.bytes;
    return static_cast<double>(bytes) / static_cast<double>(std::max<std::int64_t>(program.bytes, 1));
  };
  const auto times = [&](double part) { return std::max<std::int64_t>(std::llround(part * static_cast<double>(chunks)), 1); };
  Program rest{program.operation, program.element, program.reduction, program.ranks, program.root, program.bytes, program.members, {}};
  if (!work.empty()) {
    const auto planned = plan(program.operation, root);
    if (!planned) return tl::unexpected(planned.error());
    double left = 0;
    for (const auto& [part, stretches] : work) left += share(stretches);
    add_trees(rest, *planned, nodes, topology, work, times(std::sqrt(left)), false);
  }
  for (const auto& [source, stretches] : passing) {
    const auto planned = plan(Operation::broadcast, source);
    if (!planned) return tl::unexpected(planned.error());
    add_trees(rest, *planned, nodes, topology, {{kWhole, stretches}}, times(share(stretches)), true);
  }
  return rest;
}

std::int64_t chunks_of(const Program& program) {
  std::int64_t most = 0;
  for (const TreeProgram& tree : program.trees) most = std::max(most, chunk_count(tree));
  return most;
}

std::int64_t chunk_count(const TreeProgram& tree) {
  std::int64_t count = 0;
  for (const Stretch& stretch : tree.share) count += (stretch.bytes + tree.chunk_bytes - 1) / tree.chunk_bytes;
  return count;
}

Stretch chunk_at(const TreeProgram& tree, std::int64_t index) {
  for (const Stretch& stretch : tree.share) {
    const std::int64_t count = (stretch.bytes + tree.chunk_bytes - 1) / tree.chunk_bytes;
    if (index < count) {
      const std::int64_t offset = index * tree.chunk_bytes;
      return {stretch.offset + offset, std::min(tree.chunk_bytes, stretch.bytes - offset)};
    }
    index -= count;
  }
  return {};
}

Stretch part_of(const Program& program, int rank) {
  const ChunkRange part = part_range(program.bytes, program.ranks, rank, static_cast<std::int64_t>(size_of(program.element)));
  return {part.offset, part.bytes};
}

std::vector<int> members_of(const Program& program) {
  if (!program.members.empty()) return program.members;
  std::vector<int> all(index(program.ranks));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool takes_part(const TreeProgram& tree, int rank) {
  const auto at = [&](const RankEdge& edge) { return edge.from == rank || edge.to == rank; };
  return tree.root == rank || std::ranges::any_of(tree.up, at) || std::ranges::any_of(tree.down, at);
}

bool gives_data(const TreeProgram& tree, int rank) {
  const auto at = [&](const RankEdge& edge) { return edge.from == rank || edge.to == rank; };
  return tree.root == rank || std::ranges::any_of(tree.up, at);
}

Expected<void> check(const Program& program) {
  if (program.ranks < 1 || program.ranks > kRanksMax) return malformed(std::to_string(program.ranks) + " ranks");
  if (program.root < -1 || program.root >= program.ranks) return malformed("its root is no rank");
  if (program.bytes < 0 || program.bytes > kProgramBytesMax) return malformed(std::to_string(program.bytes) + " bytes");
  const auto granule = static_cast<std::int64_t>(size_of(program.element));
  if (!std::ranges::is_sorted(program.members, std::ranges::less_equal{}) ||
      (!program.members.empty() && (program.members.front() < 0 || program.members.back() >= program.ranks)))
    return malformed("its members are no ranks");
  std::vector<bool> takes_part(index(program.ranks), program.members.empty());
  for (const int rank : program.members) takes_part[index(rank)] = true;
  const auto absent = [&](const RankEdge& edge) { return !takes_part[index(edge.from)] || !takes_part[index(edge.to)]; };
  std::vector<Stretch> all;
  for (std::size_t i = 0; i < program.trees.size(); ++i) {
    const TreeProgram& tree = program.trees[i];
    const std::string which = "tree " + std::to_string(i) + ": ";
    if (tree.root < 0 || tree.root >= program.ranks || tree.keeper < -1 || tree.keeper >= program.ranks)
      return malformed(which + "its root or keeper is no rank");
    if (!is_tree(tree.up, tree.root, program.ranks, true) || !is_tree(tree.down, tree.root, program.ranks, false))
      return malformed(which + "its edges make no tree from its root");
    if (!takes_part[index(tree.root)] || std::ranges::any_of(tree.up, absent) || std::ranges::any_of(tree.down, absent))
      return malformed(which + "a rank that takes no part is in it");
    if (!tree.up.empty() && !combines(program.operation)) return malformed(which + "it combines, the operation does not");
    if (tree.wait_us < 0 || tree.wait_us > kWaitUsMax) return malformed(which + "waits " + std::to_string(tree.wait_us) + " us");
    if (tree.chunk_bytes < 1 || tree.chunk_bytes > kChunkBytesMax || tree.chunk_bytes % granule != 0)
      return malformed(which + "chunks of " + std::to_string(tree.chunk_bytes) + " bytes");
    for (const Stretch& stretch : tree.share) {
      if (stretch.offset < 0 || stretch.bytes < 1 || stretch.offset > program.bytes - stretch.bytes ||
          stretch.offset % granule != 0 || stretch.bytes % granule != 0)
        return malformed(which + "its share is outside the buffer");
      all.push_back(stretch);
    }
    if (chunk_count(tree) > kChunksMax) return malformed(which + "too many chunks");
  }
  std::ranges::sort(all, {}, &Stretch::offset);
  for (std::size_t i = 1; i < all.size(); ++i)
    if (all[i].offset < all[i - 1].offset + all[i - 1].bytes) return malformed("two trees carry the same bytes");
  return {};
}

}  // namespace coppice::collectives
