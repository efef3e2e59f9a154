#include "runtime/control.hpp"

#include <dlfcn.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <caf/all.hpp>
#include <caf/io/all.hpp>
#include <caf/openssl/all.hpp>
#include <map>

#include "actors/faults.hpp"
#include "actors/type_ids.hpp"

// OpenSSL keeps one queue of errors a thread, and SSL_get_error blames whatever is in it on the connection at hand. CAF
// 0.17 never empties it, and one thread serves all its connections: a worker that is killed leaves "unexpected EOF"
// there, and every other worker's next read is then taken for a fatal error (measured: one SIGKILL among seven workers
// closed all seven connections within 0.2 s). This stands before libssl's own function, asks it, and empties the queue.
//
// And (CAF issue 1060) whoever dials has something to write, so CAF polls for a socket that can be written to, which it
// always can, and asks for the handshake's next step again and again until the other side has answered: a core a worker,
// and a gateway that shares its machine with 44 of them gets so little of it that the handshakes never end (measured). So
// the dialling side waits here for the answer, a little at a time. The gateway does not: its one thread serves everybody.
constexpr int kHandshakeWaitMs = 5;
extern "C" int SSL_get_error(const SSL* ssl, int result) {
  using Function = int (*)(const SSL*, int);
  static const auto libssl = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "SSL_get_error"));
  const int error = libssl(ssl, result);
  ERR_clear_error();
  if (error == SSL_ERROR_WANT_READ && SSL_is_server(ssl) == 0 && SSL_in_init(ssl) != 0) {
    pollfd answer{SSL_get_fd(ssl), POLLIN, 0};
    ::poll(&answer, 1, kHandshakeWaitMs);
  }
  return error;
}

namespace coppice::runtime::control {

// Local to this file's actors; never serialised.
struct AttachSupervisor {
  caf::actor supervisor;
};
struct AttachWorkers {
  caf::actor subnet, encoder;
};
struct Connect {};
struct SpreadFaults {
  std::string spec;
  std::function<void(const std::string&)> done;
};

}  // namespace coppice::runtime::control

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::runtime::control::AttachSupervisor)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::runtime::control::AttachWorkers)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::runtime::control::Connect)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::runtime::control::SpreadFaults)

