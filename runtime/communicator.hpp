// runtime/communicator.hpp: collective operations among the hosts of a cluster, over the best trees of their links.
//
//   auto group = Communicator::join({cluster, "h0"});
//   std::vector<float> gradients = …;
//   auto sum = (*group)->allreduce(std::span(gradients));   // returns at once
//   …                                                       // the backward pass goes on
//   if (auto done = sum.wait(); !done) …                    // done.error().what names who is missing
//
// Ranks are the cluster's hosts in the file's order. All ranks make the same calls in the same order, with the same sizes
// and types; calls may overlap. Buffers must stay as they are and where they are until their call is complete.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "actors/communicator.hpp"
#include "collectives/hybrid.hpp"
#include "runtime/cluster.hpp"
#include "runtime/collectable.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

// A call that has been made. Copies are of the same call.
class Completion {
 public:
  struct Shared;
  explicit Completion(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  bool ready() const;
  // Blocks. Errors: rank_gone, with the ranks that are, the same at every survivor; failed, naming the call and the rank
  // that disagrees or is not heard.
  Expected<actors::CallReport> wait() const;
  // Called once, here if the call is complete already, otherwise on one of the library's threads or on one that waits for a
  // call: it must not block.
  void then(std::function<void(const Expected<actors::CallReport>&)> action) const;

 private:
  std::shared_ptr<Shared> shared_;
};

using actors::OnLoss;

struct CommunicatorOptions {
  Cluster cluster;
  std::string name;  // of the host that this process is
  collectives::Planner planner = collectives::Planner::exact;  // others are there to be compared with
  std::int64_t chunks = 0;  // that a tree's share is cut into; 0: as a model says
  bool tune = true;         // large calls of a kind try which number is fastest, with the first few, where chunks is 0
  // Where the cluster names no topology: measure its links first, which all ranks do together, so long for each rate. 0: do
  // not; one switch is assumed.
  std::chrono::milliseconds probe{0};
  std::function<void(const std::string&)> probe_progress = {};  // at the first rank
  // A call that stands still for so long has failed, though every rank that it began with is there.
  std::chrono::milliseconds patience{300'000};
  // complete_among_survivors: when a rank is gone for good, calls are completed without it, and CallReport::ranks says of
  // whom the result is. The same at all ranks. Calls take a round trip more; those in place, a copy of their buffer.
  OnLoss on_loss = OnLoss::fail;
  bool local = true;  // ranks that are processes of this machine and user are sent to over Unix sockets, not over TCP
  std::optional<collectives::HybridRequest> hybrid = {};  // two kinds of links planned apart, instead of all together
  // Why calls had to take other trees, a line each, at the rank that plans; on one of the library's threads.
  std::function<void(const std::string&)> notice = {};
  std::shared_ptr<actors::HopLog> hops = {};              // notes every chunk that arrives here; nothing: none
};

class Communicator {
 public:
  // Listens on the host's port and on its ends of the topology's links. Waits for nobody, unless it probes: calls do.
  // Errors: no such host, missing keys, a topology that lacks a host, an address or port that is taken; a host that could
  // not be probed.
  static Expected<std::unique_ptr<Communicator>> join(CommunicatorOptions options);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const;
  int size() const;
  // What it plans on, as the links are seen to be now.
  collectives::Topology topology() const;

  template <Collectable T>
  Completion broadcast(std::span<T> buffer, int root) {
    return call(collectives::Operation::broadcast, kElementOf<T>, {}, root, std::as_bytes(buffer), writable(buffer));
  }
  // out: the sums at root; elsewhere it is not touched and may be empty.
  template <Collectable T>
  Completion reduce(std::span<const T> in, std::span<T> out, collectives::Reduction reduction, int root) {
    return call(collectives::Operation::reduce, kElementOf<T>, reduction, root, std::as_bytes(in), writable(out));
  }
  template <Collectable T>
  Completion allreduce(std::span<T> buffer, collectives::Reduction reduction = collectives::Reduction::sum) {
    return call(collectives::Operation::allreduce, kElementOf<T>, reduction, -1, std::as_bytes(buffer), writable(buffer));
  }
  // out: size() times in; rank r's part begins at r × in.size().
  template <Collectable T>
  Completion allgather(std::span<const T> in, std::span<T> out) {
    return call(collectives::Operation::allgather, kElementOf<T>, {}, -1, std::as_bytes(in), writable(out));
  }
  // in: size() times out, which is this rank's part of the sums.
  template <Collectable T>
  Completion reduce_scatter(std::span<const T> in, std::span<T> out,
                            collectives::Reduction reduction = collectives::Reduction::sum) {
    return call(collectives::Operation::reduce_scatter, kElementOf<T>, reduction, -1, std::as_bytes(in), writable(out));
  }
  // out: at root size() times in; elsewhere it may be empty.
  template <Collectable T>
  Completion gather(std::span<const T> in, std::span<T> out, int root) {
    return call(collectives::Operation::gather, kElementOf<T>, {}, root, std::as_bytes(in), writable(out));
  }
  // in: at root size() times out; elsewhere it may be empty.
  template <Collectable T>
  Completion scatter(std::span<const T> in, std::span<T> out, int root) {
    return call(collectives::Operation::scatter, kElementOf<T>, {}, root, std::as_bytes(in), writable(out));
  }

  // What all of the above do, for types that are known only when the program runs. Sizes as above, in bytes.
  Completion call(collectives::Operation operation, collectives::Element element, collectives::Reduction reduction,
                  int root, std::span<const std::byte> in, std::span<std::byte> out);

  // What a call made now would be planned as, at rank 0, which knows how the links are. Errors: as the planner's.
  Expected<collectives::Plan> plan(collectives::Operation operation, int root) const;

  // Ends one relay actor that is at work here, if there is one: for tests of faults.
  void end_a_relay();

 private:
  template <class T>
  static std::span<std::byte> writable(std::span<T> buffer) {
    return std::as_writable_bytes(buffer);
  }
  struct Parts;
  explicit Communicator(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// The cluster's topology file, or one switch between its hosts when it names none. Errors: bad_input, unreadable file, or
// one that lacks a host of the cluster.
Expected<collectives::Topology> topology_of(const Cluster& cluster);

// This host's ends of links that have addresses of their own.
std::vector<std::string> link_addresses(const collectives::Topology& topology, const std::string& name);

}  // namespace coppice::runtime
