// Inference by the CUDA device's own code on a made-up CUDA: its numbers, its order, its memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "gpu/training.hpp"
#include "tests/gpu/cuda_case.hpp"
#include "tests/gpu/cuda_nets.hpp"
#include "tests/gpu/reference.hpp"

using namespace coppice::gpu;

namespace {

constexpr double kExact = 1e-4, kHalf = 2e-2;

class CudaNet : public testing::Test {
 protected:
  void SetUp() override { fake::reset(); }
  void TearDown() override { EXPECT_EQ(fake::lent(), 0U); }
};

// Two runs with different numbers, so that nothing left over from the first can pass.
void expect_as_reference(Device& device, const Network& net, int batch, double tolerance) {
  SCOPED_TRACE(net.name + " on " + device.name() + ", batch " + std::to_string(batch));
  auto compiled = device.compile(net, {batch});
  ASSERT_TRUE(compiled) << compiled.error().what;
  for (const std::uint64_t seed : {1U, 2U}) {
    const auto input = random_input(net, batch, seed);
    std::vector<float> output(static_cast<std::size_t>((*compiled)->output_elements()));
    const auto ran = (*compiled)->run(input, output);
    ASSERT_TRUE(ran) << ran.error().what;
    EXPECT_LE(reference::error(output, reference::forward(net, input)), tolerance);
  }
}

TEST_F(CudaNet, GivesWhatTheReferenceGives) {
  for (const auto precision : {Precision::float32, Precision::tf32, Precision::float16})
    for (const auto& net : operator_nets())
      for (const int batch : {1, 3, 10})
        expect_as_reference(*cuda(precision), net, batch, precision == Precision::float16 ? kHalf : kExact);
}

TEST_F(CudaNet, ComputesWithValues) {
  for (const auto precision : {Precision::float32, Precision::tf32, Precision::float16})
    for (const int batch : {1, 3})
      expect_as_reference(*cuda(precision), arithmetic_net(), batch, precision == Precision::float16 ? kHalf : kExact);
  const auto learns = cuda()->compile_training(arithmetic_net(), {});
  ASSERT_FALSE(learns);
  EXPECT_NE(learns.error().what.find("(Arithmetic): arithmetic, which training on a CUDA device does not take"), std::string::npos);
}

TEST_F(CudaNet, GivesWhatTheReferenceGivesOnRandomNets) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    const auto net = random_net(seed * 1'000, 1 + static_cast<int>(seed % 9));
    const auto precision = seed % 3 == 0 ? Precision::float32 : seed % 3 == 1 ? Precision::tf32 : Precision::float16;
    expect_as_reference(*cuda(precision), net, 1 + static_cast<int>(seed % 2) * 8,
                        precision == Precision::float16 ? 5e-2 : 1e-3);
  }
}

TEST_F(CudaNet, GivesTheSameByEveryWay) {
  const auto net = operator_nets().front();
  const auto described = [&](fake::Engines engines, bool older) {
    fake::reset();
    fake::engines(engines);
    if (!older) fake::refuse("cudnnConvolutionForward");
    for (const auto precision : {Precision::float32, Precision::tf32, Precision::float16})
      expect_as_reference(*cuda(precision), net, 2, precision == Precision::float16 ? kHalf : kExact);
    return cuda()->compile(net, {2}).value()->description();
  };
  using enum fake::Engines;
  EXPECT_EQ(described(all, true).find("convolutions: 4 fused"), 0U);
  EXPECT_EQ(described(with_residual, true).find("convolutions: 4 fused"), 0U);
  EXPECT_NE(described(convolution_alone, true).find(" 4 by a plan"), std::string::npos);
  EXPECT_NE(described(none, true).find(" 4 by the older call"), std::string::npos);
  EXPECT_NE(described(none, false).find(" 4 by a kernel"), std::string::npos);
}

TEST_F(CudaNet, TimedGivesTheSame) {
  for (const auto precision : {Precision::float32, Precision::float16}) {
    const auto net = operator_nets().front();
    auto compiled = cuda(precision)->compile(net, {2, true});
    ASSERT_TRUE(compiled) << compiled.error().what;
    const auto input = random_input(net, 2, 1);
    std::vector<float> output(10);
    ASSERT_TRUE((*compiled)->run(input, output));
    EXPECT_LE(reference::error(output, reference::forward(net, input)),
              precision == Precision::float32 ? kExact : kHalf);
  }
}

