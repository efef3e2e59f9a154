#include "collectives/chunk.hpp"

#include <algorithm>
#include <cmath>

namespace coppice::collectives {
namespace {

// Without the sum of a + b - 1, which overflows.
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

}  // namespace

Chunking chunking(std::int64_t bytes, std::int64_t chunk_bytes_max) {
  if (bytes <= 0) return {};
  const std::int64_t count = divide_up(bytes, std::max<std::int64_t>(chunk_bytes_max, 1));
  return {.chunk_bytes = divide_up(bytes, count), .count = count};
}

ChunkRange chunk_range(const Chunking& chunking, std::int64_t bytes, std::int64_t index) {
  if (index < 0 || index >= chunking.count) return {};
  const std::int64_t offset = index * chunking.chunk_bytes;
  return {.offset = offset, .bytes = std::clamp<std::int64_t>(bytes - offset, 0, chunking.chunk_bytes)};
}

ChunkRange part_range(std::int64_t bytes, std::int64_t parts, std::int64_t index, std::int64_t granule) {
  const std::int64_t whole = bytes / granule;
  const std::int64_t first = whole / parts * index + std::min(index, whole % parts);
  const std::int64_t count = whole / parts + (index < whole % parts ? 1 : 0);
  const std::int64_t rest = index == parts - 1 ? bytes % granule : 0;
  return {.offset = first * granule, .bytes = count * granule + rest};
}

double pipeline_chunks(const Pipeline& pipeline) {
  const double most = std::max(pipeline.bytes, 1.0);
  if (pipeline.depth <= 1) return 1;
  if (pipeline.latency_s <= 0) return most;
  const double fastest = std::sqrt((pipeline.depth - 1) * pipeline.bytes / (pipeline.bytes_per_s * pipeline.latency_s));
  return std::clamp(std::round(fastest), 1.0, most);
}

double pipeline_seconds(const Pipeline& pipeline) {
  if (pipeline.depth <= 0) return 0;
  const double whole = pipeline.bytes / pipeline.bytes_per_s;
  if (pipeline.latency_s <= 0) return whole;
  const double chunks = pipeline_chunks(pipeline);
  return (pipeline.depth + chunks - 1) * (whole / chunks + pipeline.latency_s);
}

}  // namespace coppice::collectives
