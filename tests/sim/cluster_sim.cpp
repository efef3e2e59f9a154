#include "tests/sim/cluster_sim.hpp"

#include <algorithm>
#include <bit>
#include <caf/scheduler/test_coordinator.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "actors/actors.hpp"
#include "actors/faults.hpp"
#include "actors/head_choice.hpp"
#include "actors/type_ids.hpp"

namespace sim {
namespace {

using namespace std::chrono_literals;

constexpr Duration kClientLink = 100us;
constexpr double kPrior = 1e-8;
const std::string kGateway = "gateway", kClient = "client";

std::uint32_t micros(Duration d) {
  return static_cast<std::uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}
std::string worker_name(int index) { return "w" + std::to_string(index); }
std::size_t size_of(int count) { return static_cast<std::size_t>(count); }
template <class... Fs> struct Overloaded : Fs... { using Fs::operator()...; };
template <class... Fs> Overloaded(Fs...) -> Overloaded<Fs...>;

// Not a digest, but it tells any two bundles of a test apart.
std::string digest(std::span<const std::byte> bytes) {
  std::uint64_t h = 0xcbf29ce484222325ULL;
  for (auto byte : bytes) h = (h ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3ULL;
  std::ostringstream hex;
  hex << std::hex << h;
  auto text = hex.str();
  text.resize(64, '0');
  return text;
}

struct Config : caf::actor_system_config {
  Config() {
    add_message_types<caf::id_block::coppice>();
    set("scheduler.policy", caf::atom("testing"));
    set("logger.verbosity", caf::atom("quiet"));
  }
};

// A running hash of what happens. service_us is left out: it is measured with the real clock.
struct Trace {
  std::uint64_t hash = 1;
  void add(std::uint64_t x) {
    hash = (std::rotl(hash, 23) ^ x) * 0x9e3779b97f4a7c15ULL;
    hash ^= hash >> 29;
  }
  void add(Instant t) { add(static_cast<std::uint64_t>(t.time_since_epoch().count())); }
  void add(const std::string& text) {
    for (char c : text) add(static_cast<std::uint64_t>(c));
  }
  void add(const Floats& floats) {
    for (float f : floats) add(std::uint64_t{std::bit_cast<std::uint32_t>(f)});
  }
  void add(const DataMessage& message) {
    add(message.index());
    const auto id = [this](auto value) { add(static_cast<std::uint64_t>(value)); };
    std::visit(Overloaded{
                   [&](const InferRequest& m) { add(m.tag); },
                   [&](const WorkItem& m) { id(m.request), id(m.epoch); },
                   [&](const CodedResponse& m) { id(m.request), add(m.values); },
                   [&](const InferReply& m) { id(m.request), id(m.status), add(m.scores); },
                   [&](const TransferOpen& m) { id(m.transfer), id(m.tree.size()); },
                   [&](const WeightChunk& m) { id(m.transfer), id(m.index); },
                   [&](const ChunkAck& m) { id(m.transfer), id(m.received); },
                   [&](const StatusRequest& m) { add(m.tag); },
                   [&](const FaultRequest& m) { add(m.spec); },
                   [&](const TextReply& m) { add(m.text), add(m.error); },
                   [](const CollectiveChunk&) {},  // no collectives in a simulated cluster
                   [](const CollectiveAck&) {},
                   [](const CollectiveAcks&) {},
                   [](const GroupNote&) {},
                   [](const ProbeNote&) {},
                   [&](const BlockItem& m) { id(m.request), id(m.block), id(m.asked); },
                   [&](const BlockScore& m) { id(m.request), id(m.block), id(m.status), id(m.label); },
                   [&](const WorkerGone& m) { id(m.worker); },
               },
               message);
  }
};

// What a worker's net says of an item: the item's own entries, so that the right label is its largest.
class EchoNet final : public NetPort {
 public:
  EchoNet(std::vector<int> classes, std::size_t elements) : classes_(std::move(classes)), elements_(elements) {}
  std::optional<std::string> run(std::span<const float> item, Floats& scores) override {
    for (int c : classes_) scores.push_back(item[size_of(c)]);
    return std::nullopt;
  }
  std::size_t input_elements() const override { return elements_; }

 private:
  std::vector<int> classes_;
  std::size_t elements_;
};

struct Weather {  // of all links of one worker
  double loss = 0, repeat = 0, slow = 0, shape = 2;
  Duration least{};
};

struct Worker {
  bool running = false, connected = false;
  std::uint64_t life = 0;     // of the process
  std::uint64_t session = 0;  // of its connection
  Weather weather;
  caf::actor subnet, encoder, relay, member, head;
};

// What the wire knows of one admitted request.
struct Wire {
  Instant opened;
  std::uint64_t epoch = 0;
  std::set<std::uint32_t> asked;
  struct Handed { Instant at; std::uint32_t worker; std::uint64_t epoch; Floats values; };
  std::vector<Handed> handed;  // to the decoder, or to a block's head
  bool asked_blocks = false;
};

}  // namespace

// ---- inside --------------------------------------------------------------------------------------------------------

struct Cluster::Inside {
  explicit Inside(const ClusterOptions& given);
  ~Inside();

