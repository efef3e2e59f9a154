// The part of tests/gpu/on_device.cpp about collectives: kernels beside plain words, their speed beside a copy's, and
// an allreduce over all GPUs that are here.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gpu/peer_group.hpp"
#include "tests/gpu/on_device_report.hpp"
#include "tests/gpu/peer_chain.hpp"
#include "tests/gpu/peer_reference.hpp"

namespace coppice::gpu {

inline const char* name_of(Element element) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int32", "int64", "bytes"};
  return kNames[static_cast<std::size_t>(element)];
}
inline const char* name_of(Reduction reduction) {
  constexpr const char* kNames[] = {"sum", "min", "max", "avg"};
  return kNames[static_cast<std::size_t>(reduction)];
}

// Seconds of one run.
inline Expected<double> timed(PeerRun& run, const std::vector<PeerBuffers>& buffers) {
  const auto begin = Clock::now();
  if (const auto done = run.start(buffers); !done) return unexpected(done.error());
  if (const auto done = run.wait(); !done) return unexpected(done.error());
  return seconds_since(begin);
}

// The shortest of a few runs, after one that is not counted.
inline Expected<double> fastest(PeerRun& run, const std::vector<PeerBuffers>& buffers) {
  Expected<double> best = timed(run, buffers);
  for (int i = 0; best && i < 5; ++i) {
    const auto next = timed(run, buffers);
    best = next ? Expected<double>(i == 0 ? *next : std::min(*best, *next)) : next;
  }
  return best;
}

// Whether so many elements are combined as the plain words say. shift: elements between where the buffers begin and
// where they are aligned; other_shift: of the second operand.
inline Expected<bool> combines_right(PeerGroup& group, Element element, Reduction reduction, std::size_t count,
                                     std::size_t shift, std::size_t other_shift) {
  constexpr int kRanks = 7;
  constexpr std::size_t kApart = 256;
  const auto size = size_of(element), bytes = count * size, space = (bytes / kApart + 2) * kApart;
  const auto input = reference::any_elements(2 * space, count + shift);
  const auto in = group.allocate(0, 2 * space), out = group.allocate(0, space);
  if (!in || !out) return unexpected((in ? out : in).error());
  if (const auto done = group.write(0, in->get(), input); !done) return unexpected(done.error());

  const auto at = [](std::size_t offset) { return static_cast<std::int64_t>(offset); };
  PeerProgram program{.element = element, .reduction = reduction, .ranks = kRanks, .streams = {0}};
  program.input = {at(2 * space)};
  program.output = {at(space)};
  program.landing = {0};
  const std::size_t first = shift * size, second = space + other_shift * size;
  const PeerPlace to{0, PeerMemory::output, at(first)};
  const PeerPlace a{0, PeerMemory::input, at(first)}, b{0, PeerMemory::input, at(second)};
  program.steps.push_back({PeerStep::Kind::combine, 0, to, a, b, at(bytes)});
  if (reduction == Reduction::avg) program.steps.push_back({PeerStep::Kind::average, 0, to, {}, {}, at(bytes)});
  const auto run = group.prepare(program);
  if (!run) return unexpected(run.error());
  if (const auto done = timed(**run, {{in->get(), out->get()}}); !done) return unexpected(done.error());

  std::vector<std::byte> had(bytes), wanted(input.begin() + at(first), input.begin() + at(first + bytes));
  if (const auto done = group.read(0, out->get() + first, had); !done) return unexpected(done.error());
  reference::combine(element, reduction, wanted, std::span(input).subspan(second, bytes));
  if (reduction == Reduction::avg) reference::average(element, kRanks, wanted);
  return reference::same(element, had, wanted);
}

inline void check_combine(Report& report, PeerGroup& group, std::size_t count) {
  for (const auto element : kElements)
    for (const auto reduction : kReductions)
      for (const auto& [shift, other_shift] : {std::pair{0, 0}, std::pair{3, 3}, std::pair{1, 2}}) {
        const auto right = combines_right(group, element, reduction, count, static_cast<std::size_t>(shift),
                                          static_cast<std::size_t>(other_shift));
        const auto text =
            row("element", name_of(element), "reduction", name_of(reduction), "shift", shift, "other_shift",
                other_shift, right ? "right" : "failed", right ? (*right ? "yes" : "no") : right.error().what.c_str());
        report.add(right && *right, text);
      }
}

