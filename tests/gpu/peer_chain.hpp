// An allreduce over a chain of devices, written out by hand: up to the first device, and down again.
#pragma once

#include <algorithm>
#include <vector>

#include "gpu/peer_program.hpp"

namespace coppice::gpu {

// Chunks of at most chunk_bytes, two of which may be on their way between two devices.
inline PeerProgram chain_program(int devices, Element element, Reduction reduction, std::int64_t bytes,
                                 std::int64_t chunk_bytes) {
  constexpr std::int64_t kWindow = 2;
  using Kind = PeerStep::Kind;
  const auto chunks = static_cast<int>((bytes + chunk_bytes - 1) / chunk_bytes);
  PeerProgram out{.element = element, .reduction = reduction, .ranks = devices};
  for (int device = 0; device < devices; ++device) {
    for (int i = 0; i < 3; ++i) out.streams.push_back(device);  // towards the first, away from it, kernels
    out.input.push_back(bytes);
    out.output.push_back(bytes);
    out.landing.push_back(device + 1 < devices ? kWindow * chunk_bytes : 0);
  }
  // Of each device and chunk, the step after which it is combined here, or has left upwards.
  std::vector<std::vector<int>> combined(out.input.size(), std::vector<int>(static_cast<std::size_t>(chunks), -1));
  auto left = combined, known = combined;
  const auto step = [&](std::vector<std::vector<int>>& of, int device, int chunk) -> int& {
    return of[static_cast<std::size_t>(device)][static_cast<std::size_t>(chunk)];
  };
  const auto add = [&](PeerStep made) {
    std::erase(made.after, -1);
    out.steps.push_back(std::move(made));
    return static_cast<int>(out.steps.size()) - 1;
  };
  const auto up = [&](int device, int chunk) {
    const std::int64_t offset = chunk * chunk_bytes, size = std::min(chunk_bytes, bytes - offset);
    const PeerPlace own{device, PeerMemory::input, offset},
        slot{device, PeerMemory::landing, chunk % kWindow * chunk_bytes};
    const PeerPlace result{device, PeerMemory::output, offset};
    const bool last = device + 1 == devices;
    if (!last)
      step(combined, device, chunk) = add({Kind::combine,
                                           3 * device + 2,
                                           device == 0 ? result : slot,
                                           slot,
                                           own,
                                           size,
                                           {step(left, device + 1, chunk)}});
    if (device == 0) {
      if (last) step(combined, 0, chunk) = add({Kind::copy, 2, result, own, {}, size});
      if (reduction == Reduction::avg) step(combined, 0, chunk) = add({Kind::average, 2, result, {}, {}, size});
      step(known, 0, chunk) = step(combined, 0, chunk);
      return;
    }
    auto there = slot;
    there.device = device - 1;
    const int before = chunk - static_cast<int>(kWindow);
    const int freed = before < 0 ? -1 : step(device == 1 ? combined : left, device - 1, before);
    step(left, device, chunk) =
        add({Kind::copy, 3 * device, there, last ? own : slot, {}, size, {step(combined, device, chunk), freed}});
  };
  const auto down = [&](int device, int chunk) {  // to the next
    const std::int64_t offset = chunk * chunk_bytes;
    step(known, device + 1, chunk) = add({Kind::copy,
                                          3 * device + 1,
                                          {device + 1, PeerMemory::output, offset},
                                          {device, PeerMemory::output, offset},
                                          {},
                                          std::min(chunk_bytes, bytes - offset),
                                          {step(known, device, chunk)}});
  };
  for (int time = 0; time < chunks + 2 * devices; ++time) {
    const auto now = [&](int chunk) { return chunk >= 0 && chunk < chunks; };
    for (int device = devices - 1; device >= 0; --device)
      if (const int chunk = time - (devices - 1 - device); now(chunk)) up(device, chunk);
    for (int device = 0; device + 1 < devices; ++device)
      if (const int chunk = time - devices - device; now(chunk)) down(device, chunk);
  }
  return out;
}

}  // namespace coppice::gpu
