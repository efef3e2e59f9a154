#include "collectives/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace coppice::collectives {
namespace {

Tree turned(const Tree& tree) {
  Tree back{.rate = tree.rate, .root = tree.root, .edges = {}};
  for (auto edge = tree.reduce_edges.rbegin(); edge != tree.reduce_edges.rend(); ++edge) {
    back.edges.push_back({edge->to, edge->from, {}});
  }
  return back;
}

int hops(const Plan& plan, const Tree& tree) {
  const int down = depth(tree);
  if (plan.operation != Operation::allreduce) return down;
  return down + (tree.reduce_edges.empty() ? down : depth(turned(tree)));
}

// Which part of the buffer a tree carries from: its target's, its root's, or all of it.
int part_of(const Plan& plan, const Tree& tree) {
  if (tree.target) return *tree.target;
  const bool by_parts = plan.operation == Operation::allgather || plan.operation == Operation::reduce_scatter;
  return by_parts ? tree.root : -1;
}

}  // namespace

Schedule schedule(const Plan& plan, const ScheduleOptions& options) {
  std::map<int, Rational> rate;  // of all trees of a part
  for (const Tree& tree : plan.trees) rate[part_of(plan, tree)] += tree.rate;
  const bool whole = rate.size() == 1 && rate.contains(-1);
  const auto parts = static_cast<std::int64_t>(whole ? 1 : plan.participants.size());
  std::map<int, Rational> done;
  Schedule result;
  for (const Tree& tree : plan.trees) {
    const int part = part_of(plan, tree);
    const auto place = part < 0 ? 0 : std::ranges::lower_bound(plan.participants, part) - plan.participants.begin();
    const std::int64_t begin = options.bytes / parts * place + std::min<std::int64_t>(place, options.bytes % parts);
    const std::int64_t size = options.bytes / parts + (place < options.bytes % parts ? 1 : 0);
    // Shares are cut where sums of rates say, so that none is lost to rounding.
    const auto cut = [&](const Rational& sum) {
      if (sgn(rate[part]) == 0) return size;
      const Rational at(sum * mpz_class(std::to_string(size)) / rate[part]);
      return static_cast<std::int64_t>(mpz_class(at.get_num() / at.get_den()).get_si());
    };
    const std::int64_t first = cut(done[part]);
    done[part] += tree.rate;
    TreeSchedule& own = result.trees.emplace_back();
    own.offset = begin + first;
    own.bytes = cut(done[part]) - first;
    own.depth = hops(plan, tree);
    if (own.bytes == 0 || sgn(tree.rate) == 0) continue;
    const Pipeline pipeline{.depth = own.depth,
                            .bytes = static_cast<double>(own.bytes),
                            .bytes_per_s = tree.rate.get_d() * options.unit_bytes_per_s,
                            .latency_s = options.latency_s};
    constexpr double kChunksMax = 65536;
    const double chunks = std::min(pipeline_chunks(pipeline), kChunksMax);
    own.chunking = chunking(own.bytes, static_cast<std::int64_t>(std::ceil(pipeline.bytes / chunks)));
    own.seconds = pipeline_seconds(pipeline);
    result.seconds = std::max(result.seconds, own.seconds);
  }
  return result;
}

HybridSplit hybrid_split(double bytes, double first_bytes_per_s, double second_bytes_per_s, double switching_s) {
  const double both = first_bytes_per_s + second_bytes_per_s;
  const double second = bytes * second_bytes_per_s / both - switching_s * second_bytes_per_s * first_bytes_per_s / both;
  if (second_bytes_per_s <= 0 || second <= 0) return {bytes, 0, bytes / first_bytes_per_s};
  return {bytes - second, second, (bytes - second) / first_bytes_per_s};
}

Topology of_kind(const Topology& topology, std::string_view kind) {
  Topology part = topology;
  std::erase_if(part.links, [&](const Link& link) { return link.kind != kind; });
  return part;
}

}  // namespace coppice::collectives
