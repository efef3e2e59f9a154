// Devices, streams and events of the made-up CUDA.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>

#include "tests/gpu/cuda_fake_parts.hpp"

struct CUevent_st {
  int device = 0;
  std::shared_ptr<coppice::gpu::fake::Mark> latest;  // none: it was never recorded
};

namespace coppice::gpu::fake {
namespace {

struct Devices {
  int count = 2;
  bool second_is_old = true;
  std::set<std::pair<int, int>> apart, reached;
  std::set<cudaStream_t> streams;
  std::minstd_rand random;
  bool drawn = false;
};

Devices& all() {
  static Devices one;
  return one;
}

thread_local int current = 0;

bool runnable(cudaStream_t stream) {
  return !stream->queue.empty() && (!stream->queue.front().before || stream->queue.front().before->over);
}

void run_front(cudaStream_t stream) {
  const Item item = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (item.work) item.work();
}

// One more work of any stream; false: none can go on.
bool run_any() {
  std::vector<cudaStream_t> ready;
  std::ranges::copy_if(all().streams, std::back_inserter(ready), runnable);
  if (ready.empty()) return false;
  run_front(ready[all().random() % ready.size()]);
  return true;
}

// Until the stream has so few works left.
void run_down_to(cudaStream_t stream, std::size_t left) {
  while (stream->queue.size() > left) {
    if (all().drawn) {
      if (!run_any()) std::abort();  // streams that wait for one another
    } else {
      const auto before = stream->queue.front().before;
      while (before && !before->over) run_down_to(before->stream, before->stream->queue.size() - 1);
      run_front(stream);
    }
  }
}

}  // namespace

void devices(int count) {
  all().count = count;
  all().second_is_old = false;
}
void no_peers(int from, int to) { all().apart.insert({from, to}); }
bool reached(int from, int to) { return all().reached.contains({from, to}); }
void draw(unsigned seed) {
  all().drawn = seed != 0;
  all().random.seed(seed);
}
void advance(std::size_t works) {
  const Guard guard(mutex());
  while (works-- > 0 && run_any()) {
  }
}
void forget_devices() {
  const auto streams = std::move(all().streams);
  all() = {};
  all().streams = streams;
}

void run_all(cudaStream_t stream) {
  const Guard guard(mutex());
  run_down_to(stream, 0);
}
void run_everything() {
  const Guard guard(mutex());
  for (auto* stream : all().streams) run_down_to(stream, 0);
}

}  // namespace coppice::gpu::fake

using namespace coppice::gpu::fake;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = all().count;
  return fails("cudaGetDeviceCount") ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? (device == 1 && all().second_is_old ? 7 : 9) : 0;
  return fails("cudaDeviceGetAttribute") ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  if (fails("cudaDeviceGetPCIBusId")) return cudaErrorUnknown;
  std::snprintf(text, static_cast<std::size_t>(bytes), "0000:A%X:00.0", static_cast<unsigned>(device) & 0xfU);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;  // the first call of a thread is the only one that could fail, and nothing hangs on it
}
cudaError_t cudaSetDevice(int device) {
  if (fails("cudaSetDevice")) return cudaErrorUnknown;
  if (device < 0 || device >= all().count) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer && !all().apart.contains({device, peer});
  return fails("cudaDeviceCanAccessPeer") ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  if (fails("cudaDeviceEnablePeerAccess")) return cudaErrorUnknown;
  if (all().apart.contains({current, peer})) return cudaErrorPeerAccessUnsupported;
  return all().reached.insert({current, peer}).second ? cudaSuccess : refused(cudaErrorPeerAccessAlreadyEnabled);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                cudaStream_t stream) {
  if (fails("cudaMemcpyPeerAsync")) return cudaErrorUnknown;
  if (device_of(to) != to_device || device_of(from) != from_device) return cudaErrorInvalidValue;
  enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (fails("cudaStreamCreateWithFlags")) return cudaErrorUnknown;
  const Guard guard(mutex());
  *stream = new CUstream_st;
  (*stream)->device = current;
  lend(*stream);
  all().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Guard guard(mutex());
  run_all(stream);
  give_back(stream);
  all().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Guard guard(mutex());
  if (fails("cudaStreamSynchronize")) return cudaErrorUnknown;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  run_all(stream);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (fails("cudaEventCreateWithFlags")) return cudaErrorUnknown;
  *event = new CUevent_st;
  (*event)->device = current;
  lend(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  give_back(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Guard guard(mutex());
  if (fails("cudaEventRecord")) return cudaErrorUnknown;
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  event->latest = std::make_shared<Mark>(Mark{stream});
  stream->queue.push_back({[mark = event->latest] { mark->over = true; }});
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Guard guard(mutex());
  if (fails("cudaStreamWaitEvent")) return cudaErrorUnknown;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  if (event->latest) stream->queue.push_back({nullptr, event->latest});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Guard guard(mutex());
  if (fails("cudaEventSynchronize")) return cudaErrorUnknown;
  const auto mark = event->latest;
  while (mark && !mark->over) run_down_to(mark->stream, mark->stream->queue.size() - 1);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Guard guard(mutex());
  if (fails("cudaEventQuery")) return cudaErrorUnknown;
  return !event->latest || event->latest->over ? cudaSuccess : refused(cudaErrorNotReady);
}