  // Time and chance.
  Instant now() const { return scheduler().clock().current_time; }
  caf::scheduler::test_coordinator& scheduler() const {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system->scheduler());
  }
  void at(Instant when, std::function<void()> happens) { events.emplace(std::pair{when, ++sequence}, std::move(happens)); }
  void after(Duration delay, std::function<void()> happens) { at(now() + delay, std::move(happens)); }
  void run_actors();
  void run_until(Instant end);

  // The network.
  void carry(int from, std::uint64_t life, const Peer& to, DataMessage message);
  Duration transit(const Weather& weather);
  void hand_over(const std::string& from, int to, DataMessage message);
  void to_client(DataMessage message);
  void from_client(DataMessage message);
  void plant(InferReply& reply);

  // Processes and their control connections.
  void launch(int index);
  void join(int index);
  void notice_loss(int index, Duration noticed);
  void lose(const LoseWorker& fault);
  void cut_off(const CutOffWorker& fault);
  void come_back(int index);
  void from_member(int index, std::uint64_t session, const Ready& ready);
  std::vector<RelayNode> draw_tree(std::vector<std::string> members);
  tl::expected<void, std::string> spread(const std::string& spec);
  tl::expected<LoadedNet, std::string> load(int index, std::span<const std::byte> bundle) const;

  // Invariants.
  bool lost_within(std::uint32_t worker, Instant from, Instant to) const;
  void judge(const Asked& asked, std::vector<std::string>& broken) const;
  void judge_blocks(const Asked& asked, const Asked::Answer& answer, const Wire& wire,
                    const std::function<void(const std::string&)>& fault) const;
  // Whether it is something that one worker may have said to this item.
  bool is_answer(const Asked& asked, const ArrivalRecord& arrival) const;
  void judge_admitted(const Asked& asked, const Asked::Answer& answer, const Wire& wire,
                      const std::function<void(const std::string&)>& fault) const;
  std::size_t in_flight_at(Instant when) const;

  ClusterOptions options;
  Random random;
  Trace trace;
  coding::Generator generator;            // of one block, where there are blocks
  std::vector<std::vector<int>> classes;  // that each worker's net knows, as its rows count them
  std::shared_ptr<std::vector<coding::BlockCode>> codes;  // null without blocks
  int workers_in_all() const { return std::max(1, options.blocks) * options.shape.workers; }
  int classes_in_all() const { return options.blocks > 0 ? options.blocks * options.shape.needed : generator.classes; }
  int block_of(int worker) const { return options.blocks > 0 ? worker / options.shape.workers : 0; }
  int place_of(int worker) const { return options.blocks > 0 ? worker % options.shape.workers : worker; }
  // Of all classes: what class c of the worker's rows is.
  int class_of(int worker, int c) const { return options.blocks > 0 ? block_of(worker) * options.shape.needed + c : c; }
  std::shared_ptr<const std::vector<std::byte>> bundle;

  Config config;
  std::unique_ptr<caf::actor_system> system;
  caf::actor supervisor, decoder, relay, head;  // decoder: a combiner, where there are blocks
  std::vector<Worker> workers;
  std::vector<caf::actor> spawned;

  std::map<std::pair<Instant, std::uint64_t>, std::function<void()>> events;
  std::uint64_t sequence = 0;
  std::map<std::pair<std::string, std::string>, Instant> last_on_link;
  std::map<int, std::uint64_t> present;  // sessions as the gateway's membership sees them

  std::vector<Asked> asked;
  std::map<std::uint64_t, Wire> wires;
  std::map<std::uint64_t, TextReply> texts;
  std::uint64_t last_text = 0;
  std::vector<std::pair<Instant, std::uint32_t>> losses;  // told to the supervisor; a join is one for what was asked before
  std::size_t responses_handed = 0;  // to the gateway's decoder or combiner
  Traffic traffic;
  std::set<std::string> refusals;
};

namespace {

class SimPort final : public FramePort {
 public:
  using Carry = std::function<void(const Peer&, DataMessage)>;
  explicit SimPort(Carry carry) : carry_(std::move(carry)) {}
  void send(const Peer& to, DataMessage message) override { carry_(to, std::move(message)); }

 private:
  Carry carry_;
};

}  // namespace

Cluster::Inside::Inside(const ClusterOptions& given) : options(given), random(given.seed) {
  const int n = options.shape.workers, k = options.shape.needed;
  std::vector<int> all;
  if (options.blocks > 0) {
    for (int group = 0; group < k; ++group) classes.push_back({group});
    generator = coding::with_none(coding::grouped_generator(classes, k, n - k).value());
    codes = std::make_shared<std::vector<coding::BlockCode>>();
    for (int block = 0; block < options.blocks; ++block) {
      coding::BlockCode code{{}, generator, coding::RidgeDecoder{kPrior}};
      for (int c = 0; c < k; ++c) code.classes.push_back(block * k + c);
      codes->push_back(std::move(code));
    }
  } else if (options.grouped) {
    for (int group = 0; group < k; ++group) classes.push_back({2 * group, 2 * group + 1});
    generator = coding::grouped_generator(classes, 2 * k, n - k).value();
  } else {
    generator.classes = k;
    const auto frame = coding::harmonic_frame(options.shape);
    for (int i = 0; i < n; ++i) {
      coding::WorkerRows row{1, {}};
      for (int c = 0; c < k; ++c) row.rows.push_back(static_cast<float>(frame[size_of(i * k + c)]));
      generator.workers.push_back(std::move(row));
    }
  }
  for (int c = 0; c < (options.blocks > 0 ? k : generator.classes); ++c) all.push_back(c);
  classes.resize(size_of(n), all);
  std::vector<std::byte> bytes(options.bundle_bytes);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random.below(256));
  bundle = std::make_shared<const std::vector<std::byte>>(std::move(bytes));

