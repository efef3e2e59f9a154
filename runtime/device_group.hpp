// runtime/device_group.hpp: collective operations among the GPUs of this process, over the best trees of their links.
//
//   auto group = DeviceGroup::open({.devices = {0, 1, 2, 3}});
//   std::vector<float*> gradients = …;                               // one pointer a rank, in its device's memory
//   auto sum = (*group)->allreduce(gradients, gradients, count);     // returns at once
//   if (auto done = sum.wait(); !done) …                             // names device, step and call
//
// Calls may overlap; a buffer belongs to its call until that is complete. Input and output may be one buffer, as far as
// they are of the same bytes. Sums are added in the order of the plan: the same group gives the same bits, and the same
// as a Communicator's with the same plan.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/group_planner.hpp"
#include "gpu/peer_group.hpp"
#include "runtime/collectable.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

struct DeviceGroupOptions {
  std::vector<int> devices = {};  // CUDA's numbers, each once; rank r is devices[r]
  // Rank r is its host number devices[r]. Nothing: this machine's, NVLinks by NVML (runtime/device_topology.hpp).
  std::optional<collectives::Topology> topology = {};
  collectives::Planner planner = collectives::Planner::exact;
  std::int64_t chunks = 0;  // that a tree's share is cut into; 0: as a model says
  // Of a chunk on a hop, for that model: putting its copy and its kernels onto streams. An estimate; not measured yet.
  double latency_s = 50e-6;
  gpu::OpenPeerGroup open = gpu::open_peer_group;
};

// A call that has been made. Copies are of the same call.
class DeviceCompletion {
 public:
  explicit DeviceCompletion(Expected<std::shared_ptr<gpu::PeerRun>> run) : run_(std::move(run)) {}
  // Blocks until it, and later calls of its kind, are over. Errors: bad_input; failed, naming device, step and call.
  Expected<void> wait() const;
  bool ready() const;  // true where it has failed

 private:
  Expected<std::shared_ptr<gpu::PeerRun>> run_;
};

class DeviceGroup {
 public:
  // Errors: bad_input: no such device, no driver, no plug-in, a topology that has no such host or does not join them.
  static Expected<std::unique_ptr<DeviceGroup>> open(DeviceGroupOptions options);
  ~DeviceGroup();  // calls go on to their end
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  int size() const;
  const collectives::Topology& topology() const;
  // Memory on the devices, by rank.
  gpu::PeerGroup& peers();
  // What a user should know, a line each: pairs that the driver stages, links that were assumed.
  std::vector<std::string> notes() const;

  // A cudaStream_t a rank: the call comes after what is on it, and what comes on it later after the call. None: buffers
  // are ready now, and wait() says when results are.
  using Streams = std::vector<void*>;

  // Everywhere: count is of elements. Pointers of ranks whose buffer is not used may be null.
  template <Collectable T>
  DeviceCompletion broadcast(const std::vector<T*>& buffers, std::int64_t count, int root, const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::broadcast, count, {}, root), bare(buffers), bare(buffers), streams);
  }
  template <Collectable T>
  DeviceCompletion reduce(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count,
                          collectives::Reduction reduction, int root, const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::reduce, count, reduction, root), bare(in), bare(out), streams);
  }
  template <Collectable T>
  DeviceCompletion allreduce(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count,
                             collectives::Reduction reduction = collectives::Reduction::sum, const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::allreduce, count, reduction, -1), bare(in), bare(out), streams);
  }
  // count is of each rank's part from here on; a whole buffer has size() of them, rank r's begins at r × count.
  template <Collectable T>
  DeviceCompletion allgather(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count,
                             const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::allgather, count * size(), {}, -1), bare(in), bare(out), streams);
  }
  template <Collectable T>
  DeviceCompletion reduce_scatter(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count,
                                  collectives::Reduction reduction = collectives::Reduction::sum,
                                  const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::reduce_scatter, count * size(), reduction, -1), bare(in), bare(out), streams);
  }
  template <Collectable T>
  DeviceCompletion gather(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count, int root,
                          const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::gather, count * size(), {}, root), bare(in), bare(out), streams);
  }
  template <Collectable T>
  DeviceCompletion scatter(const std::vector<T*>& in, const std::vector<T*>& out, std::int64_t count, int root,
                           const Streams& streams = {}) {
    return call(kind<T>(collectives::Operation::scatter, count * size(), {}, root), bare(in), bare(out), streams);
  }

  // What all of the above do, for types that are known only when the program runs. The first call of a kind plans, and
  // makes streams and landing buffers; later ones allocate nothing. The kinds called last are kept.
  DeviceCompletion call(const collectives::CallKind& kind, const std::vector<void*>& in, const std::vector<void*>& out,
                        const Streams& streams = {});

  // What a call is planned as. Errors: as the planner's.
  Expected<collectives::Plan> plan(collectives::Operation operation, int root) const;

 private:
  template <class T>
  static collectives::CallKind kind(collectives::Operation operation, std::int64_t count, collectives::Reduction reduction,
                                    int root) {
    return {operation, kElementOf<T>, reduction, root, count * static_cast<std::int64_t>(sizeof(T))};
  }
  template <class T>
  static std::vector<void*> bare(const std::vector<T*>& pointers) {
    return {pointers.begin(), pointers.end()};
  }
  struct Parts;
  explicit DeviceGroup(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace coppice::runtime
