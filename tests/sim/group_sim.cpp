#include "tests/sim/group_sim.hpp"

#include <algorithm>
#include <caf/scheduler/test_coordinator.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "actors/type_ids.hpp"
#include "collectives/builtin.hpp"
#include "collectives/group_planner.hpp"

namespace sim {
namespace {

using collectives::CallKind;
using collectives::Operation;
using collectives::Reduction;
using namespace std::chrono_literals;

using Numbers = std::vector<std::int64_t>;

std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

struct Config : caf::actor_system_config {
  Config() {
    add_message_types<caf::id_block::coppice>();
    set("scheduler.policy", caf::atom("testing"));
    set("logger.verbosity", caf::atom("quiet"));
  }
};

collectives::Topology topology_named(const std::string& name) {
  auto topology = collectives::builtin_topology(name).value();
  topology.unit = "MB/s";
  for (std::size_t i = 0; i < topology.links.size(); ++i) {
    topology.links[i].from_address = "10.0." + std::to_string(i) + ".1";
    topology.links[i].to_address = "10.0." + std::to_string(i) + ".2";
  }
  return topology;
}

std::int64_t number(int rank, std::size_t call, std::int64_t i) {
  return i * 7 + rank * 1'000'003 + static_cast<std::int64_t>(call) * 31;
}

std::int64_t combined(const std::vector<int>& ranks, std::size_t call, std::int64_t i, Reduction reduction) {
  std::int64_t sum = 0, least = INT64_MAX, most = INT64_MIN;
  for (const int rank : ranks) {
    const auto value = number(rank, call, i);
    sum += value;
    least = std::min(least, value);
    most = std::max(most, value);
  }
  switch (reduction) {
    case Reduction::sum: return sum;
    case Reduction::avg: return sum / static_cast<std::int64_t>(ranks.size());
    case Reduction::min: return least;
    case Reduction::max: return most;
  }
  return 0;
}

// One rank's call, its buffers, and what came of it.
struct Made {
  CallKind kind;
  Numbers in, out;  // of the parts that the rank has; in place where the operation is
  Outcome outcome;
};

class SimPort final : public FramePort {
 public:
  using Carry = std::function<void(const Peer&, DataMessage)>;
  explicit SimPort(Carry carry) : carry_(std::move(carry)) {}
  void send(const Peer& to, DataMessage message) override { carry_(to, std::move(message)); }

 private:
  Carry carry_;
};

template <class... Fs> struct Overloaded : Fs... { using Fs::operator()...; };
template <class... Fs> Overloaded(Fs...) -> Overloaded<Fs...>;

// COPPICE_SIM_TRACE=1: what the ranks tell one another, for whoever looks into a seed.
std::string in_words(const GroupNote& note) {
  const auto run = [](const RunId& id) { return std::to_string(id.call) + "." + std::to_string(id.attempt); };
  return std::to_string(note.origin) + " to " + std::to_string(note.target) + ": " +
         std::visit(Overloaded{
                        [&](const ProgramOffer& m) { return "offer " + run(m.run) + " of " + std::to_string(m.program.trees.size()) + " trees"; },
                        [&](const CallRefused& m) { return "refused " + std::to_string(m.call) + ": " + m.reason; },
                        [&](const TroubleReport& m) { return "trouble " + run(m.run) + ": " + m.what; },
                        [&](const PauseCall& m) { return "pause " + run(m.run); },
                        [&](const PausedAt& m) { return "paused " + run(m.run) + (m.over ? " over" : ""); },
                        [&](const PartDone& m) { return "done " + run(m.run); },
                        [&](const CallOver& m) { return "over " + std::to_string(m.call); },
                        [&](const LinkPing&) { return std::string("link ping"); },
                        [&](const LinkPong&) { return std::string("link pong"); },
                        [&](const OfferWanted& m) { return "wants " + std::to_string(m.call); },
                        [&](const AckWanted& m) { return "link ping for acknowledgements " + run(m.run); },
                        [&](const ViewProposed& m) { return "view " + std::to_string(m.view) + "? of " + std::to_string(m.members.size()); },
                        [&](const ViewReady& m) { return "ready for " + std::to_string(m.view) + ", next " + std::to_string(m.next_call); },
                        [&](const ViewBegun& m) { return "view " + std::to_string(m.view) + " begins, over " + std::to_string(m.over.size()); },
                        [&](const RankLost& m) { return "lost " + std::to_string(m.rank); },
                        [&](const RankPing&) { return std::string("ping"); },
                        [&](const RankPong&) { return std::string("pong"); },
                    },
                    note.note);
}

struct Process {
  bool alive = false;
  std::uint64_t life = 0;
  std::shared_ptr<CollectiveRouter> router;
  std::optional<collectives::GroupPlanner> planner;
  caf::actor communicator;
  std::vector<std::unique_ptr<Made>> calls;  // of this process and those before it
  std::size_t calls_before = 0;
  Instant next_call{};
};

struct Connection {
  struct Frame {
    DataMessage message;
    Instant due;
  };
  std::deque<Frame> frames;
  Instant last{};
  std::uint64_t number = 0;  // of its events: those of before a reset find nothing
};

}  // namespace

struct Group::Inside {
  explicit Inside(const GroupOptions& given);
  ~Inside();

