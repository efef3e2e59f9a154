#include "runtime/replay.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "coding/base64.hpp"
#include "runtime/sha256.hpp"

namespace coppice::runtime {
namespace {

using nlohmann::json;

const std::vector<float> kFirst{1, 2, 3}, kSecond{1, 2, 4};

json recording() {
  const std::vector<float> scores{0.5F, -1, 7, 8};
  const auto name = [](const std::vector<float>& item) { return sha256(std::as_bytes(std::span(item))).substr(0, 16); };
  return {{"schema", 1},
          {"net", "a.onnx"},
          {"input", 3},
          {"outputs", 2},
          {"items", {name(kFirst), name(kSecond)}},
          {"scores", {{"shape", {2, 2}}, {"float32", coding::base64_encode(std::as_bytes(std::span(scores)))}}},
          {"service_us", {2'000, 0}}};
}

TEST(Replay, SaysWhatWasRecordedNoEarlierThanItTook) {
  const auto net = ReplayNet::parse(recording().dump(), "r.json");
  ASSERT_TRUE(net) << net.error().what;
  EXPECT_EQ((*net)->input_elements(), 3U);
  EXPECT_EQ((*net)->outputs(), 2U);
  actors::Floats scores;
  const auto begun = std::chrono::steady_clock::now();
  ASSERT_FALSE((*net)->run(kFirst, scores));
  EXPECT_GE(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(2));
  EXPECT_EQ(scores, (actors::Floats{0.5F, -1}));
  ASSERT_FALSE((*net)->run(kSecond, scores));
  EXPECT_EQ(scores, (actors::Floats{7, 8}));
  const std::vector<float> other{1, 2, 5};
  EXPECT_TRUE((*net)->run(other, scores)) << "nothing is made up for an item that was not recorded";
}

TEST(Replay, EveryFaultNamesTheField) {
  const auto refused = [](const char* pointer, const json& value, const char* says) {
    auto object = recording();
    object[json::json_pointer(pointer)] = value;
    const auto net = ReplayNet::parse(object.dump(), "r.json");
    ASSERT_FALSE(net) << pointer;
    EXPECT_EQ(net.error().what.find("r.json: "), 0U);
    EXPECT_NE(net.error().what.find(says), std::string::npos) << net.error().what;
  };
  refused("/schema", 2, "schema");
  refused("/input", 0, "input");
  refused("/outputs", 3, "scores.float32");
  refused("/outputs", -1, "outputs");
  refused("/items", {"xy", "z"}, "items");
  refused("/items", 5, "items");
  refused("/service_us", json::array({1}), "service_us");
  refused("/service_us", {1, -1}, "service_us");
  refused("/scores/float32", "!!!!", "scores.float32");
  refused("/scores", 1, "scores.float32");
  auto twice = recording();
  twice["items"][1] = twice["items"][0];
  EXPECT_FALSE(ReplayNet::parse(twice.dump(), "r.json"));
  EXPECT_FALSE(ReplayNet::parse("[[[[[[[[", "r.json"));
  EXPECT_FALSE(ReplayNet::parse(std::string(10'000, '['), "r.json"));
  EXPECT_FALSE(ReplayNet::load("/nowhere/r.json"));
}

}  // namespace
}  // namespace coppice::runtime
