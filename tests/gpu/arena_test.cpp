#include "gpu/arena.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

using namespace coppice::gpu;

namespace {

TEST(Arena, NeverOverlapsBuffersThatAreNeededTogether) {
  EXPECT_TRUE(rc::check([](const std::vector<std::array<std::uint16_t, 3>>& drawn) {
    std::vector<Lifetime> buffers;
    for (const auto& [bytes, a, b] : drawn)
      buffers.push_back({bytes, std::min(a % 20, b % 20), std::max(a % 20, b % 20)});
    const auto plan = plan_arena(buffers);
    std::size_t sum = 0;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      RC_ASSERT(plan.offsets[i] % kArenaAlignment == 0U);
      RC_ASSERT(plan.offsets[i] + buffers[i].bytes <= plan.bytes);
      sum += (buffers[i].bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
      for (std::size_t j = 0; j < i; ++j) {
        const bool together = buffers[i].first <= buffers[j].last && buffers[j].first <= buffers[i].last;
        const bool apart = plan.offsets[i] + buffers[i].bytes <= plan.offsets[j] ||
                           plan.offsets[j] + buffers[j].bytes <= plan.offsets[i];
        RC_ASSERT(!together || apart || buffers[i].bytes == 0 || buffers[j].bytes == 0);
      }
    }
    RC_ASSERT(plan.bytes <= sum);
  }));
}

TEST(Arena, TakesTwoBuffersForAChain) {
  std::vector<Lifetime> chain;
  for (int i = 0; i < 10; ++i) chain.push_back({1024, i, i + 1});
  EXPECT_EQ(plan_arena(chain).bytes, 2048U);
}

}  // namespace
