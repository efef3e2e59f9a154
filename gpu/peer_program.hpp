// gpu/peer_program.hpp: a collective among the GPUs of one process as a list of copies and kernels. Pure.
//
// Steps are put onto streams in the order of the list, and each waits for those that it names. Who makes the list
// decides what shares a stream: copies that take one link in one direction share one, since CUDA gives two streams on a
// link no fair share of it; in one stream their order, and so the share of each, is fixed.
// Source: Blink (MLSys 2020), section 4: code generation and stream reuse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpu/element.hpp"
#include "gpu/error.hpp"

namespace coppice::gpu {

enum class PeerMemory : std::uint8_t {
  input,    // the caller's: what this device contributes
  output,   // the caller's: where its result goes; may be the input
  landing,  // the program's own: what comes from other devices to be combined or passed on
};

struct PeerPlace {
  int device = 0;  // of the program, from 0
  PeerMemory memory = PeerMemory::input;
  std::int64_t offset = 0;  // bytes from where that memory begins
  bool operator==(const PeerPlace&) const = default;
};

struct PeerStep {
  enum class Kind : std::uint8_t {
    copy,     // to = from, which may be on another device
    combine,  // to = from ∘ other, all on one device; to may be either
    average,  // to /= ranks
  };
  Kind kind = Kind::copy;
  int stream = 0;
  PeerPlace to, from, other;
  std::int64_t bytes = 0;
  // Earlier steps that must be over first, beside those before it on its stream.
  std::vector<int> after = {};
};

struct PeerProgram {
  Element element = Element::bytes;
  Reduction reduction = Reduction::sum;
  int ranks = 1;                         // what an average is divided by
  std::vector<int> streams = {};         // the device of each: of a copy's stream, whose copy engine moves the bytes
  std::vector<std::int64_t> input = {};  // bytes that are read or written there, of each device; as many as devices
  std::vector<std::int64_t> output = {};
  std::vector<std::int64_t> landing = {};
  std::vector<PeerStep> steps = {};
  int devices() const { return static_cast<int>(input.size()); }
};

inline constexpr std::int64_t kKernelBytesMax = std::int64_t{1} << 31;  // of one step; copies may be of any size

// Everything is in its bounds, and the order can be carried out. Errors: shape_mismatch, naming the step.
Expected<void> check(const PeerProgram& program);

// How steps on several streams keep their order: the earlier steps that each must wait for by an event, without those
// that its stream has already seen over. REQUIRES: check(program).
struct PeerOrder {
  std::vector<std::vector<int>> waits;  // of each step; the last of a stream stands for those before it
  std::vector<bool> awaited;            // whether another stream waits for the step
};
PeerOrder order_of(const PeerProgram& program);

// "step 12 (copy from device 0 to device 3)"; where CUDA's numbers of the devices are given, "cuda:4" for device 0.
std::string in_words(const PeerProgram& program, std::size_t step, const std::vector<int>& ordinals = {});

}  // namespace coppice::gpu