  caf::scheduler::test_coordinator& scheduler() const {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system->scheduler());
  }
  Instant now() const { return scheduler().clock().current_time; }
  void after(Duration delay, std::function<void()> happens) {
    events.emplace(std::pair{now() + std::max(delay, Duration::zero()), ++sequence}, std::move(happens));
  }
  void run_actors();
  bool run_until(Instant end, const std::function<bool()>& enough);

  void start(int rank);
  void carry(int from, std::uint64_t life, const Peer& to, DataMessage message);
  void deliver(int from, const Peer& to, std::uint64_t connection);
  bool passes(int from, const Peer& to) const;
  bool reaches(int from, int target) const;  // the host
  std::vector<int> way(int from, int to) const;
  double rate(int from, int to) const;
  void hang_up(int from, const std::optional<Peer>& peer);
  int rank_of(const std::string& name) const {
    return static_cast<int>(std::ranges::find(names, name) - names.begin());
  }
  void tell(Made& made, std::size_t index, int rank, CallResult result);
  std::int64_t count_wrong(const Made& made, std::size_t index, int rank, const std::vector<int>& ranks) const;

  GroupOptions options;
  Random random;
  collectives::Topology topology;
  std::vector<int> nodes;  // of the ranks
  std::vector<std::string> names;
  Config config;
  std::unique_ptr<caf::actor_system> system;
  std::vector<Process> processes;
  std::map<std::pair<int, Peer>, Connection> connections;
  std::map<std::pair<int, int>, Instant> free_at;
  std::set<std::pair<int, int>> cuts;  // of nodes
  std::map<std::pair<Instant, std::uint64_t>, std::function<void()>> events;
  std::uint64_t sequence = 0;
  int to_be_made = 0;  // calls
  bool tracing = std::getenv("COPPICE_SIM_TRACE") != nullptr;
};

// ---- processes -------------------------------------------------------------------------------------------------------

Group::Inside::Inside(const GroupOptions& given)
    : options(given), random(given.seed), topology(topology_named(given.topology)), nodes(collectives::hosts(topology)) {
  for (const int node : nodes) names.push_back(topology.nodes[size_of(node)].id);
  system = std::make_unique<caf::actor_system>(config);
  scheduler().clock().advance_time(1h);  // so that no instant is the clock's first
  processes.resize(nodes.size());
  for (int rank = 0; rank < static_cast<int>(nodes.size()); ++rank) start(rank);
  run_actors();
}

Group::Inside::~Inside() {
  for (auto& process : processes) {
    process.router->detach();
    caf::anon_send_exit(process.communicator, caf::exit_reason::kill);
    process.communicator = {};
  }
  connections.clear();
  while (scheduler().has_job()) scheduler().run_once();
  events.clear();
  scheduler().clock().cancel_all();
  while (scheduler().has_job()) scheduler().run_once();
  system.reset();
}

