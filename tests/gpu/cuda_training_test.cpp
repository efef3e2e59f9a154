// Training by the CUDA device's own code on a made-up CUDA: gradients of every operator, steps, and what fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "tests/gpu/cuda_case.hpp"
#include "tests/gpu/cuda_nets.hpp"
#include "tests/gpu/training_reference.hpp"

using namespace coppice::gpu;

namespace {

constexpr int kBatch = 3;

class CudaTraining : public testing::Test {
 protected:
  void SetUp() override { fake::reset(); }
  void TearDown() override { EXPECT_EQ(fake::lent(), 0U); }
};

std::unique_ptr<TrainableNet> training(const Network& net, int batch = kBatch,
                                       Precision precision = Precision::float32) {
  auto made = cuda(precision)->compile_training(net, {batch});
  EXPECT_TRUE(made) << made.error().what;
  return made ? std::move(*made) : nullptr;
}

std::vector<float> random_numbers(std::int64_t count, std::uint64_t seed) { return NetSampler(seed).floats(count); }

using reference::Case;

Case make_case(const Network& net, Mode mode) {
  const auto outputs = kBatch * elements(infer_shapes(net)->back());
  return {net, random_input(net, kBatch, 7), random_numbers(outputs, 8), mode};
}

using Pairs = std::vector<std::pair<double, std::optional<double>>>;

void expect_alike(const Pairs& pairs, const std::string& what) {
  double scale = 1e-2;
  for (const auto& [had, wanted] : pairs) scale = std::max(scale, std::abs(wanted.value_or(0)));
  std::size_t kinks = 0;
  for (const auto& [had, wanted] : pairs)
    if (wanted) {
      EXPECT_NEAR(had, *wanted, 2e-3 * scale) << what;
    } else {
      ++kinks;
    }
  EXPECT_LE(kinks, pairs.size() * 4 / 5) << what;
}

void expect_gradients(const Case& c) {
  SCOPED_TRACE(c.net.name + (c.mode == Mode::train ? ", train" : ", evaluate"));
  const auto net = training(c.net);
  ASSERT_TRUE(net);
  std::vector<float> scores(c.score_gradients.size());
  ASSERT_TRUE(net->forward(c.input, scores, c.mode));
  const auto values = reference::all_values(c.net, c.input, c.mode);
  EXPECT_LE(reference::error(scores, reference::flattened(values.back())), 1e-4);
  ASSERT_TRUE(net->backward(c.score_gradients));

  std::vector<float> gradients(static_cast<std::size_t>(net->parameter_elements()));
  ASSERT_TRUE(net->read_gradients(gradients));
  Network moved = c.net;
  std::size_t at = 0;
  reference::each_parameter(moved, [&](std::vector<float>& array, bool learned) {
    Pairs pairs;
    const std::size_t stride = array.size() / 24 + 1;
    for (std::size_t i = 0; i < array.size(); i += stride)
      pairs.emplace_back(gradients[at + i], learned ? reference::slope(c, moved, array[i]) : std::optional(0.0));
    expect_alike(pairs, "parameters from " + std::to_string(at));
    at += array.size();
  });
  ASSERT_EQ(at, gradients.size());

  for (int value = 0; value < static_cast<int>(values.size()); ++value) {
    const auto& batch = values[static_cast<std::size_t>(value)];
    std::vector<float> had(batch.size() * batch.front().size());
    ASSERT_TRUE(net->read_value(value, had));
    EXPECT_LE(reference::error(had, reference::flattened(batch)), 1e-4) << "value " << value;
    ASSERT_TRUE(net->read_value_gradient(value, had));
    Pairs pairs;
    for (std::size_t i = 0; i < had.size(); i += had.size() / 24 + 1)
      pairs.emplace_back(had[i], reference::slope(c, {value, i / batch.front().size(), i % batch.front().size()}));
    expect_alike(pairs, "gradient of value " + std::to_string(value));
  }
}

TEST_F(CudaTraining, GradientsAreThoseOfDifferences) {
  for (const auto& net : operator_nets())
    for (const auto mode : {Mode::train, Mode::evaluate}) expect_gradients(make_case(net, mode));
}

TEST_F(CudaTraining, GradientsOfRandomNets) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    const auto net = random_net(seed * 1'000, 1 + static_cast<int>(seed % 7));
    // Values of a thousand, as deep random nets have, leave differences nothing to show.
    if (reference::flattened(reference::all_values(net, random_input(net, kBatch, 7), Mode::train).back()).size() >
        2'000)
      continue;
    expect_gradients(make_case(net, seed % 2 ? Mode::train : Mode::evaluate));
  }
}

TEST_F(CudaTraining, GradientsAddUpUntilTheUpdate) {
  const auto c = make_case(operator_nets().front(), Mode::train);
  const auto net = training(c.net);
  std::vector<float> scores(c.score_gradients.size()), once(static_cast<std::size_t>(net->parameter_elements())),
      twice(once.size());
  ASSERT_TRUE(net->forward(c.input, scores, Mode::evaluate));
  ASSERT_TRUE(net->backward(c.score_gradients));
  ASSERT_TRUE(net->read_gradients(once));
  ASSERT_TRUE(net->backward(c.score_gradients));
  ASSERT_TRUE(net->read_gradients(twice));
  for (float& value : once) value *= 2;
  EXPECT_LE(reference::error(twice, once), 1e-5);
  ASSERT_TRUE(net->update({}));
  ASSERT_TRUE(net->read_gradients(twice));
  EXPECT_EQ(twice, std::vector<float>(twice.size(), 0.0F));
}

TEST_F(CudaTraining, RunningStatisticsFollowByATenth) {
  Builder b({4, 3, 3}, 5);
  b.norm(0);
  const auto net = training(b.net);
  const auto input = random_input(b.net, kBatch, 6);
  std::vector<float> scores(input.size());
  ASSERT_TRUE(net->forward(input, scores, Mode::evaluate));
  EXPECT_EQ(std::get<BatchNorm>(net->network(false)->nodes[0].op).mean, std::get<BatchNorm>(b.net.nodes[0].op).mean);
  ASSERT_TRUE(net->forward(input, scores, Mode::train));
  const auto before = std::get<BatchNorm>(b.net.nodes[0].op),
             after = std::get<BatchNorm>(net->network(false)->nodes[0].op);
  const auto s = reference::statistics_of(reference::to_batch(input, kBatch), 4);
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(after.mean[c], 0.9 * before.mean[c] + 0.1 * s.mean[c], 1e-5);
    EXPECT_NEAR(after.variance[c], 0.9 * before.variance[c] + 0.1 * s.variance[c] * 27 / 26, 1e-5);
  }
}

