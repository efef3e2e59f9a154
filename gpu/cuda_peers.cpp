// GPUs of this process that copy to one another: the plug-in's entry, peer access, memory.
#include <algorithm>
#include <array>
#include <cctype>

#include "gpu/cuda_peer_run.hpp"
#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {
namespace {

std::size_t index(int at) { return static_cast<std::size_t>(at); }

class CudaPeers final : public PeerGroup {
 public:
  explicit CudaPeers(std::span<const int> ordinals) {
    for (const int ordinal : ordinals)
      at_device(ordinal, [&] {
        check(cudaFree(nullptr), "cudaFree");  // starts the device: what is wrong with it shows here
        devices_.push_back({ordinal, pci_of(ordinal)});
        streams_.push_back(new_stream());
      });
    const int count = static_cast<int>(devices_.size());
    for (int from = 0; from < count; ++from)
      at_device(ordinals[index(from)], [&] {
        for (int to = 0; to < count; ++to)
          if (from != to && !reaches(from, to)) staged_.push_back({from, to});
      });
  }

  const std::vector<PeerDevice>& devices() const override { return devices_; }
  const std::vector<PeerPair>& staged() const override { return staged_; }

  Expected<std::shared_ptr<std::byte>> allocate(int device, std::size_t bytes) override {
    std::shared_ptr<std::byte> out;
    const auto made = on(device, "allocate", [&] {
      out = {static_cast<std::byte*>(device_memory(bytes).release()),
             [](std::byte* memory) { static_cast<void>(cudaFree(memory)); }};
    });
    if (!made) return unexpected(made.error());
    return out;
  }
  Expected<void> write(int device, void* to, std::span<const std::byte> from) override {
    return on(device, "write", [&] { move(device, to, from.data(), from.size(), cudaMemcpyHostToDevice); });
  }
  Expected<void> read(int device, const void* from, std::span<std::byte> to) override {
    return on(device, "read", [&] { move(device, to.data(), from, to.size(), cudaMemcpyDeviceToHost); });
  }

  Expected<std::unique_ptr<PeerRun>> prepare(const PeerProgram& program) override {
    if (const auto sound = check(program); !sound) return unexpected(sound.error());
    if (program.devices() != std::ssize(devices_))
      return unexpected(Error{ErrorCode::shape_mismatch, "peer program: of " + std::to_string(program.devices()) +
                                                             " devices, not " + std::to_string(devices_.size())});
    std::vector<int> ordinals;
    for (const auto& device : devices_) ordinals.push_back(device.ordinal);
    std::unique_ptr<PeerRun> out;
    const auto made = without_faults("prepare", [&] { out = make_peer_run(std::move(ordinals), program); });
    if (!made) return unexpected(made.error());
    return out;
  }

 private:
  // "00000000:17:00.0" and "0000:17:00.0" as NVML's addresses are written here.
  static std::string pci_of(int ordinal) {
    std::array<char, 32> text{};
    check(cudaDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), ordinal), "cudaDeviceGetPCIBusId");
    std::string out(text.data());
    out = out.substr(0, out.find('.'));
    if (out.size() > 10) out = out.substr(out.size() - 10);
    std::ranges::transform(out, out.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
  }

  // Turns it on. REQUIRES: `from` is the current device.
  bool reaches(int from, int to) const {
    const int own = devices_[index(from)].ordinal, other = devices_[index(to)].ordinal;
    int can = 0;
    check(cudaDeviceCanAccessPeer(&can, own, other), "cudaDeviceCanAccessPeer");
    if (can == 0) return false;
    const auto status = cudaDeviceEnablePeerAccess(other, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled)
      forget_refusal();
    else
      check(status, "cudaDeviceEnablePeerAccess");
    return true;
  }

  void move(int device, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    cudaStream_t stream = streams_[index(device)].get();
    check(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }

  template <class Does>
  Expected<void> on(int device, const char* what, const Does& does) const {
    if (device < 0 || device >= std::ssize(devices_))
      return unexpected(Error{ErrorCode::shape_mismatch, std::string(what) + ": no device " + std::to_string(device)});
    return without_faults(what, [&] { at_device(devices_[index(device)].ordinal, does); });
  }

  std::vector<PeerDevice> devices_;
  std::vector<PeerPair> staged_;
  std::vector<Stream> streams_;  // of each device: for what the host reads and writes
};

// What is wrong with them before anything is asked of them; empty: nothing.
std::string fault_of(std::span<const int> ordinals) {
  if (ordinals.empty()) return "none is named";
  for (const int ordinal : ordinals) {
    const auto name = "cuda:" + std::to_string(ordinal);
    try {
      if (const auto why = why_not(ordinal); !why.empty()) return name + ": " + why;
    } catch (const Fault& fault) {
      return name + ": " + fault.what();
    }
    if (std::ranges::count(ordinals, ordinal) > 1) return name + " is named twice";
  }
  return "";
}

}  // namespace
}  // namespace coppice::gpu

extern "C" __attribute__((visibility("default"))) coppice::gpu::PeerGroup* coppice_cuda_peers_v1(const int* ordinals,
                                                                                                 int count,
                                                                                                 std::string* why) {
  using namespace coppice::gpu;
  try {
    const std::span<const int> named(ordinals, static_cast<std::size_t>(count));
    *why = fault_of(named);
    if (!why->empty()) return nullptr;
    const DeviceKept kept;
    return new CudaPeers(named);
  } catch (const std::exception& fault) {
    *why = fault.what();
    return nullptr;
  }
}
