// GPUs of one process on the made-up CUDA: peer access, memory, and programs carried out in any order that events
// allow.
#include <gtest/gtest.h>

#include "gpu/cuda_kernels.hpp"
#include "tests/gpu/cuda_peers_case.hpp"
#include "tests/gpu/on_device_peers.hpp"
#include "tests/gpu/peer_chain.hpp"
#include "tests/gpu/peer_reference.hpp"

using namespace coppice::gpu;

namespace {

using Bytes = std::vector<std::byte>;

class CudaPeers : public testing::Test {
 protected:
  void SetUp() override { fake::reset(); }
  void TearDown() override {
    EXPECT_EQ(fake::lent(), 0U);
    fake::reset();
  }
};

Bytes reduced(Element element, Reduction reduction, const std::vector<Bytes>& inputs) {
  Bytes sum = inputs.back();
  for (std::size_t i = inputs.size() - 1; i-- > 0;) reference::combine(element, reduction, sum, inputs[i]);
  if (reduction == Reduction::avg) reference::average(element, static_cast<int>(inputs.size()), sum);
  return sum;
}

// The program on these inputs, in place; what each device holds then.
Expected<std::vector<Bytes>> run(PeerGroup& group, const PeerProgram& program, const std::vector<Bytes>& inputs) {
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<PeerBuffers> buffers;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    auto made = group.allocate(static_cast<int>(i), inputs[i].size());
    if (!made) return unexpected(made.error());
    if (auto done = group.write(static_cast<int>(i), made->get(), inputs[i]); !done) return unexpected(done.error());
    buffers.push_back({made->get(), made->get()});
    memory.push_back(std::move(*made));
  }
  auto prepared = group.prepare(program);
  if (!prepared) return unexpected(prepared.error());
  if (auto done = (*prepared)->start(buffers); !done) return unexpected(done.error());
  if (auto done = (*prepared)->wait(); !done) return unexpected(done.error());
  std::vector<Bytes> out;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    out.emplace_back(inputs[i].size());
    if (auto done = group.read(static_cast<int>(i), memory[i].get(), out.back()); !done)
      return unexpected(done.error());
  }
  return out;
}

TEST_F(CudaPeers, TheJobsDoWhatTheWordsSay) {
  for (const auto element : kElements)
    for (const auto reduction : kReductions)
      for (const std::size_t count : {1U, 7U, 16U, 33U, 1000U})
        for (const std::size_t shift : {0U, 1U, 5U}) {  // elements before each buffer: alike, and not
          const auto size = size_of(element);
          auto a = reference::any_elements((count + 16) * size, count + shift);
          auto b = reference::any_elements((count + 16) * size, count + shift + 1);
          for (const std::size_t other : {shift, std::size_t{3}}) {
            Bytes wanted(a.begin() + static_cast<std::ptrdiff_t>(shift * size),
                         a.begin() + static_cast<std::ptrdiff_t>((shift + count) * size));
            const std::span<const std::byte> from(b.data() + other * size, count * size);
            reference::combine(element, reduction, wanted, from);
            alignas(16) std::byte out[8192];
            const auto job =
                combine_of(element, reduction, out + shift * size, a.data() + shift * size, from.data(), count * size);
            ASSERT_TRUE(shift != other || count < 33 || job.packing.packs > 0);
            for (unsigned i = 0; i < job.size(); ++i) job(i);
            const std::span<std::byte> had(out + shift * size, count * size);
            ASSERT_TRUE(reference::same(element, had, wanted)) << static_cast<int>(element) << ' ' << count;
            reference::average(element, 300, wanted);
            const auto divide = average_of(element, 300, had.data(), had.size());
            for (unsigned i = 0; i < divide.size(); ++i) divide(i);
            ASSERT_TRUE(reference::same(element, had, wanted)) << static_cast<int>(element) << ' ' << count;
          }
        }
}

TEST_F(CudaPeers, AChainReducesInAnyOrderOfItsStreams) {
  for (int count = 1; count <= 5; ++count)
    for (unsigned seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << count << " devices, seed " << seed);
      const auto element = kElements[seed % 6];
      const auto reduction = kReductions[seed / 6 % 4];
      fake::reset();
      fake::devices(count);
      fake::draw(seed);
      const auto group = peers(count);
      std::vector<Bytes> inputs;
      for (int i = 0; i < count; ++i)
        inputs.push_back(reference::any_elements(1000, seed * 8 + static_cast<unsigned>(i)));
      const auto had = run(*group, chain_program(count, element, reduction, 1000, 8 + seed % 3 * 96), inputs);
      ASSERT_TRUE(had) << had.error().what;
      for (const auto& bytes : *had) EXPECT_TRUE(reference::same(element, bytes, reduced(element, reduction, inputs)));
    }
}

