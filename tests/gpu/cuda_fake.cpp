#include "tests/gpu/cuda_fake.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "gpu/cuda_kernels.hpp"
#include "tests/gpu/cuda_fake_parts.hpp"

struct CUgraphExec_st {
  std::vector<coppice::gpu::fake::Work> works;
};

namespace coppice::gpu::fake {
namespace {

struct Block {
  std::size_t bytes;
  int device;  // -1: pinned
};

struct State {
  std::recursive_mutex mutex;
  std::vector<std::string> calls;
  std::set<const void*> lent;
  std::map<const void*, Block> memory;
  std::size_t fail = 0;
  std::string failed;
  std::set<std::string> refused;
};

State& state() {
  static State one;
  return one;
}

cudaError_t lend_memory(void** place, std::size_t bytes, const char* call, int device) {
  const Guard guard(state().mutex);
  if (fails(call)) return cudaErrorMemoryAllocation;
  *place = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*place, 0xff, bytes);  // not a number, as float32 and as float16
  lend(*place);
  state().memory[*place] = {std::max<std::size_t>(bytes, 1), device};
  return cudaSuccess;
}

// Where it is memory of ours; none: it is plain.
const Block* block_of(const void* place) {
  const auto after = state().memory.upper_bound(place);
  if (after == state().memory.begin()) return nullptr;
  const auto& [begin, block] = *std::prev(after);
  return place < static_cast<const std::byte*>(begin) + block.bytes ? &block : nullptr;
}

bool is_device_or_pinned(const void* place) {
  const Guard guard(state().mutex);
  return block_of(place) != nullptr;
}

cudaError_t free_memory(void* place) {
  const Guard guard(state().mutex);
  if (!place) return cudaSuccess;
  run_everything();  // as cudaFree does
  give_back(place);
  state().memory.erase(place);
  std::free(place);
  return cudaSuccess;
}

}  // namespace

void reset() {
  const Guard guard(state().mutex);
  state().calls.clear();
  state().fail = 0;
  state().failed.clear();
  state().refused.clear();
  static_cast<void>(cudaGetLastError());
  engines(Engines::all);
  forget_devices();
}

std::recursive_mutex& mutex() { return state().mutex; }
int device_of(const void* memory) {
  const Guard guard(state().mutex);
  const auto* block = block_of(memory);
  return block ? block->device : -1;
}

const std::vector<std::string>& calls() { return state().calls; }
std::size_t count(const std::string& call) { return static_cast<std::size_t>(std::ranges::count(state().calls, call)); }
std::size_t lent() { return state().lent.size(); }
void fail(std::size_t call) { state().fail = call; }
const std::string& failed() { return state().failed; }
void refuse(const std::string& call) { state().refused.insert(call); }

namespace {
thread_local cudaError_t latest = cudaSuccess;
}

bool fails(const std::string& call) {
  const Guard guard(state().mutex);
  state().calls.push_back(call);
  if (state().calls.size() == state().fail) state().failed = call;
  const bool fails = state().calls.size() == state().fail || state().refused.contains(call);
  if (fails && call.starts_with("cuda")) refused(cudaErrorUnknown);
  return fails;
}
cudaError_t refused(cudaError_t why) { return latest = why; }
void lend(const void* what) {
  const Guard guard(state().mutex);
  state().lent.insert(what);
}
void give_back(const void* what) {
  const Guard guard(state().mutex);
  if (state().lent.erase(what) != 1) std::abort();
}
bool is_lent(const void* what) {
  const Guard guard(state().mutex);
  return state().lent.contains(what);
}
void enqueue(cudaStream_t stream, const Work& work) {
  const Guard guard(state().mutex);
  if (stream->capture)
    stream->capture->works.push_back(work);
  else
    stream->queue.push_back({work});
}

namespace {

// The job's own lines, one number after another, on a copy of the job.
template <class Job>
void run(const Job& job) {
  if constexpr (SumsUp<Job>::value) {
    for (unsigned output = 0; output < job.outputs(); ++output) {
      Sums sums = job.start();
      for (unsigned term = 0; term < job.terms(); ++term) {
        Sums one = job.start();  // as a lane of its own, so that merging is tried too
        job.take(output, term, one);
        job.merge(sums, one);
      }
      job.finish(output, sums);
    }
  } else {
    for (unsigned i = 0; i < job.size(); ++i) job(i);
  }
}

template <class Job>
const char* name_of();
#define COPPICE_NAME(Job)      \
  template <>                  \
  const char* name_of<Job>() { \
    return #Job;               \
  }
COPPICE_EACH_JOB(COPPICE_NAME)

}  // namespace
}  // namespace coppice::gpu::fake

namespace coppice::gpu {

template <class Job>
cudaError_t launch(const Job& job, cudaStream_t stream) {
  if (fake::fails(fake::name_of<Job>())) return cudaErrorLaunchFailure;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device != stream->device) return cudaErrorInvalidResourceHandle;
  if (const auto stale = cudaGetLastError(); stale != cudaSuccess) return stale;  // as gpu/cuda_kernels.cu would
  fake::enqueue(stream, [job] { fake::run(job); });
  return cudaSuccess;
}
#define COPPICE_LAUNCH(Job) template cudaError_t launch(const Job& job, cudaStream_t stream);
COPPICE_EACH_JOB(COPPICE_LAUNCH)

}  // namespace coppice::gpu

using namespace coppice::gpu::fake;

cudaError_t cudaGetLastError() { return std::exchange(latest, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t) { return "made to fail"; }
cudaError_t cudaMalloc(void** place, std::size_t bytes) {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? lend_memory(place, bytes, "cudaMalloc", device) : cudaErrorUnknown;
}
cudaError_t cudaFree(void* place) { return free_memory(place); }
cudaError_t cudaHostAlloc(void** place, std::size_t bytes, unsigned) {
  return lend_memory(place, bytes, "cudaHostAlloc", -1);
}
cudaError_t cudaFreeHost(void* place) { return free_memory(place); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (fails("cudaMemcpyAsync")) return cudaErrorUnknown;
  if (!is_device_or_pinned(to) || !is_device_or_pinned(from)) {  // plain memory: read, or written, before this returns
    if (stream->capture) return cudaErrorStreamCaptureUnsupported;
    const Guard guard(state().mutex);
    run_all(stream);
    if (bytes > 0) std::memcpy(to, from, bytes);
    return cudaSuccess;
  }
  enqueue(stream, [=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* place, int value, std::size_t bytes, cudaStream_t stream) {
  if (fails("cudaMemsetAsync")) return cudaErrorUnknown;
  enqueue(stream, [=] { std::memset(place, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (fails("cudaStreamBeginCapture")) return cudaErrorStreamCaptureUnsupported;
  stream->capture = new CUgraph_st;
  lend(stream->capture);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  if (!fails("cudaStreamEndCapture")) return cudaSuccess;
  cudaGraphDestroy(*graph);
  *graph = nullptr;
  return cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  give_back(graph);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  if (fails("cudaGraphInstantiateWithFlags")) return cudaErrorUnknown;
  *ready = new CUgraphExec_st{graph->works};
  lend(*ready);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  give_back(ready);
  delete ready;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  if (fails("cudaGraphLaunch")) return cudaErrorUnknown;
  for (const auto& work : ready->works) enqueue(stream, work);
  return cudaSuccess;
}
