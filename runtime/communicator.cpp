#include "runtime/communicator.hpp"

#include <caf/all.hpp>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>

#include "actors/call_layout.hpp"
#include "actors/on_this_thread.hpp"
#include "actors/type_ids.hpp"
#include "runtime/doorsteps.hpp"
#include "runtime/prober.hpp"
#include "runtime/transport.hpp"

namespace coppice::runtime {

using collectives::CallKind;
using actors::CallReport;
using collectives::Operation;

// ---- completion ------------------------------------------------------------------------------------------------------

struct Completion::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Expected<CallReport>> result;  // set once
  std::vector<std::function<void(const Expected<CallReport>&)>> actions;
  // Of calls that are over so soon that whoever waits serves the sockets itself, instead of being woken by who does.
  std::weak_ptr<Transport> to_serve;
  std::optional<std::thread::id> server;  // while somebody does

  void complete(Expected<CallReport> outcome) {
    decltype(actions) now;
    bool elsewhere = false;
    {
      const std::lock_guard lock(mutex);
      result = std::move(outcome);
      now.swap(actions);
      elsewhere = server && *server != std::this_thread::get_id();
    }
    changed.notify_all();
    if (elsewhere)
      if (const auto transport = to_serve.lock()) transport->interrupt();
    for (const auto& action : now) action(*result);
  }

  bool ready() {
    const std::lock_guard lock(mutex);
    return result.has_value();
  }

  void serve() {
    const auto transport = to_serve.lock();
    if (!transport) return;
    {
      const std::lock_guard lock(mutex);
      if (result || server) return;
      server = std::this_thread::get_id();
    }
    struct Served {
      Shared& shared;
      ~Served() {
        const std::lock_guard lock(shared.mutex);
        shared.server.reset();
      }
    } const served{*this};
    transport->serve_until([this] { return ready(); });
  }
};

namespace {

// Kept once, or broken when nobody is left to keep it.
class Promise {
 public:
  explicit Promise(std::shared_ptr<Completion::Shared> shared) : shared_(std::move(shared)) {}
  Promise(const Promise&) = delete;
  Promise& operator=(const Promise&) = delete;
  ~Promise() {
    if (shared_) shared_->complete(failed("the communicator was left before the call was complete"));
  }
  void keep(Expected<CallReport> outcome) {
    if (const auto shared = std::exchange(shared_, nullptr)) shared->complete(std::move(outcome));
  }

 private:
  std::shared_ptr<Completion::Shared> shared_;
};

}  // namespace

bool Completion::ready() const { return shared_->ready(); }

Expected<CallReport> Completion::wait() const {
  shared_->serve();
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [&] { return shared_->result.has_value(); });
  return *shared_->result;
}

void Completion::then(std::function<void(const Expected<CallReport>&)> action) const {
  {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->result) {
      shared_->actions.push_back(std::move(action));
      return;
    }
  }
  action(*shared_->result);
}

// ---- the communicator ------------------------------------------------------------------------------------------------

Expected<collectives::Topology> topology_of(const Cluster& cluster) {
  std::vector<std::string> names;
  for (const auto& host : cluster.hosts) names.push_back(host.name);
  if (cluster.topology.empty()) return collectives::single_switch(names);
  auto topology = collectives::load_topology(cluster.topology);
  if (!topology) return bad_input(one_line(topology.error().what));
  for (const auto& name : names)
    if (!collectives::find_node(*topology, name))
      return bad_input(cluster.topology.string() + ": it has no node \"" + name + "\", which the cluster file has");
  return std::move(*topology);
}

std::vector<std::string> link_addresses(const collectives::Topology& topology, const std::string& name) {
  const auto node = collectives::find_node(topology, name);
  std::vector<std::string> addresses;
  for (const auto& link : topology.links) {
    if (node && link.from == *node && link.from_address) addresses.push_back(*link.from_address);
    if (node && link.to == *node && link.to_address) addresses.push_back(*link.to_address);
  }
  return addresses;
}