void Group::Inside::start(int rank) {
  auto& process = processes[size_of(rank)];
  process.alive = true;
  const auto life = ++process.life;
  process.calls_before = process.calls.size();
  process.router = std::make_shared<CollectiveRouter>();
  process.planner.emplace(topology, nodes);
  CommunicatorOptions communicate;
  communicate.rank = rank;
  communicate.names = names;
  communicate.session = life;
  communicate.router = process.router;
  communicate.patience = options.patience;
  communicate.tune_from = INT64_MAX;
  auto* planner = &process.planner;
  communicate.on_loss = options.on_loss;
  communicate.plan = [planner](const CallKind& kind, std::int64_t chunks, const std::vector<int>& members) {
    return (*planner)->program(kind, chunks, members);
  };
  communicate.pass_on = [planner](const CallKind& kind, int root, const std::vector<int>& members) {
    return (*planner)->passing_on(kind, root, members);
  };
  communicate.resume = [planner](const CallKind& kind, const collectives::Program& program, const auto& progress) {
    return (*planner)->resume(kind, program, progress);
  };
  communicate.can_resume = [planner](const CallKind& kind, const std::vector<int>& members) { return (*planner)->can_resume(kind, members); };
  communicate.knock = [this, rank](int other) {
    if (!reaches(rank, other)) return Door::silent;
    return processes[size_of(other)].alive ? Door::open : Door::refused;
  };
  communicate.degrade = [planner](const collectives::RankEdge& edge, std::int64_t rate) { (*planner)->degrade(edge, rate); };
  for (const auto& link : topology.links) {
    const int own = nodes[size_of(rank)];
    if (link.from != own && link.to != own) continue;
    const int other = link.from == own ? link.to : link.from;
    if (topology.nodes[size_of(other)].is_switch) continue;
    const auto& near = link.from == own ? link.from_address : link.to_address;
    const auto& far = link.from == own ? link.to_address : link.from_address;
    communicate.neighbours.push_back({topology.nodes[size_of(other)].id, "", *near, *far});
  }
  communicate.hang_up = [this, rank, life](const std::optional<Peer>& peer) {
    if (processes[size_of(rank)].life == life) hang_up(rank, peer);
  };
  const auto port = std::make_shared<SimPort>([this, rank, life](const Peer& to, DataMessage message) {
    carry(rank, life, to, std::move(message));
  });
  process.communicator = spawn_communicator(*system, std::move(communicate), port);
}

void Group::Inside::run_actors() {
  auto& jobs = scheduler().jobs;
  while (!jobs.empty()) {
    std::swap(jobs.front(), jobs[random.below(jobs.size())]);
    scheduler().run_once();
  }
}

bool Group::Inside::run_until(Instant end, const std::function<bool()>& enough) {
  auto& clock = scheduler().clock();
  for (;;) {
    run_actors();
    if (enough && enough()) return true;
    auto next = end;
    if (!events.empty()) next = std::min(next, events.begin()->first.first);
    if (!clock.schedule().empty()) next = std::min(next, clock.schedule().begin()->first);
    clock.advance_time(std::max(next - now(), Duration::zero()));
    while (!events.empty() && events.begin()->first.first <= now()) {
      const auto happens = std::move(events.begin()->second);
      events.erase(events.begin());
      happens();
    }
    if (now() >= end) {
      run_actors();
      return enough && enough();
    }
  }
}

// ---- the network -----------------------------------------------------------------------------------------------------

// The nodes that a frame without addresses passes, by the fewest links of the topology as it was at first.
std::vector<int> Group::Inside::way(int from, int to) const {
  std::map<int, int> before{{from, from}};
  std::deque<int> next{from};
  while (!next.empty() && !before.contains(to)) {
    const int here = next.front();
    next.pop_front();
    for (const auto& link : topology.links)
      for (const auto& [a, b] : {std::pair{link.from, link.to}, std::pair{link.to, link.from}})
        if (a == here && before.emplace(b, a).second) next.push_back(b);
  }
  std::vector<int> out{to};
  while (out.back() != from) out.push_back(before.at(out.back()));
  std::ranges::reverse(out);
  return out;
}