  system = std::make_unique<caf::actor_system>(config);
  workers.resize(size_of(workers_in_all()));
  std::vector<std::string> names;
  for (int i = 0; i < workers_in_all(); ++i) names.push_back(worker_name(i));

  const auto port = std::make_shared<SimPort>([this](const Peer& to, DataMessage m) { carry(-1, 0, to, std::move(m)); });
  if (options.blocks > 0) {
    CombinerOptions combine{names, kGateway, options.shape, {}, {}, options.deadline};
    for (int block = 0; block < options.blocks; ++block) {
      combine.classes.push_back((*codes)[size_of(block)].classes);
      auto& heads = combine.heads.emplace_back();
      for (int p = 0; p < n && !options.gateway_heads; ++p) heads.push_back(block * n + (block + p) % n);
      heads.push_back(kGatewayHead);
    }
    decoder = spawn_combiner(*system, std::move(combine), port);
    head = spawn_block_head(*system, {names, kGateway, options.shape}, port);
    caf::anon_send(head, InstallBlocks{codes});
  } else {
    DecoderOptions decode{names, options.shape, generator, coding::RidgeDecoder{kPrior}, options.deadline};
    decoder = spawn_decoder(*system, std::move(decode), port);
  }
  relay = spawn_tree_relay(*system, {kGateway, {}, digest}, port, nullptr);
  SupervisorOptions supervise;
  supervise.cluster = "simulated";
  supervise.workers = names;
  supervise.shape = options.shape;
  supervise.blocks = options.blocks;
  supervise.item_elements = size_of(classes_in_all());
  supervise.in_flight_max = options.in_flight_max;
  supervise.roster = {options.settle, options.patience};
  supervise.chunk_bytes = options.chunk_bytes;
  supervise.weights = bundle;
  supervise.weights_sha256 = digest(*bundle);
  supervise.plan_tree = [this](const std::vector<std::string>& members) { return draw_tree(members); };
  supervise.spread_faults = [this](const std::string& spec, const auto& done) {
    const auto spread_out = spread(spec);
    done(spread_out ? "" : spread_out.error());
  };
  supervisor = spawn_supervisor(*system, std::move(supervise), port, decoder, relay);
  spawned = {supervisor, decoder, relay};
  if (head) spawned.push_back(head);
  run_actors();
}

Cluster::Inside::~Inside() {
  // The system waits for its actors to end, and messages that are still to come would keep them.
  for (const auto& actor : spawned) caf::anon_send_exit(actor, caf::exit_reason::kill);
  while (scheduler().has_job()) scheduler().run_once();
  scheduler().clock().cancel_all();
  supervisor = decoder = relay = head = {};
  workers.clear();
  spawned.clear();
  events.clear();
  system.reset();
}

void Cluster::Inside::run_actors() {
  auto& jobs = scheduler().jobs;
  while (!jobs.empty()) {  // any runnable actor may go next; each one's mailbox keeps its order
    const auto pick = random.below(jobs.size());
    trace.add(jobs.size());
    std::swap(jobs.front(), jobs[pick]);
    scheduler().run_once();
  }
}

void Cluster::Inside::run_until(Instant end) {
  auto& clock = scheduler().clock();
  for (;;) {
    run_actors();
    auto next = end;
    if (!events.empty()) next = std::min(next, events.begin()->first.first);
    if (!clock.schedule().empty()) next = std::min(next, clock.schedule().begin()->first);
    clock.advance_time(std::max(next - now(), Duration::zero()));
    while (!events.empty() && events.begin()->first.first <= now()) {
      const auto happens = std::move(events.begin()->second);
      events.erase(events.begin());
      trace.add(now());
      happens();
    }
    run_actors();
    const bool more = (!events.empty() && events.begin()->first.first <= end) ||
                      (!clock.schedule().empty() && clock.schedule().begin()->first <= end);
    if (now() >= end && !more) return;
  }
}

// ---- the network ---------------------------------------------------------------------------------------------------

Duration Cluster::Inside::transit(const Weather& weather) {
  auto delay = random.between(40us, 80us);
  delay += random.exponential(60us);  // one draw a statement, so that a seed means the same to every compiler
  if (random.chance(weather.slow)) delay += random.pareto(weather.shape, weather.least, 400ms);
  return delay;
}

