#include "gpu/cpu_heap.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace coppice::gpu {

struct HeapBlock {
  static constexpr std::size_t kBytes = 32'768;
  alignas(64) std::array<std::byte, kBytes> bytes{};
  std::size_t used = 0;         // by the thread that has the block
  std::atomic<int> living = 0;  // pieces not yet returned, by whatever thread
  std::atomic<bool> taken = false;
};

namespace {

constinit std::array<HeapBlock, 64> blocks;  // more runs at one time than that: the rest use malloc
constinit thread_local HeapBlock* current = nullptr;

HeapBlock* take_block() {
  for (auto& block : blocks)
    if (!block.taken.load(std::memory_order_relaxed) && !block.taken.exchange(true, std::memory_order_acquire))
      return &block;
  return nullptr;
}

}  // namespace

QuietHeap::QuietHeap() noexcept : before_(current), block_(before_ ? nullptr : take_block()) {
  if (block_) current = block_;
}

QuietHeap::~QuietHeap() {
  if (!block_) return;
  current = before_;
  // Should something have outlived the run, its block stays out of use.
  if (block_->living.load(std::memory_order_acquire) == 0) block_->taken.store(false, std::memory_order_release);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
namespace {

void* from_block(HeapBlock& block, std::size_t bytes) {
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  if (block.living.load(std::memory_order_acquire) == 0) block.used = 0;
  if (bytes > HeapBlock::kBytes || rounded > HeapBlock::kBytes - block.used) return nullptr;
  void* place = block.bytes.data() + block.used;
  block.used += rounded;
  block.living.fetch_add(1, std::memory_order_relaxed);
  return place;
}

void* allocate(std::size_t bytes) {
  if (current)
    if (void* place = from_block(*current, bytes)) return place;
  for (;;) {
    if (void* place = std::malloc(bytes > 0 ? bytes : 1)) return place;
    const auto handler = std::get_new_handler();
    if (!handler) throw std::bad_alloc();
    handler();
  }
}

void give_back(void* place) noexcept {
  const auto offset = reinterpret_cast<std::uintptr_t>(place) - reinterpret_cast<std::uintptr_t>(blocks.data());
  if (offset < sizeof blocks)
    blocks[offset / sizeof(HeapBlock)].living.fetch_sub(1, std::memory_order_release);
  else
    std::free(place);
}

}  // namespace
#endif

}  // namespace coppice::gpu

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// The standard's other forms (arrays, nothrow, sized) call these two.
void* operator new(std::size_t bytes) { return coppice::gpu::allocate(bytes); }
void operator delete(void* place) noexcept { coppice::gpu::give_back(place); }
void operator delete(void* place, std::size_t) noexcept { coppice::gpu::give_back(place); }
#endif
