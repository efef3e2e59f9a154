#include "actors/collective_router.hpp"

#include <map>
#include <mutex>

#include "actors/collective_messages.hpp"
#include "actors/on_this_thread.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {
namespace {

using Key = std::pair<RunId, std::uint32_t>;  // and tree

// Calls that are over here come back when others take new trees: this rank may have to pass their chunks on.
constexpr std::uint64_t kComeBack = 64;

constexpr std::size_t kSmall = std::size_t{64} << 10;  // bytes of a chunk that is dealt with where it came

bool is_small(const Delivery& delivery) {
  const auto* chunk = std::get_if<CollectiveChunk>(&delivery.message);
  return chunk && chunk->bytes.size <= kSmall;
}

std::size_t size_of(const Delivery& delivery) {
  const auto* chunk = std::get_if<CollectiveChunk>(&delivery.message);
  return sizeof(Delivery) + (chunk ? chunk->bytes.size : 0);
}

struct Process {
  std::uint64_t session = 0;
  bool gave_data = false;
};

}  // namespace

struct CollectiveRouter::Impl {
  mutable std::mutex mutex;
  caf::actor communicator;
  bool detached = false;  // for good
  std::map<Key, caf::actor> relays;
  std::map<Key, std::vector<Delivery>> early;
  std::map<std::uint64_t, std::uint32_t> begun;  // calls, and the last attempt at each
  std::size_t early_bytes = 0;
  std::uint64_t oldest = 0;
  std::map<std::string, Process> processes;

  bool is_past(const RunId& run) const {
    if (run.call < oldest && (run.attempt == 0 || run.call + kComeBack < oldest)) return true;
    const auto attempt = begun.find(run.call);
    return attempt != begun.end() && run.attempt <= attempt->second;
  }

  void drop_past() {
    for (auto key = early.begin(); key != early.end();) {
      if (!is_past(key->first.first)) {
        ++key;
        continue;
      }
      for (const auto& delivery : key->second) early_bytes -= size_of(delivery);
      key = early.erase(key);
    }
  }

  Sender admit(const std::string& name, std::uint64_t session) {
    const auto [found, first] = processes.try_emplace(name, Process{session});
    auto& process = found->second;
    if (first || process.session == session) return Sender::known;
    if (session < process.session) return Sender::stale;
    // Once a call is over here every rank has been part of the group.
    if (process.gave_data || oldest > 0) return Sender::replaced;
    process = {session};
    return Sender::anew;
  }

  void pass(const Key& key, std::uint64_t session, Delivery delivery, std::size_t bytes_max, caf::execution_unit* unit) {
    const std::lock_guard lock(mutex);
    switch (admit(delivery.from.name, session)) {
      case Sender::stale: return;
      case Sender::replaced:
        if (communicator) caf::anon_send(communicator, PeerReplaced{delivery.from.name});
        return;
      default: break;
    }
    if (const auto found = relays.find(key); found != relays.end()) {
      processes[delivery.from.name].gave_data = true;
      return tell(found->second, unit, caf::make_message(std::move(delivery)));
    }
    const std::size_t size = size_of(delivery);
    if (is_past(key.first) || early_bytes + size > bytes_max) return;
    early_bytes += size;
    early[key].push_back(std::move(delivery));
  }
};

std::shared_ptr<CollectiveRouter::Impl> CollectiveRouter::make_impl() { return std::make_shared<Impl>(); }

void CollectiveRouter::attach(const caf::actor& communicator) {
  const std::lock_guard lock(impl_->mutex);
  impl_->communicator = communicator;
}

void CollectiveRouter::detach() {
  const std::lock_guard lock(impl_->mutex);
  impl_->communicator = nullptr;
  impl_->detached = true;
  impl_->relays.clear();
  impl_->early.clear();
  impl_->early_bytes = 0;
}

void CollectiveRouter::deliver(Delivery delivery, caf::execution_unit* unit) {
  if (const auto* chunk = std::get_if<CollectiveChunk>(&delivery.message))
    return impl_->pass({chunk->run, chunk->tree}, chunk->session, std::move(delivery), bytes_max_, is_small(delivery) ? unit : nullptr);
  if (const auto* ack = std::get_if<CollectiveAck>(&delivery.message))
    return impl_->pass({ack->run, ack->tree}, ack->session, std::move(delivery), bytes_max_, nullptr);
  if (const auto* acks = std::get_if<CollectiveAcks>(&delivery.message)) {
    for (const auto& ack : acks->acks) impl_->pass({ack.run, ack.tree}, ack.session, {delivery.from, ack}, bytes_max_, unit);
    return;
  }
  const std::lock_guard lock(impl_->mutex);
  if (impl_->communicator) caf::anon_send(impl_->communicator, std::move(delivery));
}

void CollectiveRouter::add(const RunId& run, std::uint32_t tree, const caf::actor& relay, caf::execution_unit* unit) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->detached) return;  // a relay that is kept here would never end
  const Key key{run, tree};
  impl_->relays[key] = relay;
  const auto found = impl_->early.find(key);
  if (found == impl_->early.end()) return;
  for (auto& delivery : found->second) {
    impl_->early_bytes -= size_of(delivery);
    impl_->processes[delivery.from.name].gave_data = true;
    tell(relay, unit, caf::make_message(std::move(delivery)));
  }
  impl_->early.erase(found);
}

void CollectiveRouter::remove(const RunId& run, std::uint32_t tree) {
  const std::lock_guard lock(impl_->mutex);
  impl_->relays.erase({run, tree});
}

void CollectiveRouter::began(const RunId& run) {
  const std::lock_guard lock(impl_->mutex);
  impl_->begun[run.call] = run.attempt;
  if (!impl_->early.empty()) impl_->drop_past();
}

void CollectiveRouter::forget_below(std::uint64_t call) {
  const std::lock_guard lock(impl_->mutex);
  impl_->oldest = std::max(impl_->oldest, call);
  const auto kept = impl_->oldest - std::min(impl_->oldest, kComeBack);
  impl_->begun.erase(impl_->begun.begin(), impl_->begun.lower_bound(kept));
  if (!impl_->early.empty()) impl_->drop_past();
}

bool CollectiveRouter::heard_from(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->processes.contains(name);
}

std::size_t CollectiveRouter::waiting_bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->early_bytes;
}

CollectiveRouter::Sender CollectiveRouter::admit(const std::string& name, std::uint64_t session) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->admit(name, session);
}

}  // namespace coppice::actors