void Cluster::Inside::carry(int from, std::uint64_t life, const Peer& to, DataMessage message) {
  if (to.name == kClient) return to_client(std::move(message));
  const auto index_of = [](const std::string& name) { return name == kGateway ? -1 : std::stoi(name.substr(1)); };
  const int target = index_of(to.name);
  if (from < 0 && options.blocks == 0)  // before any loss: the gateway asked, whether or not the frame arrives
    if (const auto* item = std::get_if<WorkItem>(&message)) {
      auto& wire = wires[static_cast<std::uint64_t>(item->request)];
      wire.opened = now();
      wire.epoch = static_cast<std::uint64_t>(item->epoch);
      wire.asked.insert(item->worker);
    }
  if (const auto* item = std::get_if<BlockItem>(&message)) {
    auto& wire = wires[static_cast<std::uint64_t>(item->request)];
    if (!wire.asked_blocks) wire.opened = now();
    wire.epoch = static_cast<std::uint64_t>(item->epoch);
    wire.asked_blocks = true;
  }
  if (from == target) return hand_over(to.name, target, std::move(message));  // within a process: no frame
  const bool serving = std::visit(
      [](const auto& m) {
        using M = std::decay_t<decltype(m)>;
        return std::is_same_v<M, WorkItem> || std::is_same_v<M, BlockItem> || std::is_same_v<M, WorkerGone>;
      },
      message);
  if (from < 0 && serving) ++traffic.out;
  const auto alive = [this](int node) { return node < 0 || workers[size_of(node)].connected; };
  if (!alive(from) || !alive(target) || (from >= 0 && workers[size_of(from)].life != life)) return;

  // The worse weather of the two ends.
  Weather weather;
  for (int end : {from, target}) {
    if (end < 0) continue;
    const auto& local = workers[size_of(end)].weather;
    weather.loss = std::max(weather.loss, local.loss);
    weather.repeat = std::max(weather.repeat, local.repeat);
    if (local.slow > weather.slow) weather.slow = local.slow, weather.shape = local.shape, weather.least = local.least;
  }
  if (random.chance(weather.loss)) return;
  const std::string sender = from < 0 ? kGateway : worker_name(from);
  const bool outlives = random.chance(0.5);  // whether the frame still arrives if its sender dies on the way
  for (int copies = random.chance(weather.repeat) ? 2 : 1; copies > 0; --copies) {
    auto& last = last_on_link[{sender, to.name}];
    last = std::max(now() + transit(weather), last + 1ns);
    at(last, [=, this] {
      if (!alive(target) || (!outlives && (!alive(from) || (from >= 0 && workers[size_of(from)].life != life)))) return;
      hand_over(sender, target, message);
    });
  }
}

void Cluster::Inside::hand_over(const std::string& from, int to, DataMessage message) {
  trace.add(from);
  trace.add(static_cast<std::uint64_t>(to + 1));
  trace.add(message);
  const bool at_gateway = to < 0;
  const auto target = std::visit(
      Overloaded{
          [&](const CodedResponse& m) {
            traffic.in += at_gateway && from != kGateway ? 1 : 0;
            if (!at_gateway && options.blocks == 0) return caf::actor{};
            responses_handed += options.blocks > 0 ? 0 : 1;
            wires[static_cast<std::uint64_t>(m.request)].handed.push_back(
                {now(), m.worker, static_cast<std::uint64_t>(m.epoch), m.values});
            return options.blocks == 0 ? decoder : at_gateway ? head : workers[size_of(to)].head;
          },
          [&](const BlockItem&) { return at_gateway ? head : workers[size_of(to)].head; },
          [&](const WorkerGone&) { return at_gateway ? head : workers[size_of(to)].head; },
          [&](const BlockScore&) {
            traffic.in += from != kGateway ? 1 : 0;
            ++responses_handed;
            return at_gateway ? decoder : caf::actor{};
          },
          [&](const WorkItem&) { return at_gateway ? caf::actor{} : workers[size_of(to)].subnet; },
          [&](const TransferOpen&) { return at_gateway ? relay : workers[size_of(to)].relay; },
          [&](const WeightChunk&) { return at_gateway ? relay : workers[size_of(to)].relay; },
          [&](const ChunkAck&) { return at_gateway ? relay : workers[size_of(to)].relay; },
          [&](const auto&) { return at_gateway ? supervisor : caf::actor{}; },
      },
      message);
  if (target) caf::anon_send(target, Delivery{{from, from == kClient ? "way back" : ""}, std::move(message)});
}

void Cluster::Inside::from_client(DataMessage message) {
  after(kClientLink, [this, message = std::move(message)] { hand_over(kClient, -1, message); });
}

void Cluster::Inside::to_client(DataMessage message) {
  trace.add(message);
  if (const auto* text = std::get_if<TextReply>(&message)) {
    after(kClientLink, [this, text = *text] { texts[text.tag] = text; });
    return;
  }
  auto reply = std::get<InferReply>(message);
  auto left = now();
  int times = 1;
  if (reply.tag % 16 == 5) {  // where a planted bug shows
    if (options.planted == Planted::answers_twice) times = 2;
    if (options.planted == Planted::never_answers) times = 0;
    if (options.planted == Planted::answers_late) left += options.deadline;
    if (options.planted == Planted::wrong_label) ++reply.label;
  }
  if (options.planted == Planted::hides_degraded && reply.status == ReplyStatus::degraded) reply.status = ReplyStatus::ok;
  for (; times > 0; --times)
    at(left + kClientLink, [this, left, reply] { asked[reply.tag - 1].answers.push_back({left, now(), reply}); });
}

// ---- processes -----------------------------------------------------------------------------------------------------

