// actors/actors.hpp: the serving actors and how to spawn them. The vocabulary is in messages.hpp, the decisions in
// gather.hpp, block_table.hpp, head_choice.hpp, roster.hpp, relay_state.hpp and faults.hpp; the actors only carry them out.
//
//   gateway   client ─InferRequest→ supervisor ─WorkItem→ (n workers)      worker   ─WorkItem→ subnet ─scores→ encoder
//                                       │ Expect                                                          │ CodedResponse
//                                       ▼                                                                 ▼
//             client ←─InferReply── decoder ←───────────────────────────────────────────────── (gateway)
//
//   blocks    supervisor ─ExpectBlocks→ combiner ─BlockItem→ block head ─WorkItem→ (the block's workers)
//             client ←─InferReply── combiner ←─BlockScore── block head ←─CodedResponse── (they)
//
//   weights   supervisor ─StartTransfer→ tree_relay (root) ─chunks→ tree_relay ─chunks→ …; each hands the whole to its subnet
#pragma once

#include <caf/fwd.hpp>
#include <functional>
#include <memory>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "actors/ports.hpp"
#include "actors/relay_state.hpp"
#include "actors/roster.hpp"
#include "coding/block.hpp"
#include "coding/decoder.hpp"

namespace coppice::actors {

struct DecoderOptions {
  std::vector<std::string> workers;  // host names: a response counts only under its own worker's key
  coding::CodeShape shape;
  coding::Generator generator;
  coding::Decoder decoder;
  Duration deadline = std::chrono::milliseconds{50};  // after it the best estimate is given, marked degraded
};

// Gathers responses and answers: exactly one InferReply a request. Tells `supervisor` (set by Attach) of closed requests.
caf::actor spawn_decoder(caf::actor_system& system, DecoderOptions options, std::shared_ptr<FramePort> port);

// Many classes: decoded block by block, each at a head of its own (coding/block.hpp). Workers are counted through: worker p
// of block b is b * shape.workers + p.
struct CombinerOptions {
  std::vector<std::string> workers;  // host names
  std::string gateway;               // this host's name
  coding::CodeShape shape;           // of one block
  std::vector<std::vector<int>> classes;  // by block
  std::vector<std::vector<int>> heads;    // by block: who may head it, best first (actors/head_choice.hpp)
  Duration deadline = std::chrono::milliseconds{50};
};

// Asks the blocks' heads, puts others in the place of those that are lost or silent, and answers: exactly one InferReply a
// request. Tells `supervisor` (set by Attach) of closed requests.
caf::actor spawn_combiner(caf::actor_system& system, CombinerOptions options, std::shared_ptr<FramePort> port);

struct BlockHeadOptions {
  std::vector<std::string> workers;  // host names of all blocks
  std::string gateway;               // host name: whose items are taken
  coding::CodeShape shape;           // of one block
};

// Heads any block that the gateway asks it to: fans the item out to the block's workers, decodes their responses and sends
// up one BlockScore. Needs InstallBlocks first.
caf::actor spawn_block_head(caf::actor_system& system, BlockHeadOptions options, std::shared_ptr<FramePort> port);

// Data frames between this node and other hosts, clients not among them, since it started.
struct Traffic {
  std::uint64_t in = 0, out = 0;
};

struct SupervisorOptions {
  std::string cluster;               // its name, for status
  std::vector<std::string> workers;  // host names: worker i of the code is workers[i]
  coding::CodeShape shape;           // of one block, where there are blocks
  int blocks = 0;                    // 0: one code over all workers; else `decoder` is a combiner
  std::size_t item_elements = 0;     // floats of one item
  std::size_t in_flight_max = 1'024; // more are refused as overloaded
  RosterOptions roster;
  std::uint32_t chunk_bytes = 64U << 10;                   // of the weight broadcast
  std::shared_ptr<const std::vector<std::byte>> weights;   // the bundle that every worker is handed
  std::string weights_sha256;
  // The scheduler: the broadcast tree over the root (this node, first) and the members.
  std::function<std::vector<RelayNode>(const std::vector<std::string>& members)> plan_tree;
  // Hands a fault spec to every worker, and tells `done`, on any thread, when all strike as it says, or why none does ("": they
  // do). Work that comes after that is struck.
  std::function<void(const std::string& spec, std::function<void(const std::string& why_not)> done)> spread_faults;
  std::function<Traffic()> traffic;  // may be empty
};

// Admits requests, fans them out, knows who is alive, and hands out weights.
caf::actor spawn_supervisor(caf::actor_system& system, SupervisorOptions options, std::shared_ptr<FramePort> port,
                            const caf::actor& decoder, const caf::actor& relay);

struct TreeRelayOptions {
  std::string self;
  RelayOptions limits;
  std::function<std::string(std::span<const std::byte>)> sha256;  // hex
};

// One node's relay of weight broadcasts. `sink` (a subnet) is told WeightsArrived; a root needs none.
caf::actor spawn_tree_relay(caf::actor_system& system, TreeRelayOptions options, std::shared_ptr<FramePort> port,
                            const caf::actor* sink);

// What a subnet makes of an arrived bundle: its net, ready to run, and its rows of the generator.
struct LoadedNet {
  std::unique_ptr<NetPort> net;
  coding::WorkerRows rows;
  std::vector<int> classes;
  int class_count = 0;
  std::shared_ptr<const std::vector<coding::BlockCode>> blocks = {};  // for the block head; null where there are none
};

struct WorkerOptions {
  std::string self;
  std::uint32_t worker = 0, workers = 0;  // the place in the code
  std::function<tl::expected<LoadedNet, std::string>(std::span<const std::byte> bundle)> load;
  // Whether the subnet has a thread of its own. The simulation says no: threads would make its runs differ.
  bool detached = true;
};

// Multiplies rows by scores and sends the coded response, or holds it back as a fault says.
caf::actor spawn_encoder(caf::actor_system& system, const WorkerOptions& options, std::shared_ptr<FramePort> port);

// Runs the worker's net on a thread of its own. Reports Ready or Refused to `member`; hands the blocks' codes to `head`.
caf::actor spawn_subnet(caf::actor_system& system, WorkerOptions options, const caf::actor& encoder,
                        const caf::actor& member, const caf::actor* head = nullptr);

}  // namespace coppice::actors
