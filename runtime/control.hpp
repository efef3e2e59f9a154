// runtime/control.hpp: who is in the cluster: CAF over mutual TLS, one connection from each worker to the gateway.
//
// The gateway's membership actor listens on the gateway's port + 1; a worker's member actor connects, joins, and
// connects again whenever the gateway is lost. Both sides monitor each other with heartbeats (CAF's are off by default),
// so a killed peer is noticed in milliseconds and a stopped one in about a second.
#pragma once

#include <caf/fwd.hpp>
#include <memory>
#include <functional>
#include <string>

#include "runtime/cluster.hpp"
#include "runtime/error.hpp"
#include "runtime/keys.hpp"

namespace coppice::runtime {

struct ControlOptions {
  std::string scheduler = "sharing";  // or "stealing"; measured on two cores, see ARCHITECTURE.md
  std::size_t threads = 2;
  std::chrono::milliseconds heartbeat{200};
  std::chrono::milliseconds timeout{1'000};  // after so long a silence a peer is down
};

// An actor system with TLS made from the identity. Refuses to start without certificate and authority: CAF would run
// anonymous TLS then.
Expected<std::unique_ptr<caf::actor_system_config>> control_config(const Identity& identity,
                                                                   const ControlOptions& options);

// Gateway: tells `supervisor` WorkerJoined, WorkerReady and WorkerLost.
caf::actor spawn_membership(caf::actor_system& system, std::vector<std::string> workers);
// done(""): every worker that is there has taken them up; whom they kill or stop is not waited for. REQUIRES: the spec reads.
void spread_faults(const caf::actor& membership, const std::string& spec, std::function<void(const std::string&)> done);
void attach_supervisor(const caf::actor& membership, const caf::actor& supervisor);
Expected<void> publish_membership(caf::actor_system& system, const caf::actor& membership, const Host& gateway);

// Worker: joins the gateway as `name` and reports for its subnet. SetFaults go to `subnet` and `encoder`.
caf::actor spawn_member(caf::actor_system& system, const std::string& name, const Host& gateway);
void attach_workers(const caf::actor& member, const caf::actor& subnet, const caf::actor& encoder);

}  // namespace coppice::runtime