namespace {

// Hosts at the other ends of this host's own links.
std::vector<actors::Peer> neighbours_of(const collectives::Topology& topology, const std::string& name,
                                        const std::vector<std::string>& names) {
  std::vector<actors::Peer> out;
  const auto node = collectives::find_node(topology, name);
  for (const auto& link : topology.links) {
    if (!node || (link.from != *node && link.to != *node)) continue;
    const bool out_of = link.from == *node;
    const auto& other = topology.nodes[static_cast<std::size_t>(out_of ? link.to : link.from)].id;
    if (std::ranges::find(names, other) == names.end()) continue;
    const auto own = out_of ? link.from_address : link.to_address, far = out_of ? link.to_address : link.from_address;
    actors::Peer peer{other, "", own.value_or(""), far.value_or("")};
    if (std::ranges::find(out, peer) == out.end()) out.push_back(std::move(peer));
  }
  return out;
}

std::shared_ptr<Prober> prober_of(const CommunicatorOptions& options) {
  ProberOptions probe;
  probe.cluster = options.cluster;
  probe.name = options.name;
  probe.agent = actors::probe_timing(options.probe);
  probe.progress = options.probe_progress;
  return std::make_shared<Prober>(std::move(probe));
}

}  // namespace

struct Communicator::Parts {
  CommunicatorOptions options;
  int rank = 0;
  mutable std::mutex mutex;
  std::optional<collectives::GroupPlanner> links;  // guarded by mutex: they are seen to fail while calls are made
  std::unique_ptr<caf::actor_system_config> config;
  std::unique_ptr<caf::actor_system> system;
  std::shared_ptr<actors::CollectiveRouter> router = std::make_shared<actors::CollectiveRouter>();
  std::shared_ptr<Transport> transport;
  std::shared_ptr<actors::AckLedger> acks = std::make_shared<actors::AckLedger>();
  // Of the transport's thread, once there is a system.
  struct Here {
    std::mutex mutex;
    std::unique_ptr<actors::OnThisThread> unit;
  };
  std::shared_ptr<Here> here = std::make_shared<Here>();
  caf::actor communicator;

  ~Parts() {
    if (transport) acks->flush(*transport);
    // Now nothing reads callers' buffers any more, and nothing is delivered to actors that are going.
    if (transport) transport->close();
    if (communicator) caf::anon_send_exit(communicator, caf::exit_reason::user_shutdown);
    router->detach();
    here->unit.reset();
    communicator = nullptr;
    system.reset();
  }

  // Planning takes its time: it is done on a copy, not under the lock.
  collectives::GroupPlanner planner() const {
    const std::lock_guard lock(mutex);
    return *links;
  }
  void degrade(const collectives::RankEdge& edge, std::int64_t bytes_per_s) {
    auto now = planner();
    now.degrade(edge, bytes_per_s);
    const std::lock_guard lock(mutex);
    links = std::move(now);
  }
};

