// gpu/peer_group.hpp: GPUs of this process that copy to one another: memory on them, and peer programs.
//
// Plain C++: CUDA is in the plug-in. Where two GPUs can reach one another's memory, copies go over NVLink or the bus by
// themselves; where they cannot, the driver stages them in the host's memory.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu/error.hpp"
#include "gpu/peer_program.hpp"

namespace coppice::gpu {

struct PeerDevice {
  int ordinal = 0;  // CUDA's
  std::string pci;  // "0000:17:00", lower case, without a function
};

struct PeerPair {
  int from = 0, to = 0;  // of the group, from 0
  bool operator==(const PeerPair&) const = default;
};

// A caller's memory on one device, from allocate or cudaMalloc; that of CUDA's memory pools must be made accessible to
// the other devices by its owner. Both may be null where the program uses none there.
struct PeerBuffers {
  void* input = nullptr;
  void* output = nullptr;
  // A cudaStream_t of the device: the run begins after what is on it now, and what comes on it later begins after the
  // run. Null: the buffers are ready, and wait() says when the result is.
  void* stream = nullptr;
};

// A program with its streams, events and landing buffers; running it allocates nothing. One caller at a time, but for
// wait and ready; runs of one program follow one another. The destructor waits for what runs.
class PeerRun {
 public:
  virtual ~PeerRun() = default;
  // Returns once all steps are on their streams. buffers: of each device. Errors: shape_mismatch (a buffer that is
  // missing), device_failed, naming device, step and call; then what was begun is over, and results are rubbish.
  virtual Expected<void> start(std::span<const PeerBuffers> buffers) = 0;
  // Blocks until the latest start is over. Errors: device_failed.
  virtual Expected<void> wait() = 0;
  virtual Expected<bool> ready() = 0;
};

class PeerGroup {
 public:
  virtual ~PeerGroup() = default;
  virtual const std::vector<PeerDevice>& devices() const = 0;
  // Pairs whose copies the driver stages, since the first cannot reach the second's memory.
  virtual const std::vector<PeerPair>& staged() const = 0;
  // At least 256-byte aligned; freed with its last owner, who may outlive the group. Errors: device_failed.
  virtual Expected<std::shared_ptr<std::byte>> allocate(int device, std::size_t bytes) = 0;
  // Return when it is done. Errors: device_failed.
  virtual Expected<void> write(int device, void* to, std::span<const std::byte> from) = 0;
  virtual Expected<void> read(int device, const void* from, std::span<std::byte> to) = 0;
  // May outlive the group. Errors: those of check, device_failed (also: no memory for landing buffers).
  virtual Expected<std::unique_ptr<PeerRun>> prepare(const PeerProgram& program) = 0;
};

// These CUDA devices, each once, in this order. Peer access is turned on between all that can and stays on: others in
// the process may have come to rely on it. Errors: device_unavailable, saying what is missing.
Expected<std::unique_ptr<PeerGroup>> open_peer_group(std::span<const int> ordinals);
using OpenPeerGroup = std::function<Expected<std::unique_ptr<PeerGroup>>(std::span<const int> ordinals)>;

}  // namespace coppice::gpu
