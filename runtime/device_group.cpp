#include "runtime/device_group.hpp"

#include <algorithm>
#include <map>
#include <mutex>

#include "actors/call_layout.hpp"
#include "actors/peer_translation.hpp"
#include "collectives/planner.hpp"
#include "runtime/device_topology.hpp"

namespace coppice::runtime {
namespace {

constexpr std::size_t kKindsKept = 16;  // each has streams, events and landing buffers of its own

std::size_t index(int at) { return static_cast<std::size_t>(at); }

tl::unexpected<Error> error_of(const gpu::Error& error) {
  const bool callers = error.code == gpu::ErrorCode::device_unavailable || error.code == gpu::ErrorCode::shape_mismatch;
  return callers ? bad_input(error.what) : failed(error.what);
}

// The hosts of a given topology that the devices are.
Expected<DeviceTopology> placed(const collectives::Topology& topology, const std::vector<int>& devices) {
  if (const auto sound = collectives::validate(topology); !sound) return bad_input(sound.error().what);
  const auto hosts = collectives::hosts(topology);
  DeviceTopology out{.topology = topology, .nodes = {}, .assumed = {}};
  for (const int device : devices) {
    if (device < 0 || device >= std::ssize(hosts))
      return bad_input("topology " + topology.name + " has " + std::to_string(hosts.size()) + " hosts, none for cuda:" +
                       std::to_string(device));
    out.nodes.push_back(hosts[index(device)]);
  }
  return out;
}

}  // namespace

Expected<void> DeviceCompletion::wait() const {
  if (!run_) return tl::unexpected(run_.error());
  if (const auto over = (*run_)->wait(); !over) return error_of(over.error());
  return {};
}

bool DeviceCompletion::ready() const {
  if (!run_) return true;
  const auto over = (*run_)->ready();
  return !over || *over;
}

struct DeviceGroup::Parts {
  DeviceGroupOptions options;
  std::unique_ptr<gpu::PeerGroup> peers;
  DeviceTopology links;
  std::mutex mutex;  // of what follows
  std::map<std::pair<collectives::Operation, int>, collectives::Plan> plans;
  struct Kept {
    std::shared_ptr<gpu::PeerRun> run;
    std::uint64_t last_call = 0;
  };
  std::map<collectives::CallKind, Kept> runs;
  std::uint64_t calls = 0;

  int ranks() const { return static_cast<int>(options.devices.size()); }

  Expected<collectives::Plan> plan(collectives::Operation operation, int root) const {
    collectives::PlanRequest request{.operation = operation, .planner = options.planner, .participants = links.nodes};
    if (root >= 0) request.root = links.nodes[index(root)];
    auto planned = collectives::make_plan(links.topology, request);
    if (!planned) return bad_input(planned.error().what);
    return std::move(*planned);
  }

  // REQUIRES: mutex.
  Expected<std::shared_ptr<gpu::PeerRun>> run_of(const collectives::CallKind& kind) {
    if (const auto known = runs.find(kind); known != runs.end()) {
      known->second.last_call = ++calls;
      return known->second.run;
    }
    const std::pair planned{kind.operation, kind.root};
    if (!plans.contains(planned)) {
      auto made = plan(kind.operation, kind.root);
      if (!made) return tl::unexpected(made.error());
      plans.emplace(planned, std::move(*made));
    }
    const auto program = collectives::make_program(
        plans.at(planned), links.topology,
        {.element = kind.element, .reduction = kind.reduction, .bytes = kind.bytes, .root = kind.root,
         .nodes = links.nodes, .chunks = options.chunks, .latency_s = options.latency_s});
    if (!program) return bad_input(program.error().what);
    auto prepared = peers->prepare(actors::peer_program(*program));
    if (!prepared) return error_of(prepared.error());
    if (runs.size() == kKindsKept)
      runs.erase(std::ranges::min_element(runs, {}, [](const auto& each) { return each.second.last_call; }));
    return runs.emplace(kind, Kept{std::move(*prepared), ++calls}).first->second.run;
  }
};

DeviceGroup::DeviceGroup(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
DeviceGroup::~DeviceGroup() = default;

Expected<std::unique_ptr<DeviceGroup>> DeviceGroup::open(DeviceGroupOptions options) {
  auto peers = options.open(options.devices);
  if (!peers) return error_of(peers.error());
  auto parts = std::make_unique<Parts>();
  parts->peers = std::move(*peers);
  if (options.topology) {
    auto links = placed(*options.topology, options.devices);
    if (!links) return tl::unexpected(links.error());
    parts->links = std::move(*links);
  } else {
    auto facts = this_machine();
    if (!facts) return tl::unexpected(facts.error());
    std::vector<std::string> pci;
    for (const auto& device : parts->peers->devices()) pci.push_back(device.pci);
    parts->links = topology_between(*facts, pci);
  }
  parts->options = std::move(options);
  // What does not join them shows here, not at the first call.
  if (auto planned = parts->plan(collectives::Operation::broadcast, 0); !planned) return tl::unexpected(planned.error());
  return std::unique_ptr<DeviceGroup>(new DeviceGroup(std::move(parts)));
}

int DeviceGroup::size() const { return parts_->ranks(); }
const collectives::Topology& DeviceGroup::topology() const { return parts_->links.topology; }
gpu::PeerGroup& DeviceGroup::peers() { return *parts_->peers; }

std::vector<std::string> DeviceGroup::notes() const {
  std::vector<std::string> out;
  if (!parts_->links.assumed.empty()) out.push_back(parts_->links.assumed);
  const auto name = [&](int rank) { return "cuda:" + std::to_string(parts_->options.devices[index(rank)]); };
  for (const auto& pair : parts_->peers->staged())
    out.push_back(name(pair.from) + " cannot reach the memory of " + name(pair.to) + ": the driver stages what it copies there");
  return out;
}

Expected<collectives::Plan> DeviceGroup::plan(collectives::Operation operation, int root) const {
  return parts_->plan(operation, root);
}

DeviceCompletion DeviceGroup::call(const collectives::CallKind& given, const std::vector<void*>& in,
                                   const std::vector<void*>& out, const Streams& streams) {
  const auto refuse = [&](const std::string& why) {
    return DeviceCompletion(bad_input(std::string(name(given.operation)) + ": " + why));
  };
  const auto layout = actors::layout_of(given.operation);
  const auto ranks = index(size());
  if (layout.rooted && (given.root < 0 || given.root >= size()))
    return refuse("root " + std::to_string(given.root) + " is no rank; there are " + std::to_string(size()));
  if (in.size() != ranks || out.size() != ranks || (!streams.empty() && streams.size() != ranks))
    return refuse("not as many pointers as the " + std::to_string(size()) + " ranks");
  auto kind = given;
  if (!layout.rooted) kind.root = -1;
  if (!collectives::combines(kind.operation)) kind.reduction = collectives::Reduction::sum;
  std::vector<gpu::PeerBuffers> buffers;
  for (std::size_t rank = 0; rank < ranks; ++rank)
    buffers.push_back({in[rank], out[rank], streams.empty() ? nullptr : streams[rank]});
  const std::lock_guard lock(parts_->mutex);
  auto run = parts_->run_of(kind);
  if (!run) return refuse(run.error().what);
  if (const auto started = (*run)->start(buffers); !started) return DeviceCompletion(error_of(started.error()));
  return DeviceCompletion(std::move(run));
}

}  // namespace coppice::runtime
