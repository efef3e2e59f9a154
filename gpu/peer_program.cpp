#include "gpu/peer_program.hpp"

#include <algorithm>

namespace coppice::gpu {
namespace {

std::size_t index(int at) { return static_cast<std::size_t>(at); }

const std::vector<std::int64_t>& sizes_of(const PeerProgram& program, PeerMemory memory) {
  return memory == PeerMemory::input ? program.input : memory == PeerMemory::output ? program.output : program.landing;
}

// What is wrong with a step; empty: nothing.
std::string fault_of(const PeerProgram& program, std::size_t at) {
  const PeerStep& step = program.steps[at];
  const auto element = static_cast<std::int64_t>(size_of(program.element));
  if (step.stream < 0 || step.stream >= std::ssize(program.streams)) return "its stream is none of the program's";
  const auto inside = [&](const PeerPlace& place) {
    if (place.device < 0 || place.device >= program.devices() || place.offset < 0) return false;
    return place.offset <= sizes_of(program, place.memory)[index(place.device)] - step.bytes;
  };
  const bool combines = step.kind == PeerStep::Kind::combine, copies = step.kind == PeerStep::Kind::copy;
  if (step.bytes < 1 || (!copies && step.bytes > kKernelBytesMax) || step.bytes % element != 0)
    return std::to_string(step.bytes) + " bytes";
  if (!inside(step.to) || ((copies || combines) && !inside(step.from)) || (combines && !inside(step.other)))
    return "it reaches beyond its memory";
  const int device = program.streams[index(step.stream)];
  if (copies ? device != step.from.device && device != step.to.device : device != step.to.device)
    return "its stream is on another device";
  if (combines && (step.from.device != device || step.other.device != device)) return "it combines what is elsewhere";
  const auto later = [&](int other) { return other < 0 || other >= static_cast<int>(at); };
  if (std::ranges::any_of(step.after, later)) return "it waits for what is not before it";
  return "";
}

}  // namespace

Expected<void> check(const PeerProgram& program) {
  const auto refuse = [](const std::string& what) {
    return unexpected(Error{ErrorCode::shape_mismatch, "peer program: " + what});
  };
  if (program.devices() < 1 || program.output.size() != program.input.size() ||
      program.landing.size() != program.input.size() || program.ranks < 1)
    return refuse("sizes of " + std::to_string(program.devices()) + " devices, of " + std::to_string(program.ranks) +
                  " ranks");
  for (const int device : program.streams)
    if (device < 0 || device >= program.devices()) return refuse("a stream on device " + std::to_string(device));
  for (std::size_t at = 0; at < program.steps.size(); ++at)
    if (const auto fault = fault_of(program, at); !fault.empty()) return refuse(in_words(program, at) + ": " + fault);
  return {};
}

PeerOrder order_of(const PeerProgram& program) {
  const std::size_t steps = program.steps.size(), streams = program.streams.size();
  PeerOrder order{std::vector<std::vector<int>>(steps), std::vector<bool>(steps, false)};
  // Of each stream, the latest step of every other that is over before what comes next on it.
  std::vector<std::vector<int>> seen(streams, std::vector<int>(streams, -1));
  for (std::size_t at = 0; at < steps; ++at) {
    const PeerStep& step = program.steps[at];
    std::vector<int> wanted = step.after;
    std::ranges::sort(wanted, std::greater());  // the latest of a stream first: it stands for the others
    for (const int other : wanted) {
      const int stream = program.steps[index(other)].stream;
      int& latest = seen[index(step.stream)][index(stream)];
      if (stream == step.stream || latest >= other) continue;
      latest = other;
      order.waits[at].push_back(other);
      order.awaited[index(other)] = true;
    }
  }
  return order;
}

std::string in_words(const PeerProgram& program, std::size_t step, const std::vector<int>& ordinals) {
  const auto name = [&](int device) {
    return ordinals.empty() ? "device " + std::to_string(device) : "cuda:" + std::to_string(ordinals[index(device)]);
  };
  const PeerStep& at = program.steps[step];
  std::string what = "step " + std::to_string(step) + " (";
  switch (at.kind) {
    case PeerStep::Kind::copy:
      what += "copy from " + name(at.from.device) + " to ";
      break;
    case PeerStep::Kind::combine:
      what += "combine on ";
      break;
    case PeerStep::Kind::average:
      what += "average on ";
      break;
  }
  return what + name(at.to.device) + ")";
}

}  // namespace coppice::gpu
