// GPUs of one process on the made-up CUDA.
#pragma once

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gpu/cuda_plugin.hpp"
#include "tests/gpu/cuda_fake.hpp"

extern "C" coppice::gpu::PeerGroup* coppice_cuda_peers_v1(const int* ordinals, int count, std::string* why);

namespace coppice::gpu {

// As open_peer_group, without a plug-in.
inline Expected<std::unique_ptr<PeerGroup>> open_fake_peers(std::span<const int> ordinals) {
  std::string why;
  std::unique_ptr<PeerGroup> group(coppice_cuda_peers_v1(ordinals.data(), static_cast<int>(ordinals.size()), &why));
  if (!group) return unexpected(Error{ErrorCode::device_unavailable, why});
  return group;
}

// The first so many devices.
inline std::unique_ptr<PeerGroup> peers(int count) {
  std::vector<int> ordinals(static_cast<std::size_t>(count));
  std::iota(ordinals.begin(), ordinals.end(), 0);
  return open_fake_peers(ordinals).value();
}

}  // namespace coppice::gpu