void Cluster::Inside::launch(int index) {
  auto& worker = workers[size_of(index)];
  if (worker.running) return;
  const auto life = ++worker.life;
  worker.running = worker.connected = true;
  const auto port = std::make_shared<SimPort>(
      [this, index, life](const Peer& to, DataMessage m) { carry(index, life, to, std::move(m)); });
  WorkerOptions work{worker_name(index), static_cast<std::uint32_t>(index),
                     static_cast<std::uint32_t>(workers_in_all()),
                     [this, index](std::span<const std::byte> bytes) { return load(index, bytes); }, false};
  worker.encoder = spawn_encoder(*system, work, port);
  worker.member = system->spawn([this, index, life](caf::event_based_actor*) -> caf::behavior {
    return {[this, index, life](const Ready& ready) {
              const auto& self = workers[size_of(index)];
              if (self.life == life) from_member(index, self.session, ready);
            },
            [this](const Refused& refused) { refusals.insert(refused.name + ": " + refused.reason); }};
  });
  if (options.blocks > 0) {
    std::vector<std::string> names;
    for (int i = 0; i < workers_in_all(); ++i) names.push_back(worker_name(i));
    worker.head = spawn_block_head(*system, {std::move(names), kGateway, options.shape}, port);
    spawned.push_back(worker.head);
  }
  worker.subnet = spawn_subnet(*system, std::move(work), worker.encoder, worker.member, worker.head ? &worker.head : nullptr);
  worker.relay = spawn_tree_relay(*system, {worker_name(index), {}, digest}, port, &worker.subnet);
  for (const auto& actor : {worker.encoder, worker.member, worker.subnet, worker.relay}) spawned.push_back(actor);
  join(index);
}

void Cluster::Inside::join(int index) {
  auto& worker = workers[size_of(index)];
  const auto session = ++worker.session, life = worker.life;
  after(random.between(200us, 3ms), [=, this] {
    const auto& w = workers[size_of(index)];
    if (w.session != session || !w.connected) return;
    present[index] = session;  // a connection that replaces another is no loss of the new one
    losses.emplace_back(now(), static_cast<std::uint32_t>(index));
    trace.add(std::uint64_t{0x301});
    caf::anon_send(supervisor, WorkerJoined{worker_name(index), static_cast<std::uint32_t>(life)});
  });
}

void Cluster::Inside::notice_loss(int index, Duration noticed) {
  after(noticed, [=, this, session = workers[size_of(index)].session] {
    const auto known = present.find(index);
    if (known == present.end() || known->second != session) return;
    present.erase(known);
    losses.emplace_back(now(), static_cast<std::uint32_t>(index));
    trace.add(std::uint64_t{0x302});
    caf::anon_send(supervisor, WorkerLost{worker_name(index), "simulated"});
  });
}

void Cluster::Inside::lose(const LoseWorker& fault) {
  auto& worker = workers[size_of(fault.worker)];
  if (!worker.connected) return;
  worker.running = worker.connected = false;
  for (const auto& actor : {worker.encoder, worker.member, worker.subnet, worker.relay, worker.head})
    if (actor) caf::anon_send_exit(actor, caf::exit_reason::kill);
  notice_loss(fault.worker, fault.noticed);
  after(fault.back, [this, fault] { come_back(fault.worker); });
}

void Cluster::Inside::cut_off(const CutOffWorker& fault) {
  auto& worker = workers[size_of(fault.worker)];
  if (!worker.connected) return;
  worker.connected = false;
  notice_loss(fault.worker, fault.noticed);
  after(fault.back, [this, fault] { come_back(fault.worker); });
}

void Cluster::Inside::come_back(int index) {
  auto& worker = workers[size_of(index)];
  if (!worker.running) return launch(index);
  if (worker.connected) return;
  worker.connected = true;
  join(index);
}

void Cluster::Inside::from_member(int index, std::uint64_t session, const Ready& ready) {
  after(random.between(100us, 2ms), [=, this] {
    const auto& worker = workers[size_of(index)];
    if (worker.session != session || !worker.connected) return;
    trace.add(ready.transfer);
    caf::anon_send(supervisor, WorkerReady{ready.name, TransferId{ready.transfer}});
  });
}

std::vector<RelayNode> Cluster::Inside::draw_tree(std::vector<std::string> members) {
  if (options.failing_plans-- > 0) return {};
  std::vector<RelayNode> tree{{kGateway, -1}};
  while (!members.empty()) {
    const auto next = members.begin() + static_cast<std::ptrdiff_t>(random.below(members.size()));
    tree.push_back({*next, static_cast<std::int32_t>(random.below(tree.size()))});
    members.erase(next);
  }
  return tree;
}

tl::expected<void, std::string> Cluster::Inside::spread(const std::string& spec) {
  if (auto parsed = parse_faults(spec); !parsed) return tl::unexpected(parsed.error());
  for (const auto& [index, session] : present)
    after(random.between(100us, 2ms), [=, this, index = index, session = session] {
      const auto& worker = workers[size_of(index)];
      if (worker.session != session || !worker.connected) return;
      const SetFaults set{spec, static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(workers.size())};
      caf::anon_send(worker.subnet, set);
      caf::anon_send(worker.encoder, set);
    });
  return {};
}