namespace coppice::runtime {
namespace {

using control::AttachSupervisor, control::AttachWorkers, control::Connect, control::SpreadFaults;

using namespace actors;
using Self = caf::event_based_actor;

constexpr auto kConnectPatience = std::chrono::seconds{3};
constexpr auto kRetry = std::chrono::milliseconds{250};
constexpr auto kTakeUpPatience = std::chrono::seconds{2};  // of faults, by a worker that may be stopped


struct Config : caf::actor_system_config {
  Config() {
    add_message_types<caf::id_block::coppice>();
    load<caf::io::middleman>();
    load<caf::openssl::manager>();
  }
};

// ---- gateway -------------------------------------------------------------------------------------------------------

struct Members {
  std::vector<std::string> workers;
  caf::actor supervisor;
  std::map<std::string, caf::actor> present;
};

std::optional<std::uint32_t> place(const Members& members, const std::string& name) {
  const auto found = std::find(members.workers.begin(), members.workers.end(), name);
  if (found == members.workers.end()) return std::nullopt;
  return static_cast<std::uint32_t>(found - members.workers.begin());
}

void on_join(Self* self, Members& members, const Join& join, const caf::actor& worker) {
  if (!place(members, join.name) || join.version != kVersion) {
    spdlog::warn("{} wants to join: {}", join.name,
                 join.version != kVersion ? "it runs another version of coppice" : "the cluster file has no such worker");
    return;
  }
  self->monitor(worker);
  members.present[join.name] = worker;
  spdlog::info("{} joined (process {})", join.name, join.pid);
  caf::anon_send(members.supervisor, WorkerJoined{join.name, join.pid});
}

void on_down(Members& members, const caf::down_msg& down) {
  for (auto it = members.present.begin(); it != members.present.end(); ++it) {
    if (it->second != down.source) continue;
    const std::string reason = down.reason == caf::exit_reason::remote_link_unreachable
                                   ? "its connection closed or fell silent"
                                   : "its control actor ended";
    spdlog::warn("{} is gone: {}", it->first, reason);
    caf::anon_send(members.supervisor, WorkerLost{it->first, reason});
    members.present.erase(it);
    return;
  }
}

// Items travel on sockets of their own and would overtake what only has been sent.
void spread_to_all(Self* self, const Members& members, const SpreadFaults& spread) {
  const auto spec = parse_faults(spread.spec);
  const auto left = std::make_shared<std::size_t>(members.present.size());
  const auto one_has = [left, done = spread.done] {
    if (--*left == 0) done("");
  };
  const bool answered = spec && !spec->kill && !spec->stop;
  for (const auto& [name, worker] : members.present) {
    const SetFaults faults{spread.spec, *place(members, name), static_cast<std::uint32_t>(members.workers.size())};
    if (answered) {
      self->request(worker, kTakeUpPatience, faults).then(one_has, [one_has](const caf::error&) { one_has(); });
    } else {
      self->send(worker, faults);
    }
  }
  if (!answered || members.present.empty()) spread.done("");
}

caf::behavior membership(Self* self, const std::shared_ptr<Members>& members) {
  self->set_down_handler([=](const caf::down_msg& down) { on_down(*members, down); });
  return {
      [=](const Join& join, const caf::actor& worker) { on_join(self, *members, join, worker); },
      [=](const Ready& ready) {
        if (members->supervisor) caf::anon_send(members->supervisor, WorkerReady{ready.name, TransferId{ready.transfer}});
      },
      [=](const Refused& refused) {
        spdlog::error("{} cannot use its weights: {}", refused.name, refused.reason);
        if (members->supervisor) caf::anon_send(members->supervisor, refused);
      },
      [=](const SpreadFaults& spread) { spread_to_all(self, *members, spread); },
      [=](const AttachSupervisor& attach) { members->supervisor = attach.supervisor; },
  };
}

// ---- worker --------------------------------------------------------------------------------------------------------

struct Member {
  std::string name;
  Host gateway;
  caf::actor leader, subnet, encoder;
  int attempts = 0;
};

void connect(Self* self, const std::shared_ptr<Member>& member) {
  const auto port = static_cast<std::uint16_t>(member->gateway.port + 1);
  const auto again = [=](const std::string& why) {
    if (member->attempts++ % 40 == 20)  // every ten seconds, not at a start where all come up at once
      spdlog::warn("cannot join {} at {}:{}: {}; trying on", member->gateway.name, member->gateway.address, port, why);
    self->delayed_send(self, kRetry, Connect{});
  };
  self->request(self->home_system().openssl_manager().actor_handle(), kConnectPatience, caf::connect_atom::value,
                member->gateway.address, port)
      .then(
          [=](const caf::node_id&, const caf::strong_actor_ptr& leader, const std::set<std::string>&) {
            if (!leader) return again("nothing is published there");
            member->attempts = 0;
            member->leader = caf::actor_cast<caf::actor>(leader);
            self->monitor(member->leader);
            self->send(member->leader, Join{member->name, static_cast<std::uint32_t>(::getpid()), kVersion},
                       caf::actor_cast<caf::actor>(self));
          },
          [=](const caf::error& fault) { again(self->system().render(fault)); });
}

void take_up(const Member& member, const SetFaults& faults) {
  const auto spec = parse_faults(faults.spec);
  if (!spec) {
    spdlog::error("{}", spec.error());
    return;
  }
  caf::anon_send(member.subnet, faults);
  caf::anon_send(member.encoder, faults);
  if (!aims_at(*spec, faults.worker, faults.workers, member.name)) return;
  // The asker sends kill and stop when their time has come.
  if (spec->kill) ::kill(::getpid(), SIGKILL);
  if (spec->stop) ::kill(::getpid(), SIGSTOP);
}

caf::behavior member_behavior(Self* self, const std::shared_ptr<Member>& member) {
  self->set_down_handler([=](const caf::down_msg& down) {
    if (down.source != member->leader) return;
    spdlog::warn("{} lost its gateway {}; joining again", member->name, member->gateway.name);
    member->leader = nullptr;
    self->delayed_send(self, kRetry, Connect{});
  });
  self->send(self, Connect{});
  return {
      [=](Connect) { connect(self, member); },
      [=](const Ready& ready) {
        if (member->leader) self->send(member->leader, ready);
      },
      [=](const Refused& refused) {
        spdlog::error("{}: {}", member->name, refused.reason);
        if (member->leader) self->send(member->leader, refused);
      },
      [=](const SetFaults& faults) { take_up(*member, faults); },
      [=](const AttachWorkers& attach) {
        member->subnet = attach.subnet;
        member->encoder = attach.encoder;
      },
  };
}

}  // namespace

Expected<std::unique_ptr<caf::actor_system_config>> control_config(const Identity& identity,
                                                                   const ControlOptions& options) {
  for (const auto& file : {identity.certificate, identity.private_key, identity.authority})
    if (file.empty() || ::access(file.c_str(), R_OK) != 0)
      return bad_input("control needs " + (file.empty() ? "a certificate" : file.string()) +
                       ", which cannot be read: make the keys with `coppice keys`");
  auto config = std::make_unique<Config>();
  config->set("openssl.certificate", identity.certificate.string());
  config->set("openssl.key", identity.private_key.string());
  config->set("openssl.cafile", identity.authority.string());
  config->openssl_certificate = identity.certificate.string();
  config->openssl_key = identity.private_key.string();
  config->openssl_cafile = identity.authority.string();
  config->set("middleman.heartbeat-interval", caf::timespan(options.heartbeat));
  config->set("middleman.connection-timeout", caf::timespan(options.timeout));
  config->set("scheduler.policy", caf::atom_from_string(options.scheduler));
  config->set("scheduler.max-threads", options.threads);
  config->set("middleman.workers", std::size_t{0});
  config->set("logger.verbosity", caf::atom("quiet"));
  return config;
}

caf::actor spawn_membership(caf::actor_system& system, std::vector<std::string> workers) {
  auto members = std::make_shared<Members>();
  members->workers = std::move(workers);
  return system.spawn(membership, members);
}

void spread_faults(const caf::actor& membership, const std::string& spec, std::function<void(const std::string&)> done) {
  caf::anon_send(membership, SpreadFaults{spec, std::move(done)});
}

void attach_supervisor(const caf::actor& membership, const caf::actor& supervisor) {
  caf::anon_send(membership, AttachSupervisor{supervisor});
}

Expected<void> publish_membership(caf::actor_system&, const caf::actor& membership, const Host& gateway) {
  const auto port = static_cast<std::uint16_t>(gateway.port + 1);
  // With reuse: a gateway that was stopped leaves connections that time out for a minute, and must start again at once.
  const auto published = caf::openssl::publish(membership, port, gateway.address.c_str(), true);
  if (!published)
    return failed("cannot listen for control on " + gateway.address + ":" + std::to_string(port) +
                  " (the gateway's port + 1): it is in use or not an address of this machine; give " + gateway.name +
                  " another port in the cluster file");
  return {};
}

caf::actor spawn_member(caf::actor_system& system, const std::string& name, const Host& gateway) {
  auto member = std::make_shared<Member>();
  member->name = name;
  member->gateway = gateway;
  return system.spawn(member_behavior, member);
}

void attach_workers(const caf::actor& member, const caf::actor& subnet, const caf::actor& encoder) {
  caf::anon_send(member, AttachWorkers{subnet, encoder});
}

}  // namespace coppice::runtime
