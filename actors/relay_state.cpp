#include "actors/relay_state.hpp"

#include <algorithm>
#include <unordered_set>

namespace coppice::actors {
namespace {

std::uint32_t chunk_count(const TransferOpen& open) {
  return static_cast<std::uint32_t>((open.bytes + open.chunk_bytes - 1) / open.chunk_bytes);
}

std::ptrdiff_t place(const TransferOpen& open, const std::string& name) {
  const auto found = std::find_if(open.tree.begin(), open.tree.end(), [&](const auto& n) { return n.name == name; });
  return found == open.tree.end() ? -1 : found - open.tree.begin();
}

}  // namespace

tl::expected<void, std::string> check(const TransferOpen& open, const std::string& self, const std::string& parent,
                                      const RelayOptions& options) {
  const auto no = [](std::string why) { return tl::unexpected("weight transfer refused: " + std::move(why)); };
  if (open.bytes == 0 || open.bytes > options.bytes_max) return no(std::to_string(open.bytes) + " bytes");
  if (open.chunk_bytes == 0 || open.chunk_bytes > options.chunk_bytes_max)
    return no("chunks of " + std::to_string(open.chunk_bytes) + " bytes");
  if (open.sha256.size() != 64) return no("its digest is not 64 hex digits");
  if (open.tree.empty() || open.tree.size() > options.nodes_max || open.tree.front().parent != -1)
    return no("its tree has no root in the first place, or too many nodes");
  std::unordered_set<std::string> names;
  for (std::size_t i = 0; i < open.tree.size(); ++i) {
    const auto& node = open.tree[i];
    if (i > 0 && (node.parent < 0 || node.parent >= static_cast<std::int32_t>(i)))
      return no("node " + node.name + " comes before its parent");
    if (!names.insert(node.name).second) return no("node " + node.name + " is in the tree twice");
  }
  const auto here = place(open, self);
  if (here < 0) return no(self + " is not in its tree");
  const auto up = open.tree[static_cast<std::size_t>(here)].parent;
  // A root has no parent: no peer can make this node send down a tree of the peer's making.
  const std::string expected = up < 0 ? "" : open.tree[static_cast<std::size_t>(up)].name;
  if (expected != parent) return no("it came from " + parent + ", but the tree says " + expected);
  return {};
}

RelayState RelayState::inner(const TransferOpen& open, const std::string& self, const RelayOptions& options) {
  RelayState state;
  state.open_ = open;
  state.options_ = options;
  state.chunks_ = chunk_count(open);
  const auto here = static_cast<std::int32_t>(place(open, self));
  const auto up = open.tree[static_cast<std::size_t>(here)].parent;
  if (up >= 0) state.parent_ = open.tree[static_cast<std::size_t>(up)].name;
  for (const auto& node : open.tree)
    if (node.parent == here) state.children_.push_back({node.name});
  return state;
}

RelayState RelayState::root(const TransferOpen& open, std::vector<std::byte> bytes, const RelayOptions& options) {
  RelayState state = inner(open, open.tree.front().name, options);
  state.bytes_ = std::move(bytes);
  state.received_ = state.chunks_;
  return state;
}

RelayState::Step RelayState::begin() {
  Step step;
  for (auto& child : children_) forward_to(child, step.forwards);
  step.done = done();
  return step;
}

RelayState::Step RelayState::on_chunk(const WeightChunk& chunk) {
  Step step;
  const std::uint64_t offset = std::uint64_t{received_} * open_.chunk_bytes;
  const std::uint64_t expected = offset >= open_.bytes ? 0 : std::min<std::uint64_t>(open_.chunk_bytes, open_.bytes - offset);
  if (received_ == chunks_ || chunk.index != received_ || !chunk.bytes || chunk.bytes->size() != expected) return step;
  // Grows with what really arrives, not with what the header claims.
  bytes_.insert(bytes_.end(), chunk.bytes->begin(), chunk.bytes->end());
  ++received_;
  for (auto& child : children_) forward_to(child, step.forwards);
  step.acknowledge = true;
  step.whole = received_ == chunks_;
  step.done = done();
  return step;
}

RelayState::Step RelayState::on_ack(const std::string& name, std::uint32_t received) {
  Step step;
  for (auto& child : children_) {
    if (child.name != name || received <= child.acknowledged || received > child.sent) continue;
    child.acknowledged = received;
    forward_to(child, step.forwards);
    step.done = done();
  }
  return step;
}

RelayState::Step RelayState::on_child_lost(const std::string& name) {
  Step step;
  if (std::erase_if(children_, [&](const Child& child) { return child.name == name; }) > 0) step.done = done();
  return step;
}

std::vector<std::string> RelayState::children() const {
  std::vector<std::string> names;
  for (const auto& child : children_) names.push_back(child.name);
  return names;
}

void RelayState::forward_to(Child& child, std::vector<Forward>& out) {
  while (child.sent < received_ && child.sent < child.acknowledged + options_.window) {
    const std::size_t offset = std::size_t{child.sent} * open_.chunk_bytes;
    const std::size_t size = std::min<std::size_t>(open_.chunk_bytes, bytes_.size() - offset);
    const auto* data = bytes_.data() + offset;
    out.push_back({child.name,
                   {open_.transfer, child.sent, std::make_shared<const std::vector<std::byte>>(data, data + size)}});
    ++child.sent;
  }
}

bool RelayState::done() const {
  return received_ == chunks_ && std::all_of(children_.begin(), children_.end(),
                                             [&](const Child& child) { return child.acknowledged == chunks_; });
}

}  // namespace coppice::actors