tl::expected<LoadedNet, std::string> Cluster::Inside::load(int index, std::span<const std::byte> bytes) const {
  if (!std::ranges::equal(bytes, *bundle)) return tl::unexpected(std::string("these are not the bundle's bytes"));
  const auto& known = classes[size_of(place_of(index))];
  std::vector<int> read;
  for (int c : known) read.push_back(class_of(index, c));
  return LoadedNet{std::make_unique<EchoNet>(std::move(read), size_of(classes_in_all())),
                   generator.workers[size_of(place_of(index))], known, generator.classes, codes};
}

// ---- invariants ----------------------------------------------------------------------------------------------------

bool Cluster::Inside::lost_within(std::uint32_t worker, Instant from, Instant to) const {
  return std::any_of(losses.begin(), losses.end(),
                     [&](const auto& loss) { return loss.second == worker && loss.first >= from && loss.first <= to; });
}

std::size_t Cluster::Inside::in_flight_at(Instant when) const {
  std::size_t count = 0;
  for (const auto& request : asked)
    for (const auto& answer : request.answers) {
      const auto wire = wires.find(answer.reply.request);
      count += wire != wires.end() && wire->second.opened <= when && answer.left >= when;
    }
  return count;
}

void Cluster::Inside::judge(const Asked& request, std::vector<std::string>& broken) const {
  const auto fault = [&](const std::string& what) {
    std::ostringstream out;
    out << "request " << request.tag << ", asked at " << ms(request.sent - Instant{}) << " ms: " << what;
    broken.push_back(out.str());
  };
  if (request.answers.size() != 1) return fault("it has " + std::to_string(request.answers.size()) + " answers");
  const auto& answer = request.answers[0];
  const auto status = answer.reply.status;
  if ((status == ReplyStatus::bad_request) == request.well_formed) fault("bad_request is wrong about its item");
  const bool admitted = status == ReplyStatus::ok || status == ReplyStatus::degraded || status == ReplyStatus::no_response;
  if (admitted) {
    const auto wire = wires.find(answer.reply.request);
    if (wire == wires.end()) return fault("it is answered, but no worker was asked");
    return options.blocks > 0 ? judge_blocks(request, answer, wire->second, fault)
                              : judge_admitted(request, answer, wire->second, fault);
  }
  if (answer.left != request.sent + kClientLink) fault("a refusal takes no time");
  if (answer.reply.error.empty()) fault("a refusal says why");
  if (!answer.reply.scores.empty() || answer.reply.label != -1) fault("a refusal holds no scores");
  if (status == ReplyStatus::overloaded && in_flight_at(answer.left) < options.in_flight_max) fault("there was room for it");
  if (status == ReplyStatus::not_ready)
    for (const auto& [id, wire] : wires)
      if ((!wire.asked.empty() || wire.asked_blocks) && wire.opened < answer.left) return fault("not ready, but the cluster served before");
}

void Cluster::Inside::judge_admitted(const Asked& request, const Asked::Answer& answer, const Wire& wire,
                                     const std::function<void(const std::string&)>& fault) const {
  const auto& reply = answer.reply;
  const auto took = answer.left - wire.opened;
  if (took > options.deadline) fault("answered " + std::to_string(ms(took)) + " ms after it was admitted");
  if (reply.gateway_us != micros(took)) fault("gateway_us is not the time it took");
  if (reply.epoch != wire.epoch) fault("the epoch is not the one its workers were asked in");

  // Useful: the worker's first response, in the request's epoch, before the worker was given up.
  std::set<std::uint32_t> in_hand;  // for certain: handed over at an earlier moment than the answer
  for (const auto& handed : wire.handed)
    if (handed.at < answer.left && handed.epoch == wire.epoch && !lost_within(handed.worker, wire.opened, handed.at))
      in_hand.insert(handed.worker);
  const auto needed = size_of(options.shape.needed);
  if (in_hand.size() >= needed) fault("enough responses were in hand before it was answered");

  coding::Arrivals arrivals;
  arrivals.responses.resize(size_of(options.shape.workers));
  for (const auto& arrival : reply.arrivals) {
    auto& place = arrivals.responses[arrival.worker];
    if (!place.empty()) fault("a worker is counted twice");
    place = arrival.values;
    if (!std::any_of(wire.handed.begin(), wire.handed.end(), [&](const auto& h) {
          return h.worker == arrival.worker && h.epoch == wire.epoch && h.values == arrival.values && h.at <= answer.left &&
                 micros(h.at - wire.opened) == arrival.at_us;
        }))
      fault("an arrival is listed that never came");
    if (!is_answer(request, arrival)) fault("a response has wrong numbers");
  }
  for (std::uint32_t worker : in_hand)
    if (arrivals.responses[worker].empty()) fault("w" + std::to_string(worker) + " answered in time and was left out");

  const bool enough = reply.arrivals.size() >= needed;
  const auto expected = enough ? ReplyStatus::ok : reply.arrivals.empty() ? ReplyStatus::no_response : ReplyStatus::degraded;
  if (reply.status != expected)
    fault("its status is " + std::to_string(static_cast<int>(reply.status)) + " with " +
          std::to_string(reply.arrivals.size()) + " responses");
  if (!enough && took < options.deadline)
    for (std::uint32_t worker : wire.asked)
      if (arrivals.responses[worker].empty() && !lost_within(worker, wire.opened, answer.left))
        fault("given up early, though w" + std::to_string(worker) + " might have answered");

  if (!enough && std::all_of(wire.asked.begin(), wire.asked.end(), [&](std::uint32_t worker) {
        return in_hand.contains(worker) || lost_within(worker, wire.opened, answer.left - 1ns);
      }))
    fault("it waited though nobody was left to wait for");

  if (const auto offline = coding::decode(coding::RidgeDecoder{kPrior}, generator, arrivals)) {
    if (reply.scores != offline->scores || reply.label != offline->label || reply.margin != offline->margin)
      fault("an offline decode of its arrivals says otherwise");
  } else if (reply.status != ReplyStatus::no_response) {
    fault("its arrivals cannot be decoded");
  }
  const auto right = std::max_element(request.item.begin(), request.item.end()) - request.item.begin();
  if (reply.status == ReplyStatus::ok && reply.label != right) fault("its label is wrong");
}