TEST_F(CudaTraining, StepsAsTheFormulaSays) {
  Builder b({2, 3, 3}, 9);
  b.norm(b.conv3x3(0, 2));
  const auto net = training(b.net);
  const auto count = static_cast<std::size_t>(net->parameter_elements());
  auto wanted = net->state().value();
  for (const bool nesterov : {true, true, false}) {
    const SgdStep step{0.1F, 0.9F, 0.01F, nesterov, 0.75F};
    const auto gradients = random_numbers(static_cast<std::int64_t>(count), 3);
    ASSERT_TRUE(net->write_gradients(gradients));
    ASSERT_TRUE(net->update(step));
    if (wanted.average.empty()) wanted.average = wanted.weights;
    for (std::size_t i = 0; i < count; ++i) {
      auto& w = wanted.weights[i];
      if (i < 36 + 2 + 4) {                                                      // what follows are running statistics
        const float g = gradients[i] + (i < 36 ? step.weight_decay * w : 0.0F);  // biases and norms do not decay
        auto& v = wanted.velocity[i];
        v = step.momentum * v + g;
        w -= step.rate * (nesterov ? g + step.momentum * v : v);
      }
      wanted.average[i] = step.average_decay * wanted.average[i] + (1 - step.average_decay) * w;
    }
    const auto had = net->state().value();
    EXPECT_LE(reference::error(had.weights, wanted.weights), 1e-6);
    EXPECT_LE(reference::error(had.velocity, wanted.velocity), 1e-6);
    EXPECT_LE(reference::error(had.average, wanted.average), 1e-6);
  }
  const auto averaged = net->network(true).value();
  EXPECT_NEAR(std::get<Convolution>(averaged.nodes[0].op).weight[5], wanted.average[5], 1e-6);
  EXPECT_NEAR(std::get<BatchNorm>(averaged.nodes[1].op).variance[1], wanted.average[count - 1], 1e-6);
}

// Classes by the sign of the first pixel; the gradient is that of a squared error.
double step(TrainableNet& net, std::uint64_t seed, const SgdStep& how) {
  const auto input = random_numbers(net.input_elements(), seed);
  std::vector<float> scores(static_cast<std::size_t>(net.output_elements())), gradients(scores.size());
  EXPECT_TRUE(net.forward(input, scores, Mode::train));
  const auto item = input.size() / scores.size();
  double loss = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float off = scores[i] - (input[i * item] > 0 ? 1.0F : -1.0F);
    gradients[i] = 2 * off / static_cast<float>(scores.size());
    loss += off * off / static_cast<double>(scores.size());
  }
  EXPECT_TRUE(net.backward(gradients));
  EXPECT_TRUE(net.update(how));
  return loss;
}

