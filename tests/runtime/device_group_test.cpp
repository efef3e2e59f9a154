// Collectives among several GPUs on the made-up CUDA: kernels are the same lines of code, streams go on in any order.
#include "runtime/device_group.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "actors/call_layout.hpp"
#include "actors/peer_translation.hpp"
#include "collectives/builtin.hpp"
#include "gpu/cuda_peer_jobs.hpp"
#include "tests/gpu/cuda_peers_case.hpp"
#include "tests/gpu/peer_reference.hpp"

namespace coppice::runtime {
namespace {

using collectives::CallKind;
using collectives::Element;
using collectives::Operation;
using collectives::Reduction;
using Bytes = std::vector<std::byte>;
namespace fake = gpu::fake;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

class DeviceGroups : public ::testing::Test {
 protected:
  void SetUp() override { fake::reset(); }
  void TearDown() override {
    EXPECT_EQ(fake::lent(), 0U);
    fake::reset();
  }
};

Expected<std::unique_ptr<DeviceGroup>> open(const collectives::Topology& topology, std::vector<int> devices = {},
                                            std::int64_t chunks = 0) {
  if (devices.empty()) {
    devices.resize(collectives::hosts(topology).size());
    std::iota(devices.begin(), devices.end(), 0);
  }
  return DeviceGroup::open({.devices = devices, .topology = topology, .chunks = chunks, .open = gpu::open_fake_peers});
}

int input_number(int rank, std::int64_t index) { return static_cast<int>((index * 5 + rank * 3) % 13); }

// Elements [first, end) of a rank's whole input.
Bytes input_of(Element element, int rank, std::int64_t first, std::int64_t end) {
  std::vector<int> values;
  for (auto i = first; i < end; ++i) values.push_back(input_number(rank, i));
  return collectives::elements_of(element, values);
}

// What rank should hold of it in the end.
Bytes wanted(const CallKind& kind, int ranks, int rank, std::int64_t count) {
  const auto part = count / ranks;
  switch (kind.operation) {
    case Operation::broadcast: return input_of(kind.element, kind.root, 0, count);
    case Operation::scatter: return input_of(kind.element, kind.root, part * rank, part * (rank + 1));
    case Operation::gather:
    case Operation::allgather: {
      Bytes out;
      for (int from = 0; from < ranks; ++from) {
        const auto own = input_of(kind.element, from, part * from, part * (from + 1));
        out.insert(out.end(), own.begin(), own.end());
      }
      return out;
    }
    case Operation::reduce:
    case Operation::allreduce:
    case Operation::reduce_scatter: break;
  }
  const bool own = kind.operation == Operation::reduce_scatter;
  const auto first = own ? part * rank : 0, end = own ? part * (rank + 1) : count;
  Bytes sum = input_of(kind.element, 0, first, end);
  for (int from = 1; from < ranks; ++from)
    collectives::combine(kind.element, kind.reduction, sum, input_of(kind.element, from, first, end));
  collectives::finish(kind.element, kind.reduction, ranks, sum);
  return sum;
}

// Buffers of a call on all devices.
struct Call {
  CallKind kind;
  std::int64_t count = 0;  // elements of the whole buffer
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<void*> in, out;
  std::vector<std::size_t> out_bytes;
};

Expected<Call> make_call(DeviceGroup& group, const CallKind& kind, std::int64_t count) {
  Call call{.kind = kind, .count = count, .memory = {}, .in = {}, .out = {}, .out_bytes = {}};
  const auto size = static_cast<std::int64_t>(collectives::size_of(kind.element));
  const auto layout = actors::layout_of(kind.operation);
  call.kind.bytes = count * size;
  const auto part = count / group.size();
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto bytes = layout.in_is_part ? input_of(kind.element, rank, part * rank, part * (rank + 1))
                                         : input_of(kind.element, rank, 0, count);
    const auto out_bytes = at((layout.out_is_part ? part : count) * size);
    for (const auto space : {bytes.size(), out_bytes}) {
      auto made = group.peers().allocate(rank, space);
      if (!made) return failed(made.error().what);
      call.memory.push_back(std::move(*made));
    }
    call.in.push_back(call.memory[call.memory.size() - 2].get());
    if (const auto done = group.peers().write(rank, call.in.back(), bytes); !done) return failed(done.error().what);
    call.out.push_back(kind.operation == Operation::broadcast ? call.in.back() : call.memory.back().get());
    call.out_bytes.push_back(out_bytes);
  }
  return call;
}

Expected<void> expect_right(DeviceGroup& group, const Call& call) {
  const auto layout = actors::layout_of(call.kind.operation);
  for (int rank = 0; rank < group.size(); ++rank) {
    if (layout.out_at_root_only && rank != call.kind.root) continue;
    Bytes had(call.out_bytes[at(rank)]);
    if (const auto done = group.peers().read(rank, call.out[at(rank)], had); !done) return failed(done.error().what);
    EXPECT_TRUE(had == wanted(call.kind, group.size(), rank, call.count))
        << name(call.kind.operation) << " of " << name(call.kind.element) << " by " << name(call.kind.reduction) << ", rank " << rank;
  }
  return {};
}

Expected<void> run_call(DeviceGroup& group, const CallKind& kind, std::int64_t count) {
  const auto call = make_call(group, kind, count);
  if (!call) return tl::unexpected(call.error());
  if (const auto done = group.call(call->kind, call->in, call->out).wait(); !done) return done;
  return expect_right(group, *call);
}

int root_of(Operation operation, int root) { return actors::layout_of(operation).rooted ? root : -1; }

TEST_F(DeviceGroups, TheCombineJobIsTheReductionOfTheCpu) {
  for (const Element element : collectives::kElements)
    for (const Reduction reduction : collectives::kReductions)
      for (const std::size_t count : {1U, 3U, 15U, 64U, 1001U})
        for (const std::size_t shift : {0U, 1U, 3U}) {
          const auto size = collectives::size_of(element), bytes = count * size;
          auto a = gpu::reference::any_elements(bytes + 64, count * 7 + shift);
          const auto b = gpu::reference::any_elements(bytes + 64, count * 7 + shift + 100);
          std::byte* const into = a.data() + shift * size;
          const std::byte* const from = b.data() + (count % 2 == 0 ? shift : 2) * size;
          Bytes right(into, into + bytes);
          collectives::combine(element, reduction, right, {from, bytes});
          const auto job = gpu::combine_of(actors::on_gpu(element), actors::on_gpu(reduction), into, into, from, bytes);
          for (unsigned i = 0; i < job.size(); ++i) job(i);
          ASSERT_TRUE(gpu::reference::same(actors::on_gpu(element), {into, bytes}, right))
              << name(element) << ' ' << name(reduction) << ' ' << count << ' ' << shift;
          collectives::finish(element, Reduction::avg, 7, right);
          const auto average = gpu::average_of(actors::on_gpu(element), 7, into, bytes);
          for (unsigned i = 0; i < average.size(); ++i) average(i);
          ASSERT_TRUE(gpu::reference::same(actors::on_gpu(element), {into, bytes}, right)) << name(element) << ' ' << count;
        }
}

TEST_F(DeviceGroups, EveryOperationOnADgx1) {
  fake::devices(8);
  fake::draw(1);
  const auto group = open(collectives::dgx_1v(), {}, 6);
  ASSERT_TRUE(group) << group.error().what;
  EXPECT_EQ((*group)->size(), 8);
  for (const Operation operation : collectives::kOperations)
    for (const Element element : {Element::float32, Element::bfloat16, Element::bytes}) {
      const auto done = run_call(**group, {operation, element, Reduction::sum, root_of(operation, 5)}, 8 * 123);
      ASSERT_TRUE(done) << done.error().what;
    }
}

TEST_F(DeviceGroups, AnythingOnRandomLinks) {
  EXPECT_TRUE(rc::check("a collective gives what it is defined to give", [] {
    fake::reset();
    const auto below = [](int end) { return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, end)); };  // all alike
    const auto seed = static_cast<std::uint16_t>(below(1 << 16));
    const int ranks = 1 + below(6);
    const auto operation = *rc::gen::elementOf(std::vector(std::begin(collectives::kOperations), std::end(collectives::kOperations)));
    const auto element = *rc::gen::elementOf(std::vector(std::begin(collectives::kElements), std::end(collectives::kElements)));
    const auto reduction = *rc::gen::elementOf(std::vector(std::begin(collectives::kReductions), std::end(collectives::kReductions)));
    fake::devices(ranks);
    fake::draw(seed);
    for (int rank = 0; rank + 1 < ranks; ++rank)
      if ((seed >> rank) % 2 == 1) fake::no_peers(rank, rank + 1);
    const auto group = open(collectives::random_topology({.hosts = ranks, .switches = seed % 3}, seed), {}, below(9));
    RC_ASSERT(group.has_value());
    const auto done = run_call(**group, {operation, element, reduction, root_of(operation, seed % ranks)}, ranks * below(300));
    if (!done) RC_FAIL(done.error().what);
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

TEST_F(DeviceGroups, CallsThatOverlapAndComeAgainAreRight) {
  fake::devices(4);
  const auto group = open(collectives::builtin_topology("ring-4").value(), {}, 4).value();
  for (unsigned round = 1; round < 8; ++round) {
    fake::draw(round);
    std::vector<Call> calls;
    std::vector<DeviceCompletion> completions;
    for (int i = 0; i < 24; ++i) {  // more kinds than are kept
      const auto operation = collectives::kOperations[at(i) % 7];
      calls.push_back(make_call(*group, {operation, Element::int32, Reduction::max, root_of(operation, i % 4)}, 4 * (10 + i % 12)).value());
    }
    for (const auto& call : calls) {
      completions.push_back(group->call(call.kind, call.in, call.out));
      fake::advance(round * 3);
    }
    for (const auto& completion : completions) {
      const auto done = completion.wait();
      ASSERT_TRUE(done) << done.error().what;
      EXPECT_TRUE(completion.ready());
    }
    for (const auto& call : calls) ASSERT_TRUE(expect_right(*group, call));
  }
}

TEST_F(DeviceGroups, ReadsLikeNccl) {
  fake::devices(3);
  auto group = open(collectives::builtin_topology("complete-3").value()).value();
  std::vector<std::shared_ptr<std::byte>> memory;
  std::vector<float*> buffers;
  for (int rank = 0; rank < 3; ++rank) {
    memory.push_back(group->peers().allocate(rank, 12).value());
    buffers.push_back(reinterpret_cast<float*>(memory.back().get()));
    const float values[] = {1, 2, static_cast<float>(rank)};
    ASSERT_TRUE(group->peers().write(rank, buffers.back(), std::as_bytes(std::span(values))));
  }
  const auto holds = [&](int rank, std::vector<float> values) {
    std::vector<float> had(values.size());
    EXPECT_TRUE(group->peers().read(rank, buffers[at(rank)], std::as_writable_bytes(std::span(had))));
    return had == values;
  };
  const auto sum = group->allreduce(buffers, buffers, 3);
  EXPECT_FALSE(sum.ready());
  ASSERT_TRUE(sum.wait());
  EXPECT_TRUE(holds(1, {3, 6, 3}));
  ASSERT_TRUE(group->allreduce(buffers, buffers, 3, Reduction::avg).wait());
  EXPECT_TRUE(holds(2, {3, 6, 3}));
  // Parts in place, as NCCL has them: rank r's is where it lies in the whole.
  const std::vector<float*> parts{buffers[0], buffers[1] + 1, buffers[2] + 2};
  ASSERT_TRUE(group->reduce_scatter(buffers, parts, 1).wait());
  EXPECT_TRUE(holds(1, {3, 18, 3}));
  ASSERT_TRUE(group->allgather(parts, buffers, 1).wait());
  for (int rank = 0; rank < 3; ++rank) EXPECT_TRUE(holds(rank, {9, 18, 9}));
  ASSERT_TRUE(group->reduce(buffers, {nullptr, buffers[1], nullptr}, 2, Reduction::max, 1).wait());
  ASSERT_TRUE(group->scatter<float>({nullptr, buffers[1], nullptr}, parts, 1, 1).wait());
  ASSERT_TRUE(group->gather<float>(parts, {buffers[0], nullptr, nullptr}, 1, 0).wait());
  ASSERT_TRUE(group->broadcast(buffers, 3, 0).wait());
  EXPECT_TRUE(holds(2, {9, 18, 9}));
  const auto wrong = group->allreduce<float>({nullptr, nullptr, nullptr}, buffers, 3).wait();
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().what, "no input of cuda:0");
  EXPECT_EQ(group->broadcast(buffers, 3, 3).wait().error().code, ErrorCode::bad_input);
  EXPECT_EQ(group->broadcast<float>({}, 3, 0).wait().error().code, ErrorCode::bad_input);
  EXPECT_EQ(group->broadcast(buffers, -1, 0).wait().error().code, ErrorCode::bad_input);
  const auto late = group->allreduce(buffers, buffers, 3);
  group.reset();  // a call outlives its group
  EXPECT_TRUE(late.wait());
}

// What a rank's stream had on it comes first, and what comes on it later after the call; nobody waits in between.
TEST_F(DeviceGroups, FollowsTheCallersStreams) {
  for (unsigned seed = 1; seed < 10; ++seed) {
    fake::reset();
    fake::devices(2);
    fake::draw(seed);
    const auto group = open(collectives::builtin_topology("complete-2").value()).value();
    std::vector<std::shared_ptr<std::byte>> memory;
    std::vector<std::int32_t*> buffers;
    std::vector<cudaStream_t> streams(2);
    std::int32_t* pinned = nullptr;
    ASSERT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&pinned), 8, 0), cudaSuccess);
    pinned[0] = 21;
    for (int rank = 0; rank < 2; ++rank) {
      memory.push_back(group->peers().allocate(rank, 4).value());
      buffers.push_back(reinterpret_cast<std::int32_t*>(memory.back().get()));
      ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
      ASSERT_EQ(cudaStreamCreateWithFlags(&streams[at(rank)], 0), cudaSuccess);
      ASSERT_EQ(cudaMemcpyAsync(buffers.back(), pinned, 4, cudaMemcpyHostToDevice, streams[at(rank)]), cudaSuccess);
    }
    static_cast<void>(group->allreduce(buffers, buffers, 1, Reduction::sum, {streams[0], streams[1]}));
    ASSERT_EQ(cudaMemcpyAsync(pinned + 1, buffers[1], 4, cudaMemcpyDeviceToHost, streams[1]), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(streams[1]), cudaSuccess);
    EXPECT_EQ(pinned[1], 42);
    for (const auto stream : streams) static_cast<void>(cudaStreamDestroy(stream));
    static_cast<void>(cudaFreeHost(pinned));
  }
}