bool Cluster::Inside::is_answer(const Asked& request, const ArrivalRecord& arrival) const {
  const auto worker = static_cast<int>(arrival.worker);
  const auto place = size_of(place_of(worker));
  Floats scores(size_of(generator.classes));
  for (int c : classes[place]) scores[size_of(c)] = request.item[size_of(class_of(worker, c))];
  return arrival.values == coding::encode(generator.workers[place], scores);
}

// What is decoded block by block: the reply is what its own arrivals say, and no block is worse than it is marked.
void Cluster::Inside::judge_blocks(const Asked& request, const Asked::Answer& answer, const Wire& wire,
                                   const std::function<void(const std::string&)>& fault) const {
  const auto& reply = answer.reply;
  const auto took = answer.left - wire.opened;
  if (took > options.deadline) fault("answered " + std::to_string(ms(took)) + " ms after it was admitted");
  if (reply.gateway_us != micros(took)) fault("gateway_us is not the time it took");
  if (reply.epoch != wire.epoch) fault("the epoch is not the one its workers were asked in");
  std::vector<coding::Arrivals> arrivals(size_of(options.blocks));
  for (auto& block : arrivals) block.responses.resize(size_of(options.shape.workers));
  std::vector<int> counts(size_of(options.blocks));
  for (const auto& arrival : reply.arrivals) {
    if (static_cast<int>(arrival.worker) >= workers_in_all()) return fault("an arrival is of no worker");
    const auto block = size_of(block_of(static_cast<int>(arrival.worker)));
    auto& place = arrivals[block].responses[size_of(place_of(static_cast<int>(arrival.worker)))];
    if (!place.empty()) fault("a worker is counted twice");
    place = arrival.values;
    ++counts[block];
    if (!is_answer(request, arrival)) fault("a response has wrong numbers");
    if (std::none_of(wire.handed.begin(), wire.handed.end(), [&](const auto& h) {
          return h.worker == arrival.worker && h.epoch == wire.epoch && h.values == arrival.values && h.at <= answer.left;
        }))
      fault("an arrival is listed that never came");
  }
  std::vector<coding::BlockBest> said;
  for (std::size_t block = 0; block < arrivals.size(); ++block)
    if (counts[block] > 0) said.push_back(coding::decode((*codes)[block], arrivals[block]).value());
  const bool enough = std::ranges::all_of(counts, [&](int count) { return count >= options.shape.needed; });
  const auto expected = enough ? ReplyStatus::ok : said.empty() ? ReplyStatus::no_response : ReplyStatus::degraded;
  if (reply.status != expected) fault("its status is " + std::to_string(static_cast<int>(reply.status)));
  if (said.empty()) return;
  const auto offline = coding::combine(said);
  if (reply.label != offline.label || reply.margin != offline.margin || reply.probability != offline.probability)
    fault("an offline decode of its arrivals says otherwise");
  const auto right = std::max_element(request.item.begin(), request.item.end()) - request.item.begin();
  if (reply.status == ReplyStatus::ok && reply.label != right) fault("its label is wrong");
}

// ---- the outside ---------------------------------------------------------------------------------------------------

Cluster::Cluster(const ClusterOptions& options) : in_(std::make_unique<Inside>(options)) {}
Cluster::~Cluster() = default;

void Cluster::start() {
  for (int i = 0; i < in_->workers_in_all(); ++i) in_->after(in_->random.between({}, 50ms), [this, i] { start(i); });
}
int Cluster::workers() const { return in_->workers_in_all(); }
Cluster::Traffic Cluster::gateway_traffic() const { return in_->traffic; }
void Cluster::start(int worker) { in_->launch(worker); }