TEST_F(CudaPeers, RunsFollowOneAnotherAndTheCallersStreams) {
  fake::devices(3);
  fake::draw(7);
  const auto group = peers(3);
  const auto program = chain_program(3, Element::int32, Reduction::sum, 400, 40);
  const auto prepared = group->prepare(program).value();
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<PeerBuffers> buffers(3);
  std::vector<cudaStream_t> streams(3);
  const Bytes ones = [] {
    Bytes out(400);
    for (std::size_t i = 0; i < out.size(); i += 4) out[i] = std::byte{1};
    return out;
  }();
  for (int i = 0; i < 3; ++i) {
    const auto at = static_cast<std::size_t>(i);
    memory.push_back(group->allocate(i, 400).value());
    ASSERT_TRUE(group->write(i, memory.back().get(), Bytes(400)));
    ASSERT_EQ(cudaSetDevice(i), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&streams[at], cudaStreamNonBlocking), cudaSuccess);
    buffers[at] = {memory.back().get(), memory.back().get(), streams[at]};
  }
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  void* pinned = nullptr;
  ASSERT_EQ(cudaHostAlloc(&pinned, 400, 0), cudaSuccess);
  std::memcpy(pinned, ones.data(), 400);
  // Not waited for: the run has to begin after it, and what comes later after the run.
  for (std::size_t i = 0; i < 3; ++i)
    ASSERT_EQ(cudaMemcpyAsync(memory[i].get(), pinned, 400, cudaMemcpyHostToDevice, streams[i]), cudaSuccess);
  ASSERT_TRUE(prepared->start(buffers));
  EXPECT_FALSE(prepared->ready().value());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // or a net's next launch would take it for its own
  ASSERT_TRUE(prepared->start(buffers));
  int current = 0;
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 1);  // as it was
  ASSERT_EQ(cudaMemcpyAsync(pinned, memory[2].get(), 400, cudaMemcpyDeviceToHost, streams[2]), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(streams[2]), cudaSuccess);
  EXPECT_TRUE(prepared->ready().value());
  EXPECT_EQ(static_cast<std::byte*>(pinned)[396], std::byte{9});
  for (const auto stream : streams) static_cast<void>(cudaStreamDestroy(stream));
  static_cast<void>(cudaFreeHost(pinned));
}

TEST_F(CudaPeers, NothingIsAllocatedWhileItRuns) {
  fake::devices(3);
  const auto group = peers(3);
  const auto prepared = group->prepare(chain_program(3, Element::float32, Reduction::avg, 400, 40)).value();
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<PeerBuffers> buffers;
  for (int i = 0; i < 3; ++i) {
    memory.push_back(group->allocate(i, 400).value());
    buffers.push_back({memory.back().get(), memory.back().get()});
  }
  const auto before = fake::lent();
  for (const auto* call : {"cudaMalloc", "cudaEventCreateWithFlags", "cudaStreamCreateWithFlags"}) fake::refuse(call);
  ASSERT_TRUE(prepared->start(buffers));
  ASSERT_TRUE(prepared->wait());
  EXPECT_EQ(fake::lent(), before);
}

TEST_F(CudaPeers, PeersAreTurnedOnAndTheOthersNamed) {
  fake::devices(4);
  fake::no_peers(0, 2);
  fake::no_peers(3, 1);
  const auto group = peers(4);
  EXPECT_EQ(group->staged(), (std::vector<PeerPair>{{0, 2}, {3, 1}}));
  EXPECT_TRUE(fake::reached(2, 0));
  EXPECT_FALSE(fake::reached(0, 2));
  EXPECT_EQ(group->devices()[3].pci, "0000:a3:00");
  EXPECT_TRUE(peers(4));  // once more: it was on already
  std::vector<Bytes> inputs(4, Bytes(64, std::byte{1}));
  const auto had = run(*group, chain_program(4, Element::bytes, Reduction::sum, 64, 16), inputs);
  ASSERT_TRUE(had) << had.error().what;
  EXPECT_EQ(had->at(2), Bytes(64, std::byte{4}));
}

