// gpu/cuda_peer_run.hpp: a peer program on its streams.
#pragma once

#include <memory>
#include <vector>

#include "gpu/cuda_handles.hpp"
#include "gpu/peer_group.hpp"

namespace coppice::gpu {

// The calling thread's device while work is given to others, and then again: the caller may be in the middle of its
// own.
class DeviceKept {
 public:
  DeviceKept() {
    forget_refusal();  // a launch asks for the latest one, whoever's it was
    check(cudaGetDevice(&ordinal_), "cudaGetDevice");
  }
  ~DeviceKept() {
    static_cast<void>(cudaSetDevice(ordinal_));
    forget_refusal();
  }
  DeviceKept(const DeviceKept&) = delete;
  DeviceKept& operator=(const DeviceKept&) = delete;

 private:
  int ordinal_ = 0;
};

inline void use_device(int ordinal) { check(cudaSetDevice(ordinal), "cudaSetDevice"); }
// Of the current device.
Stream new_stream();
Event new_event();

// ordinals: of the program's devices. REQUIRES: check(program). Throws Fault.
std::unique_ptr<PeerRun> make_peer_run(std::vector<int> ordinals, const PeerProgram& program);

// What it does, with faults that say of which device they are.
template <class Does>
void at_device(int ordinal, const Does& does) {
  try {
    use_device(ordinal);
    does();
  } catch (const Fault& fault) {
    throw Fault(fault.code, "cuda:" + std::to_string(ordinal) + ": " + fault.what());
  }
}

// Errors for what is thrown; afterwards the thread's device is what it was.
template <class Does>
Expected<void> without_faults(const std::string& what, const Does& does) {
  try {
    const DeviceKept kept;
    does();
  } catch (const Fault& fault) {
    return unexpected(Error{fault.code, what + ": " + fault.what()});
  }
  return {};
}

}  // namespace coppice::gpu