// Bytes that memory moves in a second while two buffers become a third, beside those while one is copied.
inline void measure_combine(Report& report, PeerGroup& group, std::int64_t bytes) {
  constexpr int kSteps = 20;
  const auto in = group.allocate(0, 2 * bytes), out = group.allocate(0, bytes);
  if (!in || !out) return report.add(false, row("failed", (in ? out : in).error().what));
  const auto rate = [&](Element element, PeerStep::Kind kind, int moves) -> Expected<double> {
    PeerProgram program{.element = element, .streams = {0}, .input = {2 * bytes}, .output = {bytes}, .landing = {0}};
    for (int i = 0; i < kSteps; ++i)
      program.steps.push_back(
          {kind, 0, {0, PeerMemory::output, 0}, {0, PeerMemory::input, 0}, {0, PeerMemory::input, bytes}, bytes});
    const auto run = group.prepare(program);
    if (!run) return unexpected(run.error());
    const auto seconds = fastest(**run, {{in->get(), out->get()}});
    if (!seconds) return unexpected(seconds.error());
    return static_cast<double>(bytes) * kSteps * moves / *seconds / 1e9;
  };
  const auto copied = rate(Element::bytes, PeerStep::Kind::copy, 2);
  for (const auto element : kElements) {
    const auto combined = rate(element, PeerStep::Kind::combine, 3);
    if (combined && copied)
      report.add(row("element", name_of(element), "gb_per_s", *combined, "memcpy_gb_per_s", *copied, "of_memcpy",
                     *combined / *copied));
    else
      report.add(false, row("element", name_of(element), "failed", (combined ? copied : combined).error().what));
  }
}

// A chain over all GPUs here: right, and how fast. Bus bandwidth as nccl-tests counts it.
inline void check_allreduce(Report& report, const OpenPeerGroup& open, std::size_t bytes, std::int64_t chunk_bytes) {
  std::vector<int> ordinals{0};
  std::unique_ptr<PeerGroup> group;
  for (; ordinals.size() <= 16; ordinals.push_back(static_cast<int>(ordinals.size()))) {
    auto more = open(ordinals);
    if (!more) break;
    group = std::move(*more);
  }
  const int count = group ? static_cast<int>(group->devices().size()) : 0;
  if (count < 2) return report.add(row("gpus", count, "skipped", "one GPU has nobody to reduce with"));
  std::vector<std::byte> wanted;
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<PeerBuffers> buffers;
  for (int i = 0; i < count; ++i) {
    const auto input = reference::any_elements(bytes, static_cast<std::uint64_t>(i));
    if (i == 0)
      wanted = input;
    else
      reference::combine(Element::int32, Reduction::sum, wanted, input);
    for (int both = 0; both < 2; ++both) {
      auto made = group->allocate(i, bytes);
      if (!made) return report.add(false, row("gpus", count, "failed", made.error().what));
      memory.push_back(std::move(*made));
    }
    buffers.push_back({memory[memory.size() - 2].get(), memory.back().get()});
    if (const auto done = group->write(i, buffers.back().input, input); !done)
      return report.add(false, row("gpus", count, "failed", done.error().what));
  }
  const auto run = group->prepare(
      chain_program(count, Element::int32, Reduction::sum, static_cast<std::int64_t>(bytes), chunk_bytes));
  const auto seconds = run ? fastest(**run, buffers) : unexpected(run.error());
  if (!seconds) return report.add(false, row("gpus", count, "failed", seconds.error().what));
  bool right = true;
  std::vector<std::byte> had(bytes);
  for (int i = 0; i < count; ++i)
    right = right && group->read(i, buffers[static_cast<std::size_t>(i)].output, had) && had == wanted;
  const double algorithm = static_cast<double>(bytes) / *seconds / 1e9;
  report.add(right,
             row("gpus", count, "staged_pairs", static_cast<int>(group->staged().size()), "right", right ? "yes" : "no",
                 "gb_per_s", algorithm, "bus_gb_per_s", algorithm * 2 * (count - 1) / count));
}

inline void check_peers(Report& report) {
  const int first[] = {0};
  const auto group = open_peer_group(first);
  report.begin("combine");
  if (group)
    check_combine(report, **group, (std::size_t{1} << 18) + 5);  // packs, and a few elements left over
  else
    report.add(false, row("failed", group.error().what));
  report.end();
  report.begin("combine_speed");
  if (group && !report.late()) measure_combine(report, **group, std::int64_t{256} << 20);
  report.end();
  report.begin("allreduce");
  if (!report.late()) check_allreduce(report, open_peer_group, std::size_t{64} << 20, std::int64_t{2} << 20);
  report.end();
  std::fprintf(stderr, "on_device: collectives after %.0f s\n", report.seconds());
}

}  // namespace coppice::gpu