TEST_F(CudaPeers, EveryFailureIsAnErrorThatNamesItAndLeaksNothing) {
  const std::vector<Bytes> inputs(3, Bytes(64, std::byte{3}));
  for (std::size_t call = 1;; ++call) {
    fake::reset();
    fake::devices(3);
    fake::fail(call);
    std::string why;
    {
      const int ordinals[] = {0, 1, 2};
      const std::unique_ptr<PeerGroup> group(coppice_cuda_peers_v1(ordinals, 3, &why));
      if (group) {
        const auto had = run(*group, chain_program(3, Element::int32, Reduction::avg, 64, 16), inputs);
        why = had ? "" : had.error().what;
        if (had) {
          EXPECT_EQ(*had, inputs);
        } else {
          EXPECT_EQ(had.error().code, ErrorCode::device_failed);
        }
      }
    }
    ASSERT_EQ(fake::lent(), 0U) << "call " << call << ", " << fake::failed();
    if (fake::failed().empty()) break;
    if (why.empty()) {
      // In a destructor: there is nobody to tell.
      EXPECT_TRUE(fake::failed() == "cudaStreamSynchronize" || fake::failed() == "cudaSetDevice") << fake::failed();
    } else if (fake::failed() != "cudaGetDeviceCount") {
      EXPECT_NE(why.find(fake::failed()), std::string::npos) << why << " for " << fake::failed();
      EXPECT_NE(why.find("cuda:"), std::string::npos) << why;
    }
  }
}

TEST_F(CudaPeers, AFailureNamesDeviceStepAndCall) {
  fake::devices(2);
  const auto group = peers(2);
  const auto prepared = group->prepare(chain_program(2, Element::int32, Reduction::sum, 64, 16)).value();
  const auto a = group->allocate(0, 64).value(), b = group->allocate(1, 64).value();
  fake::refuse("cudaMemcpyPeerAsync");
  const std::vector<PeerBuffers> buffers{{a.get(), a.get()}, {b.get(), b.get()}};
  EXPECT_EQ(prepared->start(buffers).error().what,
            "run: cuda:1: step 0 (copy from cuda:1 to cuda:0): cudaMemcpyPeerAsync: made to fail");
  fake::reset();
  fake::devices(2);
  ASSERT_TRUE(prepared->start(buffers));  // what failed once is not held against the next
  ASSERT_TRUE(prepared->wait());
  EXPECT_EQ(prepared->start({}).error().code, ErrorCode::shape_mismatch);
  EXPECT_EQ(prepared->start(std::vector<PeerBuffers>{{a.get(), a.get()}, {}}).error().what, "no input of cuda:1");
  EXPECT_NE(prepared->start(std::vector<PeerBuffers>{{a.get(), a.get() + 2}, {b.get(), b.get()}})
                .error()
                .what.find("aligned"),
            std::string::npos);
}

TEST_F(CudaPeers, SaysWhatIsMissing) {
  std::string why;
  const int twice[] = {0, 0}, far[] = {0, 5}, old[] = {1};
  EXPECT_FALSE(coppice_cuda_peers_v1(twice, 2, &why));
  EXPECT_EQ(why, "cuda:0 is named twice");
  EXPECT_FALSE(coppice_cuda_peers_v1(far, 2, &why));
  EXPECT_EQ(why, "cuda:5: the GPUs here are cuda:0 to cuda:1");
  EXPECT_FALSE(coppice_cuda_peers_v1(old, 1, &why));
  EXPECT_EQ(why, "cuda:1: its compute capability is 7.0, 7.5 is needed");
  EXPECT_FALSE(coppice_cuda_peers_v1(old, 0, &why));
  fake::refuse("cudaGetDeviceCount");
  EXPECT_FALSE(coppice_cuda_peers_v1(twice, 1, &why));
  EXPECT_NE(why.find("no NVIDIA driver or GPU here"), std::string::npos);
}

// What tests/gpu/on_device will do where a GPU is, so that it does not fail there for its own faults.
TEST_F(CudaPeers, PassTheDevicesOwnChecks) {
  fake::devices(3);
  Report report;
  check_combine(report, *peers(1), 77);
  measure_combine(report, *peers(1), 1 << 12);
  check_allreduce(report, open_fake_peers, 1 << 12, 256);
  std::printf("\n");
  EXPECT_TRUE(report.good());
}

TEST_F(CudaPeers, RefusesProgramsThatReachTooFar) {
  const auto sound = chain_program(3, Element::int32, Reduction::sum, 400, 40);
  ASSERT_TRUE(check(sound));
  const auto refused = [&](const auto& change) {
    auto program = sound;
    change(program);
    const auto checked = check(program);
    return !checked && checked.error().code == ErrorCode::shape_mismatch;
  };
  EXPECT_TRUE(refused([](PeerProgram& p) { p.steps[2].to.offset = 400; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.steps[2].from.device = 3; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.steps[2].bytes = 39; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.steps[2].stream = 99; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.steps[2].after = {2}; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.landing[0] = 8; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.streams[2] = 1; }));
  EXPECT_TRUE(refused([](PeerProgram& p) { p.output.pop_back(); }));
  auto far = sound;
  far.steps[0].to.offset = -1;
  EXPECT_EQ(check(far).error().what,
            "peer program: step 0 (copy from device 2 to device 1): it reaches beyond its memory");
}

}  // namespace
