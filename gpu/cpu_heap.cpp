#include "gpu/cpu_heap.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

// Under a sanitizer nothing is replaced. Clang says so otherwise than GCC.
#define COPPICE_OWN_HEAP 1
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#undef COPPICE_OWN_HEAP
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef COPPICE_OWN_HEAP
#endif
#endif

namespace coppice::gpu {

struct HeapBlock {
  static constexpr std::size_t kBytes = 32'768;
  alignas(64) std::array<std::byte, kBytes> bytes{};
  std::size_t used = 0;  // by the thread that has the block
  // Its thread and every piece that is not yet returned, by whatever thread. The last one to let go frees the block: a
  // piece that outlives the run keeps it no longer than itself.
  std::atomic<int> holders = 0;
};

namespace {

constinit std::array<HeapBlock, 64> blocks;  // more runs at one time than that: the rest use malloc
constinit thread_local HeapBlock* current = nullptr;

HeapBlock* take_block() {
  for (auto& block : blocks)
    if (int nobody = 0; block.holders.load(std::memory_order_relaxed) == 0 &&
                        block.holders.compare_exchange_strong(nobody, 1, std::memory_order_acquire))
      return &block;
  return nullptr;
}

void let_go(HeapBlock& block) { block.holders.fetch_sub(1, std::memory_order_release); }

}  // namespace

QuietHeap::QuietHeap() noexcept : block_(current ? nullptr : take_block()) {
  if (block_) current = block_;
}

QuietHeap::~QuietHeap() {
  if (!block_) return;
  current = nullptr;
  let_go(*block_);
}

#ifdef COPPICE_OWN_HEAP
namespace {

void* from_block(HeapBlock& block, std::size_t bytes) {
  constexpr std::size_t kUnit = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
  if (bytes > HeapBlock::kBytes) return nullptr;
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + kUnit - 1) / kUnit * kUnit;
  if (block.holders.load(std::memory_order_acquire) == 1) block.used = 0;
  if (rounded > HeapBlock::kBytes - block.used) return nullptr;
  void* place = block.bytes.data() + block.used;
  block.used += rounded;
  block.holders.fetch_add(1, std::memory_order_relaxed);
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
    let_go(blocks[offset / sizeof(HeapBlock)]);
  else
    std::free(place);
}

}  // namespace
#endif

}  // namespace coppice::gpu

#ifdef COPPICE_OWN_HEAP
// The standard's other forms (arrays, nothrow) call these; those for more than the default alignment keep to themselves.
// Weak: a program that has an operator new of its own keeps it, and its runs use that. The sized form asks for operator
// delete by its name, for then that is the program's too.
[[gnu::weak]] void* operator new(std::size_t bytes) { return coppice::gpu::allocate(bytes); }
[[gnu::weak]] void operator delete(void* place) noexcept { coppice::gpu::give_back(place); }
[[gnu::weak]] void operator delete(void* place, std::size_t) noexcept { ::operator delete(place); }
#endif