TEST_F(CudaNet, CountsInFloat32UnlessToldOtherwise) {
  const auto net = operator_nets().front();
  ASSERT_TRUE(cuda()->compile(net, {}));
  EXPECT_EQ(fake::count("cudnnBackendExecute (tensor cores)"), 0U);
  ASSERT_TRUE(cuda(Precision::tf32)->compile(net, {}));
  EXPECT_GT(fake::count("cudnnBackendExecute (tensor cores)"), 0U);
}

TEST_F(CudaNet, FusesAndKeepsTheOrder) {
  Builder b({2, 6, 6}, 1);
  int v = b.relu(b.conv3x3(0, 2));
  v = b.push(Clip{0, 6}, {b.add(b.conv3x3(v, 2), v)});
  v = b.push(MaxPool{{2, 2, 2, 2, 0, 0, 0, 0}}, {v});
  b.dense(b.flatten(v), 3);
  ASSERT_TRUE(cuda()->compile(b.net, {}));
  const std::vector<std::string> wanted{"cudnnBackendExecute", "cudnnBackendExecute", "Pool",
                                        "RowProducts",         "cudaMemcpyAsync",     "cudaStreamEndCapture"};
  std::vector<std::string> had;  // of the capture: what runs each time
  const auto begin = std::ranges::find(fake::calls(), "cudaStreamBeginCapture");
  for (auto call = begin; call != fake::calls().end() && had.size() < wanted.size(); ++call)
    if (std::ranges::count(wanted, *call) && call != begin + 1) had.push_back(*call);
  EXPECT_EQ(had, wanted);
}

TEST_F(CudaNet, IsCapturedOnceAndOnlyReplayed) {
  const auto net = operator_nets().front();
  auto compiled = cuda()->compile(net, {2}).value();
  EXPECT_EQ(fake::count("cudaStreamBeginCapture"), 1U);
  EXPECT_EQ(fake::count("cudaGraphInstantiateWithFlags"), 1U);
  const auto input = random_input(net, 2, 1);
  std::vector<float> output(10);
  fake::reset();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(compiled->run(input, output));
  const std::vector<std::string> once{"cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"};
  ASSERT_EQ(fake::calls().size(), 9U);
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(fake::calls()[i], once[i % 3]);
}

