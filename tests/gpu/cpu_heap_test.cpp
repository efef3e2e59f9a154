// What operator new gives within a QuietHeap: where it is, how long it lives, who may return it.
#include "gpu/cpu_heap.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu/heap_hook.hpp"

namespace coppice::gpu {
namespace {

constexpr int kBlocks = 64;  // as many as cpu_heap.cpp has

// The operators by their names: pairs of new and delete the compiler may leave out.
void* take(std::size_t bytes) { return ::operator new(bytes); }
void give(void* place) { ::operator delete(place); }

// Whether a small piece, taken now, is malloc's.
bool is_mallocs() {
  const auto before = heap_allocations();
  give(take(100));
  return heap_allocations() != before;
}

class QuietHeapTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!heap_is_counted()) GTEST_SKIP() << "a sanitizer has a heap of its own";
  }
};

TEST_F(QuietHeapTest, TakesFromABlockWhileItLives) {
  EXPECT_TRUE(is_mallocs());
  {
    const QuietHeap quiet;
    EXPECT_FALSE(is_mallocs());
  }
  EXPECT_TRUE(is_mallocs());
}

TEST_F(QuietHeapTest, IsOfItsThreadAlone) {
  const QuietHeap quiet;
  bool others = false;
  std::thread([&] { others = is_mallocs(); }).join();
  EXPECT_TRUE(others);
}

TEST_F(QuietHeapTest, NestsAndTheOuterOneGoesOn) {
  const QuietHeap outer;
  {
    const QuietHeap inner;
    EXPECT_FALSE(is_mallocs());
  }
  EXPECT_FALSE(is_mallocs());
}

TEST_F(QuietHeapTest, GivesPiecesThatAreApartAndAligned) {
  const QuietHeap quiet;
  std::vector<std::pair<unsigned char*, std::size_t>> pieces;
  pieces.reserve(64);
  for (const std::size_t bytes : {0, 0, 1, 15, 16, 17, 100, 0, 4'000, 33'000, 8}) {
    auto* place = static_cast<unsigned char*>(take(bytes));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(place) % __STDCPP_DEFAULT_NEW_ALIGNMENT__, 0U);
    std::memset(place, static_cast<int>(pieces.size()), bytes);
    for (const auto& [other, size] : pieces) EXPECT_NE(place, other);
    pieces.emplace_back(place, bytes);
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto [place, bytes] = pieces[i];
    EXPECT_TRUE(std::all_of(place, place + bytes, [&](unsigned char byte) { return byte == i; }));
    give(place);
  }
}

TEST_F(QuietHeapTest, HandsOnToMallocWhatDoesNotFit) {
  std::array<void*, 40> pieces{};  // more than a block has room for
  const QuietHeap quiet;
  for (auto& piece : pieces) piece = take(1'024);
  EXPECT_TRUE(is_mallocs());
  for (auto* piece : pieces) give(piece);
  EXPECT_FALSE(is_mallocs());
  for (volatile std::size_t too_much : {SIZE_MAX, SIZE_MAX - 7}) {  // volatile: the compiler would warn
    EXPECT_THROW(take(too_much), std::bad_alloc);
    EXPECT_EQ(::operator new(too_much, std::nothrow), nullptr);
  }
}

TEST_F(QuietHeapTest, APieceThatOutlivesItKeepsItsBlockUntilItIsReturned) {
  for (int round = 0; round < 3; ++round) {
    std::vector<std::string*> survivors(kBlocks);
    for (auto& survivor : survivors) {
      const QuietHeap quiet;
      survivor = new std::string(50, 'x');
    }
    {
      const QuietHeap quiet;
      EXPECT_TRUE(is_mallocs()) << "all blocks are held";
    }
    for (auto* survivor : survivors) {
      EXPECT_EQ(*survivor, std::string(50, 'x'));
      delete survivor;
    }
    const QuietHeap quiet;
    EXPECT_FALSE(is_mallocs()) << "round " << round;
  }
}

TEST_F(QuietHeapTest, AnExceptionLeavesItAndKeepsItsText) {
  const std::string text(100, 'y');
  for (int i = 0; i < 2 * kBlocks; ++i) {
    try {
      const QuietHeap quiet;
      EXPECT_FALSE(is_mallocs());
      throw std::runtime_error(text);
    } catch (const std::runtime_error& fault) {
      EXPECT_TRUE(is_mallocs());
      EXPECT_EQ(fault.what(), text);
    }
  }
}

TEST_F(QuietHeapTest, AThreadThatEndsLeavesNothingBehind) {
  for (int i = 0; i < 2 * kBlocks; ++i) {
    void* piece = nullptr;
    bool from_malloc = true;
    std::thread([&] {
      const QuietHeap quiet;
      from_malloc = is_mallocs();
      piece = take(64);
    }).join();
    EXPECT_FALSE(from_malloc);
    give(piece);
  }
}

TEST_F(QuietHeapTest, MoreAtOneTimeThanThereAreBlocksUseMalloc) {
  std::atomic<int> here{0}, quiet_ones{0};
  std::vector<std::jthread> threads;
  for (int i = 0; i < kBlocks + 8; ++i)
    threads.emplace_back([&] {
      const QuietHeap quiet;
      quiet_ones += is_mallocs() ? 0 : 1;
      ++here;
      while (here < kBlocks + 8) std::this_thread::yield();
    });
  threads.clear();
  EXPECT_EQ(quiet_ones, kBlocks);
}

// Two threads fill pieces and hand every other one on to the neighbour, which returns it while the first goes on.
TEST_F(QuietHeapTest, PiecesMayBeReturnedByAnotherThread) {
  constexpr int kRuns = 2'000, kPieces = 40;
  std::array<std::atomic<unsigned char*>, 2> mailbox{};
  std::atomic<int> damaged{0}, running{2};
  const auto check = [&](unsigned char* piece) {
    for (int i = 1; i < 48; ++i) damaged += piece[i] == piece[0] ? 0 : 1;
    give(piece);
  };
  const auto work = [&](std::size_t me) {
    for (int run = 0; run < kRuns; ++run) {
      const QuietHeap quiet;
      std::array<unsigned char*, kPieces> own{};
      for (int i = 0; i < kPieces; ++i) {
        own[i] = static_cast<unsigned char*>(take(48));
        std::memset(own[i], (run + i) & 0xFF, 48);
      }
      for (int i = 0; i < kPieces; ++i)
        if (auto* piece = i % 2 ? own[i] : mailbox[1 - me].exchange(own[i])) check(piece);
      if (auto* piece = mailbox[me].exchange(nullptr)) check(piece);
    }
    --running;
    while (running > 0) std::this_thread::yield();
    if (auto* piece = mailbox[me].exchange(nullptr)) check(piece);
  };
  std::thread other([&] { work(1); });
  work(0);
  other.join();
  EXPECT_EQ(damaged, 0);
  const QuietHeap quiet;
  EXPECT_FALSE(is_mallocs());
}

}  // namespace
}  // namespace coppice::gpu