Network learner() {
  Builder b({1, 4, 4}, 11);
  const int v = b.relu(b.norm(b.conv3x3(0, 6)));
  b.dense(b.flatten(v), 1);
  return b.net;
}

TEST_F(CudaTraining, LearnsAndGoesOnFromAState) {
  const auto net = training(learner(), 32);
  const SgdStep how{0.05F, 0.9F, 1e-4F, true, 0.9F};
  double first = 0, last = 0;
  for (std::uint64_t i = 0; i < 60; ++i) {
    const double loss = step(*net, i, how);
    if (i < 10) first += loss;
    if (i >= 50) last += loss;
  }
  EXPECT_LT(last, 0.5 * first);
  const auto other = training(learner(), 32);
  ASSERT_TRUE(other->restore(net->state().value()));
  for (std::uint64_t i = 60; i < 65; ++i) EXPECT_EQ(step(*net, i, how), step(*other, i, how));
  const auto a = net->state().value(), b = other->state().value();
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.velocity, b.velocity);
  EXPECT_EQ(a.average, b.average);
}

TEST_F(CudaTraining, IsCapturedOnceAPassAndOnlyReplayed) {
  const auto net = training(learner(), 32);
  EXPECT_EQ(fake::count("cudaStreamBeginCapture"), 4U);  // both passes in both modes
  fake::reset();
  step(*net, 1, {});
  EXPECT_EQ(fake::count("cudaGraphLaunch"), 2U);
  EXPECT_EQ(fake::count("Descent"), 1U);
  EXPECT_EQ(fake::count("Pointwise") + fake::count("cudnnConvolutionForward"), 0U);
}

TEST_F(CudaTraining, TrainsStepByStepWhereCaptureIsRefused) {
  fake::refuse("cudaStreamBeginCapture");
  for (const auto& net : operator_nets()) expect_gradients(make_case(net, Mode::train));
  EXPECT_EQ(fake::count("cudaGraphLaunch"), 0U);
}

TEST_F(CudaTraining, RefusesWhatDoesNotFit) {
  const auto net = training(learner(), 2);
  std::vector<float> input(32), scores(2), none;
  EXPECT_EQ(net->backward(scores).error().code, ErrorCode::shape_mismatch);  // nothing went forward yet
  EXPECT_FALSE(net->forward(none, scores, Mode::train));
  EXPECT_FALSE(net->forward(input, none, Mode::train));
  EXPECT_FALSE(net->read_value(-1, input));
  EXPECT_FALSE(net->read_value(99, input));
  EXPECT_FALSE(net->read_value_gradient(0, none));
  EXPECT_FALSE(net->read_gradients(none));
  EXPECT_FALSE(net->write_gradients(none));
  EXPECT_FALSE(net->restore({}));
  EXPECT_FALSE(cuda()->compile_training(learner(), {0}));
}

TEST_F(CudaTraining, NothingLeaksWhicheverCallFails) {
  const auto c = make_case(operator_nets().front(), Mode::train);
  for (std::size_t call = 1;; ++call) {
    fake::reset();
    fake::fail(call);
    std::string why;
    {
      const std::unique_ptr<Device> device(coppice_cuda_device_v2(0, Precision::float32, &why));
      auto net =
          device ? device->compile_training(c.net, {kBatch}) : unexpected(Error{ErrorCode::device_unavailable, why});
      std::vector<float> scores(c.score_gradients.size());
      Expected<void> done;
      if (!net) done = unexpected(net.error());
      if (done) done = (*net)->forward(c.input, scores, Mode::train);
      if (done) done = (*net)->backward(c.score_gradients);
      if (done) done = (*net)->update({0.1F, 0.9F, 0, true, 0.5F});
      if (done) {
        if (const auto state = (*net)->state(); !state) done = unexpected(state.error());
      }
      why = done ? "" : done.error().what;
    }
    ASSERT_EQ(fake::lent(), 0U) << "call " << call << ", " << fake::failed();
    if (fake::failed().empty()) break;
    if (!why.empty() && fake::failed() != "cudaGetDeviceCount" && fake::failed().find("cudaGet") != 0) {
      EXPECT_TRUE(why.find(fake::failed()) != std::string::npos ||
                  why.find("kernel: made to fail") != std::string::npos ||
                  why.find("no algorithm") != std::string::npos)
          << why << " for " << fake::failed();
    }
  }
}

}  // namespace
