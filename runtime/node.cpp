#include "runtime/node.hpp"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <caf/all.hpp>
#include <map>
#include <thread>

#include "actors/actors.hpp"
#include "actors/faults.hpp"
#include "actors/local_messages.hpp"
#include "actors/type_ids.hpp"
#include "gpu/device.hpp"
#include "gpu/onnx.hpp"
#include "runtime/model.hpp"
#include "runtime/replay.hpp"
#include "runtime/scheduler.hpp"
#include "runtime/sha256.hpp"
#include "runtime/transport.hpp"

namespace coppice::runtime {
namespace {

using namespace actors;

// ---- a worker's net ------------------------------------------------------------------------------------------------

class DeviceNet final : public NetPort {
 public:
  // The device outlives what it compiled.
  DeviceNet(std::unique_ptr<gpu::Device> device, std::unique_ptr<gpu::CompiledNet> net)
      : device_(std::move(device)), net_(std::move(net)) {}

  std::optional<std::string> run(std::span<const float> item, Floats& scores) override {
    scores.resize(static_cast<std::size_t>(net_->output_elements()));
    const auto ran = net_->run(item, scores);
    return ran ? std::nullopt : std::optional(ran.error().what);
  }
  std::size_t input_elements() const override { return static_cast<std::size_t>(net_->input_elements()); }

 private:
  std::unique_ptr<gpu::Device> device_;
  std::unique_ptr<gpu::CompiledNet> net_;
};

// The worker's net on the device, or what was recorded of it.
tl::expected<std::unique_ptr<NetPort>, std::string> run_on(const std::string& device_spec, const WorkerNet& own,
                                                           std::span<const std::byte> onnx) {
  const auto fits = [&](const std::string& what, std::size_t outputs) -> tl::expected<void, std::string> {
    if (outputs == own.classes.size()) return {};
    return tl::unexpected(what + " answers with " + std::to_string(outputs) + " scores, the manifest says " +
                          std::to_string(own.classes.size()));
  };
  if (device_spec.starts_with(kReplay)) {
    const auto file = device_spec.substr(kReplay.size());
    auto replay = ReplayNet::load(file);
    if (!replay) return tl::unexpected(replay.error().what);
    if (auto good = fits(file, (*replay)->outputs()); !good) return tl::unexpected(good.error());
    return std::move(*replay);
  }
  auto network = gpu::parse_onnx(onnx, own.file);
  if (!network) return tl::unexpected(network.error().what);
  auto device = gpu::make_device(device_spec, {});
  if (!device) return tl::unexpected(device.error().what);
  auto net = (*device)->compile(*network, {});
  if (!net) return tl::unexpected(net.error().what);
  if (auto good = fits(own.file, static_cast<std::size_t>((*net)->output_elements())); !good)
    return tl::unexpected(good.error());
  return std::make_unique<DeviceNet>(std::move(*device), std::move(*net));
}

tl::expected<LoadedNet, std::string> load_net(std::span<const std::byte> bytes, std::uint32_t worker,
                                              const std::string& device_spec) {
  auto model = unbundle(bytes);
  if (!model) return tl::unexpected(model.error().what);
  const auto& manifest = model->manifest;
  if (worker >= manifest.workers.size())
    return tl::unexpected("the model has " + std::to_string(manifest.workers.size()) + " workers, this is number " +
                          std::to_string(worker + 1));
  const auto& own = manifest.workers[worker];
  auto net = run_on(device_spec, own, model->files[own.file]);
  if (!net) return tl::unexpected(net.error());
  auto place = place_of(manifest, worker);
  LoadedNet loaded;
  loaded.net = std::move(*net);
  loaded.rows = place.rows;
  loaded.classes = std::move(place.outputs);
  loaded.class_count = place.classes;
  if (!manifest.blocks.empty())
    loaded.blocks = std::make_shared<const std::vector<coding::BlockCode>>(std::move(model->manifest.blocks));
  return loaded;
}

Expected<Model> load_fitting_model(const Cluster& cluster) {
  if (cluster.model.empty())
    return bad_input("the cluster file names no model: add model = \"DIR\" (made by `coppice decompose`)");
  auto model = load_model(cluster.model);
  if (!model) return model;
  const auto& manifest = model->manifest;
  const auto blocks = static_cast<int>(manifest.blocks.size());
  if (manifest.shape != cluster.code.shape || manifest.scheme != cluster.code.scheme || blocks != cluster.code.blocks) {
    const auto told = [](coding::Scheme scheme, coding::CodeShape shape, int count) {
      return fmt::format("{} ({}, {})", coding::name(scheme), shape.workers, shape.needed) +
             (count > 0 ? fmt::format(" in {} blocks", count) : "");
    };
    return bad_input(fmt::format("{} is coded as {}, the cluster file says {}", cluster.model.string(),
                                 told(manifest.scheme, manifest.shape, blocks),
                                 told(cluster.code.scheme, cluster.code.shape, cluster.code.blocks)));
  }
  // Here, before anything travels: a net that cannot be read is named by the process that was given it.
  for (const auto& [file, bytes] : model->files)
    if (auto net = gpu::parse_onnx(bytes, (cluster.model / file).string()); !net) return bad_input(net.error().what);
  return model;
}

}  // namespace

namespace {

// Written by the I/O thread and by whoever sends; outlives actors that still send.
struct Frames {
  std::atomic<std::uint64_t> in{0}, out{0};
};

}  // namespace

struct Node::Parts {
  NodeOptions options;
  Host host;
  std::unique_ptr<caf::actor_system_config> config;
  std::unique_ptr<caf::actor_system> system;
  std::shared_ptr<Transport> transport;
  // Where deliveries go. Set before the transport opens; read on its thread.
  caf::actor supervisor, decoder, relay, subnet, head;  // decoder: a combiner, where there are blocks
  std::vector<caf::actor> all;
  std::map<std::string, int> places;  // of the workers
  std::shared_ptr<Frames> frames = std::make_shared<Frames>();

