// A program that embeds the library and has an operator new of its own: it links, and every piece goes back to whom it
// came from.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "gpu/device.hpp"
#include "tests/gpu/builder.hpp"

namespace {

std::atomic<long> living{0}, taken{0}, strange{0};
constexpr std::size_t kMark = 0x5EED;

struct alignas(__STDCPP_DEFAULT_NEW_ALIGNMENT__) Head {
  std::size_t mark;
};

}  // namespace

// Without the sized operator delete, which such programs tend to forget. Inlined, GCC would take the two for strangers.
#pragma GCC diagnostic ignored "-Wsized-deallocation"
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  auto* head = static_cast<Head*>(std::malloc(sizeof(Head) + bytes));
  if (!head) throw std::bad_alloc();
  head->mark = kMark;
  ++living;
  ++taken;
  return head + 1;
}
[[gnu::noinline]] void operator delete(void* place) noexcept {
  if (!place) return;
  auto* head = static_cast<Head*>(place) - 1;
  if (head->mark != kMark) {
    ++strange;
    return;
  }
  head->mark = 0;
  --living;
  std::free(head);
}

namespace coppice::gpu {
namespace {

TEST(OwnHeap, ServesTheRunsOfNetsToo) {
  const auto net = vgg({1, 28, 28}, {8, 8, 16, 16}, 10, 1);
  const auto input = random_input(net, 1, 1);
  std::vector<float> output(10);
  const auto device = make_cpu_device({1});
  const auto compiled = (*device)->compile(net, {1});
  ASSERT_TRUE(compiled) << compiled.error().what;
  ASSERT_TRUE((*compiled)->run(input, output));
  const auto before = living.load(), taken_before = taken.load();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE((*compiled)->run(input, output));
  EXPECT_EQ(living, before);
  EXPECT_GT(taken, taken_before);  // by oneDNN, else there is nothing to see here
  EXPECT_EQ(strange, 0);
}

}  // namespace
}  // namespace coppice::gpu
