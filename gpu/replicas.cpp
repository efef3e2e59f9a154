#include "gpu/replicas.hpp"

namespace coppice::gpu {

GradientBuckets::GradientBuckets(const Network& net, std::int64_t bucket_bytes) {
  std::vector<std::int64_t> sizes;  // of each node's parameters
  std::int64_t end = 0;
  for (const auto& node : net.nodes) {
    auto& size = sizes.emplace_back(0);
    for_each_parameter(node, [&](const std::vector<float>& values) { size += std::ssize(values); });
    end += size;
  }
  std::int64_t count = 0;
  const auto close = [&] {
    if (count == 0) return;
    ranges_.push_back({end, count});
    means_.emplace_back(static_cast<std::size_t>(count));
    count = 0;
  };
  for (std::size_t node = sizes.size(); node-- > 0;) {
    end -= sizes[node];
    count += sizes[node];
    if (count * static_cast<std::int64_t>(sizeof(float)) >= bucket_bytes) close();
  }
  close();
  means_.back().push_back(0);
}

Expected<void> GradientBuckets::begin_from(std::int64_t first, const TrainableNet& net, ReplicaGroup& group) {
  for (; begun_ < ranges_.size() && ranges_[begun_].first >= first; ++begun_) {
    auto& mean = means_[begun_];
    const auto count = static_cast<std::size_t>(ranges_[begun_].count);
    if (auto read = net.read_shared(ranges_[begun_].first, std::span(mean).first(count)); !read) return read;
    group.average(mean);
  }
  return {};
}

Expected<void> GradientBuckets::backward(TrainableNet& net, std::span<const float> score_gradients, double loss,
                                         ReplicaGroup& group) {
  begun_ = 0;
  means_.back().back() = static_cast<float>(loss);
  Expected<void> begun;
  const auto done = net.backward(score_gradients, [&](std::int64_t first) {
    if (begun) begun = begin_from(first, net, group);
  });
  if (done && begun) begun = begin_from(0, net, group);
  if (done && begun) return {};
  static_cast<void>(group.finish());  // what has begun still reads the buckets
  return done ? begun : done;
}

Expected<double> GradientBuckets::finish(TrainableNet& net, ReplicaGroup& group) {
  if (auto done = group.finish(); !done) return unexpected(done.error());
  for (std::size_t i = 0; i < ranges_.size(); ++i) {
    const auto mean = std::span(means_[i]).first(static_cast<std::size_t>(ranges_[i].count));
    if (auto written = net.write_shared(ranges_[i].first, mean); !written) return unexpected(written.error());
  }
  return static_cast<double>(means_.back().back());
}

}  // namespace coppice::gpu