bool Group::Inside::passes(int from, const Peer& to) const {
  const int target = rank_of(to.name);
  return processes[size_of(target)].alive && reaches(from, target);
}

bool Group::Inside::reaches(int from, int target) const {
  const auto path = way(nodes[size_of(from)], nodes[size_of(target)]);
  for (std::size_t i = 0; i + 1 < path.size(); ++i)
    if (cuts.contains({std::min(path[i], path[i + 1]), std::max(path[i], path[i + 1])})) return false;
  return true;
}

// Somewhat more than planned: a link that is as planned is never slow.
double Group::Inside::rate(int from, int to) const {
  const auto link = collectives::link_between(topology, nodes[size_of(from)], nodes[size_of(to)]);
  return 1.2e6 * (link ? topology.links[size_of(*link)].capacity.get_d() : 1.0);
}

void Group::Inside::carry(int from, std::uint64_t life, const Peer& to, DataMessage message) {
  auto& process = processes[size_of(from)];
  if (!process.alive || process.life != life) return;
  const int target = rank_of(to.name);
  if (target >= static_cast<int>(names.size())) throw std::logic_error("a frame to nobody: " + to.name);
  if (const auto* note = std::get_if<GroupNote>(&message); note && tracing && (!note->flood || from == static_cast<int>(note->origin)))
    std::fprintf(stderr, "%.1f ms: %s\n", ms(now() - Instant{1h}), in_words(*note).c_str());
  auto& connection = connections[{from, to}];
  const auto* chunk = std::get_if<CollectiveChunk>(&message);
  const double bytes = 200.0 + (chunk ? static_cast<double>(chunk->bytes.size) : 0.0);
  auto& free = free_at[{from, target}];
  free = std::max(free, now()) + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(bytes / rate(from, target)));
  connection.last = std::max(connection.last, free + random.between(options.latency_min, options.latency_max));
  connection.frames.push_back({std::move(message), connection.last});
  after(connection.last - now(), [this, from, to, number = connection.number] { deliver(from, to, number); });
}

// Everything that is due and can pass.
void Group::Inside::deliver(int from, const Peer& to, std::uint64_t number) {
  const auto found = connections.find({from, to});
  if (found == connections.end() || found->second.number != number) return;
  auto& frames = found->second.frames;
  while (!frames.empty() && frames.front().due <= now() && passes(from, to)) {
    auto message = std::move(frames.front().message);
    frames.pop_front();
    // The bytes are read now, not when they were handed over.
    if (auto* chunk = std::get_if<CollectiveChunk>(&message)) chunk->bytes = SharedBytes::copy_of(chunk->bytes.view());
    processes.at(size_of(rank_of(to.name))).router->deliver({Peer{names[size_of(from)]}, std::move(message)});
  }
}

void Group::Inside::hang_up(int from, const std::optional<Peer>& peer) {
  for (auto& [key, connection] : connections) {
    if (key.first != from || (peer && key.second != *peer)) continue;
    connection.frames.clear();
    ++connection.number;
  }
}

// ---- calls -----------------------------------------------------------------------------------------------------------

void Group::Inside::tell(Made& made, std::size_t index, int rank, CallResult result) {
  made.outcome.told = now();
  if (result) made.outcome.wrong = count_wrong(made, index, rank, result->ranks);
  made.outcome.result = std::move(result);
  std::ranges::fill(made.in, -1);  // the caller has its buffers back
  std::ranges::fill(made.out, -1);
}