  ~Parts() {
    for (const auto& actor : all) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    all.clear();
    // Actors of one node hand one another what never leaves it: the handles stay until the last of them has ended.
    if (system) system->await_all_actors_done();
    transport.reset();
    supervisor = decoder = relay = subnet = head = nullptr;
    system.reset();
  }

  // Whether the other is a worker of this one's block, and so may head it.
  bool of_own_block(const std::string& other) const {
    const int n = options.cluster.code.shape.workers;
    const auto place = [&](const std::string& name) {
      const auto found = places.find(name);
      return found == places.end() ? -1 : found->second / n;
    };
    return options.cluster.code.blocks > 0 && place(other) >= 0 && place(other) == place(options.name);
  }

  // Who may say what: clients ask, workers answer, the gateway and heads of the block give work, hosts relay.
  void deliver(Delivery delivery) const {
    const bool from_host = options.cluster.find(delivery.from.name) != nullptr;
    const bool from_gateway = delivery.from.name == options.cluster.gateway().name;
    const bool gives_work = from_gateway || of_own_block(delivery.from.name);
    frames->in += from_host && delivery.from.name != options.name ? 1 : 0;
    struct Target {
      const Parts& parts;
      bool from_host, from_gateway, gives_work;
      const caf::actor* operator()(const InferRequest&) const { return &parts.supervisor; }
      const caf::actor* operator()(const StatusRequest&) const { return &parts.supervisor; }
      const caf::actor* operator()(const FaultRequest&) const { return &parts.supervisor; }
      const caf::actor* operator()(const CodedResponse&) const {
        return !from_host ? nullptr : parts.head ? &parts.head : &parts.decoder;
      }
      const caf::actor* operator()(const WorkItem&) const { return gives_work ? &parts.subnet : nullptr; }
      const caf::actor* operator()(const BlockItem&) const { return from_gateway ? &parts.head : nullptr; }
      const caf::actor* operator()(const WorkerGone&) const { return from_gateway ? &parts.head : nullptr; }
      const caf::actor* operator()(const BlockScore&) const { return from_host ? &parts.decoder : nullptr; }
      const caf::actor* operator()(const TransferOpen&) const { return from_host ? &parts.relay : nullptr; }
      const caf::actor* operator()(const WeightChunk&) const { return from_host ? &parts.relay : nullptr; }
      const caf::actor* operator()(const ChunkAck&) const { return from_host ? &parts.relay : nullptr; }
      const caf::actor* operator()(const InferReply&) const { return nullptr; }
      const caf::actor* operator()(const TextReply&) const { return nullptr; }
      // A serving node takes part in no collective; a communicator (runtime/communicator.hpp) does.
      const caf::actor* operator()(const CollectiveChunk&) const { return nullptr; }
      const caf::actor* operator()(const CollectiveAck&) const { return nullptr; }
      const caf::actor* operator()(const CollectiveAcks&) const { return nullptr; }
      const caf::actor* operator()(const GroupNote&) const { return nullptr; }
      const caf::actor* operator()(const ProbeNote&) const { return nullptr; }
    };
    const auto* target = std::visit(Target{*this, from_host, from_gateway, gives_work}, delivery.message);
    if (target && *target) caf::anon_send(*target, std::move(delivery));
  }
};

namespace {

// Clients are sent nothing but replies.
bool is_for_host(const DataMessage& message) {
  return !std::holds_alternative<InferReply>(message) && !std::holds_alternative<TextReply>(message);
}

// A port for actors that are spawned before the transport is open. What is for this very node never leaves it.
class LatePort final : public FramePort {
 public:
  LatePort(std::string self, Transport::OnDelivery deliver, std::shared_ptr<Frames> frames)
      : self_(std::move(self)), deliver_(std::move(deliver)), frames_(std::move(frames)) {}
  void open(std::shared_ptr<FramePort> port) {
    port_ = std::move(port);
    open_.store(true, std::memory_order_release);
  }
  void send(const Peer& to, DataMessage message) override {
    if (!open_.load(std::memory_order_acquire)) return;
    if (to.name == self_) return deliver_({Peer{self_}, std::move(message)});
    frames_->out += is_for_host(message) ? 1 : 0;
    port_->send(to, std::move(message));
  }