TEST_F(DeviceGroups, EveryFailureIsAnErrorThatNamesItAndLeaksNothing) {
  const auto links = collectives::builtin_topology("complete-3").value();
  int errors = 0;
  for (std::size_t call = 1;; ++call) {
    fake::reset();
    fake::devices(3);
    fake::fail(call);
    std::string why;
    {
      const auto group = open(links, {}, 2);
      const auto done = group ? run_call(**group, {Operation::allreduce, Element::float16, Reduction::avg, -1}, 3 * 40)
                              : Expected<void>(tl::unexpected(group.error()));
      if (!done) why = done.error().what;
    }
    ASSERT_EQ(fake::lent(), 0U) << "call " << call << ", " << fake::failed();
    ASSERT_FALSE(HasFailure()) << "call " << call << ", " << fake::failed();
    if (fake::failed().empty()) break;
    if (why.empty()) {  // in a destructor: there is nobody to tell
      EXPECT_TRUE(fake::failed() == "cudaStreamSynchronize" || fake::failed() == "cudaSetDevice") << fake::failed();
      continue;
    }
    ++errors;
    EXPECT_NE(why.find("cuda:"), std::string::npos) << why;
    if (fake::failed() != "cudaGetDeviceCount") {
      EXPECT_NE(why.find(fake::failed()), std::string::npos) << why << " for " << fake::failed();
    }
  }
  EXPECT_GT(errors, 100);
}