std::int64_t Group::Inside::count_wrong(const Made& made, std::size_t call, int rank, const std::vector<int>& ranks) const {
  const auto& [operation, element, reduction, root, bytes] = made.kind;
  const std::int64_t elements = bytes / 8, part = elements / static_cast<std::int64_t>(names.size());
  std::int64_t wrong = 0;
  const auto expect = [&](const Numbers& got, std::int64_t first, const auto& right) {
    for (std::size_t i = 0; i < got.size(); ++i) wrong += got[i] != right(first + static_cast<std::int64_t>(i)) ? 1 : 0;
  };
  const auto sums = [&, reduction = reduction](std::int64_t i) { return combined(ranks, call, i, reduction); };
  const auto from_root = [&, root = root](std::int64_t i) { return number(root, call, i); };
  const auto from_owner = [&](const Numbers& got) {
    for (const int owner : ranks)
      for (std::int64_t i = owner * part; i < (owner + 1) * part; ++i) wrong += got[size_of(i)] != number(owner, call, i) ? 1 : 0;
  };
  switch (operation) {
    case Operation::broadcast: expect(made.in, 0, from_root); break;
    case Operation::allreduce: expect(made.in, 0, sums); break;
    case Operation::reduce:
      if (rank == root) expect(made.out, 0, sums);
      break;
    case Operation::reduce_scatter: expect(made.out, rank * part, sums); break;
    case Operation::allgather: from_owner(made.out); break;
    case Operation::gather:
      if (rank == root) from_owner(made.out);
      break;
    case Operation::scatter: expect(made.out, rank * part, from_root); break;
  }
  return wrong;
}

// ---- the outside -----------------------------------------------------------------------------------------------------

Group::Group(const GroupOptions& options) : in_(std::make_unique<Inside>(options)) {}
Group::~Group() = default;

int Group::size() const { return static_cast<int>(in_->names.size()); }
std::string Group::name(int rank) const { return in_->names[size_of(rank)]; }
bool Group::alive(int rank) const { return in_->processes[size_of(rank)].alive; }
Instant Group::now() const { return in_->now(); }
Random& Group::random() { return in_->random; }
void Group::at(Duration from_now, std::function<void()> happens) { in_->after(from_now, std::move(happens)); }
void Group::run_for(Duration time) { in_->run_until(now() + time, nullptr); }

void Group::call(int rank, Operation operation, std::int64_t elements, int root, Reduction reduction) {
  auto& process = in_->processes[size_of(rank)];
  const std::size_t index = process.calls.size();
  auto& made = *process.calls.emplace_back(std::make_unique<Made>());
  const std::int64_t part = elements / size(), own = part * rank;
  const bool rooted = operation == Operation::broadcast || operation == Operation::reduce ||
                      operation == Operation::gather || operation == Operation::scatter;
  made.kind = {operation, collectives::Element::int64, collectives::combines(operation) ? reduction : Reduction::sum,
               rooted ? root : -1, elements * 8};
  made.outcome.made = now();
  const bool at_root = rank == root, in_place = operation == Operation::broadcast || operation == Operation::allreduce;
  const bool in_part = operation == Operation::allgather || operation == Operation::gather;
  const bool out_part = operation == Operation::reduce_scatter || operation == Operation::scatter;
  const bool in_used = operation != Operation::scatter || at_root;
  const bool out_used = !in_place && (at_root || (operation != Operation::reduce && operation != Operation::gather));
  made.in.resize(in_used ? size_of(in_part ? part : elements) : 0);
  made.out.resize(out_used ? size_of(out_part ? part : elements) : 0, -2);
  for (std::size_t i = 0; i < made.in.size(); ++i)
    made.in[i] = number(rank, index, static_cast<std::int64_t>(i) + (in_part ? own : 0));
  if (operation == Operation::broadcast && !at_root) std::ranges::fill(made.in, -3);
  if (operation == Operation::gather && at_root) std::ranges::copy(made.in, made.out.begin() + own);
  if (operation == Operation::scatter && at_root) std::copy_n(made.in.begin() + own, part, made.out.begin());

  StartCall start;
  start.kind = made.kind;
  if (in_used) start.buffer.input = reinterpret_cast<std::byte*>(made.in.data());
  start.buffer.input_begin = in_part ? own * 8 : 0;
  if (in_place) start.buffer.output = start.buffer.input;
  if (out_used) start.buffer.output = reinterpret_cast<std::byte*>(made.out.data());
  start.buffer.output_begin = out_part ? own * 8 : 0;
  start.done = [this, rank, index, raw = &made](CallResult result) { in_->tell(*raw, index, rank, std::move(result)); };
  caf::anon_send(process.communicator, std::move(start));
}

