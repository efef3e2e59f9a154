// runtime/transport.hpp: one node's data sockets.
//
// A node binds one ROUTER and dials a DEALER to each host it sends to first. Whoever sends does so on its own thread; what
// arrives is handed to one callback on the I/O thread, or on that of a caller who waits for it and serves the sockets
// meanwhile (serve_until). A mutex hands the sockets from one to the other. All that leaves the machine is CURVE, and
// our ZAP handler, served by the same thread and bound before any listener, lets in only keys of the allow-list: a
// listener without it would let anyone in. The name a delivery bears is the one its key has in that list.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/ports.hpp"
#include "runtime/cluster.hpp"
#include "runtime/error.hpp"
#include "runtime/keys.hpp"

namespace coppice::runtime {

struct TransportOptions {
  Identity identity;
  AllowList allow;
  std::string bind_address;  // of the listener
  std::vector<std::string> link_addresses = {};  // this host's ends of links of their own: listened on as well
  bool note_addresses = false;  // deliveries say at which of its addresses the peer sent: Peer::to_address
  std::uint16_t port = 0;
  std::vector<Host> hosts;   // who can be dialled
  int heartbeat_ms = 500;    // a silent connection is given up after three of them
  int frames_max = 4'096;    // waiting at each peer; more are dropped and counted. 0: none are
  int linger_ms = 0;         // how long close() may take to send what is still queued
  bool local = false;        // to hosts that are processes of this machine: over Unix sockets (runtime/local_links.hpp)
};

struct TransportCounts {
  std::atomic<std::uint64_t> sent{0}, received{0}, dropped{0}, malformed{0}, refused_keys{0};
  std::atomic<std::uint64_t> bytes_sent{0}, bytes_received{0};  // of frames, without ZeroMQ's and TCP's own
  std::atomic<std::uint64_t> sent_locally{0};                   // frames, of those sent
};

class Transport final : public actors::FramePort {
 public:
  using OnDelivery = std::function<void(actors::Delivery)>;

  // Starts listening. `on_delivery` runs on one thread at a time and must not block. Errors: a port in use, a bad key.
  static Expected<std::shared_ptr<Transport>> open(TransportOptions options, OnDelivery on_delivery);
  ~Transport() override;  // as close()
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  void send(const actors::Peer& to, actors::DataMessage message) override;
  void send_to_all(const std::vector<actors::Peer>& to, const actors::DataMessage& message) override;
  // Does the I/O thread's work on the caller's thread until `done`, which is asked whenever something was delivered, and
  // after interrupt(): two changes of thread less for each answer that is waited for. False: somebody else does so
  // already, or the transport is closed. Not from `on_delivery`.
  bool serve_until(const std::function<bool()>& done);
  void interrupt();
  // For a while after a caller has served, the I/O thread lets the sockets be, since most callers wait again. Not any more.
  void end_rest();
  // Stops the thread and lets go of everything that waits; afterwards nothing is delivered and nothing sent. Idempotent.
  void close();
  // Closes the connections that this node made to a peer over the addresses that are given, or every one, and forgets what
  // waits in them; the next frame dials again.
  void hang_up(const actors::Peer& whom);
  void hang_up();
  const TransportCounts& counts() const;

 private:
  struct Io;
  explicit Transport(std::unique_ptr<Io> io);
  std::unique_ptr<Io> io_;
};

}  // namespace coppice::runtime
