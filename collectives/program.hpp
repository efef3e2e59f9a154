// collectives/program.hpp: a plan made executable: which bytes travel over which trees, in which chunks. Pure.
//
// Hosts are ranks here, the plan's participants in their order. A program says all that a relay needs to know, so that
// one rank can make it and hand it to the others.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "collectives/error.hpp"
#include "collectives/operation.hpp"
#include "collectives/reduction.hpp"

namespace coppice::collectives {

struct HybridPlan;
struct Plan;
struct Topology;

inline constexpr int kRanksMax = 4096;
inline constexpr std::int64_t kProgramBytesMax = std::int64_t{1} << 40;  // of a whole buffer
inline constexpr std::int64_t kChunkBytesMax = std::int64_t{4} << 20;
inline constexpr std::int64_t kChunksMax = std::int64_t{1} << 24;  // of one tree
inline constexpr std::int64_t kWaitUsMax = 10'000'000;

struct Stretch {  // of the whole buffer
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  bool operator==(const Stretch&) const = default;
};

struct RankEdge {
  int from = -1;
  int to = -1;
  // The ends of the links that the edge leaves and enters by; empty: any address of the host.
  std::string from_address = {};
  std::string to_address = {};
  bool switched = false;  // there are switches between the two, and others' traffic with them
  bool operator==(const RankEdge&) const = default;
};

RankEdge reversed(const RankEdge& edge);

// One tree at work. Data goes up where `up` has edges and what arrives is combined on the way; then down.
struct TreeProgram {
  int root = -1;
  std::vector<RankEdge> up;    // towards the root, a child's before its parent's
  std::vector<RankEdge> down;  // away from the root, a parent's before its children's
  std::vector<Stretch> share;  // what it carries, ascending
  std::int64_t chunk_bytes = 0;
  int keeper = -1;  // the one rank that wants the result; -1: every rank of the tree
  // The root has the result in its output already, as after a tree was given up half-way; otherwise what it sends down is
  // its input or what was combined.
  bool known_at_root = false;
  std::int64_t bytes_per_s = 0;  // as planned, on each edge; 0: nothing is known of it
  std::int64_t wait_us = 0;      // before whoever sends first begins: what it costs to switch to its links (hybrid.hpp)
  bool operator==(const TreeProgram&) const = default;
};

struct Program {
  Operation operation = Operation::broadcast;
  Element element = Element::bytes;
  Reduction reduction = Reduction::sum;
  int ranks = 0;
  int root = -1;  // rank; -1 where the operation has none
  std::int64_t bytes = 0;  // of the whole buffer: allgather and reduce_scatter, of all parts together
  std::vector<int> members = {};  // ranks that take part, ascending; none: all do. The parts of others are not carried
  std::vector<TreeProgram> trees;
  bool operator==(const Program&) const = default;
};

struct ProgramOptions {
  Element element = Element::bytes;
  Reduction reduction = Reduction::sum;
  std::int64_t bytes = 0;
  int root = -1;  // rank; of operations that have one
  // The node of each rank, where not all of them are the plan's participants, in order.
  std::vector<int> nodes = {};
  bool known_at_root = false;  // whoever the trees begin at has the result already
  // Every tree's share is cut into about so many chunks, so that equal windows give trees that share a link bandwidth
  // in proportion to their rates. 0: as the pipeline's model says.
  std::int64_t chunks = 0;
  bool as_planned = false;  // all trees, though one of them may be as soon: plans that others are compared with
  double latency_s = 300e-6;  // of one chunk on one hop, for that model
};

// A buffer so small that one tree is done with it as soon as all of them goes over that one, unless chunks are given.
// Errors: malformed: the buffer is no whole number of elements, or of elements a rank where each has its part.
// REQUIRES: the plan is of this topology and verified.
Expected<Program> make_program(const Plan& plan, const Topology& topology, const ProgramOptions& options);

// Over two kinds of links, each carrying as much as the split says of the buffer, or of every rank's part of it.
// Errors: as above. REQUIRES: the plan's split is of options.bytes.
Expected<Program> make_program(const HybridPlan& plan, const ProgramOptions& options);

// How far a rank had come when a program's trees were given up.
struct RankProgress {
  bool over = false;               // its caller has been told: it has everything, and its buffer is no longer there
  std::vector<std::int64_t> known;  // of each tree, the chunks of which it has the result: a prefix; 0 where it has no part
};

// What is left to do, over new trees. What some rank knows the result of is only passed on, from the rank that knows
// most; the rest is done from the contributions, which nobody has overwritten there. No contribution counts twice.
// plan: of an operation from a root, a rank, on the topology as it is now, among the program's members. nodes: of each
// rank. Errors: those of plan; malformed.
using Replan = std::function<Expected<Plan>(Operation operation, int root)>;
Expected<Program> resume(const Program& program, const std::vector<RankProgress>& progress, int root, const Replan& plan,
                         const std::vector<int>& nodes, const Topology& topology, std::int64_t chunks);

// The chunks that the model or the caller chose: the most of any tree.
std::int64_t chunks_of(const Program& program);

std::int64_t chunk_count(const TreeProgram& tree);
// Chunk `index` of the tree's share. No chunk lies in two stretches. REQUIRES: 0 <= index < chunk_count(tree).
Stretch chunk_at(const TreeProgram& tree, std::int64_t index);

// The ranks that take part, ascending.
std::vector<int> members_of(const Program& program);

// Whether the rank is in the tree at all.
bool takes_part(const TreeProgram& tree, int rank);

// Whether the rank's own data, or what it keeps of the result, is needed there: not so where it only passes on.
bool gives_data(const TreeProgram& tree, int rank);

// The bytes of rank's part of allgather, reduce_scatter, gather and scatter.
Stretch part_of(const Program& program, int rank);

// For programs from elsewhere: everything is in its bounds, trees are trees, no byte is carried twice. Errors: malformed.
Expected<void> check(const Program& program);

}  // namespace coppice::collectives
