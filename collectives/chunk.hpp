// collectives/chunk.hpp: how a buffer is cut so that a tree's levels work at the same time. Pure.
#pragma once

#include <cstdint>

namespace coppice::collectives {

// `count` chunks of chunk_bytes each, the last of them shorter when that does not divide the buffer.
struct Chunking {
  std::int64_t chunk_bytes = 0;
  std::int64_t count = 0;
  bool operator==(const Chunking&) const = default;
};

// The fewest chunks of at most chunk_bytes_max (taken as 1 below that), as even as can be. Nothing to send: {0, 0}.
Chunking chunking(std::int64_t bytes, std::int64_t chunk_bytes_max);

struct ChunkRange {
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  bool operator==(const ChunkRange&) const = default;
};

// Chunk `index` of a buffer of `bytes`; empty outside [0, count).
ChunkRange chunk_range(const Chunking& chunking, std::int64_t bytes, std::int64_t index);

// Part `index` of `parts` parts as even as can be, the first ones larger, each of whole granules as far as the bytes
// divide into them; the last part has the rest.
ChunkRange part_range(std::int64_t bytes, std::int64_t parts, std::int64_t index, std::int64_t granule = 1);

// What a pipeline over `depth` hops costs: each of the depth + chunks - 1 steps sends one chunk a hop.
struct Pipeline {
  int depth = 1;
  double bytes = 0;
  double bytes_per_s = 0;  // of the tree; > 0
  double latency_s = 0;    // of one chunk on one hop, whatever its size
};

// The number of chunks that is fastest: √((depth - 1) × bytes ÷ (bytes_per_s × latency_s)), within 1 and the bytes.
double pipeline_chunks(const Pipeline& pipeline);

// Seconds at that number of chunks; at no latency: bytes ÷ bytes_per_s.
double pipeline_seconds(const Pipeline& pipeline);

}  // namespace coppice::collectives