void Cluster::strike(const Fault& fault) {
  // A spell of weather ends by itself, unless another of its kind has begun.
  const auto for_a_while = [this](double Weather::*what, int worker, double share, Duration lasting) {
    in_->workers[size_of(worker)].weather.*what = share;
    in_->after(lasting, [this, what, worker] { in_->workers[size_of(worker)].weather.*what = 0; });
  };
  std::visit(Overloaded{
                 [&](const LoseWorker& f) { in_->lose(f); },
                 [&](const CutOffWorker& f) { in_->cut_off(f); },
                 [&](const DelayLinks& f) {
                   auto& weather = in_->workers[size_of(f.worker)].weather;
                   weather.shape = f.shape;
                   weather.least = f.least;
                   for_a_while(&Weather::slow, f.worker, f.share, f.lasting);
                 },
                 [&](const LoseFrames& f) { for_a_while(&Weather::loss, f.worker, f.share, f.lasting); },
                 [&](const RepeatFrames& f) { for_a_while(&Weather::repeat, f.worker, f.share, f.lasting); },
                 [&](const Straggle& f) { in_->from_client(FaultRequest{++in_->last_text, f.spec}); },
             },
             fault);
}

void Cluster::schedule(const std::vector<TimedFault>& faults) {
  for (const auto& timed : faults) in_->after(timed.at, [this, fault = timed.fault] { strike(fault); });
}

void Cluster::heal() {
  for (int i = 0; i < in_->workers_in_all(); ++i) {
    in_->workers[size_of(i)].weather = {};
    in_->come_back(i);
  }
  // Twice: a worker that has just come back is not yet present, and one that left with a fault set may be.
  strike(Straggle{""});
  in_->after(50ms, [this] { strike(Straggle{""}); });
}

void Cluster::ask(bool well_formed) {
  Asked asked;
  asked.tag = in_->asked.size() + 1;
  asked.well_formed = well_formed;
  asked.sent = now();
  asked.item.resize(size_of(in_->classes_in_all()));
  for (float& entry : asked.item) entry = static_cast<float>(in_->random.uniform() * 2 - 1);
  asked.item[in_->random.below(asked.item.size())] = 3;
  auto item = std::make_shared<Floats>(asked.item);
  if (!well_formed) item->push_back(0);
  in_->from_client(InferRequest{asked.tag, true, std::move(item)});
  in_->asked.push_back(std::move(asked));
}

void Cluster::ask_until(Instant end, Duration gap) {
  const auto next = now() + in_->random.exponential(gap);
  if (next >= end) return;
  in_->at(next, [this, end, gap] {
    ask(!in_->random.chance(0.01));
    ask_until(end, gap);
  });
}

void Cluster::run_until(Instant end) { in_->run_until(end); }
void Cluster::run_for(Duration time) { in_->run_until(now() + time); }
Instant Cluster::now() const { return in_->now(); }
std::uint64_t Cluster::trace() const { return in_->trace.hash; }
Random& Cluster::random() { return in_->random; }
const std::vector<Asked>& Cluster::asked() const { return in_->asked; }
const std::set<std::string>& Cluster::refusals() const { return in_->refusals; }

std::map<ReplyStatus, int> Cluster::statuses() const {
  std::map<ReplyStatus, int> out;
  for (const auto& request : in_->asked)
    for (const auto& answer : request.answers) ++out[answer.reply.status];
  return out;
}

std::string Cluster::status() {
  const auto tag = ++in_->last_text;
  in_->from_client(StatusRequest{tag});
  run_for(2 * kClientLink + 1us);
  return in_->texts[tag].text;
}

std::vector<std::string> Cluster::broken_promises() {
  std::vector<std::string> broken;
  for (const auto& request : in_->asked) in_->judge(request, broken);
  const auto json = nlohmann::json::parse(status());
  for (const auto& refusal : in_->refusals) broken.push_back("weights refused: " + refusal);
  for (const auto& [tag, text] : in_->texts)
    if (!text.error.empty()) broken.push_back("asked " + std::to_string(tag) + ": " + text.error);
  if (in_->texts.size() != in_->last_text) broken.push_back("not every status and fault request was answered");

  const auto equal = [&](const std::string& what, std::uint64_t told, std::uint64_t counted) {
    if (told != counted)
      broken.push_back(what + ": the status says " + std::to_string(told) + ", the wire " + std::to_string(counted));
  };
  std::uint64_t admitted = 0;
  for (const auto& [id, wire] : in_->wires) admitted += !wire.asked.empty() || wire.asked_blocks;
  const auto by_status = statuses();
  const auto counted = [&](std::initializer_list<ReplyStatus> kinds) {
    std::uint64_t sum = 0;
    for (auto kind : kinds) sum += by_status.contains(kind) ? static_cast<std::uint64_t>(by_status.at(kind)) : 0;
    return sum;
  };
  using enum ReplyStatus;
  const auto& requests = json["requests"];
  const auto& responses = json["responses"];
  equal("in flight", requests["in_flight"], 0);
  equal("opened", requests["opened"], admitted);
  equal("completed", requests["completed"], admitted);
  equal("degraded", requests["degraded"], counted({degraded, no_response}));
  equal("no response", requests["no_response"], counted({no_response}));
  equal("refused", json["refused"], counted({no_workers, not_ready, overloaded, bad_request}));
  std::uint64_t accounted = 0;  // every response is timed or counted among the dropped
  for (const auto& who : json[in_->options.blocks > 0 ? "blocks" : "workers"])
    accounted += who["responses"].get<std::uint64_t>();
  for (const auto* dropped : {"duplicate", "stale_epoch", "unknown_request", "bad_shape", "impostors"})
    accounted += responses[dropped].get<std::uint64_t>();
  equal("responses", accounted, in_->responses_handed);
  return broken;
}

}  // namespace sim