TEST_F(CudaNet, RunsStepByStepWhereCaptureIsRefused) {
  for (const auto* call :
       {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphLaunch"}) {
    fake::reset();
    fake::refuse(call);
    expect_as_reference(*cuda(), operator_nets().front(), 2, kExact);
    EXPECT_EQ(fake::count("cudaGraphLaunch"), std::string(call) == "cudaGraphLaunch" ? 1U : 0U);
  }
}

TEST_F(CudaNet, SharesThePlanOfEqualConvolutions) {
  Builder b({4, 6, 6}, 1);
  int v = b.relu(b.conv3x3(0, 4));
  for (int i = 0; i < 5; ++i) v = b.relu(b.conv3x3(v, 4));
  const auto made = cuda()->compile(b.net, {});
  ASSERT_TRUE(made);
  EXPECT_EQ(fake::count("cudnnBackendExecute"), 1U + 2U * 6U);  // one trial, then once plainly and once captured
}

// A deep chain needs no more memory than two of its values.
TEST_F(CudaNet, ValuesShareTheArena) {
  Builder b({4, 8, 8}, 1);
  int v = b.relu(b.conv3x3(0, 4));
  for (int i = 0; i < 20; ++i) v = b.relu(b.conv3x3(v, 4));
  const auto text = cuda()->compile(b.net, {}).value()->description();
  EXPECT_NE(text.find("arena of " + std::to_string(2 * 4 * 8 * 8 * 4) + " bytes"), std::string::npos) << text;
}

// Each failing call either surfaces by its name, or another way is found and gives the right numbers; never a leak.
TEST_F(CudaNet, SurvivesTheFailureOfAnyCall) {
  Builder b({2, 3, 3}, 1);
  b.relu(b.conv3x3(0, 2));
  const auto nets = operator_nets();
  for (const auto& [net, timed] : {std::pair(nets[0], false), std::pair(nets[2], false), std::pair(b.net, true)})
    for (const auto precision : {Precision::float32, Precision::float16})
      for (std::size_t call = 1;; call += timed ? 17 : 1) {  // timing makes thousands of calls, most of them alike
        fake::reset();
        fake::fail(call);
        const auto input = random_input(net, 2, 1);
        std::string why;
        {
          const std::unique_ptr<Device> device(coppice_cuda_device_v2(0, precision, &why));
          auto compiled =
              device ? device->compile(net, {2, timed}) : unexpected(Error{ErrorCode::device_unavailable, why});
          if (compiled) {
            std::vector<float> output(static_cast<std::size_t>((*compiled)->output_elements()));
            const auto ran = (*compiled)->run(input, output);
            if (ran) {
              EXPECT_LE(reference::error(output, reference::forward(net, input)),
                        precision == Precision::float16 ? kHalf : kExact);
            }
            why = ran ? "" : ran.error().what;
          } else {
            why = compiled.error().what;
          }
        }
        ASSERT_EQ(fake::lent(), 0U) << "call " << call << ", " << fake::failed();
        if (fake::failed().empty()) break;
        if (!why.empty() && fake::failed() != "cudaGetDeviceCount" && fake::failed().find("cuda") == 0) {
          EXPECT_NE(why.find(fake::failed()), std::string::npos) << why << " for " << fake::failed();
        }
      }
}

TEST_F(CudaNet, NetsOfOneDeviceRunSideBySide) {
  const auto device = cuda();
  const auto net = operator_nets().front();
  const auto input = random_input(net, 2, 1), wanted = reference::forward(net, input);
  std::vector<std::thread> threads;
  std::vector<double> errors(3, 1);
  for (auto& error : errors)
    threads.emplace_back([&] {
      auto compiled = device->compile(net, {2}).value();
      std::vector<float> output(10);
      for (int i = 0; i < 20 && compiled->run(input, output); ++i) error = reference::error(output, wanted);
    });
  for (auto& thread : threads) thread.join();
  for (const double error : errors) EXPECT_LE(error, kExact);
}

TEST_F(CudaNet, RefusesWrongSizes) {
  auto compiled = cuda()->compile(operator_nets().front(), {2}).value();
  std::vector<float> input(3), output(10);
  const auto ran = compiled->run(input, output);
  ASSERT_FALSE(ran);
  EXPECT_EQ(ran.error().code, ErrorCode::shape_mismatch);
  EXPECT_FALSE(cuda()->compile(operator_nets().front(), {0}));
  EXPECT_FALSE(cuda()->compile(operator_nets().front(), {1 << 20}));
}

TEST_F(CudaNet, RefusesThreeSpatialAxes) {
  Builder b({2, 3, 3, 3}, 1);
  b.relu(b.conv(0, {}, 2));
  for (const auto& why : {cuda()->compile(b.net, {1}).error(), cuda()->compile_training(b.net, {.batch = 1}).error()}) {
    EXPECT_EQ(why.code, ErrorCode::unsupported_operator);
    EXPECT_NE(why.what.find("node node0 (Convolution): three spatial axes"), std::string::npos) << why.what;
  }
}

TEST_F(CudaNet, RefusesToGiveNothing) {
  Builder b({2, 3, 3}, 1);
  b.push(Slice{0, 1, 1}, {0});
  const auto made = cuda()->compile(b.net, {1});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::unsupported_operator);
  EXPECT_NE(made.error().what.find("node node0"), std::string::npos) << made.error().what;
}

TEST_F(CudaNet, HasThreePrecisions) {
  for (const auto* spec : {"cuda:0:", "cuda:0:bf16", "cuda:0:fp16:tf32", "cuda::tf32", "cuda:tf32"})
    EXPECT_NE(make_device(spec, {}).error().what.find("expected cpu, cuda:N"), std::string::npos) << spec;
  // No machine has so many: the name is understood, the GPU is not there.
  for (const auto* spec : {"cuda:97", "cuda:97:tf32", "cuda:97:fp16"})
    EXPECT_EQ(make_device(spec, {}).error().what.find("expected"), std::string::npos) << spec;
}

TEST_F(CudaNet, SaysWhichGpusThereAre) {
  std::string why;
  EXPECT_EQ(coppice_cuda_device_v2(7, Precision::float32, &why), nullptr);
  EXPECT_EQ(why, "the GPUs here are cuda:0 to cuda:1");
  EXPECT_EQ(coppice_cuda_device_v2(1, Precision::float32, &why), nullptr);
  EXPECT_EQ(why, "its compute capability is 7.0, 7.5 is needed");
  EXPECT_EQ(cuda(Precision::tf32)->name(), "cuda:0:tf32");
  EXPECT_EQ(cuda(Precision::float16)->name(), "cuda:0:fp16");
}

}  // namespace
