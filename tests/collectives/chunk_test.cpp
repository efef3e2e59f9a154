#include "collectives/chunk.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>

namespace coppice::collectives {
namespace {

// inRange alone stays near its lower end: it grows with the size of the case, which is small for most cases.
std::int64_t any_in(std::int64_t from, std::int64_t end) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(from, end));
}

TEST(Chunking, CutsEvenly) {
  EXPECT_EQ(chunking(10, 4), (Chunking{4, 3}));
  EXPECT_EQ(chunking(9, 8), (Chunking{5, 2}));
  EXPECT_EQ(chunking(8, 8), (Chunking{8, 1}));
  EXPECT_EQ(chunking(1, 1 << 20), (Chunking{1, 1}));
  EXPECT_EQ(chunking(0, 8), (Chunking{0, 0}));
  EXPECT_EQ(chunking(-1, 8), (Chunking{0, 0}));
  EXPECT_EQ(chunking(3, 0), (Chunking{1, 3}));
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(chunking(kMost, kMost), (Chunking{kMost, 1}));
  EXPECT_EQ(chunking(kMost, 1), (Chunking{1, kMost}));
}

RC_GTEST_PROP(Chunking, CoversTheBufferOnce, ()) {
  const auto bytes = any_in(1, 5000);
  const auto bytes_max = any_in(1, 600);
  const Chunking cut = chunking(bytes, bytes_max);
  RC_ASSERT(cut.chunk_bytes <= bytes_max);
  RC_ASSERT(cut.count == (bytes + bytes_max - 1) / bytes_max);
  std::int64_t next = 0;
  for (std::int64_t index = 0; index < cut.count; ++index) {
    const ChunkRange range = chunk_range(cut, bytes, index);
    RC_ASSERT(range.offset == next);
    RC_ASSERT(range.bytes > 0);
    next += range.bytes;
  }
  RC_ASSERT(next == bytes);
  RC_ASSERT(chunk_range(cut, bytes, cut.count) == ChunkRange{});
  RC_ASSERT(chunk_range(cut, bytes, -1) == ChunkRange{});
}

TEST(Pipeline, TradesDepthAgainstLatency) {
  EXPECT_DOUBLE_EQ(pipeline_seconds({.depth = 1, .bytes = 1e6, .bytes_per_s = 1e6, .latency_s = 0.5}), 1.5);
  EXPECT_DOUBLE_EQ(pipeline_seconds({.depth = 9, .bytes = 1e6, .bytes_per_s = 1e6, .latency_s = 0}), 1.0);
  EXPECT_DOUBLE_EQ(pipeline_seconds({.depth = 0, .bytes = 1e6, .bytes_per_s = 1e6, .latency_s = 1}), 0.0);
  // √(4 × 1 s ÷ 0.01 s) = 20 chunks: (5 + 20 - 1) × (0.05 + 0.01).
  const Pipeline pipeline{.depth = 5, .bytes = 1e6, .bytes_per_s = 1e6, .latency_s = 0.01};
  EXPECT_DOUBLE_EQ(pipeline_chunks(pipeline), 20);
  EXPECT_NEAR(pipeline_seconds(pipeline), 1.44, 1e-12);
}

}  // namespace
}  // namespace coppice::collectives