 private:
  std::string self_;
  Transport::OnDelivery deliver_;
  std::shared_ptr<Frames> frames_;
  std::atomic<bool> open_{false};
  std::shared_ptr<FramePort> port_;
};

Expected<void> check_topology(const Cluster& cluster, std::size_t bytes) {
  std::vector<std::string> names;
  for (const auto& worker : cluster.workers()) names.push_back(worker.name);
  const auto relays = plan_relays(cluster, names, bytes);
  if (!relays) return tl::unexpected(relays.error());
  return {};
}

CombinerOptions combiner_options(const Cluster& cluster, const Manifest& manifest, const std::vector<std::string>& workers,
                                 std::vector<std::vector<int>> heads) {
  CombinerOptions options{workers, cluster.gateway().name, manifest.shape, {}, std::move(heads), cluster.code.deadline};
  for (const auto& block : manifest.blocks) options.classes.push_back(block.classes);
  return options;
}

}  // namespace

Node::Node(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Node::~Node() = default;

Expected<std::unique_ptr<Node>> Node::start(NodeOptions options) {
  const auto* host = options.cluster.find(options.name);
  if (!host) return bad_input("the cluster file has no host named " + options.name);
  auto identity = load_identity(options.cluster.keys, options.name);
  if (!identity) return tl::unexpected(identity.error());
  auto allow = load_allow_list(options.cluster.keys);
  if (!allow) return tl::unexpected(allow.error());
  auto config = control_config(*identity, options.control);
  if (!config) return tl::unexpected(config.error());

  auto parts = std::make_unique<Parts>();
  parts->options = std::move(options);
  parts->host = *host;
  parts->config = std::move(*config);
  const Cluster& cluster = parts->options.cluster;
  std::vector<std::string> workers;
  for (const auto& worker : cluster.workers()) workers.push_back(worker.name);

  std::optional<Model> model;
  std::shared_ptr<const std::vector<std::byte>> weights;
  std::vector<std::vector<int>> heads;  // by block: who may be it
  if (parts->host.gateway) {
    auto loaded = load_fitting_model(cluster);
    if (!loaded) return tl::unexpected(loaded.error());
    model = std::move(*loaded);
    weights = std::make_shared<const std::vector<std::byte>>(bundle(*model));
    if (auto planned = check_topology(cluster, weights->size()); !planned) return tl::unexpected(planned.error());
    if (cluster.code.blocks > 0) {
      auto placed = place_heads(cluster);
      if (!placed) return tl::unexpected(placed.error());
      heads = std::move(*placed);
    }
  }

  parts->system = std::make_unique<caf::actor_system>(*parts->config);
  auto& system = *parts->system;
  const Transport::OnDelivery deliver = [raw = parts.get()](Delivery d) { raw->deliver(std::move(d)); };
  const auto port = std::make_shared<LatePort>(parts->options.name, deliver, parts->frames);
  const auto in_all = static_cast<std::uint32_t>(workers.size());
  for (std::uint32_t i = 0; i < in_all; ++i) parts->places.emplace(workers[i], static_cast<int>(i));
  if (cluster.code.blocks > 0)
    parts->head = spawn_block_head(system, {workers, cluster.gateway().name, cluster.code.shape}, port);
  const TreeRelayOptions relay_options{parts->options.name, {}, sha256};
  caf::actor membership;
  if (parts->host.gateway) {
    const auto& manifest = model->manifest;
    membership = spawn_membership(system, workers);
    parts->relay = spawn_tree_relay(system, relay_options, port, nullptr);
    parts->decoder = manifest.blocks.empty()
                         ? spawn_decoder(system, {workers, manifest.shape, manifest.generator, manifest.decoder,
                                                  cluster.code.deadline}, port)
                         : spawn_combiner(system, combiner_options(cluster, manifest, workers, std::move(heads)), port);
    if (parts->head)
      caf::anon_send(parts->head, InstallBlocks{std::make_shared<const std::vector<coding::BlockCode>>(manifest.blocks)});
    SupervisorOptions supervise;
    supervise.cluster = cluster.name;
    supervise.workers = workers;
    supervise.shape = manifest.shape;
    supervise.blocks = cluster.code.blocks;
    supervise.item_elements = static_cast<std::size_t>(gpu::elements(manifest.input));
    supervise.weights = weights;
    supervise.weights_sha256 = sha256(*weights);
    supervise.plan_tree = [cluster, size = weights->size()](const std::vector<std::string>& members) {
      auto relays = plan_relays(cluster, members, size);
      if (!relays) spdlog::error("{}", relays.error().what);
      return relays ? std::move(*relays) : std::vector<RelayNode>{};
    };
    supervise.spread_faults = [allowed = cluster.faults_allowed, membership](const std::string& spec, const auto& done) {
      if (!allowed) return done("this cluster takes no faults: set allow_faults = true in its file");
      const auto parsed = parse_faults(spec);
      if (!parsed) return done(parsed.error());
      spread_faults(membership, spec, done);
    };
    supervise.traffic = [frames = parts->frames] { return Traffic{frames->in, frames->out}; };
    parts->supervisor = spawn_supervisor(system, std::move(supervise), port, parts->decoder, parts->relay);
    attach_supervisor(membership, parts->supervisor);
    parts->all = {membership, parts->relay, parts->decoder, parts->supervisor};
  } else {
    const auto place = static_cast<std::uint32_t>(parts->places.at(parts->options.name));
    const WorkerOptions work{parts->options.name, place, in_all,
                             [place, device = parts->host.device](std::span<const std::byte> bytes) {
                               return load_net(bytes, place, device);
                             }};
    membership = spawn_member(system, parts->options.name, cluster.gateway());
    const auto encoder = spawn_encoder(system, work, port);
    parts->subnet = spawn_subnet(system, work, encoder, membership, parts->head ? &parts->head : nullptr);
    parts->relay = spawn_tree_relay(system, relay_options, port, &parts->subnet);
    attach_workers(membership, parts->subnet, encoder);
    parts->all = {membership, encoder, parts->subnet, parts->relay};
  }

  TransportOptions transport;
  transport.identity = std::move(*identity);
  transport.allow = std::move(*allow);
  transport.bind_address = parts->host.address;
  transport.port = parts->host.port;
  transport.hosts = cluster.hosts;
  transport.local = true;
  auto opened = Transport::open(std::move(transport), deliver);
  if (!opened) return tl::unexpected(opened.error());
  if (parts->head) parts->all.push_back(parts->head);
  parts->transport = std::move(*opened);
  port->open(parts->transport);
  if (parts->host.gateway)
    if (auto published = publish_membership(system, membership, parts->host); !published)
      return tl::unexpected(published.error());
  return std::unique_ptr<Node>(new Node(std::move(parts)));
}

Expected<void> run_node(NodeOptions options) {
  // Blocked before any thread starts, so that only sigwait below ever takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const std::string name = options.name;
  auto node = Node::start(std::move(options));
  if (!node) return tl::unexpected(node.error());
  spdlog::info("{} is up (process {})", name, ::getpid());
  int taken = 0;
  sigwait(&signals, &taken);
  spdlog::info("{} stops", name);
  // A library that hangs at exit must not keep the node alive.
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::seconds{3});
    ::_exit(0);
  }).detach();
  node->reset();
  return {};
}

}  // namespace coppice::runtime