void Group::call_all(Operation operation, std::int64_t elements, int root, Duration spread, Reduction reduction) {
  // One rank's calls keep their order: a call is made at the earliest when the one before was.
  for (int rank = 0; rank < size(); ++rank) {
    ++in_->to_be_made;
    const auto make = [=, this, life = in_->processes[size_of(rank)].life] {
      --in_->to_be_made;
      if (alive(rank) && in_->processes[size_of(rank)].life == life) call(rank, operation, elements, root, reduction);
    };
    auto& earliest = in_->processes[size_of(rank)].next_call;
    earliest = std::max(earliest, now() + random().between({}, spread));
    in_->after(earliest - now(), make);
  }
}

void Group::kill(int rank) {
  auto& process = in_->processes[size_of(rank)];
  process.alive = false;
  process.router->detach();
  caf::anon_send_exit(process.communicator, caf::exit_reason::kill);
  in_->run_actors();
  // Some of what it had sent is still to come.
  for (auto& [key, connection] : in_->connections) {
    if (key.first != rank) continue;
    const auto kept = random().below(connection.frames.size() + 1);
    connection.frames.resize(kept);
  }
}

void Group::restart(int rank) {
  if (alive(rank)) kill(rank);
  for (auto& [key, connection] : in_->connections)
    if (key.first == rank || in_->rank_of(key.second.name) == rank) connection = {{}, {}, connection.number + 1};
  in_->start(rank);
}

void Group::cut(int a, int b) {
  const int x = in_->nodes[size_of(a)], y = in_->nodes[size_of(b)];
  in_->cuts.insert({std::min(x, y), std::max(x, y)});
}

void Group::heal(int a, int b) {
  const int x = in_->nodes[size_of(a)], y = in_->nodes[size_of(b)];
  in_->cuts.erase({std::min(x, y), std::max(x, y)});
  for (auto& [key, connection] : in_->connections)  // what waited goes on
    in_->after(0ms, [this, key = key, number = connection.number] { in_->deliver(key.first, key.second, number); });
}

void Group::reset(int from, int to) {
  for (auto& [key, connection] : in_->connections) {
    if (key.first != from || in_->rank_of(key.second.name) != to) continue;
    connection.frames.clear();
    ++connection.number;
  }
}

void Group::end_a_relay(int rank) { caf::anon_send(in_->processes[size_of(rank)].communicator, EndARelay{}); }

void Group::forge(int from, int to, DataMessage message) {
  in_->processes[size_of(to)].router->deliver({Peer{name(from)}, std::move(message)});
}

bool Group::finish(Duration at_most) {
  return in_->run_until(now() + at_most, [this] {
    if (in_->to_be_made > 0) return false;
    for (const auto& process : in_->processes)
      for (std::size_t i = process.calls_before; process.alive && i < process.calls.size(); ++i)
        if (!process.calls[i]->outcome.result) return false;
    return true;
  });
}

std::vector<Outcome> Group::outcomes(int rank) const {
  std::vector<Outcome> out;
  for (const auto& made : in_->processes[size_of(rank)].calls) out.push_back(made->outcome);
  return out;
}

std::vector<std::pair<int, int>> Group::links() const {
  std::vector<std::pair<int, int>> out;
  for (int a = 0; a < size(); ++a)
    for (int b = a + 1; b < size(); ++b)
      if (collectives::link_between(in_->topology, in_->nodes[size_of(a)], in_->nodes[size_of(b)])) out.emplace_back(a, b);
  return out;
}

}  // namespace sim