TEST_F(DeviceGroups, SaysWhatIsMissingAndWhatIsAssumed) {
  const auto links = collectives::dgx_1v();
  fake::devices(8);
  fake::no_peers(4, 1);
  const auto some = open(links, {1, 4, 5});
  ASSERT_TRUE(some) << some.error().what;
  EXPECT_EQ((*some)->notes(), (std::vector<std::string>{"cuda:4 cannot reach the memory of cuda:1: the driver stages what it copies there"}));
  ASSERT_TRUE(run_call(**some, {Operation::allreduce, Element::int64, Reduction::sum, -1}, 300));
  EXPECT_EQ((*some)->plan(Operation::broadcast, 0).value().participants, (std::vector<int>{1, 4, 5}));
  // 0 and 7 of a DGX-1V have no link, and no other GPU may pass on for them.
  EXPECT_EQ(open(links, {0, 7}).error().code, ErrorCode::bad_input);
  EXPECT_NE(open(links, {0, 8}).error().what.find("cuda:8"), std::string::npos);
  EXPECT_NE(open(collectives::builtin_topology("star-2").value(), {0, 2}).error().what.find("none for cuda:2"), std::string::npos);
  const auto here = DeviceGroup::open({.devices = {2, 3}, .open = gpu::open_fake_peers});  // NVML knows of none like these
  ASSERT_TRUE(here) << here.error().what;
  ASSERT_EQ((*here)->notes().size(), 1U);
  EXPECT_NE((*here)->notes()[0].find("assumed"), std::string::npos);
  ASSERT_TRUE(run_call(**here, {Operation::allreduce, Element::int64, Reduction::sum, -1}, 300));
}

}  // namespace
}  // namespace coppice::runtime