Communicator::Communicator(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Communicator::~Communicator() = default;

int Communicator::rank() const { return parts_->rank; }
int Communicator::size() const { return static_cast<int>(parts_->options.cluster.hosts.size()); }
collectives::Topology Communicator::topology() const { return parts_->planner().topology(); }
Expected<collectives::Plan> Communicator::plan(Operation operation, int root) const {
  auto plan = parts_->planner().plan(operation, root);
  if (!plan) return failed(one_line(plan.error().what));
  return std::move(*plan);
}

Expected<std::unique_ptr<Communicator>> Communicator::join(CommunicatorOptions options) {
  const auto* host = options.cluster.find(options.name);
  if (!host) return bad_input("the cluster file has no host named " + options.name);
  const bool probing = options.probe.count() > 0 && options.cluster.topology.empty();
  auto topology = probing ? collectives::Topology{} : topology_of(options.cluster);
  if (!topology) return tl::unexpected(topology.error());
  auto identity = load_identity(options.cluster.keys, options.name);
  if (!identity) return tl::unexpected(identity.error());
  auto allow = load_allow_list(options.cluster.keys);
  if (!allow) return tl::unexpected(allow.error());

  auto parts = std::make_unique<Parts>();
  std::vector<std::string> names;
  for (const auto& each : options.cluster.hosts) {
    if (each.name == options.name) parts->rank = static_cast<int>(names.size());
    names.push_back(each.name);
  }
  parts->options = std::move(options);
  const auto& kept = parts->options;

  TransportOptions transport;
  transport.identity = std::move(*identity);
  transport.allow = std::move(*allow);
  transport.bind_address = host->address;
  transport.link_addresses = link_addresses(*topology, kept.name);
  transport.port = host->port;
  transport.note_addresses = kept.hops != nullptr;
  transport.hosts = kept.cluster.hosts;
  transport.heartbeat_ms = 5'000;  // a chunk on a slow link takes its time, and links and ranks are watched apart from this
  transport.frames_max = 0;      // a chunk that is dropped is waited for; windows and the caller's calls bound them
  transport.local = kept.local;
  transport.linger_ms = 2'000;  // others may wait for this rank's last acknowledgement
  const auto prober = probing ? prober_of(kept) : nullptr;
  auto opened = Transport::open(std::move(transport),
                                [here = parts->here, router = parts->router, names, prober](actors::Delivery delivery) {
                                  if (std::holds_alternative<actors::ProbeNote>(delivery.message)) {
                                    if (prober) prober->deliver(std::move(delivery));
                                    return;
                                  }
                                  // Only the group's own ranks: clients with a key of the cluster are not among them.
                                  if (std::ranges::find(names, delivery.from.name) != names.end()) {
                                    const std::lock_guard lock(here->mutex);
                                    router->deliver(std::move(delivery), here->unit ? here->unit->unit() : nullptr);
                                    if (here->unit) here->unit->run();
                                  }
                                });
  if (!opened) return tl::unexpected(opened.error());
  parts->transport = std::move(*opened);
  // Over the transport that stays: who is done first may call at once, and its frames wait for those that are not.
  if (prober) {
    auto probed = prober->run(parts->transport);
    if (!probed) return tl::unexpected(probed.error());
    if (probed->report && !probed->report->faults.empty()) return failed("probing: " + collectives::in_words(probed->report->faults));
    *topology = std::move(probed->topology);
  }
  std::vector<int> participants;
  for (const auto& each : names) {
    const auto node = collectives::find_node(*topology, each);
    if (!node) return failed("probing: no topology with " + each + " in it");
    participants.push_back(*node);
  }
  parts->links.emplace(*topology, std::move(participants), kept.planner, kept.hybrid);

  parts->config = std::make_unique<caf::actor_system_config>();
  parts->config->set("scheduler.policy", caf::atom("sharing"));
  parts->config->set("scheduler.max-threads", std::size_t{2});
  parts->system = std::make_unique<caf::actor_system>(*parts->config);
  actors::CommunicatorOptions communicate;
  communicate.rank = parts->rank;
  communicate.names = names;
  communicate.session = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  communicate.router = parts->router;
  communicate.patience = kept.patience;
  communicate.hops = kept.hops;
  if (!kept.tune || kept.chunks > 0) communicate.tune_from = INT64_MAX;
  communicate.on_loss = kept.on_loss;
  communicate.plan = [raw = parts.get()](const CallKind& kind, std::int64_t chunks, const std::vector<int>& members) {
    return raw->planner().program(kind, chunks > 0 ? chunks : raw->options.chunks, members);
  };
  communicate.pass_on = [raw = parts.get()](const CallKind& kind, int from, const std::vector<int>& members) {
    return raw->planner().passing_on(kind, from, members);
  };
  communicate.resume = [raw = parts.get()](const CallKind& kind, const collectives::Program& program, const auto& progress) {
    return raw->planner().resume(kind, program, progress);
  };
  communicate.can_resume = [raw = parts.get()](const CallKind& kind, const std::vector<int>& members) {
    return raw->planner().can_resume(kind, members);
  };
  communicate.knock = [doorsteps = std::make_shared<Doorsteps>(kept.cluster.hosts), names](int rank) {
    return doorsteps->knock(names[static_cast<std::size_t>(rank)]);
  };
  communicate.degrade = [raw = parts.get()](const collectives::RankEdge& edge, std::int64_t rate) { raw->degrade(edge, rate); };
  communicate.neighbours = neighbours_of(*topology, kept.name, names);
  if (kept.notice) communicate.notice = [notice = kept.notice](const std::string& what) { notice(one_line(what)); };
  communicate.hang_up = [transport = std::weak_ptr(parts->transport)](const std::optional<actors::Peer>& peer) {
    const auto alive = transport.lock();
    if (alive && peer) alive->hang_up(*peer);
    if (alive && !peer) alive->hang_up();
  };
  communicate.acks = parts->acks;
  parts->communicator = actors::spawn_communicator(*parts->system, std::move(communicate), parts->transport);
  {
    const std::lock_guard lock(parts->here->mutex);
    parts->here->unit = std::make_unique<actors::OnThisThread>(*parts->system);
  }
  return std::unique_ptr<Communicator>(new Communicator(std::move(parts)));
}

void Communicator::end_a_relay() { caf::anon_send(parts_->communicator, actors::EndARelay{}); }

Completion Communicator::call(Operation operation, collectives::Element element, collectives::Reduction reduction,
                              int root, std::span<const std::byte> in, std::span<std::byte> out) {
  auto shared = std::make_shared<Completion::Shared>();
  const Completion completion(shared);
  const auto refuse = [&](const std::string& why) {
    shared->complete(bad_input(std::string(name(operation)) + ": " + why));
    return completion;
  };
  const auto layout = actors::layout_of(operation);
  const int ranks = size(), me = rank();
  if (layout.rooted && (root < 0 || root >= ranks))
    return refuse("root " + std::to_string(root) + " is no rank; there are " + std::to_string(ranks));
  const bool at_root = me == root;
  const auto parts = static_cast<std::size_t>(ranks);

  const bool in_is_part = layout.in_is_part, out_is_part = layout.out_is_part;
  const bool in_used = at_root || !layout.in_at_root_only, out_used = at_root || !layout.out_at_root_only;
  const std::size_t whole = operation == Operation::scatter ? out.size() * parts : in.size() * (in_is_part ? parts : 1);
  if (whole % collectives::size_of(element) != 0) return refuse("the buffer holds no whole number of elements");
  const std::size_t part = whole / parts;
  if (in_used && in.size() != (in_is_part ? part : whole)) return refuse("a buffer of " + std::to_string(in.size()) + " bytes to send, not " + std::to_string(in_is_part ? part : whole));
  if (out_used && out.size() != (out_is_part ? part : whole)) return refuse("a buffer of " + std::to_string(out.size()) + " bytes to receive, not " + std::to_string(out_is_part ? part : whole));

  const auto own = static_cast<std::int64_t>(part) * me;
  actors::CollectiveBuffer buffer;
  // Contributions are never written to: CollectiveBuffer has one type for both.
  if (in_used) buffer.input = const_cast<std::byte*>(in.data());
  buffer.input_begin = in_is_part ? own : 0;
  if (out_used) buffer.output = out.data();
  buffer.output_begin = out_is_part ? own : 0;
  // The rank's own part, where no tree carries it. (memmove: the two may be one.)
  const auto offset = static_cast<std::size_t>(own);
  if (part > 0 && operation == Operation::gather && at_root) std::memmove(out.data() + offset, in.data(), part);
  if (part > 0 && operation == Operation::scatter && at_root) std::memmove(out.data(), in.data() + offset, part);

  // Whoever waits is told, even where the communicator is no longer there to take the call.
  const auto promise = std::make_shared<Promise>(shared);
  actors::StartCall start;
  start.kind = {operation, element, collectives::combines(operation) ? reduction : collectives::Reduction::sum,
                layout.rooted ? root : -1, static_cast<std::int64_t>(whole)};
  start.buffer = std::move(buffer);
  start.done = [promise](actors::CallResult result) {
    if (result) return promise->keep(std::move(*result));
    auto& fault = result.error();
    const auto code = fault.gone.empty() ? ErrorCode::failed : ErrorCode::rank_gone;
    promise->keep(tl::unexpected(Error{code, one_line(fault.what), std::move(fault.gone)}));
  };
  constexpr std::size_t kSmall = std::size_t{64} << 10;
  if (whole > kSmall) {
    parts_->transport->end_rest();
    caf::anon_send(parts_->communicator, std::move(start));
    return completion;
  }
  shared->to_serve = parts_->transport;
  actors::OnThisThread here(*parts_->system);
  actors::tell(parts_->communicator, here.unit(), caf::make_message(std::move(start)));
  here.run();
  return completion;
}

}  // namespace coppice::runtime
