#include "actors/communicator.hpp"
#include "actors/type_ids.hpp"

namespace coppice::actors {

struct CollectiveRouter::Impl {
  std::mutex mutex;
  caf::actor communicator;
  std::map<Key, caf::actor> relays;
  std::map<Key, std::vector<Delivery>> early;
  std::size_t early_bytes = 0;
  std::uint64_t oldest = 0;
  std::set<std::string> heard;
};

namespace {

// Calls that are over here come back when others take new trees: this rank may have to pass their chunks on.
constexpr std::uint64_t kComeBack = 64;

bool is_past(const RunId& run, std::uint64_t oldest) {
  return run.call < oldest && (run.attempt == 0 || run.call + kComeBack < oldest);
}

std::size_t size_of(const Delivery& delivery) {
  const auto* chunk = std::get_if<CollectiveChunk>(&delivery.message);
  return sizeof(Delivery) + (chunk ? chunk->bytes.size : 0);
}

}  // namespace

std::shared_ptr<CollectiveRouter::Impl> CollectiveRouter::make_impl() { return std::make_shared<Impl>(); }

void CollectiveRouter::attach(const caf::actor& communicator) {
  const std::lock_guard lock(impl_->mutex);
  impl_->communicator = communicator;
}

void CollectiveRouter::detach() {
  const std::lock_guard lock(impl_->mutex);
  impl_->communicator = nullptr;
  impl_->relays.clear();
  impl_->early.clear();
}

void CollectiveRouter::deliver(Delivery delivery) {
  if (const auto* chunk = std::get_if<CollectiveChunk>(&delivery.message)) return pass({chunk->run, chunk->tree}, std::move(delivery));
  if (const auto* ack = std::get_if<CollectiveAck>(&delivery.message)) return pass({ack->run, ack->tree}, std::move(delivery));
  const std::lock_guard lock(impl_->mutex);
  impl_->heard.insert(delivery.from.name);
  if (impl_->communicator) caf::anon_send(impl_->communicator, std::move(delivery));
}

void CollectiveRouter::pass(const Key& key, Delivery delivery) {
  const std::lock_guard lock(impl_->mutex);
  impl_->heard.insert(delivery.from.name);
  if (const auto found = impl_->relays.find(key); found != impl_->relays.end()) {
    caf::anon_send(found->second, std::move(delivery));
    return;
  }
  const std::size_t size = size_of(delivery);
  if (is_past(key.first, impl_->oldest) || impl_->early_bytes + size > bytes_max_) return;
  impl_->early_bytes += size;
  impl_->early[key].push_back(std::move(delivery));
}

void CollectiveRouter::add(const RunId& run, std::uint32_t tree, const caf::actor& relay) {
  const std::lock_guard lock(impl_->mutex);
  const Key key{run, tree};
  impl_->relays[key] = relay;
  const auto found = impl_->early.find(key);
  if (found == impl_->early.end()) return;
  for (auto& delivery : found->second) {
    impl_->early_bytes -= size_of(delivery);
    caf::anon_send(relay, std::move(delivery));
  }
  impl_->early.erase(found);
}

void CollectiveRouter::remove(const RunId& run, std::uint32_t tree) {
  const std::lock_guard lock(impl_->mutex);
  impl_->relays.erase({run, tree});
}

bool CollectiveRouter::heard_from(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->heard.contains(name);
}

void CollectiveRouter::forget_below(std::uint64_t call) {
  const std::lock_guard lock(impl_->mutex);
  impl_->oldest = std::max(impl_->oldest, call);
  for (auto key = impl_->early.begin(); key != impl_->early.end() && key->first.first.call < impl_->oldest;) {
    if (!is_past(key->first.first, impl_->oldest)) {
      ++key;
      continue;
    }
    for (const auto& delivery : key->second) impl_->early_bytes -= size_of(delivery);
    key = impl_->early.erase(key);
  }
}

}  // namespace coppice::actors
